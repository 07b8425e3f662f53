"""Endpoints of other servers' apps: requests as those apps send them, answers as they read them."""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import requests
from fake_runner import FakeRunner, Play

from hansard import __version__
from hansard.errors import AudioError
from hansard.server.apps import asr, pcm
from hansard.transcript import SAMPLE_RATE, Transcript

if TYPE_CHECKING:
    from conftest import Serve, Server

pytestmark = pytest.mark.timeout(60)

TEXT = "good morning hello"


def test_transcribe(server: Server, runner: FakeRunner) -> None:
    fields = {"model": "whisper-1", "language": "en"}
    answer = server.http.post("/transcribe", files={"file": ("a.wav", b"sound")}, data=fields)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["text"], told["language"]) == (TEXT, "en")
    assert told["segments"][0] == {"start": 0.5, "end": 2.0, "text": "good morning", "speaker": "SPEAKER_00"}
    asked = runner.calls[0].request
    assert (runner.calls[0].content, asked.model, asked.language) == (b"sound", None, "en")


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize(
    ("address", "task"), [("/api/audio/transcribe", "transcribe"), ("/api/diarization/process", "diarization")]
)
def test_the_api_takes_a_form_or_json(serve: Serve, runner: FakeRunner, address: str, task: str, as_file: bool) -> None:
    server = serve(device="cpu")
    form: dict[str, Any] = {"files": {"file": b"sound"}, "data": {"diarization": "true"}}
    body: dict[str, Any] = {"json": {"audio": "https://example.com/a.mp3", "diarization": True}}
    answer = server.http.post(address, **(form if as_file else body))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["runtime"]["details"] == {"sample_rate": 16_000, "device": "cpu", "model": "fake"}
    assert [segment["speaker"] for segment in told["segments"]] == ["SPEAKER_00", "SPEAKER_01"]
    assert ("text" in told["segments"][0], told.get("text")) == (
        (True, TEXT) if task == "transcribe" else (False, None)
    )
    asked = runner.calls[0].request
    assert (asked.task, asked.diarization) == (task, True)


def test_errors_have_their_status(server: Server, runner: FakeRunner) -> None:
    runner.plays.append(Play(AudioError("this recording cannot be used")))
    answer = server.http.post("/transcribe", files={"file": b"sound"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_audio")
    other = server.http.post("/api/diarization/process", files={"file": b"sound"}, data={"task": "translate"})
    assert (other.status_code, "task is always diarization here" in other.json()["error"]["message"]) == (400, True)
    strange = server.http.post("/transcribe", files={"file": b"sound"}, data={"word_times": "1"})
    assert (strange.status_code, "word_times" in strange.json()["error"]["message"]) == (400, True)
    assert not list(server.core.uploads.iterdir())


@pytest.mark.parametrize(
    ("given", "model"),
    [({"default_model": "small"}, "small"), ({"device": "cpu"}, "sphinx"), ({"runpod_endpoint_id": "x"}, None)],
)
def test_health_and_status_need_no_key(serve: Serve, given: dict[str, Any], model: str | None) -> None:
    server = serve(api_keys=("key",), **given)
    assert server.http.get("/health").json() == {"status": "ok", "model": model}
    assert server.http.get("/status").json() == {"version": __version__}
    for address in ("/asr", "/detect-language", "/transcribe", "/api/audio/transcribe", "/api/diarization/process"):
        assert server.http.post(address, files={"file": b"sound"}).status_code == 401


def samples(seconds: float) -> bytes:
    """Headerless 16-bit sound, each sample another number than its neighbours."""
    return np.arange(int(seconds * SAMPLE_RATE), dtype="<u2").tobytes()


def frames(wav: bytes | None) -> tuple[tuple[int, int, int], bytes]:
    """Channels, bytes of a sample and rate of a WAV file, and its samples."""
    with wave.open(io.BytesIO(wav or b"")) as file:
        kind = (file.getnchannels(), file.getsampwidth(), file.getframerate())
        return kind, file.readframes(file.getnframes())


def test_as_bazarr_asks(server: Server, runner: FakeRunner) -> None:
    """Samples without a header in a part named by requests itself; the body is the subtitles."""
    pcm_bytes = samples(1)
    with requests.Session() as session:
        session.trust_env = False
        query = {"task": "transcribe", "language": "en", "output": "srt", "encode": "false", "video_file": "a film"}
        answer = session.post(f"{server.url}/asr", params=query, files={"audio_file": pcm_bytes}, timeout=(5, 60))
        assert answer.content.startswith(b"1\n00:00:00,500 --> 00:00:02,000\n")
        heard = session.post(
            f"{server.url}/detect-language",
            params={"encode": "false"},
            files={"audio_file": pcm_bytes},
            timeout=(5, 60),
        ).json()
    assert (heard["language_code"], heard["detected_language"], heard["confidence"]) == ("en", "English", 0.97)
    assert [frames(call.content) for call in runner.calls] == [((1, 2, 16_000), pcm_bytes)] * 2
    assert (runner.calls[0].request.language, runner.calls[0].request.output_formats) == ("en", ["srt"])
    jobs = server.http.get("/v1/jobs").json()["jobs"]
    assert [job["metadata"] for job in jobs] == [{}, {"video_file": "a film"}]


def test_as_speakr_asks(serve: Serve, runner: FakeRunner) -> None:
    """Every option that it may send, True and False as httpx writes them, its key in the address."""
    server = serve(api_keys=("secret",))
    query: dict[str, Any] = {
        "encode": True,
        "task": "transcribe",
        "output": "json",
        "language": "en",
        "diarize": True,
        "enable_diarization": True,
        "min_speakers": 1,
        "max_speakers": 3,
        "initial_prompt": "a prompt",
        "hotwords": "Speakr",
        "model": "large-v3",
    }
    address = server.url.replace("http://", "http://anybody:secret@") + "/asr"
    with httpx.Client(trust_env=False) as client:
        answer = client.post(address, params=query, files={"audio_file": ("a.mp3", b"sound", "audio/mpeg")}, timeout=60)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["text"], told["language"]) == (TEXT, "en")
    assert [segment["speaker"] for segment in told["segments"]] == ["SPEAKER_00", "SPEAKER_01"]
    asked = runner.calls[0].request
    assert (asked.diarization, asked.min_speakers, asked.max_speakers) == (True, 1, 3)
    assert (asked.prompt, asked.hotwords, asked.model, asked.language) == ("a prompt", "Speakr", "large-v3", "en")


@pytest.mark.parametrize("output", ["txt", "vtt", "tsv", "srt"])
def test_asr_is_text_unless_json_is_asked_for(server: Server, runner: FakeRunner, output: str) -> None:
    starts = {"txt": "SPEAKER_00: good", "vtt": "WEBVTT", "tsv": "start\tend", "srt": "1\n00:"}
    query = {"output": output, "word_timestamps": "true", "vad_filter": "true"}
    answer = server.http.post("/asr", params=query, files={"audio_file": b"sound"})
    assert answer.text.startswith(starts[output])
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (runner.calls[0].request.output_formats, runner.calls[0].request.align_output) == ([output], True)
    assert server.http.post("/asr", files={"audio_file": b"more"}).text.startswith(starts["txt"])


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"vad_filter": "false"}, "vad_filter"),
        ({"return_speaker_embeddings": "true"}, "return_speaker_embeddings"),
        ({"diarize": "true", "enable_diarization": "false"}, "enable_diarization"),
        ({"output": "docx"}, "output"),
        ({"task": "summarise"}, "task"),
        ({"beams": "5"}, "beams"),
        ({"language": "klingon"}, "language"),
        ({"min_speakers": "2"}, "min_speakers"),
    ],
)
def test_what_asr_cannot_do_is_refused_by_name(server: Server, query: dict[str, str], told: str) -> None:
    answer = server.http.post("/asr", params=query, files={"audio_file": b"sound"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert told in error["message"] + str(error["param"])
    assert not list(server.core.uploads.iterdir())


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"files": {"file": b"sound"}}, "audio_file"),
        ({"json": {"audio": "https://example.com/a.mp3"}}, "audio_file"),
        ({"files": {"audio_file": b"sound"}, "data": {"language": "en"}}, "language is not taken in the body"),
        ({"files": {"audio_file": b"x"}, "params": {"encode": "false"}}, "not even one sample"),
    ],
)
def test_a_body_that_is_no_recording_is_refused(server: Server, body: dict[str, Any], told: str) -> None:
    answer = server.http.post("/asr", **body)
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]["message"]
    assert not list(server.core.uploads.iterdir())


