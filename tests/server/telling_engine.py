"""The real engine process with a pipeline that gives what a request asks for, to compare ways of asking."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing.connection import Connection

from scripted_engine import warm_up

from hansard.engine import child
from hansard.pipeline import Job, Stock
from hansard.settings import Settings
from hansard.stages import StageReport
from hansard.transcript import Segment, Transcript, Turn, Word

LABELS = ("SPEAKER_00", "SPEAKER_01")
LONG = "a sentence of so many words that its caption has to be cut somewhere between two of them, as every one is"


def main(connection: Connection, settings: Settings) -> None:
    """Life of the engine process, with nothing to check and nothing to load."""
    child.run = tell
    child.Engine.warm_up = warm_up
    child.main(connection, settings)


def tell(job: Job, stock: Stock, report: StageReport) -> Transcript:
    """Two segments, with what the pipeline would give them."""
    request = job.request
    report("decode", 1.0)
    given = request.segments
    labels = tuple(segment.speaker for segment in given) if given else LABELS
    knows = request.wants_speakers or request.channels == "separate" or given is not None
    turns = tuple(Turn(*times, label) for times, label in zip(((0.5, 2.0), (2.5, 3.0)), labels, strict=True))
    segments = tuple(
        Segment(turn.start, turn.end, text, _words(text, turn), language=language)
        for turn, text, language in zip(turns, (LONG, "bonjour"), ("en", "fr"), strict=True)
    )
    if request.task in ("translate", "diarization"):
        segments = tuple(replace(segment, words=()) for segment in segments)
    if request.task == "diarization":
        segments = tuple(replace(segment, text="", language=None) for segment in segments)
    if knows:
        segments = tuple(_spoken(segment, label) for segment, label in zip(segments, labels, strict=True))
    if job.samples:
        segments = (replace(segments[0], speaker_id=job.samples[0][0], similarity=0.8765), *segments[1:])
    return Transcript(
        segments,
        turns if knows else (),
        "" if request.task == "diarization" else "en",
        None if request.task == "diarization" else 0.9,
        3.5,
        job.plan.model,
        {"transcribe": 0.25},
        ("of this recording",),
    )


def _words(text: str, turn: Turn) -> tuple[Word, ...]:
    parts = text.split()
    step = (turn.end - turn.start) / len(parts)
    times = [round(turn.start + step * number, 3) for number in range(len(parts) + 1)]
    return tuple(Word(part, times[at], times[at + 1], 0.5) for at, part in enumerate(parts))


def _spoken(segment: Segment, label: str) -> Segment:
    return replace(segment, speaker=label, words=tuple(replace(word, speaker=label) for word in segment.words))
