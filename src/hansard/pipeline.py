"""The way of the data. Read this first.

    job ─▶ Request ─▶ check ─▶ fetch ─▶ decode ─┬▶ diarize ───┬▶ assign ─▶ Transcript ─▶ render ─▶ JSON
                      plan     file     Audio   └▶ transcribe ┘

`check` runs at the door, before a byte is downloaded or a model is loaded. `run` runs in the engine process: it hands
plain data forward, and nothing calls back but `report(stage, fraction)`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hansard.audio.decode import decode
from hansard.diarizers import DIARIZERS
from hansard.errors import CancelledError, RequestError, SettingsError, UnsupportedError
from hansard.request import Request
from hansard.settings import Settings
from hansard.shelf import Shelf
from hansard.speakers.assign import assign
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.capabilities import OPTIONS, Can
from hansard.transcript import Audio, Report, Segment, Transcript, Transcription, Turn

STAGES = {"fetch": 5, "decode": 5, "transcribe": 55, "diarize": 30, "assign": 5}
"""The stages in order, each with its share of the progress in percent: a rough guess, engines and machines differ."""

StageReport = Callable[[str, float], None]
"""`report(stage, fraction)`; raises CancelledError when the job should stop."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which backends a job will use: names of the tables. No diarizer: speakers were not asked for."""

    transcriber: str
    diarizer: str | None

    @property
    def stages(self) -> dict[str, int]:
        """The part of STAGES that this job goes through."""
        return {stage: share for stage, share in STAGES.items() if self.diarizer or stage not in ("diarize", "assign")}


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the engine gets it: the recording is a local file, `folder` is the job's own and goes away."""

    id: str
    request: Request
    plan: Plan
    audio: Path
    folder: Path
    max_hours: float


def check(request: Request, settings: Settings) -> Plan:
    """Choose the backends and refuse what they cannot do.

    Raises RequestError for an unknown model, UnsupportedError naming every option that cannot be honoured.
    """
    name = request.model or settings.default_model
    if name not in TRANSCRIBERS:
        raise RequestError(f"model {name[:60]!r} is not known; known models: {', '.join(TRANSCRIBERS)}")
    problems = _cannot(name, TRANSCRIBERS[name].can, request)
    if request.speaker_verification:
        problems.append(
            f"diarizer {settings.diarization_model} does not verify speakers; leave out speaker_verification"
        )
    if problems:
        raise UnsupportedError("; ".join(problems))
    return Plan(transcriber=name, diarizer=settings.diarization_model if request.diarization else None)


def check_settings(settings: Settings) -> None:
    """Refuse defaults that no job could use. Raises SettingsError."""
    problems = []
    if settings.default_model not in TRANSCRIBERS:
        problems.append(f"DEFAULT_MODEL is {settings.default_model!r}; it must be one of: {', '.join(TRANSCRIBERS)}")
    if settings.diarization_model not in DIARIZERS:
        name = settings.diarization_model
        problems.append(f"DIARIZATION_MODEL is {name!r}; it must be one of: {', '.join(DIARIZERS)}")
    if problems:
        raise SettingsError("; ".join(problems))


def _cannot(name: str, can: Can, request: Request) -> list[str]:
    """What this transcriber cannot do of what the request asks; values equal to the default ask for nothing."""
    problems = []
    if request.task not in can.tasks:
        problems.append(f"model {name} does not offer task {request.task}; it offers: {', '.join(sorted(can.tasks))}")
    if request.language and can.languages is not None and request.language not in can.languages:
        known = ", ".join(sorted(can.languages))
        problems.append(f"model {name} does not know language {request.language}; it knows: {known}")
    if request.align_output and not can.word_times:
        problems.append(f"model {name} gives no word times; leave out align_output")
    for option in sorted(OPTIONS - can.options):
        if getattr(request, option) not in (Request.model_fields[option].default, can.always.get(option)):
            problems.append(f"model {name} does not take {option}")
    return problems


