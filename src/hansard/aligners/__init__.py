"""When each word was said: one Protocol, one table.

A backend is a class: importing it is free, constructing it loads the model of one language, `close` lets it go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hansard.aligners.alignment import Alignment
from hansard.aligners.ctc import Ctc
from hansard.models import Models
from hansard.transcript import Audio, Report, Segment


class Aligner(Protocol):
    """Times the words of one language.

    Raises UnsupportedError when constructed for a language it has no model for, ModelError where the model cannot
    be had.
    """

    def __init__(self, language: str, models: Models) -> None: ...

    def align(self, audio: Audio, segments: Sequence[Segment], report: Report) -> Alignment:
        """The segments, in the same order, each with its words as written and their times within the segment.

        A segment that cannot be aligned comes back without words, and a warning says so.
        """
        ...

    def close(self) -> None: ...


ALIGNERS: dict[str, type[Aligner]] = {"ctc": Ctc}
