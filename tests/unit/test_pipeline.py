"""The way of the data with backends of cardboard: what runs beside what, how it stops, and what comes out."""

from __future__ import annotations

import threading
import time
import wave
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hansard.diarizers import DIARIZERS
from hansard.errors import CancelledError, EngineError, HansardError, NotAudioError
from hansard.pipeline import Job, check, run
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.shelf import Shelf
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.capabilities import Can
from hansard.transcript import Audio, Diarization, Report, Segment, Transcript, Transcription, Turn, Word

PATIENCE_S = 5.0
A, B = "SPEAKER_00", "SPEAKER_01"

WORDS = (Word("hello", 0.0, 0.4), Word("there.", 0.4, 0.9), Word("Hm.", 1.1, 1.5))
TEXT = Transcription((Segment(0.0, 1.5, "hello there. Hm.", WORDS),), "en", 0.9, ("from the text",))
SPEECH = Diarization(
    exclusive=(Turn(0.0, 1.0, A), Turn(1.0, 2.0, B)),
    turns=(Turn(0.0, 1.6, A), Turn(1.0, 1.4, B)),
    warnings=("from the turns",),
)

Transcribe = Callable[[Audio, Request, Report], Transcription]
Diarize = Callable[[Audio, Request, Report], Diarization]


class Stage:
    """Runs jobs on backends that do what a test tells them to, and keeps what they report."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch, self._folder = patch, folder
        self.reports: list[tuple[str, float]] = []
        self.refuse: Callable[[str, float], bool] = lambda stage, fraction: False

    def report(self, stage: str, fraction: float) -> None:
        self.reports.append((stage, fraction))
        if self.refuse(stage, fraction):
            raise CancelledError("the caller left")

    def run(
        self,
        transcribe: Transcribe = lambda audio, request, report: TEXT,
        diarize: Diarize = lambda audio, request, report: SPEECH,
        *,
        sound: np.ndarray[Any, Any] | None = None,
        **fields: Any,
    ) -> Transcript:
        """A recording of 2 s, all the way."""

        class Transcriber:
            can: ClassVar[Can] = Can(languages=None, word_times=True)

            def transcribe(self, audio: Audio, request: Request, report: Report) -> Transcription:
                return transcribe(audio, request, report)

            def close(self) -> None: ...

        class Diarizer:
            def diarize(self, audio: Audio, request: Request, report: Report) -> Diarization:
                return diarize(audio, request, report)

            def close(self) -> None: ...

        self._patch.setitem(TRANSCRIBERS, "cardboard", Transcriber)
        self._patch.setitem(DIARIZERS, "cardboard", Diarizer)
        request = parse({"audio": "data:,", "model": "cardboard", **fields})
        plan = check(request, Settings(diarization_model="cardboard"))
        path = recording(self._folder, np.zeros((32_000, 1)) if sound is None else sound)
        return run(Job("a", request, plan, path, self._folder, 1.0), Shelf(), self.report)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


def recording(folder: Path, sound: np.ndarray[Any, Any]) -> Path:
    """A WAV file of int16 sound of shape (samples, channels) at 16 kHz."""
    path = folder / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(sound.astype("<i2").tobytes())
    return path


def two_channels() -> np.ndarray[Any, Any]:
    """Loud on the left, quiet on the right."""
    noise = np.random.default_rng(0).normal(0, 1, (32_000, 2))
    return noise * [8_000, 800]


def until_told(report: Report) -> None:
    """Work that only reporting can end."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        report(0.5)
        time.sleep(0.005)
    pytest.fail("nobody said stop")


# What comes out


def test_text_alone(stage: Stage) -> None:
    made = stage.run(align_output=True)
    assert made.segments == TEXT.segments
    assert made.turns == ()
    assert (made.language, made.language_probability, made.model) == ("en", 0.9, "cardboard")
    assert made.duration == pytest.approx(2.0, abs=0.01)
    assert made.warnings == ("from the text",)


def test_words_go_to_their_speakers(stage: Stage) -> None:
    made = stage.run(diarization=True)
    assert [(segment.speaker, segment.text) for segment in made.segments] == [(A, "hello there."), (B, " Hm.")]
    assert made.turns == SPEECH.turns
    assert made.warnings == ("from the text", "from the turns")


def test_both_backends_get_the_recording_and_the_request(stage: Stage) -> None:
    got: list[tuple[Audio, Request]] = []

    def transcribe(audio: Audio, request: Request, _: Report) -> Transcription:
        got.append((audio, request))
        return TEXT

    def diarize(audio: Audio, request: Request, _: Report) -> Diarization:
        got.append((audio, request))
        return SPEECH

    stage.run(transcribe, diarize, diarization=True, max_speakers=4, sound=two_channels())
    (one, asked), (two, asked_too) = got
    assert one is two
    assert asked is asked_too
    assert asked.max_speakers == 4
    assert one.samples.shape == (1, 32_000)


