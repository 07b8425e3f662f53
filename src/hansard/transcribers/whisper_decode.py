"""Chunks to phrases: decode in batches, judge each transcript by the guard, decode again what fails.

What fails is decoded at rising temperatures, then in smaller parts (at once where there were more words than a model
can write); speech that a transcript left out is decoded by itself. Each of these rounds is batched over all chunks
that need it, and there are at most MOST_ROUNDS of gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hansard.audio.speech import Activity, cut
from hansard.batch import Batch
from hansard.transcribers.guard import LEAST_GAP_S, Fault, Heard, Limits, fault
from hansard.transcribers.pieces import LEAST_SEGMENT_S
from hansard.transcribers.whisper_model import Decoded, Encoded, Manner, Phrase, WhisperWeights
from hansard.transcript import Audio, Segment, Span, Sureness

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
PART_TEMPERATURES = (0.4, 0.8)
PARTS_S = (10.0, 4.0)  # longest parts that a chunk is cut into when no temperature helps, and those parts again
LEAST_PART_S = 2.0  # a chunk is not cut below this
MOST_ROUNDS = 2  # of gaps, and gaps in what was heard in gaps


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most 30 s to decode: where, in which language, and what it is part of (a number of the caller's)."""

    span: Span
    language: str
    owner: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was made of a chunk; `phrases` are in seconds from the chunk's start."""

    chunk: Chunk
    phrases: tuple[Phrase, ...]
    text: str
    sureness: Sureness
    fault: Fault | None

    @property
    def sound(self) -> bool:
        """Does it stand, as words or as silence?"""
        return self.fault in (None, Fault.SILENCE)

    @property
    def overfull(self) -> bool:
        """Was it cut off, and is it long enough for that to be the speaker's doing?"""
        return self.fault is Fault.ENDLESS and self.chunk.span.end - self.chunk.span.start > PARTS_S[-1]

    @property
    def worth(self) -> tuple[int, float]:
        """The better of two attempts has the greater."""
        return (2 if self.sound else 1 if self.fault is Fault.DOUBT else 0), self.sureness.logprob


@dataclass(frozen=True, slots=True)
class Task:
    """What all chunks of a job have in common: `progress` hears of the seconds of sound that are settled."""

    audio: Audio
    activity: Activity
    task: str
    context: Sequence[int]
    manner: Manner
    limits: Limits
    progress: Callable[[float], None]


