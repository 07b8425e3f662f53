"""The embedded diarizer: pyannote's SpeakerDiarization pipeline on weights that ride in other packages.

Speech and overlap come from the segmentation model inside whisperx, voices from the encoder inside resemblyzer, so
it works on any machine without a model hub. A floor, not a rival of community-1; figures are in tests/bench.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from hansard.diarizers import vendor
from hansard.models import Models
from hansard.request import Request
from hansard.transcript import Audio, Diarization, Float32, Report
from hansard.vendors import import_pyannote, packaged, quiet

STAGE_SHARES = {"segmentation": (0.0, 0.67), "embeddings": (0.67, 0.95)}  # of the time, on half an hour of sound


class Embedded:
    """Speaker diarization without a GPU; a recording without speech gives no turns.

    `same_voice` was measured on 21 people in 18 real recordings (read, broadcast, meetings, telephone; 7 languages),
    the first half of what each says, 3 to 14 s, against the second half. Of 20 pairs of one person none was missed (the
    lowest cosine is 0.751); of 800 pairs of two people 12 were accepted (1.5 %): the two voices of one telephone call,
    and men of one corpus of meetings.
    """

    models: ClassVar[Mapping[str, tuple[str, ...]]] = {"embedded": ()}
    same_voice: ClassVar[float] = 0.75

    def __init__(self, model: str, models: Models) -> None:
        segmentation = packaged("whisperx", "assets/pytorch_model.bin")
        encoder = packaged("resemblyzer", "pretrained.pt")
        import_pyannote()
        with quiet():
            from hansard.diarizers.embedded_pipeline import EmbeddedPipeline

            self._pipeline = EmbeddedPipeline(segmentation, encoder)

    @classmethod
    def needs(cls, model: str, models: Models) -> tuple[str, ...]:
        return cls.models[model]

    def diarize(self, audio: Audio, request: Request, report: Report) -> Diarization:
        """Turns of one channel; the counts of the request bound the number of speakers."""
        return vendor.diarize(self._pipeline, audio, request, vendor.progress(report, STAGE_SHARES))

    def embed(self, audio: Audio) -> Float32 | None:
        """The voice of a recording of one person, shape (256,), of unit length; None where too little is said in it."""
        with vendor.undisturbed():
            return self._pipeline.voice(vendor.in_memory(audio))

    def close(self) -> None:
        del self._pipeline