def test_each_warning_is_given_once(stage: Stage) -> None:
    text = Transcription((), "en", None, ("twice", "once", "twice"))
    speech = Diarization((), (), ("twice", "last"))
    made = stage.run(lambda *_: text, lambda *_: speech, diarization=True)
    assert made.warnings == ("twice", "once", "last")


@pytest.mark.parametrize("fields", [{}, {"diarization": True}, {"channels": "separate"}])
def test_every_stage_of_the_plan_is_timed_and_reported(stage: Stage, fields: dict[str, Any]) -> None:
    def transcribe(_: Audio, __: Request, report: Report) -> Transcription:
        time.sleep(0.05)
        report(0.5)
        return TEXT

    made = stage.run(transcribe, sound=two_channels(), **fields)
    plan = check(parse({"audio": "data:,", "model": "cardboard", **fields}), Settings(diarization_model="cardboard"))
    assert {*made.timings, "fetch"} == set(plan.stages)
    assert made.timings["transcribe"] >= 0.05
    for name in made.timings:
        fractions = [fraction for stage_name, fraction in stage.reports if stage_name == name]
        assert fractions[0] == 0.0
        assert fractions[-1] == 1.0


# Side by side


def test_diarizing_and_transcribing_overlap(stage: Stage) -> None:
    together = threading.Barrier(2)

    def transcribe(*_: object) -> Transcription:
        together.wait(PATIENCE_S)  # an error unless the other one is there too
        return TEXT

    def diarize(*_: object) -> Diarization:
        together.wait(PATIENCE_S)
        return SPEECH

    assert stage.run(transcribe, diarize, diarization=True).segments


def test_the_time_of_both_is_the_time_of_the_longer(stage: Stage) -> None:
    def slow(result: Any) -> Any:
        time.sleep(0.3)
        return result

    begin = time.perf_counter()
    made = stage.run(lambda *_: slow(TEXT), lambda *_: slow(SPEECH), diarization=True)
    assert time.perf_counter() - begin < 0.55
    assert made.timings["transcribe"] >= 0.3
    assert made.timings["diarize"] >= 0.3


def test_models_load_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    together = threading.Barrier(2)

    class Both:
        can: ClassVar[Can] = Can(languages=None)

        def __init__(self) -> None:
            together.wait(PATIENCE_S)

        def transcribe(self, *_: object) -> Transcription:
            return TEXT

        def diarize(self, *_: object) -> Diarization:
            return SPEECH

        def close(self) -> None: ...

    monkeypatch.setitem(TRANSCRIBERS, "cardboard", type("Text", (Both,), {}))
    monkeypatch.setitem(DIARIZERS, "cardboard", type("Turns", (Both,), {}))
    request = parse({"audio": "data:,", "model": "cardboard", "diarization": True})
    plan = check(request, Settings(diarization_model="cardboard"))
    path = recording(tmp_path, np.zeros((1600, 1)))
    assert run(Job("a", request, plan, path, tmp_path, 1.0), Shelf(), lambda *_: None).segments


# Failing


class BrokenError(Exception):
    """What a vendor raises."""


@pytest.mark.parametrize("guilty", ["transcribe", "diarize"])
@pytest.mark.parametrize("error", [BrokenError("cuda"), EngineError("no weights")])
def test_a_failure_in_one_stops_the_other(stage: Stage, guilty: str, error: Exception) -> None:
    stopped = threading.Event()

    def fail(*_: object) -> Any:
        time.sleep(0.05)
        raise error

    def innocent(_: Audio, __: Request, report: Report) -> Any:
        try:
            until_told(report)
        finally:
            stopped.set()

    both = {"transcribe": innocent, "diarize": innocent, guilty: fail}
    begin = time.monotonic()
    with pytest.raises(type(error)) as raised:
        stage.run(both["transcribe"], both["diarize"], diarization=True)
    assert raised.value is error
    assert time.monotonic() - begin < 1.0
    assert stopped.is_set()


@pytest.mark.parametrize("guilty", ["transcribe", "diarize"] * 5)
def test_the_error_is_the_first_even_if_the_other_ends_in_one_too(stage: Stage, guilty: str) -> None:
    def fail(*_: object) -> Any:
        raise BrokenError("first")

    def fail_too(_: Audio, __: Request, report: Report) -> Any:
        try:
            until_told(report)
        except CancelledError:
            raise ValueError("second") from None

    both = {"transcribe": fail_too, "diarize": fail_too, guilty: fail}
    with pytest.raises(BrokenError, match="first"):
        stage.run(both["transcribe"], both["diarize"], diarization=True)


