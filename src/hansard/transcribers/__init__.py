"""Speech to text: one Protocol, one table.

A backend is a class: importing it is free, constructing it loads its model, `close` lets the model go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from hansard.models import Models
from hansard.request import Request
from hansard.transcribers.canary import Canary
from hansard.transcribers.capabilities import Can
from hansard.transcribers.sphinx import Sphinx
from hansard.transcribers.voxtral import Voxtral
from hansard.transcribers.voxtral_api import VoxtralChat, VoxtralTranscriptions
from hansard.transcribers.whisper import Whisper
from hansard.transcript import Audio, Report, Segment, Span, Transcription


class Transcriber(Protocol):
    """Turns one channel of sound into text with times.

    `models` holds each model it knows by name, with the hub repositories it needs; none: the weights ride in a
    package, or lie with a service. Raises EngineMissingError when constructed without its package, ModelError without
    its weights.
    """

    can: ClassVar[Can]
    models: ClassVar[Mapping[str, tuple[str, ...]]]

    @classmethod
    def takes(cls, name: str, models: Models) -> bool:
        """Is a name that no backend knows a model of this one: a folder of its kind, a repository, a service's?

        No network is asked.
        """
        ...

    @classmethod
    def check(cls, model: str, request: Request, models: Models) -> None:
        """Return when the model can be had and does what a request asks for, beyond what `can` tells.

        Loads nothing, asks the model hub at most a question or two. Raises UnsupportedError, EngineMissingError,
        ModelError.
        """
        ...

    def __init__(self, model: str, models: Models) -> None: ...

    def transcribe(
        self, audio: Audio, request: Request, report: Report, spans: Sequence[Span] | None = None
    ) -> Transcription:
        """Segments in order of time, each within the recording; silence gives none.

        With `spans` the speech is not searched for: exactly one segment for each span, in the order given, its text
        empty where nothing is said in it.
        """
        ...

    def time_words(self, audio: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
        """The segments with words by the model's own idea of their times: less exact than an aligner's.

        A model without such an idea returns them as they are.
        """
        ...

    def close(self) -> None: ...


TRANSCRIBERS: dict[str, type[Transcriber]] = {
    "whisper": Whisper,
    "voxtral": Voxtral,
    "voxtral_transcriptions": VoxtralTranscriptions,
    "voxtral_chat": VoxtralChat,
    "canary": Canary,
    "sphinx": Sphinx,
}
