"""Endpoints of other servers' apps: requests as those apps send them, answers as they read them."""

from __future__ import annotations

import asyncio
import errno
import io
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import requests
import soundfile
from fake_runner import TRANSCRIPT, FakeRunner, Play

from hansard import __version__
from hansard.errors import AudioError, CancelledError
from hansard.server.apps import asr, pcm
from hansard.server.multipart import Upload
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE, Report, Transcript

if TYPE_CHECKING:
    from conftest import Serve, Server

pytestmark = pytest.mark.timeout(60)

TEXT = "good morning hello"
MADE_UP = list(TRANSCRIPT.warnings)
IMPATIENT = {"x-stainless-read-timeout": "0.4"}
TASKS = ("transcribe", "translate", "diarization", "transcription")
API = {"/api/audio/transcribe": "transcribe", "/api/diarization/process": "diarization"}


def test_transcribe(server: Server, runner: FakeRunner) -> None:
    fields = {"model": "whisper-1", "language": "en"}
    answer = server.http.post("/transcribe", files={"file": ("a.wav", b"sound")}, data=fields)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["text"], told["language"]) == (TEXT, "en")
    assert told["segments"][0] == {"start": 0.5, "end": 2.0, "text": "good morning", "speaker": "SPEAKER_00"}
    asked = runner.calls[0].request
    assert (runner.calls[0].content, asked.model, asked.language) == (b"sound", None, "en")


@pytest.mark.parametrize("task", TASKS)
def test_transcribe_does_every_task(server: Server, runner: FakeRunner, task: str) -> None:
    unsaid = Transcript(TRANSCRIPT.segments, TRANSCRIPT.turns, "fr", 0.9, 3.5, "fake", {}, ("a warning",))
    runner.otherwise = Play(unsaid)
    answer = server.http.post("/transcribe", files={"file": b"sound"}, data={"task": task})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert runner.calls[0].request.task == task
    assert [segment["start"] for segment in told["segments"]] == [0.5, 2.5]
    assert ["text" in segment for segment in told["segments"]] == [task != "diarization"] * 2
    assert (told["language"], told["warnings"]) == ("en" if task == "translate" else "fr", ["a warning"])


def test_a_translation_is_in_the_language_that_was_asked_for(server: Server) -> None:
    fields = {"task": "translate", "target_language": "de", "output_formats": "srt"}
    told = server.http.post("/transcribe", files={"file": b"sound"}, data=fields).json()
    assert told["language"] == "de"
    assert told["srt"].startswith("1\n00:00:00,500")


@pytest.mark.parametrize("as_json", [True, False])
def test_transcribe_takes_what_apps_send_to_openai(server: Server, runner: FakeRunner, as_json: bool) -> None:
    fields = {"response_format": "json", "temperature": 0.25, "prompt": "a prompt", "language": " Auto"}
    body: dict[str, Any] = {"files": {"file": b"sound"}, "data": fields}
    if as_json:
        body = {"json": {"audio": "https://example.com/a.mp3", **fields}}
    answer = server.http.post("/transcribe", **body)
    assert answer.status_code == 200, answer.text
    asked = runner.calls[0].request
    assert (asked.temperature, asked.prompt, asked.language) == (0.25, "a prompt", None)


@pytest.mark.parametrize("format", ["text", "srt", "verbose_json", "xml"])
def test_transcribe_is_json_and_says_where_the_rest_is(server: Server, runner: FakeRunner, format: str) -> None:
    answer = server.http.post("/transcribe", files={"file": b"sound"}, data={"response_format": format})
    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert "response_format is always json here" in told
    assert "/v1/audio/transcriptions" in told
    assert runner.calls == []


