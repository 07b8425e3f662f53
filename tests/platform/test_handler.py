"""The door called as RunPod calls it: the real handler, the real engine process, real sound."""

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile

from handler import Worker
from hansard.audio.decode import decode
from hansard.engine.host import EngineHost
from hansard.errors import RequestError, SettingsError
from hansard.request import OutputFormat, parse
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE
from places import ROOT, SHARED

pytestmark = pytest.mark.timeout(300)

Answer = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def states() -> list[dict[str, Any]]:
    """The progress of every job, in order."""
    return []


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, Any]]) -> Iterator[Answer]:
    """`answer(field=value, ...)` posts a job to one warm worker and gives what it answered."""
    import logging

    folder = tmp_path_factory.mktemp("worker")
    settings = Settings(
        work_dir=folder / "work", log_file=folder / "container_log.txt", audio_roots=(ROOT, SHARED.resolve())
    )
    before = logging.getLogger().handlers[:]
    worker = Worker(settings, echo=False)

    async def note(state: dict[str, Any]) -> None:
        states.append(state)

    with asyncio.Runner() as runner:

        def ask(**fields: Any) -> dict[str, Any]:
            states.clear()
            answered = runner.run(worker.handle({"id": "t1", "input": fields}, note))
            json.dumps(answered, allow_nan=False)
            assert not list((folder / "work").glob("hansard-*/job-*")), "a job left files behind"
            return answered

        yield ask
    worker.close()
    logging.getLogger().handlers[:] = before
    assert not list((folder / "work").iterdir()), "the worker left files behind"


