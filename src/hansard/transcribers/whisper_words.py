"""Whisper's own word times: its cross-attention, aligned by dynamic time warping, a window of segments at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from hansard.batch import Batch
from hansard.transcribers.whisper_model import MOST_TOKENS, WINDOW_S, Timed, WhisperWeights
from hansard.transcript import Audio, Report, Segment, Span, Word

MOST_TEXT = MOST_TOKENS - 8  # tokens of text that leave room for what stands around it


@dataclass(frozen=True, slots=True)
class _Spelt:
    """A segment with its words and the tokens of each; `index` is its place among the segments."""

    index: int
    segment: Segment
    language: str
    words: list[tuple[str, list[int]]]

    @property
    def tokens(self) -> int:
        return sum(len(tokens) for _, tokens in self.words)


@dataclass(frozen=True, slots=True)
class _Window:
    """Segments that follow one another within 30 s, aligned together so that the sound is encoded once for all."""

    spelt: tuple[_Spelt, ...]

    @property
    def span(self) -> Span:
        return Span(self.spelt[0].segment.start, max(one.segment.end for one in self.spelt))

    def takes(self, other: _Spelt) -> bool:
        """Is there room for another segment?"""
        follows = other.segment.start >= self.spelt[-1].segment.end
        tokens = sum(one.tokens for one in self.spelt) + other.tokens
        return follows and other.segment.end - self.span.start <= WINDOW_S and tokens <= MOST_TEXT


def time_words(
    weights: WhisperWeights,
    audio: Audio,
    segments: Sequence[Segment],
    languages: Sequence[str],
    batch: Batch,
    report: Report,
) -> list[Segment]:
    """The segments, of these languages, with their words, each within its segment.

    A segment of more than 30 s, or with more text than Whisper reads at once, or too short for it to have times in,
    has its words spread evenly.
    """
    spelt = [
        _Spelt(index, segment, language, weights.words(segment.text, language))
        for index, (segment, language) in enumerate(zip(segments, languages, strict=True))
    ]
    found = [_spread(one) for one in spelt]

    def align(some: Sequence[_Window]) -> list[list[Timed]]:
        sounds = [audio.mono(window.span.start, window.span.end) for window in some]
        texts = [[tokens for one in window.spelt for _, tokens in one.words] for window in some]
        return weights.align(weights.encode(sounds), texts, language)

    done = 0
    for language in dict.fromkeys(languages):  # the model aligns a batch in one language
        mine = [one for one in spelt if one.language == language and one.words]
        for some, times in batch.run(_windows(mine), align):
            for window, timed in zip(some, times, strict=True):
                rest = iter(timed)
                for one in window.spelt if timed else ():
                    found[one.index] = _timed(one, [next(rest) for _ in one.words], window.span.start)
            done += sum(len(window.spelt) for window in some)
            report(done / len(segments))
    return found


def _windows(spelt: Sequence[_Spelt]) -> list[_Window]:
    found: list[_Window] = []
    for one in spelt:
        if found and found[-1].takes(one):
            found[-1] = _Window((*found[-1].spelt, one))
        elif one.segment.end - one.segment.start <= WINDOW_S and one.tokens <= MOST_TEXT:
            found.append(_Window((one,)))
    return found


def _timed(one: _Spelt, times: Sequence[Timed], offset: float) -> Segment:
    """A segment with its words at these times, which count from `offset`, kept within the segment."""
    low, high = one.segment.start, one.segment.end
    words = []
    for (text, _), time in zip(one.words, times, strict=True):
        start = min(max(offset + time.start, low), high)
        words.append(Word(text, start, min(max(offset + time.end, start), high), time.chance))
    return replace(one.segment, words=tuple(words))


def _spread(one: _Spelt) -> Segment:
    """A segment with its words as long as their letters ask for."""
    low, high = one.segment.start, one.segment.end
    edges = [low, *(low + (high - low) * part for part in _shares([len(text) for text, _ in one.words]))]
    words = tuple(Word(text, a, b) for (text, _), a, b in zip(one.words, edges, edges[1:], strict=False))
    return replace(one.segment, words=words)


def _shares(lengths: Sequence[int]) -> list[float]:
    """Where in the whole each length ends, 0 to 1."""
    return [total / sum(lengths) for total in accumulate(lengths)]