def run(job: Job, shelf: Shelf, report: StageReport) -> Transcript:
    """A recording on disk to who said what.

    Raises AudioError for a recording that cannot be used, EngineError when a backend fails, CancelledError when
    `report` does.
    """
    stages = _Stages(report)
    separate = job.request.channels == "separate"
    audio = stages.run("decode", lambda r: decode(job.audio, job.folder, r, separate=separate, max_hours=job.max_hours))
    if separate:
        heard = _hear_channels(job, shelf, audio, stages)
    elif job.plan.diarizer:
        heard = _hear_speakers(job, job.plan.diarizer, shelf, audio, stages)
    else:
        text = stages.run("transcribe", lambda report: _transcribe(job, shelf, audio, report))
        heard = _Heard(text, text.segments)
    return Transcript(
        segments=heard.segments,
        turns=heard.turns,
        language=heard.text.language,
        language_probability=heard.text.language_probability,
        duration=audio.duration,
        model=job.plan.transcriber,
        timings=stages.timings,
        warnings=tuple(dict.fromkeys((*audio.warnings, *heard.text.warnings, *heard.warnings))),
    )


@dataclass(frozen=True, slots=True)
class _Heard:
    """What was said (`text`), and the same as segments with their speakers where those are known."""

    text: Transcription
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...] = ()
    warnings: tuple[str, ...] = ()


def _transcribe(job: Job, shelf: Shelf, audio: Audio, report: Report) -> Transcription:
    """The text of one channel; the model is taken from the shelf here, so that models load side by side."""
    return shelf.get(TRANSCRIBERS[job.plan.transcriber]).transcribe(audio, job.request, report)


def _hear_speakers(job: Job, name: str, shelf: Shelf, audio: Audio, stages: _Stages) -> _Heard:
    """Words and turns at the same time, since they share only the sound; then each word goes to its turn."""
    diarizer = DIARIZERS[name]
    text, speech = stages.together(
        lambda: stages.run("transcribe", lambda report: _transcribe(job, shelf, audio, report)),
        lambda: stages.run("diarize", lambda report: shelf.get(diarizer).diarize(audio, job.request, report)),
    )
    segments = stages.run("assign", lambda _: assign(text.segments, speech.exclusive))
    return _Heard(text, segments, speech.turns, speech.warnings)


def _hear_channels(job: Job, shelf: Shelf, audio: Audio, stages: _Stages) -> _Heard:
    """Each channel on its own, as one speaker; the language is the first channel's."""

    def transcribe(report: Report) -> list[Transcription]:
        count = audio.channels
        return [
            _transcribe(job, shelf, audio.channel(index), lambda part, index=index: report((index + part) / count))  # type: ignore[misc]
            for index in range(count)
        ]

    texts = stages.run("transcribe", transcribe)
    spoken = [
        replace(
            segment,
            speaker=(name := f"SPEAKER_{index:02d}"),
            words=tuple(replace(w, speaker=name) for w in segment.words),
        )
        for index, text in enumerate(texts)
        for segment in text.segments
    ]
    segments = tuple(sorted(spoken, key=lambda segment: segment.start))
    turns = tuple(Turn(s.start, s.end, s.speaker) for s in segments if s.speaker)
    return _Heard(texts[0], segments, turns, tuple(warning for text in texts for warning in text.warnings))


class _Stages:
    """Runs stages, times them, and stops the others when one fails."""

    def __init__(self, report: StageReport) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._error: BaseException | None = None  # the first one; what follows is only the others' stopping
        self.timings: dict[str, float] = {}

    def run(self, stage: str, work: Callable[[Report], T]) -> T:
        """One stage; its report carries its name."""

        def report(fraction: float) -> None:
            if self._error is not None:
                raise CancelledError("another stage failed")
            self._report(stage, fraction)

        begin = time.perf_counter()
        try:
            report(0.0)
            done = work(report)
            report(1.0)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            raise
        finally:
            self.timings[stage] = round(time.perf_counter() - begin, 3)
        return done

    def together(self, first: Callable[[], T], second: Callable[[], U]) -> tuple[T, U]:
        """Two stages at the same time; when one fails the other stops at its next report. Raises the first error."""
        with ThreadPoolExecutor(2, thread_name_prefix="stage") as pool:
            one, two = pool.submit(first), pool.submit(second)
        if self._error is not None:
            raise self._error
        return one.result(), two.result()
