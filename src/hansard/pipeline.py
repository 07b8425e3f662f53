"""The way of the data. Read this first.

    job ─▶ Request ─▶ check ─▶ fetch ─▶ decode ─┬▶ diarize ─────────────┬▶ assign ─▶ identify ─▶ Transcript ─▶ JSON
                      plan     file     Audio   └▶ transcribe ─▶ align ─┘

`plan.check` runs at the door, before a byte is downloaded or a model is loaded. `run` runs in the engine process: it
hands plain data forward, and nothing calls back but `report(stage, fraction)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from hansard.aligners import ALIGNERS, Aligner
from hansard.audio.decode import decode
from hansard.diarizers import DIARIZERS, Diarizer
from hansard.models import Models
from hansard.plan import ALIGNER, Plan
from hansard.request import Request
from hansard.settings import Settings
from hansard.shelf import Shelf
from hansard.speakers.assign import assign
from hansard.speakers.enrol import enrol
from hansard.speakers.identify import Enrolments, Match, identify, name_segments
from hansard.stages import StageReport, Stages
from hansard.transcribers import TRANSCRIBERS, Transcriber
from hansard.transcript import Audio, Diarization, Report, Segment, Span, Transcript, Transcription, Turn
from hansard.words import time_words

LONGEST_TURN_S = 30.0  # to which neighbouring turns of one speaker are joined before they are transcribed
SHORTEST_PAUSE_S = 1.0  # between turns of one speaker that are not joined

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the engine gets it: recordings are local files, `folder` is the job's own and goes away."""

    id: str
    request: Request
    plan: Plan
    audio: Path
    folder: Path
    samples: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class Stock:
    """What an engine process keeps from job to job."""

    settings: Settings
    shelf: Shelf = field(default_factory=Shelf)
    enrolments: Enrolments = field(default_factory=Enrolments)


@dataclass(frozen=True, slots=True)
class _Heard:
    """What was said (`text`), and the same as segments with their speakers where those are known."""

    text: Transcription
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...] = ()
    warnings: tuple[str, ...] = ()


def run(job: Job, stock: Stock, report: StageReport) -> Transcript:
    """A recording on disk to who said what.

    Raises AudioError for a recording or a sample that cannot be used, EngineError when a backend fails, ModelError
    when weights cannot be had, CancelledError when `report` does.
    """
    stock.shelf.begin()
    stages = Stages(report)
    separate = job.request.channels == "separate"
    hours = stock.settings.max_audio_hours
    audio = stages.run("decode", lambda r: decode(job.audio, job.folder, r, separate=separate, max_hours=hours))
    ear = _Ear(job, stock, stages)
    if job.request.task == "diarization":
        heard = _hear_turns(ear, audio, stages)
    elif job.request.task == "transcription":
        heard = _hear_text_of_turns(ear, audio, stages)
    elif separate:
        heard = _hear_channels(ear, audio, stages)
    elif job.plan.diarizer:
        heard = _hear_speakers(ear, audio, stages)
    else:
        text = _hear_text(ear, audio, stages)
        heard = _Heard(text, text.segments)
    return Transcript(
        segments=heard.segments,
        turns=heard.turns,
        language=heard.text.language,
        language_probability=heard.text.language_probability,
        duration=audio.duration,
        model=job.plan.model,
        timings=stages.timings,
        warnings=tuple(dict.fromkeys((*job.plan.warnings, *audio.warnings, *heard.text.warnings, *heard.warnings))),
    )


class _Ear:
    """The plan's backends, each taken from the shelf when it is needed, so that they load side by side."""

    def __init__(self, job: Job, stock: Stock, stages: Stages) -> None:
        self.job = job
        self._stock = stock
        token = job.request.huggingface_access_token
        self._models = Models(stock.settings, token, lambda fraction: stages.tell("load", fraction))

    def transcribe(self, audio: Audio, report: Report, spans: Sequence[Span] | None = None) -> Transcription:
        return self._transcriber().transcribe(audio, self.job.request, report, spans)

    def align(self, audio: Audio, text: Transcription, report: Report) -> Transcription:
        return time_words(audio, text, self._aligner, self._transcriber().time_words, report)

    def diarize(self, audio: Audio, report: Report) -> tuple[Diarization, Mapping[str, Match]]:
        """The turns, and the names of the speakers whose voices are known; bad samples fail before the long work."""
        chosen = self.job.plan.diarizer
        assert chosen is not None
        diarizer: Diarizer = self._stock.shelf.get(DIARIZERS[chosen.backend], chosen.model, self._models)
        samples = enrol(self.job.samples, diarizer, chosen.model, self._stock.enrolments, report)
        speech = diarizer.diarize(audio, self.job.request, report)
        threshold = self.job.request.speaker_threshold
        return speech, identify(speech.voices, samples, diarizer.same_voice if threshold is None else threshold)

    def _transcriber(self) -> Transcriber:
        chosen = self.job.plan.transcriber
        assert chosen is not None
        return self._stock.shelf.get(TRANSCRIBERS[chosen.backend], chosen.model, self._models)

    def _aligner(self, language: str) -> Aligner:
        return self._stock.shelf.get(ALIGNERS[ALIGNER], language, self._models)


