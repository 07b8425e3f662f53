"""Who speaks when: one Protocol, one table.

A backend is a class: importing it is free, constructing it loads its models, `close` lets them go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from hansard.diarizers.embedded import Embedded
from hansard.diarizers.pyannote import Pyannote
from hansard.models import Models
from hansard.request import Request
from hansard.transcript import Audio, Diarization, Float32, Report


class Diarizer(Protocol):
    """Tells the speakers of one channel of sound apart.

    `models` holds each model it knows by name, with the hub repositories it needs. `same_voice` is the cosine of two
    embeddings from which they are taken for one person, as measured or as the class says. Raises EngineMissingError
    when constructed without its packages, ModelError without its weights.
    """

    models: ClassVar[Mapping[str, tuple[str, ...]]]
    same_voice: ClassVar[float]

    def __init__(self, model: str, models: Models) -> None: ...

    @classmethod
    def needs(cls, model: str, models: Models) -> tuple[str, ...]:
        """What must be found or fetched to load a model of this kind; none: the weights ride in a package."""
        ...

    def diarize(self, audio: Audio, request: Request, report: Report) -> Diarization:
        """Turns in order of time, speakers named SPEAKER_00 and on in order of appearance; silence gives none."""
        ...

    def embed(self, audio: Audio) -> Float32 | None:
        """The voice of a recording of one person, shape (dimension,); None where too little is said in it."""
        ...

    def close(self) -> None: ...


DIARIZERS: dict[str, type[Diarizer]] = {"pyannote": Pyannote, "embedded": Embedded}
