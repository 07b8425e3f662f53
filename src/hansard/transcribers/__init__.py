"""Speech to text: one Protocol, one table.

A backend is a class: importing it is free, constructing it loads its model, `close` lets the model go.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from hansard.request import Request
from hansard.transcribers.capabilities import Can
from hansard.transcribers.sphinx import Sphinx
from hansard.transcript import Audio, Report, Transcription


class Transcriber(Protocol):
    """Turns one channel of sound into text with times.

    Raises EngineMissingError when constructed without its package or weights.
    """

    can: ClassVar[Can]

    def __init__(self) -> None: ...

    def transcribe(self, audio: Audio, request: Request, report: Report) -> Transcription:
        """Segments in order of time, each within the recording; silence gives none."""
        ...

    def close(self) -> None: ...


TRANSCRIBERS: dict[str, type[Transcriber]] = {"sphinx": Sphinx}