def test_a_header_that_is_there_is_believed(server: Server, runner: FakeRunner) -> None:
    """Also an odd last byte is no sample."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((2, 2, 8_000, 0, "NONE", ""))
        file.writeframes(samples(0.1))
    for content in (target.getvalue(), samples(0.1) + b"x"):
        server.http.post("/asr", params={"encode": "false"}, files={"audio_file": content})
    assert runner.calls[0].content == target.getvalue()
    assert frames(runner.calls[1].content)[1] == samples(0.1)


def test_the_language_of_a_long_film_is_told_by_pieces(server: Server, runner: FakeRunner) -> None:
    """From its beginning to its end, each as it is in the film; the whole film is another job."""
    film = samples(400)
    server.http.post("/detect-language", params={"encode": "false"}, files={"audio_file": film})
    heard = frames(runner.calls[0].content)[1]
    piece = pcm.PIECE_S * SAMPLE_RATE * 2
    assert len(heard) == pcm.PIECES * piece
    assert (heard[:piece], heard[-piece:]) == (film[:piece], film[-piece:])
    middle = heard[2 * piece : 3 * piece]
    assert film.find(middle) % 2 == 0
    server.http.post("/asr", params={"encode": "false"}, files={"audio_file": film})
    assert len(frames(runner.calls[1].content)[1]) == len(film)


def test_a_language_that_is_not_sure_says_so(serve: Serve) -> None:
    unsure = Transcript((), (), "haw", None, 1.0, "fake", {}, ("the language was not detected",))
    server = serve(FakeRunner(otherwise=Play(unsure)))
    told = server.http.post("/detect-language", files={"audio_file": b"sound"}).json()
    assert told == {
        "detected_language": "Hawaiian",
        "language_code": "haw",
        "confidence": None,
        "warnings": ["the language was not detected"],
    }
    assert asr.name_of("xx") == "xx"


def test_the_same_question_twice_is_one_job(server: Server, runner: FakeRunner) -> None:
    """An app that lost patience and asks again."""
    gate = runner.gated()
    with httpx.Client(base_url=server.url, trust_env=False, timeout=1) as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.post("/asr", files={"audio_file": b"sound"})
    gate.set()
    assert server.http.post("/asr", files={"audio_file": b"sound"}).status_code == 200
    assert len(runner.calls) == 1