@pytest.mark.parametrize("address", ["/transcribe", "/asr", "/api/audio/transcribe"])
@pytest.mark.parametrize(("language", "asked"), [("auto", None), ("AUTO", None), ("", None), ("fr", "fr")])
def test_a_language_of_auto_is_none(
    server: Server, runner: FakeRunner, address: str, language: str, asked: str | None
) -> None:
    given: dict[str, Any] = {"files": {"file": b"sound"}, "data": {"language": language}}
    if address == "/asr":
        given = {"files": {"audio_file": b"sound"}, "params": {"language": language}}
    assert server.http.post(address, **given).status_code == 200
    assert runner.calls[0].request.language == asked


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("address", API)
def test_the_api_does_one_task_each(server: Server, runner: FakeRunner, address: str, task: str) -> None:
    answer = server.http.post(address, files={"file": b"sound"}, data={"task": task})
    if task == API[address]:
        assert answer.status_code == 200, answer.text
        assert runner.calls[0].request.task == task
    else:
        assert answer.status_code == 400
        assert f"task is always {API[address]} here" in answer.json()["error"]["message"]
        assert "/v1/jobs" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "device"),
    [
        ({"device": "cpu"}, "cpu"),
        ({"device": "cuda"}, "cuda"),
        ({"runpod_endpoint_id": "x", "device": "cuda"}, "runpod"),
    ],
)
@pytest.mark.parametrize("address", API)
def test_the_api_tells_what_did_the_work(serve: Serve, given: dict[str, Any], device: str, address: str) -> None:
    answer = serve(**given).http.post(address, files={"file": b"sound"})
    assert answer.json()["runtime"]["details"]["device"] == device


