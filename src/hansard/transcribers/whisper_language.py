"""Which language is spoken: a vote over chunks from all over the recording, or a choice for each chunk.

faster-whisper and whisperX ask the first 30 s only, and so get a jingle's or a greeting's language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hansard.batch import Batch
from hansard.errors import UnsupportedError
from hansard.request import Request
from hansard.transcribers.languages import MIXED, NO_SPEECH, doubts
from hansard.transcribers.whisper_model import Encoded, WhisperWeights
from hansard.transcript import Audio, Segment, Span

VOTERS = 5  # segments that are asked where a job says nothing of it

Chances = npt.NDArray[np.float64]

Ready = dict[tuple[Span, ...], Encoded]
"""Spans that were encoded together for the vote, so that they need not be encoded again to be decoded."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """The language of each span, that of the whole, and how sure it is where it was not given."""

    each: tuple[str, ...]
    language: str
    probability: float | None = None
    warnings: tuple[str, ...] = ()
    ready: Ready = field(default_factory=dict)


def decide(weights: WhisperWeights, audio: Audio, request: Request, spans: Sequence[Span], batch: Batch) -> Spoken:
    """The language that a request names, or what a vote says, or with `multi` a choice for each span."""
    named = request.language
    if named not in (None, MIXED):
        return Spoken((named,) * len(spans), named)
    if not weights.multilingual:
        return Spoken(
            ("en",) * len(spans), "en", None, ("the language was not detected: this model knows English only",)
        )
    if not spans:
        return Spoken((), "en", 0.0, (NO_SPEECH,))
    ready: Ready = {}
    if named == MIXED:
        each, probability = choose_each(weights, audio, spans, batch)
        language = _most_spoken(each, spans)
    else:
        voters = _evenly(spans, request.language_detection_max_tries)
        language, probability, ready = vote(weights, audio, voters, batch)
        each = [language] * len(spans)
    warnings = doubts(language, probability, request.language_detection_min_prob)
    return Spoken(tuple(each), language, probability, warnings, ready)


def languages_of(weights: WhisperWeights, audio: Audio, segments: Sequence[Segment], batch: Batch) -> list[str]:
    """The language of each segment: its own, or the same vote for all that have none."""
    if not weights.multilingual:
        return ["en"] * len(segments)
    unknown = [Span(segment.start, segment.end) for segment in segments if segment.language is None]
    common = vote(weights, audio, _evenly(unknown, VOTERS), batch)[0] if unknown else ""
    return [segment.language or common for segment in segments]


def vote(weights: WhisperWeights, audio: Audio, spans: Sequence[Span], batch: Batch) -> tuple[str, float, Ready]:
    """The language whose probabilities in these spans sum up to most, and their mean."""
    codes, chances, ready = _chances(weights, audio, spans, batch)
    mean = chances.mean(axis=0)
    return codes[int(mean.argmax())], float(mean.max()), ready


def choose_each(weights: WhisperWeights, audio: Audio, spans: Sequence[Span], batch: Batch) -> tuple[list[str], float]:
    """The language of each span, and the mean probability of those chosen.

    A span's own probabilities count, times the root of their mean over the recording: a second of speech is often
    taken for a language that nobody speaks in the rest.
    """
    codes, chances, _ = _chances(weights, audio, spans, batch)
    best = (chances * np.sqrt(chances.mean(axis=0))).argmax(axis=1)
    return [codes[index] for index in best], float(chances[np.arange(len(best)), best].mean())


def _evenly(spans: Sequence[Span], most: int) -> list[Span]:
    """The longest span of each of at most so many equal parts of the list."""
    parts = np.array_split(np.arange(len(spans)), min(most, len(spans)))
    return [max((spans[index] for index in part), key=lambda span: span.end - span.start) for part in parts]


def _most_spoken(languages: Sequence[str], spans: Sequence[Span]) -> str:
    """The language with most seconds."""
    seconds = dict.fromkeys(languages, 0.0)
    for language, span in zip(languages, spans, strict=True):
        seconds[language] += span.end - span.start
    return max(seconds, key=lambda language: seconds[language])


def _chances(
    weights: WhisperWeights, audio: Audio, spans: Sequence[Span], batch: Batch
) -> tuple[list[str], Chances, Ready]:
    """Language codes, the probability of each in each span, shape (spans, languages), and what was encoded first."""
    ready: Ready = {}

    def ask(some: Sequence[Span]) -> list[dict[str, float]]:
        encoded = weights.encode([audio.mono(span.start, span.end) for span in some])
        found = weights.languages(encoded)
        if not ready:  # one batch, whatever the number of spans: it lies in the GPU's memory
            ready[tuple(some)] = encoded
        return found

    found = [chances for _, part in batch.run(spans, ask) for chances in part]
    codes = sorted(found[0])
    if not codes:  # converted without its list of languages, as some fine-tuned models are
        raise UnsupportedError("this model cannot detect the language; name it in language")
    return codes, np.array([[chances[code] for code in codes] for chances in found]), ready
