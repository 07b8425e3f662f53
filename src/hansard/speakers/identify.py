"""Voices to names: each diarized speaker against the samples of known voices, one name for one speaker.

Similarity is the cosine between two embeddings of the diarizer's own model, so a threshold holds for one diarizer only;
each has its own default, `same_voice`.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hansard.transcript import Float32, Segment

MOST_ENROLMENTS = 4_096  # of about 1 kB each


@dataclass(frozen=True, slots=True)
class Match:
    """The name given to a speaker, and how alike the voices are: a cosine, -1 to 1."""

    name: str
    similarity: float


class Enrolments:
    """Embeddings of samples already heard, by the content of the sample and the model that heard it, never by name.

    Two callers may each have an "Alice"; the same recording under two names is embedded once. Those used longest ago
    are forgotten first.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Float32] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sample: Path, model: str, embed: Callable[[], Float32]) -> Float32:
        """The voice in a file, from `embed` where it is new."""
        with sample.open("rb") as file:
            key = (hashlib.file_digest(file, "sha256").hexdigest(), model)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        voice = embed()
        with self._lock:
            self._known[key] = voice
            if len(self._known) > MOST_ENROLMENTS:
                self._known.popitem(last=False)
        return voice


def identify(
    voices: Mapping[str, Float32], samples: Sequence[tuple[str, Float32]], threshold: float
) -> dict[str, Match]:
    """The names of those speakers whose voice is at least `threshold` like a sample's.

    `voices` maps speakers to embeddings, `samples` are names with embeddings, all of shape (dimension,); several
    samples of one name count as their mean. Names and speakers are paired one to one so that the sum of similarities is
    greatest (the assignment problem; Crouse 2016, as SciPy solves it); only pairs that reach the threshold count.
    """
    from scipy.optimize import linear_sum_assignment

    if not voices or not samples:
        return {}
    names = list(dict.fromkeys(name for name, _ in samples))
    known = np.stack([_mean([voice for other, voice in samples if other == name]) for name in names])
    speakers = list(voices)
    likeness = np.stack([_unit(voices[speaker]) for speaker in speakers]) @ known.T
    enough = likeness >= threshold
    rows, columns = linear_sum_assignment(np.where(enough, likeness, 0), maximize=True)
    return {
        speakers[row]: Match(names[column], float(np.clip(likeness[row, column], -1, 1)))
        for row, column in zip(rows, columns, strict=True)
        if enough[row, column]
    }


def name_segments(segments: Sequence[Segment], matches: Mapping[str, Match]) -> tuple[Segment, ...]:
    """The segments, with the name and the similarity of those speakers that have one."""
    return tuple(
        replace(segment, speaker_id=match.name, similarity=match.similarity)
        if (match := matches.get(segment.speaker or ""))
        else segment
        for segment in segments
    )


def _unit(voice: Float32) -> Float32:
    length = np.linalg.norm(voice)
    unit: Float32 = (voice / length if length > 0 else voice).astype(np.float32)
    return unit


def _mean(voices: Sequence[Float32]) -> Float32:
    return _unit(np.mean([_unit(voice) for voice in voices], axis=0))
