"""Who speaks when: one Protocol, one table.

A backend is a class: importing it is free, constructing it loads its models, `close` lets them go.
"""

from __future__ import annotations

from typing import Protocol

from hansard.diarizers.embedded import Embedded
from hansard.request import Request
from hansard.transcript import Audio, Diarization, Report


class Diarizer(Protocol):
    """Tells the speakers of one channel of sound apart.

    Raises EngineMissingError when constructed without its packages or weights.
    """

    def __init__(self) -> None: ...

    def diarize(self, audio: Audio, request: Request, report: Report) -> Diarization:
        """Turns in order of time, speakers named SPEAKER_00 and on in order of appearance; silence gives none."""
        ...

    def close(self) -> None: ...


DIARIZERS: dict[str, type[Diarizer]] = {"embedded": Embedded}
