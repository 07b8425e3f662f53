"""The data that stages hand to one another: frozen, standard library and NumPy only.

Seconds are floats from the start of the recording. Sound is 16 kHz; it is stored as int16 (ten hours of one
channel are 1.15 GB) and handed to models as float32 in [-1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000  # Hz, of every array of samples in this product

UNSPACED = frozenset({"ja", "zh", "yue", "th", "lo", "km", "my"})
"""Languages written without spaces between words."""

Float32 = npt.NDArray[np.float32]

Report = Callable[[float], None]
"""`report(fraction)`: a stage tells how much of its work is done, 0 to 1. Raises CancelledError when it should stop."""


@dataclass(frozen=True, slots=True)
class Audio:
    """A decoded recording: int16 samples at 16 kHz, shape (channels, samples), possibly memory-mapped."""

    samples: npt.NDArray[np.int16]
    warnings: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return int(self.samples.shape[0])

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.samples.shape[1] / SAMPLE_RATE)

    def channel(self, index: int) -> Audio:
        """One channel of this recording as a recording of its own; shares the samples."""
        return Audio(self.samples[index : index + 1], self.warnings)

    def mono(self, start: float = 0.0, end: float | None = None) -> Float32:
        """The first channel between two times in seconds, as float32 in [-1, 1), shape (samples,)."""
        stop = None if end is None else round(end * SAMPLE_RATE)
        return self.samples[0, round(start * SAMPLE_RATE) : stop].astype(np.float32) / np.float32(32768)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a recording, in seconds from its start."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of time in which one speaker talks."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True, slots=True)
class Word:
    """One word as written, with its times; `score` is the recogniser's or aligner's confidence, 0 to 1."""

    text: str
    start: float
    end: float
    score: float | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Sureness:
    """How sure a transcriber was of a text: the mean log-probability of its tokens, and how likely nothing was said.

    `temperature` is the one at which the text was decoded.
    """

    temperature: float
    logprob: float
    no_speech: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text by one speaker; `words` is empty where there are no word times.

    `language` is set where it was decided for this segment alone. `speaker_id` is the enrolled voice that the speaker
    was recognised as, `similarity` the cosine between the two, -1 to 1. `sureness` is there where the transcriber
    tells; it is that of everything which was decoded together with this text.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None
    language: str | None = None
    speaker_id: str | None = None
    similarity: float | None = None
    sureness: Sureness | None = None


@dataclass(frozen=True, slots=True)
class Transcription:
    """What a transcriber gives: text with times, and the language it heard or was told."""

    segments: tuple[Segment, ...]
    language: str
    language_probability: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diarization:
    """What a diarizer gives: who speaks when.

    In `exclusive` at most one speaker talks at any time (words are assigned to these); `turns` may overlap.
    `voices` holds the mean embedding of each speaker who spoke enough for one, shape (dimension,).
    """

    exclusive: tuple[Turn, ...]
    turns: tuple[Turn, ...]
    warnings: tuple[str, ...] = ()
    voices: Mapping[str, Float32] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Transcript:
    """The whole answer to a job, before a door gives it its format; `timings` are seconds by stage."""

    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    language: str
    language_probability: float | None
    duration: float
    model: str
    timings: dict[str, float]
    warnings: tuple[str, ...] = ()
