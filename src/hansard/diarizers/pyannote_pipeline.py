"""What `pyannote` builds on pyannote.audio; importing this loads torch, so only that class does it.

The embedding network runs once per chunk with the masks of all its speakers, and not at all where nobody speaks;
the stock pipeline runs it once for each of three local speakers (https://github.com/pyannote/pyannote-audio/issues/2050).
The numbers are the same, which tests show. A batch that does not fit into memory is halved and tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pyannote.audio import Model
from pyannote.audio.core.plda import PLDA

from hansard.diarizers.bounded_pipeline import LEAST_SPEECH, Array, BoundedPipeline
from hansard.diarizers.layout import Layout
from hansard.errors import OutOfMemoryError
from hansard.transcript import SAMPLE_RATE
from hansard.vendors import give_back_memory, no_room

# Chunks at once, of segmentation and of embedding. 32 as in the published pipelines' config.yaml; on a CPU 4 were a
# third faster than 32, and a job that is cancelled ends sooner.
BATCHES = {"cuda": 32, "cpu": 4}

Hook = Callable[..., None]
Result = TypeVar("Result")


class SharedTrunk(BoundedPipeline):
    """pyannote's diarization pipeline from a folder, with one pass of the embedding network for each chunk.

    Constructed in the machine's own memory; it works once `move` has said where.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(
            segmentation=Model.from_pretrained(layout.segmentation, strict=False),
            embedding=Model.from_pretrained(layout.embedding, strict=False),
            embedding_exclude_overlap=layout.exclude_overlap,
            plda=None if layout.plda is None else PLDA.from_pretrained(layout.plda),
        )
        self.instantiate(dict(layout.parameters))
        if not self.instantiated:
            raise ValueError("some parameters have no number")

    def move(self, device: str) -> None:
        """Send the networks to `cuda` or `cpu`. Raises OutOfMemoryError."""
        self._most = BATCHES[device]
        self.batches_anew()
        try:
            self.to(torch.device(device))
            self._silent = self._without_speech()
        except RuntimeError as error:
            if not no_room(error):
                raise
            raise OutOfMemoryError(
                "the diarization model does not fit into the GPU's memory; use a larger GPU"
            ) from None

    def batches_anew(self) -> None:
        """Forget what earlier recordings did not fit."""
        self.segmentation_batch_size = self.embedding_batch_size = self._most

    def shortages(self) -> tuple[str, ...]:
        """What this recording did not fit, as warnings."""
        smallest = min(self.segmentation_batch_size, self.embedding_batch_size)
        said = f"memory was short: speakers were told apart {smallest} chunks at a time instead of {self._most}"
        return (said,) if smallest < self._most else ()

    def _without_speech(self) -> Array | None:
        """The embedding of an empty mask, the same for all sound, or None for a network that takes one mask only."""
        sound = torch.zeros(1, 1, SAMPLE_RATE)
        try:
            found: Array = self._embedding(sound, masks=torch.zeros(1, 2, 100))
        except (RuntimeError, TypeError, ValueError) as error:
            if no_room(error):
                raise
            return None
        return found[0, 0] if found.shape == (1, 2, self._embedding.dimension) else None

    def get_segmentations(self, file: dict[str, Any], hook: Hook | None = None) -> Any:
        """Local speakers of each chunk, shape (chunks, frames, speakers)."""
        return self._fitting("segmentation_batch_size", super().get_segmentations, file, hook)

    def get_embeddings(
        self, file: dict[str, Any], binary_segmentations: Any, exclude_overlap: bool = False, hook: Hook | None = None
    ) -> Array:
        """One voice for each chunk and local speaker, shape (chunks, speakers, dimension)."""
        if self._silent is None:
            return self._fitting(
                "embedding_batch_size", super().get_embeddings, file, binary_segmentations, exclude_overlap, hook
            )
        data, window = binary_segmentations.data, binary_segmentations.sliding_window
        chunks, frames, speakers = data.shape
        fewest = self._fewest_frames(frames, window.duration) if exclude_overlap else None
        found = np.tile(self._silent, (chunks, speakers, 1))
        spoken = np.flatnonzero(np.nan_to_num(data).any(axis=(1, 2)))
        done = 0
        while done < len(spoken):
            left = spoken[done:]
            voices = self._fitting("embedding_batch_size", self._embed, file, window, data, left, fewest)
            found[left[: len(voices)]] = voices
            done += len(voices)
            if hook is not None:
                hook("embeddings", None, total=len(spoken), completed=done)
        return found

    def _fewest_frames(self, frames: int, duration: float) -> int:
        """Frames without overlap, of a chunk's, above which they are used alone."""
        return int(np.ceil(frames * self._embedding.min_num_samples / (duration * self._embedding.sample_rate)))

    def _embed(self, file: dict[str, Any], window: Any, data: Array, left: Any, fewest: int | None) -> Array:
        """Voices of the first of the chunks that are left, as many as fit a batch: (batch, speakers, dimension)."""
        batch = left[: self.embedding_batch_size]
        masks = data[batch]
        if fewest is not None:
            alone = np.nan_to_num(masks * (masks.sum(axis=2, keepdims=True) < 2))
            masks = np.where(alone.sum(axis=1, keepdims=True) > fewest, alone, masks)
        sound = torch.stack([self._audio.crop(file, window[int(chunk)], mode="pad")[0] for chunk in batch])
        weights = torch.from_numpy(np.nan_to_num(masks).astype(np.float32).transpose(0, 2, 1))
        voices: Array = self._embedding(sound, masks=weights)
        return voices

    def voice_of(self, file: dict[str, Any], speech: npt.NDArray[np.bool_], step: float) -> Array:
        """The mean voice, shape (dimension,), not of unit length.

        It is cut into pieces of about a chunk, which are not padded: padding would shift the mean of the spectrum
        that the network takes off, and with it the voice of a short sample.
        """
        sound = file["waveform"]
        pieces = max(1, round(sound.shape[1] / SAMPLE_RATE / self._segmentation.duration))
        masks = np.array_split(speech.astype(np.float32), pieces)
        voices = [
            self._fitting("embedding_batch_size", self._embedding, part[None], torch.from_numpy(mask)[None])[0]
            for part, mask in zip(torch.tensor_split(sound, pieces, dim=1), masks, strict=True)
        ]
        seconds = np.array([mask.sum() * step for mask in masks])
        kept = seconds >= min(LEAST_SPEECH, seconds.max())
        mean: Array = np.stack(voices)[kept].mean(axis=0)
        return mean

    def _fitting(self, size: str, work: Callable[..., Result], *given: Any) -> Result:
        """What `work` returns, the batch size of that name halved until its batches fit. Raises OutOfMemoryError."""
        while True:
            try:
                return work(*given)
            except (MemoryError, RuntimeError) as error:
                if not no_room(error):
                    raise
            batch = getattr(self, size)
            if batch == 1:
                raise OutOfMemoryError("diarization does not fit into memory one chunk at a time; use a larger GPU")
            setattr(self, size, batch // 2)
            give_back_memory()  # the failed batch's blocks would not fit the smaller one's shapes