def test_nothing_is_reported_after_a_failure(stage: Stage) -> None:
    failed_at: list[int] = []

    def fail(*_: object) -> Transcription:
        time.sleep(0.05)
        failed_at.append(len(stage.reports))
        raise BrokenError

    def go_on(_: Audio, __: Request, report: Report) -> Diarization:
        for _ in range(60):
            time.sleep(0.005)
            report(0.5)
        return SPEECH

    with pytest.raises(BrokenError):
        stage.run(fail, go_on, diarization=True)
    assert 0 < failed_at[0] <= len(stage.reports) <= failed_at[0] + 3
    assert stage.reports[-1] != ("diarize", 1.0)


def test_a_recording_that_cannot_be_used_wakes_no_model(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.recording", lambda folder, _: written(folder / "a.txt", "<html>sorry</html>"))
    with pytest.raises(NotAudioError):
        stage.run(lambda *_: pytest.fail("not a recording"))
    assert {name for name, _ in stage.reports} == {"decode"}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Cancelling


@pytest.mark.parametrize("where", ["decode", "transcribe", "diarize", "assign"])
def test_a_refused_report_cancels_the_job(stage: Stage, where: str) -> None:
    stage.refuse = lambda name, _: name == where
    with pytest.raises(CancelledError, match="the caller left"):
        stage.run(diarization=True)


@pytest.mark.parametrize("fields", [{}, {"diarization": True}, {"channels": "separate"}])
def test_cancelling_in_the_middle_of_the_work_is_prompt(stage: Stage, fields: dict[str, Any]) -> None:
    left = time.monotonic() + 0.1
    stage.refuse = lambda *_: time.monotonic() > left

    def work(_: Audio, __: Request, report: Report) -> Any:
        until_told(report)

    with pytest.raises(CancelledError, match="the caller left"):
        stage.run(work, work, **fields)
    assert time.monotonic() - left < 1.0


def test_a_cancelled_job_does_not_harm_the_next(stage: Stage) -> None:
    stage.refuse = lambda name, _: name == "transcribe"
    with pytest.raises(HansardError):
        stage.run(diarization=True)
    stage.refuse = lambda *_: False
    assert len(stage.run(diarization=True).segments) == 2


# A speaker on each channel


def loud(audio: Audio) -> bool:
    return float(np.abs(audio.mono()).mean()) > 0.1


def each_channel(audio: Audio, _: Request, report: Report) -> Transcription:
    """Other words for the loud channel than for the quiet one."""
    assert audio.channels == 1
    report(0.5)
    if loud(audio):
        words = (Word("left", 0.0, 0.4),)
        spoken = (Segment(0.0, 0.4, "left", words), Segment(1.0, 1.4, "again"))
        return Transcription(spoken, "en", 0.9, ("both", "left"))
    return Transcription((Segment(0.5, 0.9, "right", (Word("right", 0.5, 0.9),)),), "de", 0.5, ("both", "right"))


def test_each_channel_is_a_speaker(stage: Stage) -> None:
    made = stage.run(each_channel, channels="separate", sound=two_channels())
    assert [(segment.text, segment.speaker) for segment in made.segments] == [("left", A), ("right", B), ("again", A)]
    assert [word.speaker for segment in made.segments for word in segment.words] == [A, B]
    assert made.turns == (Turn(0.0, 0.4, A), Turn(0.5, 0.9, B), Turn(1.0, 1.4, A))
    assert (made.language, made.language_probability) == ("en", 0.9)
    assert made.warnings == ("both", "left", "right")
    assert set(made.timings) == {"decode", "transcribe"}


def test_channels_share_the_progress_of_the_stage(stage: Stage) -> None:
    stage.run(each_channel, channels="separate", sound=two_channels())
    fractions = [fraction for name, fraction in stage.reports if name == "transcribe"]
    assert fractions == [0.0, 0.25, 0.75, 1.0]
    assert all(before <= after for before, after in pairwise(fractions))


def test_channels_that_are_copies_are_one_speaker(stage: Stage) -> None:
    sound = np.repeat(two_channels()[:, :1], 2, axis=1)
    made = stage.run(each_channel, channels="separate", sound=sound)
    assert {segment.speaker for segment in made.segments} == {A}
    assert "all 2 channels carry the same sound: only one was kept" in made.warnings