@pytest.fixture(scope="module")
def short(meeting: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first sentence of the meeting: for jobs that only have to be done."""
    folder = tmp_path_factory.mktemp("short")
    return wav(decode(meeting, folder, lambda _: None).samples[0, : 4 * SAMPLE_RATE], folder / "short.wav")


def texts_by_speaker(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(segment["speaker"], segment["text"]) for segment in result["segments"]]


def wav(samples: np.ndarray, path: Path) -> str:
    """The samples as a data URI of a WAV file."""
    soundfile.write(path, samples, SAMPLE_RATE)
    return "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode()


def test_test_input_says_who_said_what(answer: Answer, meeting_truth: list[dict[str, Any]]) -> None:
    """The job that a deploy is tried with: every word, every speaker, words inside their segments."""
    result = answer(**json.loads((ROOT / "test_input.json").read_text())["input"])
    names = {"rms": "SPEAKER_00", "slt": "SPEAKER_01"}
    assert texts_by_speaker(result) == [(names[turn["speaker"]], turn["text"]) for turn in meeting_truth]
    assert result["speakers"] == ["SPEAKER_00", "SPEAKER_01"]
    assert result["detected_language"] == "en"
    assert result["model"] == "sphinx"
    assert result["duration"] == pytest.approx(18.065, abs=0.05)
    assert result["warnings"] == []
    assert set(result["timings"]) == {"fetch", "decode", "transcribe", "diarize", "assign"}
    for segment, turn in zip(result["segments"], meeting_truth, strict=True):
        assert segment["start"] == pytest.approx(turn["start"], abs=0.15)
        assert [word["word"] for word in segment["words"]] == turn["text"].split()
        assert all(word["speaker"] == segment["speaker"] for word in segment["words"])


@pytest.fixture(scope="module")
def plain(answer: Answer, short: str) -> dict[str, Any]:
    """The answer to a job that asks for nothing in particular."""
    return answer(audio=short)


def test_words_only_when_asked(plain: dict[str, Any]) -> None:
    assert plain["segments"]
    assert all(set(segment) == {"start", "end", "text"} for segment in plain["segments"])
    assert "speakers" not in plain


@pytest.fixture(scope="module")
def told_apart(
    answer: Answer, meeting: Path, states: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The answer to a job with speakers in every format, and its progress."""
    result = answer(audio=meeting.as_uri(), diarize=True, output_formats=list(OutputFormat.__args__))
    return result, states[:]


def test_every_format_beside_the_segments(told_apart: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    result, _ = told_apart
    assert result["srt"].startswith("1\n00:00:00,")
    assert result["vtt"].startswith("WEBVTT")
    assert "<v SPEAKER_01>" in result["vtt"]
    assert result["txt"].startswith("SPEAKER_00: good morning")
    assert result["tsv"].splitlines()[0] == "start\tend\tspeaker\ttext"
    assert all(line.startswith("SPEAKER recording 1 ") for line in result["rttm"].splitlines())


def test_progress_names_stages_and_never_falls(told_apart: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    _, progress = told_apart
    percents = [state["percent"] for state in progress]
    assert percents == sorted(percents)
    assert all(set(state) == {"stage", "stage_percent", "percent"} for state in progress)
    assert len(progress) >= 2


def test_language_left_open_is_said_in_a_warning(plain: dict[str, Any]) -> None:
    assert any("not detected" in warning for warning in plain["warnings"])


def test_each_channel_is_a_speaker(
    answer: Answer, meeting: Path, meeting_truth: list[dict[str, Any]], tmp_path: Path
) -> None:
    """One voice on the left, the other on the right, as call recorders store them."""
    mono = decode(meeting, tmp_path, lambda _: None).samples[0]
    stereo = np.zeros((len(mono), 2), dtype=np.int16)
    for turn in meeting_truth:
        span = slice(round((turn["start"] - 0.1) * SAMPLE_RATE), round((turn["end"] + 0.1) * SAMPLE_RATE))
        stereo[span, 0 if turn["speaker"] == "rms" else 1] = mono[span]
    result = answer(audio=wav(stereo, tmp_path / "s.wav"), language="en", channels="separate", word_timestamps=True)
    said = {"SPEAKER_00": "rms", "SPEAKER_01": "slt"}
    for speaker, voice in said.items():
        truth = " ".join(turn["text"] for turn in meeting_truth if turn["speaker"] == voice)
        heard = " ".join(text for name, text in texts_by_speaker(result) if name == speaker)
        assert jiwer.wer(truth, heard) <= 0.1
    starts = [segment["start"] for segment in result["segments"]]
    assert starts == sorted(starts)


def test_silence_is_an_empty_answer_not_an_error(answer: Answer, tmp_path: Path) -> None:
    result = answer(audio=wav(np.zeros(3 * SAMPLE_RATE, np.int16), tmp_path / "z.wav"), diarization=True)
    assert result["segments"] == []
    assert "error" not in result


def test_log_tail_has_this_job_and_no_secret(answer: Answer, short: str) -> None:
    quiet = answer(audio=short, hf_token="hf_verysecretvalue1")
    loud = answer(audio=short, hf_token="plainSecretValue", debug=True)
    assert any("started" in line for line in quiet["logs"])
    assert not any("stage transcribe took" in line for line in quiet["logs"])
    assert any("stage transcribe took" in line for line in loud["logs"])
    assert len(loud["logs"]) <= 50
    assert "ecret" not in json.dumps([quiet, loud])


@pytest.mark.parametrize(
    ("fields", "code", "hint"),
    [
        ({}, "invalid_request", "audio is missing"),
        ({"audio": "x", "lanugage": "en"}, "invalid_request", "did you mean language"),
        ({"audio": "data:,x", "model": "whisper-9"}, "model_not_found", "known models: tiny, "),
        ({"audio": "data:,x", "language": "fr"}, "unsupported", "it knows: en"),
        ({"audio": "data:,x", "task": "translate"}, "unsupported", "it offers: transcribe"),
        ({"audio": "data:,hello there, this is no recording"}, "not_audio", ""),
        ({"audio": "data:audio/wav;base64,"}, "empty_audio", ""),
        ({"audio": "file:///etc/passwd"}, "url_refused", ""),
        ({"audio": "http://127.0.0.1:9/x.wav"}, "url_refused", "private"),
        ({"audio": "http://user:pw@localhost/x.wav?sig=abc"}, "url_refused", ""),
        ({"audio": "ftp://example.com/x.wav"}, "url_refused", ""),
    ],
)
def test_every_mistake_is_one_sentence_with_a_code(
    answer: Answer, fields: dict[str, Any], code: str, hint: str
) -> None:
    error = answer(**fields)
    assert set(error) == {"error"}
    assert re.match(rf"{code}: \S", error["error"]), error
    assert hint in error["error"]
    for leak in ("Traceback", "/root", "pw@", "sig=abc", str(ROOT)):
        assert leak not in error["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"audio": "data:,x", "\ud800": 1},
        {"audio": "data:,x", "model": "m" * 3_000_000},
        {"audio": "data:,x", "speaker_samples": [{"k" * 1_000_000: 1}]},
        {"audio": "data:,x", **{f"unknown{number}": 1 for number in range(20_000)}},
    ],
    ids=["no UTF-8", "a huge model", "a huge name", "very many names"],
)
def test_what_a_caller_sent_cannot_swell_or_break_the_error(answer: Answer, fields: dict[str, Any]) -> None:
    """The platform loses an answer that it cannot take, so an error is short and can always be encoded."""
    error = answer(**fields)["error"]
    assert len(error.encode()) < 10_000
    assert error.startswith(("invalid_request: ", "model_not_found: "))


def test_a_job_that_fails_on_a_machine_that_became_unfit_asks_for_another(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK turns refresh_worker into the platform's order to end this worker."""
    assert "refresh_worker" not in answer(audio=7)
    monkeypatch.setattr(EngineHost, "unfit", True)
    assert answer(audio=7)["refresh_worker"] is True


def test_a_worker_whose_defaults_no_job_could_use_does_not_start(tmp_path: Path) -> None:
    settings = Settings(default_model="sphynx", diarization_model="nobody", work_dir=tmp_path)
    with pytest.raises(SettingsError, match=r"DEFAULT_MODEL: model 'sphynx'.*DIARIZATION_MODEL: model 'nobody'"):
        Worker(settings)


def test_an_input_that_is_no_object_is_refused() -> None:
    for payload in (None, [], "audio", 7, True):
        with pytest.raises(RequestError, match="must be an object"):
            parse(payload)


@pytest.mark.parametrize(
    ("clip", "speakers"), [("en_falcon_3spk", 3), ("en_leopard_3spk", 3), ("en_c1_2spk_harvard", None)]
)
def test_real_recordings(answer: Answer, clip: str, speakers: int | None) -> None:
    """Clips with references; what the embedded default reaches on them is in tests/bench."""
    path = SHARED / "audio" / f"{clip}.flac"
    if not path.exists():
        pytest.skip("the shared recordings are not here")
    entry = next(c for c in json.loads((SHARED / "audio/manifest.json").read_text())["clips"] if c["id"] == clip)
    result = answer(audio=path.as_uri(), language="en", diarization=True)
    heard = " ".join(segment["text"] for segment in result["segments"])
    said = re.sub(r"[^a-z' ]", " ", entry["text"].lower())
    assert jiwer.wer(" ".join(said.split()), heard) <= 0.35
    if speakers:
        assert len(result["speakers"]) == speakers
