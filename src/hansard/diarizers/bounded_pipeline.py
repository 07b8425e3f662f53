"""What both diarizers change in pyannote's SpeakerDiarization; importing this loads torch, so only pipelines do it.

Clustering sees at most MAX_CLUSTERED voices, since its memory grows with their square, and never fewer voices than
the clusters it is asked for. A recording of one person can be embedded like the speakers of a meeting.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines import SpeakerDiarization, clustering
from pyannote.audio.pipelines.clustering import AgglomerativeClustering, VBxClustering
from pyannote.audio.utils import vbx
from pyannote.audio.utils.signal import binarize

Array = npt.NDArray[np.float32]

MAX_CLUSTERED = 8_000
LEAST_SPEECH = 1.0  # seconds of it from which a recording of one person is embedded

for _module in (clustering, vbx):
    vars(_module)["print"] = lambda *_: None  # what they print is for their authors, and would stand in a job's log


class NoPlda(PLDA):  # type: ignore[misc]
    """Stands where the pipeline insists on a PLDA, which agglomerative clustering never asks."""

    def __init__(self) -> None: ...


def _evenly(kept: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """An even sample of voices, their chunks and their local speakers; the rest join the nearest cluster."""
    voices, chunks, speakers = kept
    stride = max(1, -(-len(voices) // MAX_CLUSTERED))
    return voices[::stride], chunks[::stride], speakers[::stride]


class BoundedAgglomerative(AgglomerativeClustering):  # type: ignore[misc]
    """Agglomerative clustering of at most MAX_CLUSTERED voices."""

    def filter_embeddings(self, *args: Any, **options: Any) -> tuple[Array, Array, Array]:
        return _evenly(super().filter_embeddings(*args, **options))


class BoundedVBx(VBxClustering):  # type: ignore[misc]
    """VBx clustering of at most MAX_CLUSTERED voices; too few of them lower the counts instead of raising."""

    def filter_embeddings(self, *args: Any, **options: Any) -> tuple[Array, Array, Array]:
        return _evenly(super().filter_embeddings(*args, **options))

    def __call__(self, embeddings: Array, segmentations: Any = None, **options: Any) -> Any:
        most = max(1, len(self.filter_embeddings(embeddings, segmentations=segmentations)[0]))
        for name in ("num_clusters", "min_clusters", "max_clusters"):
            if options.get(name) is not None:
                options[name] = min(options[name], most)
        return super().__call__(embeddings=embeddings, segmentations=segmentations, **options)


class BoundedPipeline(SpeakerDiarization):  # type: ignore[misc]
    """A SpeakerDiarization whose clustering is bounded, and which can say where anybody speaks."""

    def __init__(self, *, plda: PLDA | None, **options: Any) -> None:
        name = "AgglomerativeClustering" if plda is None else "VBxClustering"
        super().__init__(plda=plda or NoPlda(), clustering=name, **options)
        metric = self._embedding.metric
        self.clustering = BoundedAgglomerative(metric) if plda is None else BoundedVBx(plda, metric)

    def voice(self, file: dict[str, Any]) -> Array | None:
        """The voice of a recording of one person, shape (dimension,); None where too little is said."""
        speech, step = self.speech(file)
        return self.voice_of(file, speech, step) if speech.sum() * step >= LEAST_SPEECH else None

    @abstractmethod
    def voice_of(self, file: dict[str, Any], speech: npt.NDArray[np.bool_], step: float) -> Array:
        """The voice of a recording in which one person speaks where `speech` says so, see `speech`."""

    def speech(self, file: dict[str, Any]) -> tuple[npt.NDArray[np.bool_], float]:
        """Where anybody speaks, shape (frames,), and the seconds between frames."""
        found = self.get_segmentations(file)
        if not self._segmentation.model.specifications.powerset:
            found = binarize(found, onset=self.segmentation.threshold, initial_state=False)
        count = self.speaker_count(found, self._segmentation.model.receptive_field, warm_up=(0.0, 0.0))
        return count.data[:, 0] > 0, float(count.sliding_window.step)
