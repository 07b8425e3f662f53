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
from hansard.errors import CancelledError, EmptyAudioError, EngineError, HansardError, NotAudioError
from hansard.models import Models
from hansard.pipeline import Job, Stock, run
from hansard.plan import check
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.capabilities import Can
from hansard.transcript import (
    Audio,
    Diarization,
    Float32,
    Report,
    Segment,
    Span,
    Transcript,
    Transcription,
    Turn,
    Word,
)

PATIENCE_S = 20.0
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
        self.spans: list[list[Span] | None] = []
        self.samples: tuple[tuple[str, Path], ...] = ()
        self.stock = Stock(Settings(diarization_model="cardboard turns"))

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
        stage = self

        class Transcriber:
            can: ClassVar[Can] = Can(languages=None, word_times=True)
            models: ClassVar[dict[str, tuple[str, ...]]] = {"cardboard": ()}

            @classmethod
            def check(cls, model: str, request: Request, models: Models) -> None:
                """It is always there."""

            def __init__(self, model: str, models: Models) -> None: ...

            def transcribe(
                self, audio: Audio, request: Request, report: Report, spans: list[Span] | None
            ) -> Transcription:
                stage.spans.append(spans)
                return transcribe(audio, request, report)

            def close(self) -> None: ...

        class Diarizer:
            models: ClassVar[dict[str, tuple[str, ...]]] = {"cardboard turns": ()}
            same_voice: ClassVar[float] = 0.99

            def __init__(self, model: str, models: Models) -> None: ...

            @classmethod
            def needs(cls, model: str, models: Models) -> tuple[str, ...]:
                return ()

            def diarize(self, audio: Audio, request: Request, report: Report) -> Diarization:
                return diarize(audio, request, report)

            def embed(self, audio: Audio) -> Float32 | None:
                """Loud is one voice, quiet the other, silence none."""
                level = float(np.abs(audio.mono()).mean())
                return None if level < 0.001 else np.asarray([level > 0.1, level <= 0.1], np.float32)

            def close(self) -> None: ...

        self._patch.setitem(TRANSCRIBERS, "cardboard", Transcriber)
        self._patch.setitem(DIARIZERS, "cardboard", Diarizer)
        request = parse({"audio": "data:,", "model": "cardboard", **fields})
        plan = check(request, self.stock.settings)
        path = recording(self._folder, np.zeros((32_000, 1)) if sound is None else sound)
        return run(Job("a", request, plan, path, self._folder, self.samples), self.stock, self.report)


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
    plan = check(
        parse({"audio": "data:,", "model": "cardboard", **fields}), Settings(diarization_model="cardboard turns")
    )
    assert {*made.timings, "fetch", "load"} == set(plan.stages)
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


def test_models_load_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    together = threading.Barrier(2)

    class Both:
        can: ClassVar[Can] = Can(languages=None)
        same_voice: ClassVar[float] = 0.5

        @classmethod
        def needs(cls, model: str, models: Models) -> tuple[str, ...]:
            return ()

        @classmethod
        def check(cls, model: str, request: Request, models: Models) -> None:
            """It is always there."""

        def __init__(self, model: str, models: Models) -> None:
            together.wait(PATIENCE_S)

        def transcribe(self, *_: object) -> Transcription:
            return TEXT

        def diarize(self, *_: object) -> Diarization:
            return SPEECH

        def close(self) -> None: ...

    monkeypatch.setitem(TRANSCRIBERS, "cardboard", type("Text", (Both,), {"models": {"cardboard": ()}}))
    monkeypatch.setitem(DIARIZERS, "cardboard", type("Turns", (Both,), {"models": {"cardboard turns": ()}}))
    request = parse({"audio": "data:,", "model": "cardboard", "diarization": True})
    plan = check(request, Settings(diarization_model="cardboard turns"))
    path = recording(tmp_path, np.zeros((1600, 1)))
    assert run(Job("a", request, plan, path, tmp_path), Stock(Settings()), lambda *_: None).segments


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
    assert time.monotonic() - begin < PATIENCE_S / 2
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
    assert time.monotonic() - left < PATIENCE_S / 2


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


# The tasks of the first worker


def test_task_diarization_gives_the_turns_and_wakes_no_transcriber(stage: Stage) -> None:
    made = stage.run(lambda *_: pytest.fail("no text was asked for"), task="diarization", model=None)
    assert [(s.start, s.end, s.speaker, s.text) for s in made.segments] == [(0.0, 1.6, A, ""), (1.0, 1.4, B, "")]
    assert (made.turns, made.model, made.language) == (SPEECH.turns, "cardboard turns", "")
    assert set(made.timings) == {"decode", "diarize"}


def one_for_each(stage: Stage) -> Transcribe:
    """The text of each stretch is its number."""

    def transcribe(_: Audio, __: Request, report: Report) -> Transcription:
        report(0.5)
        segments = [Segment(s.start, s.end, str(n), (Word(str(n), s.start, s.end),)) for n, s in stretches(stage)]
        return Transcription(tuple(segments), "en")

    return transcribe


def stretches(stage: Stage) -> list[tuple[int, Span]]:
    assert stage.spans[-1] is not None
    return list(enumerate(stage.spans[-1]))


