"""Pieces to texts, the same for every model that tells no probabilities: judged by the guard, halved where it refuses.

What is left then is left out, and a warning names the places.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from hansard.audio.speech import Activity, cut
from hansard.batch import Batch
from hansard.transcribers.guard import Fault, Heard, Limits, complaints, fault
from hansard.transcribers.pieces import SHORTEST_S, Piece
from hansard.transcript import Audio, Report

log = logging.getLogger(__name__)

ROUNDS = 2  # of halving
LEAST_HALVED_S = 4.0
HALF = 2 / 3  # of a piece, at most: cut finds the quietest moment of the middle third, and makes two of it


class Written(Protocol):
    """What a model makes of a piece: its text, and whether it came to an end by itself."""

    @property
    def text(self) -> str: ...

    @property
    def ended(self) -> bool: ...


W = TypeVar("W", bound=Written)


@dataclass(frozen=True, slots=True)
class Attempt(Generic[W]):
    """What was made of a piece, and what the guard has against it."""

    piece: Piece
    written: W
    fault: Fault | None

    @property
    def sound(self) -> bool:
        """Does it stand, as words or as silence?"""
        return self.fault in (None, Fault.SILENCE)


@dataclass(frozen=True, slots=True)
class Judge:
    """What the pieces of a job are judged by."""

    audio: Audio
    activity: Activity
    limits: Limits

    def judged(self, piece: Piece, written: W) -> Attempt[W]:
        """An attempt, with the guard's verdict on its text and on silence where somebody speaks."""
        heard = Heard(written.text, math.inf, 0.0, piece.length, self.activity.spoken(piece.span), written.ended)
        return Attempt(piece, written, fault(heard, self.limits))

    def halves(self, attempt: Attempt[W]) -> list[Piece]:
        """The two parts in which a piece is tried again; none if it stands or is too short."""
        piece = attempt.piece
        if attempt.sound or piece.length < LEAST_HALVED_S:
            return []
        return [replace(piece, span=span) for span in cut(self.audio, self.activity, piece.span, HALF * piece.length)]


def better(parts: Sequence[Attempt[W]], whole: Attempt[W]) -> list[Attempt[W]]:
    """The attempts at the parts of a piece that failed, if any of them has words that stand, else the whole."""
    return [*parts] if any(part.fault is None for part in parts) else [whole]


class Progress:
    """Tells of the seconds of sound that are settled, as a share of a stage that begins at `before`; it never falls."""

    def __init__(self, report: Report, total: float, before: float) -> None:
        self._report, self._total, self._before, self._told = report, total, before, before

    def __call__(self, seconds: float) -> None:
        share = min(1.0, seconds / self._total)
        self._told = max(self._told, self._before + (1 - self._before) * share)
        self._report(self._told)


SPEECH_SHARE = 0.05  # of the stage's time: finding where somebody speaks, before anything is written

Work = Callable[[Sequence[Piece], Report], Sequence[W]]
"""What a model writes of the pieces of one batch; it may report how far the batch is, 0 to 1."""


def written(
    work: Work[W], judge: Judge, batch: Batch, found: Sequence[Piece], report: Report
) -> tuple[list[Attempt[W]], list[str]]:
    """What was made of the pieces, in order, and warnings: what could not be mended, and where memory was short."""
    heard = [piece for piece in found if piece.length >= SHORTEST_S]
    progress = Progress(report, sum(piece.length for piece in heard), SPEECH_SHARE)
    attempts = Writing(work, judge, batch, progress).write(heard)
    report(1.0)
    log.info("%d pieces of speech, written %d at a time", len(heard), batch.size)
    warnings = complaints((attempt.piece.span, attempt.fault) for attempt in attempts)
    if batch.size < batch.asked:
        warnings.append(f"memory was short: pieces were written {batch.size} at a time, not {batch.asked}")
    return attempts, warnings


class Writing(Generic[W]):
    """Writes the pieces of one job in batches."""

    def __init__(self, work: Work[W], judge: Judge, batch: Batch, settled: Callable[[float], None]) -> None:
        """`settled` hears of the seconds of sound that are done with; whatever it raises stops the work."""
        self._work, self._judge, self._batch, self._tell = work, judge, batch, settled
        self._settled = 0.0

    def write(self, todo: Sequence[Piece], rounds: int = ROUNDS) -> list[Attempt[W]]:
        """What was made of the pieces, in order; of one that the guard refuses, its halves if they are better."""
        whole = self._attempts(todo)
        halves = [self._judge.halves(attempt) if rounds else [] for attempt in whole]
        redone = self._parts([piece for some in halves for piece in some], rounds - 1)
        found: list[Attempt[W]] = []
        for attempt, some in zip(whole, halves, strict=True):
            parts = [part for piece in some for part in next(redone)] if some else []
            found += better(parts, attempt)
        return found

    def _parts(self, todo: Sequence[Piece], rounds: int) -> Iterator[list[Attempt[W]]]:
        """For each of these pieces, in order, the attempts that were made of it."""
        found = deque(self.write(todo, rounds) if todo else ())
        for piece in todo:
            parts = []
            while found and found[0].piece.lies_in(piece):
                parts.append(found.popleft())
            yield parts

    def _attempts(self, todo: Sequence[Piece]) -> list[Attempt[W]]:
        """One attempt at each piece, in order; batches are of like length, the longest first."""
        order = sorted(range(len(todo)), key=lambda index: -todo[index].length)
        found: dict[int, Attempt[W]] = {}
        for indices, attempts in self._batch.run(order, lambda some: self._try([todo[index] for index in some])):
            found.update(zip(indices, attempts, strict=True))
            self._settled += sum(attempt.piece.length for attempt in attempts if attempt.sound)
            self._tell(self._settled)
        return [found[index] for index in range(len(todo))]

    def _try(self, todo: Sequence[Piece]) -> list[Attempt[W]]:
        seconds = sum(piece.length for piece in todo)
        written = self._work(todo, lambda part: self._tell(self._settled + part * seconds))
        return [self._judge.judged(piece, one) for piece, one in zip(todo, written, strict=True)]