class Decoding:
    """Decodes the chunks of one job."""

    def __init__(self, weights: WhisperWeights, task: Task, batch: Batch) -> None:
        self._weights, self._task, self._batch = weights, task, batch
        self._settled = 0.0  # seconds
        self._ready: dict[tuple[Span, ...], Encoded] = {}

    def decode(self, chunks: Sequence[Chunk], ready: dict[tuple[Span, ...], Encoded]) -> list[Attempt]:
        """What was made of each chunk, in no particular order: one attempt, or several of its parts.

        `ready` holds spans that are encoded already; they are taken out of it.
        """
        self._ready = ready
        found = _flat(self._best(chunks, TEMPERATURES, PARTS_S))
        latest = found
        for _ in range(MOST_ROUNDS):
            gaps = [gap for attempt in latest for gap in self._gaps(attempt)]
            if not gaps:
                break
            latest = [_in_gap(attempt) for attempt in self._ladder(gaps, PART_TEMPERATURES)]
            found += latest
        return found

    def _best(
        self, chunks: Sequence[Chunk], temperatures: Sequence[float], lengths: Sequence[float]
    ) -> list[list[Attempt]]:
        """For each chunk the best attempt at it, or those at its parts where they are better."""
        whole = self._ladder(chunks, temperatures)
        parts = [self._parts(attempt, lengths) for attempt in whole]
        if not any(parts):
            return [[attempt] for attempt in whole]
        redone = iter(self._best([part for some in parts for part in some], PART_TEMPERATURES, lengths[1:]))
        again = [_flat([next(redone) for _ in some]) for some in parts]
        return [tries if _better(tries, attempt) else [attempt] for attempt, tries in zip(whole, again, strict=True)]

    def _parts(self, attempt: Attempt, lengths: Sequence[float]) -> list[Chunk]:
        """The parts in which a chunk is tried again; none if it stands or is too short."""
        chunk = attempt.chunk
        length = chunk.span.end - chunk.span.start
        if attempt.sound or not lengths or length < 2 * LEAST_PART_S:
            return []
        longest = min(lengths[0], length / 2 + LEAST_PART_S / 2)
        return [replace(chunk, span=span) for span in cut(self._task.audio, self._task.activity, chunk.span, longest)]

    def _ladder(self, chunks: Sequence[Chunk], temperatures: Sequence[float]) -> list[Attempt]:
        """The best attempt at each chunk, in order; those that fail are tried again at each higher temperature.

        Not where a long chunk had no end: as a rule more is said in it than fits, and only parts of it help.
        """
        first = self._task.manner.temperature
        best: dict[int, Attempt] = {}
        failing = list(range(len(chunks)))
        for temperature in (first, *(higher for higher in temperatures if higher > first)):
            manner = replace(self._task.manner, temperature=temperature)
            for index, attempt in zip(
                failing, self._attempts([chunks[index] for index in failing], manner), strict=True
            ):
                best[index] = max(best.get(index, attempt), attempt, key=lambda one: one.worth)
            failing = [index for index in failing if not best[index].sound and not best[index].overfull]
            if not failing:
                break
        return [best[index] for index in range(len(chunks))]

    def _attempts(self, chunks: Sequence[Chunk], manner: Manner) -> list[Attempt]:
        """One attempt at each chunk, in order; batches are of chunks of like length, the longest first."""
        order = sorted(range(len(chunks)), key=lambda index: chunks[index].span.start - chunks[index].span.end)
        encoded = {span for spans in self._ready for span in spans}
        first = [index for index in range(len(chunks)) if chunks[index].span in encoded]
        found: dict[int, Attempt] = {}

        def work(indices: Sequence[int]) -> list[Attempt]:
            return self._decode([chunks[index] for index in indices], manner)

        for group in (first, [index for index in order if chunks[index].span not in encoded]):
            for indices, attempts in self._batch.run(group, work):
                found.update(zip(indices, attempts, strict=True))
                self._settled += sum(a.chunk.span.end - a.chunk.span.start for a in attempts if a.sound)
                self._task.progress(self._settled)
        return [found[index] for index in range(len(chunks))]

    def _decode(self, chunks: Sequence[Chunk], manner: Manner) -> list[Attempt]:
        task = self._task
        encoded = self._ready.pop(tuple(chunk.span for chunk in chunks), None)
        if encoded is None:
            encoded = self._weights.encode([task.audio.mono(chunk.span.start, chunk.span.end) for chunk in chunks])
        prompts = [self._weights.prompt(chunk.language, task.task, task.context) for chunk in chunks]
        decoded = self._weights.decode(encoded, prompts, manner)
        return [self._judged(chunk, result, manner.temperature) for chunk, result in zip(chunks, decoded, strict=True)]

    def _judged(self, chunk: Chunk, decoded: Decoded, temperature: float) -> Attempt:
        text = self._weights.text(decoded.tokens)
        seconds = chunk.span.end - chunk.span.start
        speech = self._task.activity.spoken(chunk.span)
        heard = Heard(text, decoded.logprob, decoded.no_speech, seconds, speech, decoded.ended)
        phrases = self._weights.phrases(decoded.tokens, seconds)
        sureness = Sureness(temperature, decoded.logprob, decoded.no_speech)
        return Attempt(chunk, tuple(phrases), text, sureness, fault(heard, self._task.limits))

    def _gaps(self, attempt: Attempt) -> list[Chunk]:
        """Where in a sound transcript somebody speaks and no phrase is."""
        if attempt.fault is not None:
            return []
        begin, end = attempt.chunk.span.start, attempt.chunk.span.end
        edges = [begin, *(begin + time for p in attempt.phrases for time in (p.start, p.end)), end]
        gaps = [Span(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
        return [replace(attempt.chunk, span=gap) for gap in gaps if self._task.activity.spoken(gap) >= LEAST_GAP_S]


def _flat(attempts: Sequence[Sequence[Attempt]]) -> list[Attempt]:
    return [attempt for some in attempts for attempt in some]


def _better(parts: Sequence[Attempt], whole: Attempt) -> bool:
    """Are attempts at the parts of a chunk, if any, better than one at the whole, which failed?"""
    if whole.fault is Fault.DOUBT:
        return bool(parts) and min(part.worth for part in parts) > whole.worth
    return any(part.fault in (None, Fault.DOUBT) for part in parts)


def _in_gap(attempt: Attempt) -> Attempt:
    """What was heard in a gap; unless it stands, the gap is told of and its words, most likely invented, are not."""
    return attempt if attempt.sound else replace(attempt, phrases=(), fault=Fault.GAP)


def segments(attempts: Sequence[Attempt], text: Callable[[Sequence[int]], str]) -> list[Segment]:
    """The phrases that stand or are in doubt as segments of the recording, in order of time, each within its chunk."""
    found = []
    for attempt in attempts:
        begin, end = attempt.chunk.span.start, attempt.chunk.span.end
        for phrase in attempt.phrases if attempt.fault in (None, Fault.DOUBT) else ():
            start = max(begin, min(begin + phrase.start, end - LEAST_SEGMENT_S))
            stop = min(max(begin + phrase.end, start + LEAST_SEGMENT_S), end)
            if words := text(phrase.tokens):
                found.append(Segment(start, stop, words, language=attempt.chunk.language, sureness=attempt.sureness))
    return sorted(found, key=lambda segment: (segment.start, segment.end))
