"""The pyannote diarizer: speaker-diarization-community-1 and 3.1, from the hub or a folder, without asking a network.

Measured by their authors (README of pyannote.audio 4.0, no collar, overlap counted): DER 17.0 and 18.8 % on AMI
headset mix, 11.2 and 11.2 % on VoxConverse.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from hansard.diarizers import vendor
from hansard.diarizers.layout import read, repositories
from hansard.errors import ModelError
from hansard.models import Models
from hansard.request import Request
from hansard.transcript import Audio, Diarization, Float32, Report
from hansard.vendors import import_pyannote, quiet

# Of the time. Not measured on real weights: reports of users put 60-85 % of the stock pipeline's time into embeddings,
# of which this one does a third.
STAGE_SHARES = {"segmentation": (0.0, 0.3), "embeddings": (0.3, 0.95)}

# What torch, lightning and pyannote raise for a file that is cut short, no checkpoint, of another class, or of NumPy's.
UNREADABLE = (pickle.UnpicklingError, RuntimeError, LookupError, ValueError, AttributeError, EOFError, OSError)


class Pyannote:
    """Speaker diarization by a pyannote pipeline; a recording without speech gives no turns.

    `same_voice` is not measured here, since the weights cannot be had: users of the same embedding (WeSpeaker's
    ResNet34-LM) take 0.45 for two clips (the package speakeronnx), and the distance below which 3.1 itself
    merges clusters of one recording, 0.7046 between unit vectors, is a cosine of 0.75.
    """

    models: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "pyannote/speaker-diarization-community-1": ("pyannote/speaker-diarization-community-1",),
        "pyannote/speaker-diarization-3.1": (
            "pyannote/speaker-diarization-3.1",
            "pyannote/segmentation-3.0",
            "pyannote/wespeaker-voxceleb-resnet34-LM",
        ),
    }
    same_voice: ClassVar[float] = 0.5

    def __init__(self, model: str, models: Models) -> None:
        layout = read(model, models)
        import_pyannote()
        with quiet():
            from hansard.diarizers.pyannote_pipeline import SharedTrunk

            try:
                self._pipeline = SharedTrunk(layout)
            except UNREADABLE:
                raise ModelError(f"the weights or parameters of {model} cannot be loaded; fetch it again") from None
            self._pipeline.move("cuda" if models.settings.on_gpu else "cpu")

    @classmethod
    def needs(cls, model: str, models: Models) -> tuple[str, ...]:
        """The repositories of a known name; of a folder, itself and the repositories that its config.yaml names."""
        return cls.models.get(model) or (model, *repositories(model, models))

    def diarize(self, audio: Audio, request: Request, report: Report) -> Diarization:
        """Turns of one channel; the counts of the request bound the number of speakers."""
        self._pipeline.batches_anew()
        found = vendor.diarize(self._pipeline, audio, request, vendor.progress(report, STAGE_SHARES))
        return replace(found, warnings=found.warnings + self._pipeline.shortages())

    def embed(self, audio: Audio) -> Float32 | None:
        """The voice of a recording of one person, shape (256,) for the models above, of any length.

        None where less than a second is said in it. It is the space of the voices of `diarize`.
        """
        self._pipeline.batches_anew()
        with vendor.undisturbed():
            return self._pipeline.voice(vendor.in_memory(audio))

    def close(self) -> None:
        import torch

        del self._pipeline
        gc.collect()  # its hooks and properties refer to one another
        torch.cuda.empty_cache()  # or PyTorch would keep what other engines of this process could use