def test_an_apps_key_is_a_bearer(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """WHISPER_API_KEY, as the app itself has it."""
    monkeypatch.setenv("WHISPER_API_KEY", "the key of the app")
    server = serve()
    answers = [
        server.http.post("/transcribe", files={"file": b"sound"}, headers={"Authorization": f"Bearer {key}"})
        for key in ("the key of the app", "another")
    ]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert answers[0].json()["text"] == TEXT


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize(("address", "task"), API.items())
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
    [
        ({"default_model": "small"}, "small"),
        ({"device": "cpu"}, "sphinx"),
        ({"runpod_endpoint_id": "x"}, None),
        ({"runpod_endpoint_id": "x", "default_model": "turbo"}, "turbo"),
    ],
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


def recording(seconds: int, rate: int = SAMPLE_RATE, kind: str = "FLAC") -> bytes:
    """A recording in a container, each second of another height than the others."""
    heights = np.repeat(np.arange(1, seconds + 1, dtype=np.int16) * 40, rate)
    target = io.BytesIO()
    soundfile.write(target, heights, rate, format=kind, subtype="PCM_16")
    return target.getvalue()


def seconds_in(wav: bytes | None) -> list[int]:
    """Which seconds of a `recording` a WAV file holds."""
    heights = np.frombuffer(frames(wav)[1], np.int16)
    return [round(height / 40) - 1 for height in heights[SAMPLE_RATE // 2 :: SAMPLE_RATE].tolist()]


def spread(seconds: int) -> list[int]:
    """The seconds of six pieces of 30 s from the first second to the last."""
    return [second for start in range(0, seconds - 29, (seconds - 30) // 5) for second in range(start, start + 30)]


def files_in(server: Server) -> list[Path]:
    """What lies in the folders of uploads and of work."""
    folders = (server.core.uploads, server.settings.work_dir)
    return [path for folder in folders if folder.exists() for path in folder.iterdir()]


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
            params={"encode": "false", "video_file": "a film"},
            files={"audio_file": pcm_bytes},
            timeout=(5, 60),
        ).json()
    assert (heard["language_code"], heard["detected_language"], heard["confidence"]) == ("en", "english", 0.97)
    assert [frames(call.content) for call in runner.calls] == [((1, 2, 16_000), pcm_bytes)] * 2
    assert (runner.calls[0].request.language, runner.calls[0].request.output_formats) == ("en", ["srt"])
    jobs = server.http.get("/v1/jobs").json()["jobs"]
    assert [job["metadata"] for job in jobs] == [{"video_file": "a film"}] * 2


def test_as_bazarr_asks_for_a_translation(serve: Serve) -> None:
    french = Transcript(TRANSCRIPT.segments, (), "fr", 0.9, 3.5, "fake", {}, ())
    server = serve(runner := FakeRunner(otherwise=Play(french)))
    query = {"task": "translate", "language": "fr", "output": "srt", "encode": "false"}
    answer = server.http.post("/asr", params=query, files={"audio_file": samples(1)})
    assert answer.text.startswith("1\n00:00:00,500 --> 00:00:02,000\n")
    assert (runner.calls[0].request.task, runner.calls[0].request.language) == ("translate", "fr")
    told = server.http.post("/asr", params={**query, "output": "json"}, files={"audio_file": samples(1)}).json()
    assert (told["language"], told["warnings"]) == ("en", [])
    spoken = server.http.post("/asr", params={"output": "json"}, files={"audio_file": b"sound"}).json()
    assert spoken["language"] == "fr"


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
        ({"diarize": "true", "enable_diarization": "false"}, "enable_diarization"),
        ({"output": "docx"}, "output"),
        ({"task": "summarise"}, "task"),
        ({"beams": "5"}, "beams"),
        ({"language": "klingon"}, "language"),
        ({"beams": ""}, "beams"),
        ({"encode": "perhaps"}, "encode"),
        ({"diarize": "true", "min_speakers": "0"}, "min_speakers"),
        ({"diarize": "true", "num_speakers": "2", "max_speakers": "3"}, "num_speakers"),
    ],
)
def test_what_asr_cannot_do_is_refused_by_name(server: Server, query: dict[str, str], told: str) -> None:
    answer = server.http.post("/asr", params=query, files={"audio_file": b"sound"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert told in error["message"] + str(error["param"])
    assert not list(server.core.uploads.iterdir())


@pytest.mark.parametrize("query", [{"beams": "5"}, {"task": "transcribe"}, {"encode": "perhaps"}, {"beams": ""}])
def test_an_option_that_detect_language_does_not_have_is_refused(server: Server, query: dict[str, str]) -> None:
    answer = server.http.post("/detect-language", params=query, files={"audio_file": recording(1)})
    assert answer.status_code == 400
    assert next(iter(query)) in answer.json()["error"]["message"]


EMPTY = dict.fromkeys(asr.Options.model_fields, "")


@pytest.mark.parametrize(
    "query",
    [
        EMPTY,
        {"vad_filter": "false", "encode": "true", "word_timestamps": "false", "task": "transcribe", "output": "txt"},
        {"vad_filter": "true"},
    ],
)
def test_what_only_says_a_default_changes_nothing(server: Server, runner: FakeRunner, query: dict[str, str]) -> None:
    plain = server.http.post("/asr", files={"audio_file": b"sound"})
    answer = server.http.post("/asr", params=query, files={"audio_file": b"sound"})
    assert (answer.status_code, answer.text) == (200, plain.text)
    assert answer.headers["x-warnings"] == plain.headers["x-warnings"] == MADE_UP[0]
    assert runner.calls[0].request == runner.calls[1].request
    for empty in ({"encode": ""}, {"encode": "", "video_file": ""}):
        assert server.http.post("/detect-language", params=empty, files={"audio_file": recording(1)}).status_code == 200


LEFT_OUT = [
    ({"min_speakers": "1"}, "min_speakers"),
    ({"diarize": "false", "enable_diarization": "False", "min_speakers": "1", "max_speakers": "3"}, "max_speakers"),
    ({"num_speakers": "2"}, "num_speakers"),
    ({"diarize": "true", "return_speaker_embeddings": "True"}, "return_speaker_embeddings"),
    ({"task": "translate", "word_timestamps": "true"}, "word_timestamps"),
]


@pytest.mark.parametrize(("query", "name"), LEFT_OUT)
def test_what_cannot_be_given_is_left_out_and_told(
    server: Server, runner: FakeRunner, query: dict[str, str], name: str
) -> None:
    answer = server.http.post("/asr", params={**query, "output": "json"}, files={"audio_file": b"sound"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    [left_out, made_up] = told["warnings"]
    assert (name in left_out, made_up) == (True, MADE_UP[0])
    assert [segment["text"] for segment in told["segments"]] == ["good morning", "hello"]
    assert "words" not in told["segments"][0]
    assert "speaker_embeddings" not in told
    asked = runner.calls[0].request
    assert (asked.diarization, asked.task) == (query.get("diarize") == "true", query.get("task", "transcribe"))
    assert (asked.num_speakers, asked.min_speakers, asked.max_speakers, asked.align_output) == (None, None, None, False)
    text = server.http.post("/asr", params={**query, "output": "srt"}, files={"audio_file": b"sound"})
    assert text.headers["x-warnings"] == f"{left_out}; {made_up}"


def test_a_warning_fits_a_header() -> None:
    assert asr.warned([]) == {}
    told = asr.warned(["left out: naïve\nX-Evil: 1", "x" * 1000])["X-Warnings"]
    assert told == "left out: na%C3%AFve%0AX-Evil: 1; " + "x" * (500 - len("left out: naïve\nX-Evil: 1; "))
    assert asr.warned(["half a pair: \ud800"]) == {"X-Warnings": "half a pair: %3F"}


def test_the_number_of_speakers_reaches_the_job(server: Server, runner: FakeRunner) -> None:
    query = {"enable_diarization": "true", "num_speakers": "2", "word_timestamps": "true", "output": "json"}
    told = server.http.post("/asr", params=query, files={"audio_file": b"sound"}).json()
    assert (runner.calls[0].request.diarization, runner.calls[0].request.num_speakers) == (True, 2)
    assert [word["word"] for word in told["segments"][0]["words"]] == ["good", "morning"]
    assert told["warnings"] == MADE_UP


@pytest.mark.parametrize(
    ("output", "start"), [("srt", b"1\n"), ("vtt", b"WEBVTT"), ("txt", b"SPEAKER_00"), ("json", b" ")]
)
def test_only_json_is_kept_alive_by_spaces(server: Server, runner: FakeRunner, output: str, start: bytes) -> None:
    """Every byte of a subtitle counts."""
    gate = runner.gated()
    later = threading.Timer(20 if output == "json" else 1, gate.set)
    later.start()
    files = {"audio_file": b"sound"}
    with server.http.stream("POST", "/asr", params={"output": output}, files=files, headers=IMPATIENT) as answer:
        gate.set()  # JSON has begun by now
        assert answer.read().startswith(start)
    later.cancel()
    if output == "json":
        assert answer.json()["warnings"] == MADE_UP


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


@pytest.mark.parametrize(("seconds", "rate"), [(600, SAMPLE_RATE), (200, 8_000)])
def test_the_language_of_a_long_recording_is_told_by_pieces(
    server: Server, runner: FakeRunner, seconds: int, rate: int
) -> None:
    """The same of a file with a header, whatever its rate: three minutes are heard, from all over it."""
    answer = server.http.post("/detect-language", files={"audio_file": recording(seconds, rate)})
    assert answer.status_code == 200, answer.text
    kind, heard = frames(runner.calls[0].content)
    assert (kind, len(heard)) == ((1, 2, SAMPLE_RATE), 180 * SAMPLE_RATE * 2)
    assert seconds_in(runner.calls[0].content) == spread(seconds)
    assert files_in(server) == []
    server.http.post("/transcribe", files={"file": recording(seconds, rate)})
    assert runner.calls[1].content == recording(seconds, rate)


def test_a_short_recording_is_heard_as_it_is(server: Server, runner: FakeRunner) -> None:
    for seconds in (2, 180):
        server.http.post("/detect-language", files={"audio_file": recording(seconds)})
    assert [call.content for call in runner.calls] == [recording(2), recording(180)]
    assert files_in(server) == []


def test_a_header_that_is_there_is_believed_when_the_language_is_asked(server: Server, runner: FakeRunner) -> None:
    """Whatever `encode` says."""
    wav = recording(400, 8_000, "WAV")
    server.http.post("/detect-language", params={"encode": "false"}, files={"audio_file": wav})
    assert seconds_in(runner.calls[0].content) == spread(400)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"<html>no recording</html>", "not_audio"),
        (samples(1), "not_audio"),
        (recording(200)[:60], "bad_audio"),
        (recording(400), "audio_too_long"),
    ],
    ids=["text", "samples", "cut", "long"],
)
def test_what_cannot_be_decoded_is_told_at_once(serve: Serve, runner: FakeRunner, content: bytes, code: str) -> None:
    server = serve(max_audio_hours=0.1)
    answer = server.http.post("/detect-language", files={"audio_file": content})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert runner.calls == []
    assert files_in(server) == []


@pytest.mark.parametrize(("address", "name"), [("/asr", "with_header"), ("/detect-language", "excerpt")])
def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, server: Server, address: str, name: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pcm, name, full)
    answer = server.http.post(address, params={"encode": "false"}, files={"audio_file": samples(1)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
    assert "No space left" in answer.json()["error"]["message"]
    assert files_in(server) == []


def test_decoding_ends_when_nobody_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the server stops: it does not wait for the end of a film."""
    began, ended = threading.Event(), threading.Event()

    def long(upload: Upload, settings: Settings, report: Report, *, headerless: bool) -> Upload:
        began.set()
        try:
            for _ in range(500):
                report(0.5)
                time.sleep(0.01)
        except CancelledError:
            ended.set()
            raise
        return upload

    async def left() -> None:
        upload = Upload(tmp_path / "film", "film", 3, "0" * 64)
        asking = asyncio.create_task(asr._excerpt(upload, Settings(), headerless=False))
        assert await asyncio.to_thread(began.wait, 10)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    monkeypatch.setattr(pcm, "excerpt", long)
    asyncio.run(left())
    assert ended.wait(10)


def test_a_language_that_is_not_sure_says_so(serve: Serve) -> None:
    unsure = Transcript((), (), "haw", None, 1.0, "fake", {}, ("the language was not detected",))
    server = serve(FakeRunner(otherwise=Play(unsure)))
    told = server.http.post("/detect-language", files={"audio_file": recording(1)}).json()
    assert told == {
        "detected_language": "hawaiian",
        "language_code": "haw",
        "confidence": None,
        "warnings": ["the language was not detected"],
    }


def test_the_same_bytes_with_and_without_a_header_are_two_jobs(server: Server, runner: FakeRunner) -> None:
    """While both are in flight."""
    gate = runner.gated()

    def ask(encode: str) -> int:
        return int(server.http.post("/asr", params={"encode": encode}, files={"audio_file": b"sound"}).status_code)

    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, encode) for encode in ("true", "false")]
        end = time.monotonic() + 10
        while len(server.http.get("/v1/jobs").json()["jobs"]) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        gate.set()
        assert [one.result() for one in asked] == [200, 200]
    assert sorted((call.content or b"")[:4] for call in runner.calls) == [b"RIFF", b"soun"]


def test_what_is_rewritten_has_a_digest_of_its_own(tmp_path: Path) -> None:
    def made(name: str, content: bytes) -> Upload:
        (tmp_path / name).mkdir()
        path = tmp_path / name / "recording"
        path.write_bytes(content)
        return Upload(path, name, len(content), "0" * 64)

    settings, film = Settings(work_dir=tmp_path / "work"), samples(200)
    digests = [
        pcm.with_header(made("a", film)).sha256,
        pcm.excerpt(made("b", film), settings, lambda _: None, headerless=True).sha256,
        pcm.excerpt(made("c", recording(200)), settings, lambda _: None, headerless=False).sha256,
        pcm.excerpt(made("d", recording(2)), settings, lambda _: None, headerless=False).sha256,
    ]
    assert len(set(digests)) == 4
    assert digests[3] == "0" * 64


def test_the_same_question_twice_is_one_job(server: Server, runner: FakeRunner) -> None:
    """An app that lost patience and asks again."""
    gate = runner.gated()
    with httpx.Client(base_url=server.url, trust_env=False, timeout=1) as hasty, pytest.raises(httpx.ReadTimeout):
        hasty.post("/asr", files={"audio_file": b"sound"})
    gate.set()
    assert server.http.post("/asr", files={"audio_file": b"sound"}).status_code == 200
    assert len(runner.calls) == 1