def _hear_text(ear: _Ear, audio: Audio, stages: Stages, spans: Sequence[Span] | None = None) -> Transcription:
    """The text, of the spans if there are any, with the times of its words where the plan asks for them."""
    text = stages.run("transcribe", lambda report: ear.transcribe(audio, report, spans))
    return stages.run("align", lambda report: ear.align(audio, text, report)) if ear.job.plan.align else text


def _hear_speakers(ear: _Ear, audio: Audio, stages: Stages) -> _Heard:
    """Words and turns at the same time, since they share only the sound; then each word goes to its turn."""
    text, (speech, names) = stages.together(
        lambda: _hear_text(ear, audio, stages),
        lambda: stages.run("diarize", lambda report: ear.diarize(audio, report)),
    )
    segments = stages.run("assign", lambda _: assign(text.segments, speech.exclusive))
    return _Heard(text, name_segments(segments, names), speech.turns, speech.warnings)


def _hear_turns(ear: _Ear, audio: Audio, stages: Stages) -> _Heard:
    """Who speaks when, without a word of text; turns may overlap."""
    speech, names = stages.run("diarize", lambda report: ear.diarize(audio, report))
    segments = [Segment(turn.start, turn.end, "", speaker=turn.speaker) for turn in speech.turns]
    return _Heard(Transcription((), ""), name_segments(segments, names), speech.turns, speech.warnings)


def _hear_text_of_turns(ear: _Ear, audio: Audio, stages: Stages) -> _Heard:
    """The text of each turn, one segment for each: of the turns given, in their order, or of those that are found."""
    names: Mapping[str, Match] = {}
    warnings: tuple[str, ...] = ()
    if ear.job.request.segments is None:
        speech, names = stages.run("diarize", lambda report: ear.diarize(audio, report))
        turns, warnings = _joined(speech.exclusive), speech.warnings
    else:
        turns = tuple(Turn(given.start, given.end, given.speaker) for given in ear.job.request.segments)
        if outside := [turn for turn in turns if turn.start >= audio.duration]:
            warnings = (f"{len(outside)} of the segments begin after the recording's end, {audio.duration:.1f} s",)
    spans = [Span(turn.start, min(turn.end, audio.duration)) for turn in turns if turn.start < audio.duration]
    text = _hear_text(ear, audio, stages, spans)
    texts = iter(text.segments)
    segments = [
        _spoken_by(turn.speaker, replace(next(texts), start=turn.start, end=turn.end))
        if turn.start < audio.duration
        else Segment(turn.start, turn.end, "", speaker=turn.speaker)
        for turn in turns
    ]
    return _Heard(text, name_segments(segments, names), turns, warnings)


def _hear_channels(ear: _Ear, audio: Audio, stages: Stages) -> _Heard:
    """Each channel on its own, as one speaker; the language is that of the channel in which most is said."""
    channels = [audio.channel(index) for index in range(audio.channels)]
    texts = stages.run("transcribe", lambda report: _each(channels, ear.transcribe, report))
    if ear.job.plan.align:
        both = list(zip(channels, texts, strict=True))
        texts = stages.run("align", lambda report: _each(both, lambda pair, part: ear.align(*pair, part), report))
    spoken = [_spoken_by(f"SPEAKER_{index:02d}", s) for index, text in enumerate(texts) for s in text.segments]
    segments = tuple(sorted(spoken, key=lambda segment: segment.start))
    turns = tuple(Turn(s.start, s.end, s.speaker) for s in segments if s.speaker)
    main = max(texts, key=lambda text: sum(len(segment.text) for segment in text.segments))
    spoken_in = [text for text in texts if text.segments] or texts  # that a channel is silent is no warning
    warnings = tuple(warning for text in spoken_in for warning in text.warnings)
    return _Heard(replace(main, warnings=()), segments, turns, warnings)


def _each(items: Sequence[T], work: Callable[[T, Report], U], report: Report) -> list[U]:
    """The same work on each item; together they report from 0 to 1."""
    count = len(items)
    return [
        work(item, lambda part, index=index: report((index + part) / count))  # type: ignore[misc]
        for index, item in enumerate(items)
    ]


def _spoken_by(speaker: str, segment: Segment) -> Segment:
    words = tuple(replace(word, speaker=speaker) for word in segment.words)
    return replace(segment, speaker=speaker, words=words)


def _joined(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns with those of one speaker that follow each other closely made one: text is better heard whole."""
    joined: list[Turn] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.speaker == turn.speaker
            and turn.start - last.end < SHORTEST_PAUSE_S
            and turn.end - last.start <= LONGEST_TURN_S
        ):
            joined[-1] = replace(last, end=turn.end)
        else:
            joined.append(turn)
    return tuple(joined)