def test_given_segments_are_transcribed_in_the_order_given(stage: Stage) -> None:
    segments = [
        {"start": 1.5, "end": 9.0, "speaker": "Eve"},
        {"start": 7.0, "end": 9.0, "speaker": "Bob"},
        {"start": 0.0, "end": 1.7, "speaker": "Bob"},
    ]
    made = stage.run(
        one_for_each(stage), lambda *_: pytest.fail("told already"), task="transcription", segments=segments
    )
    assert stage.spans == [[Span(1.5, 2.0), Span(0.0, 1.7)]]
    assert [(s.start, s.end, s.speaker, s.text) for s in made.segments] == [
        (1.5, 9.0, "Eve", "0"),
        (7.0, 9.0, "Bob", ""),
        (0.0, 1.7, "Bob", "1"),
    ]
    assert made.segments[0].words[0].speaker == "Eve"
    assert made.warnings == ("1 of the segments begin after the recording's end, 2.0 s",)


def test_without_given_segments_those_of_the_diarizer_are_transcribed(stage: Stage) -> None:
    made = stage.run(one_for_each(stage), task="transcription")
    assert [(s.start, s.end, s.speaker, s.text) for s in made.segments] == [(0.0, 1.0, A, "0"), (1.0, 2.0, B, "1")]
    assert made.warnings == SPEECH.warnings


def test_turns_of_one_speaker_that_follow_closely_are_heard_as_one(stage: Stage) -> None:
    turns = (Turn(0, 0.4, A), Turn(0.5, 0.8, A), Turn(0.8, 1.0, B), Turn(1.0, 1.2, A), Turn(2.3, 2.4, A))
    stage.run(one_for_each(stage), lambda *_: Diarization(turns, turns), task="transcription")
    assert stage.spans == [[Span(0, 0.8), Span(0.8, 1.0), Span(1.0, 1.2)]]  # the last is past the end of the recording


# Known voices


VOICES = {A: np.asarray([0.9, 0.1], np.float32), B: np.asarray([0.1, 0.9], np.float32)}
HEARD = Diarization(SPEECH.exclusive, SPEECH.turns, voices=VOICES)
NAMED = {
    "diarization": True,
    "speaker_verification": True,
    "speaker_samples": [{"name": "Eve", "url": "https://example.com/eve.wav"}],
}


@pytest.fixture
def quiet_eve(stage: Stage, tmp_path: Path) -> None:
    """A sample of Eve, whose voice is the quiet one."""
    (tmp_path / "sample").mkdir()
    stage.samples = (("Eve", recording(tmp_path / "sample", two_channels()[:, 1:])),)


@pytest.mark.usefixtures("quiet_eve")
def test_a_known_voice_gets_its_name(stage: Stage) -> None:
    made = stage.run(diarize=lambda *_: HEARD, **NAMED)
    assert [(s.speaker, s.speaker_id) for s in made.segments] == [(A, None), (B, "Eve")]
    assert made.segments[1].similarity == pytest.approx(0.9938, abs=1e-3)


@pytest.mark.usefixtures("quiet_eve")
@pytest.mark.parametrize(("threshold", "name"), [(0.99, "Eve"), (0.999, None)])
def test_the_threshold_decides(stage: Stage, threshold: float, name: str | None) -> None:
    made = stage.run(diarize=lambda *_: HEARD, speaker_threshold=threshold, **NAMED)
    assert made.segments[1].speaker_id == name


@pytest.mark.usefixtures("quiet_eve")
def test_without_a_threshold_the_diarizers_own_decides(stage: Stage) -> None:
    alone = Diarization((Turn(0.0, 2.0, A),), (Turn(0.0, 2.0, A),), voices={A: np.asarray([0.2, 0.9], np.float32)})
    assert stage.run(diarize=lambda *_: alone, **NAMED).segments[0].speaker_id is None
    named = stage.run(diarize=lambda *_: alone, speaker_threshold=0.9, **NAMED)
    assert named.segments[0].speaker_id == "Eve"


@pytest.mark.usefixtures("quiet_eve")
@pytest.mark.parametrize("task", ["diarization", "transcription"])
def test_the_other_tasks_name_voices_too(stage: Stage, task: str) -> None:
    fields = {**NAMED, "task": task, **({"model": None} if task == "diarization" else {})}
    made = stage.run(one_for_each(stage), lambda *_: HEARD, **fields)
    assert [(s.speaker, s.speaker_id) for s in made.segments] == [(A, None), (B, "Eve")]


def test_a_sample_without_a_voice_is_named_before_the_long_work(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    stage.samples = (("Eve", recording(tmp_path / "sample", np.zeros((16_000, 1)))),)
    with pytest.raises(EmptyAudioError, match="speaker sample 'Eve': too little is said in it"):
        stage.run(diarize=lambda *_: pytest.fail("the sample comes first"), **NAMED)


def test_a_sample_that_is_no_recording_is_named(stage: Stage, tmp_path: Path) -> None:
    stage.samples = (("Eve", written(tmp_path / "eve.wav", "<html>sorry</html>")),)
    with pytest.raises(NotAudioError, match="speaker sample 'Eve': "):
        stage.run(diarize=lambda *_: HEARD, **NAMED)
