"""What an aligner gives; apart from the table, so that backends can import it."""

from __future__ import annotations

from dataclasses import dataclass

from hansard.transcript import Segment


@dataclass(frozen=True, slots=True)
class Alignment:
    """The same segments with their words, and what could not be timed."""

    segments: tuple[Segment, ...]
    warnings: tuple[str, ...] = ()
