"""What a transcriber hears at once, and how the texts of these pieces become segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hansard.audio.speech import Activity, cut, joined, padded, stretches
from hansard.request import Request
from hansard.transcript import UNSPACED, Audio, Segment, Span

SHORTEST_S = 0.1  # of sound that anything is said in
LEAST_SEGMENT_S = 0.02  # that a segment lasts
MIXED_S = 10.0  # longest stretch in which one language is spoken when they are mixed
MIXED_PAUSE_S = 0.3  # shortest pause at which the language may change
PADDING_S = 0.2  # of speech, into the pauses around it


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch that is transcribed at once; `owner` is its place among the given spans, 0 where none were given."""

    span: Span
    owner: int = 0

    @property
    def length(self) -> float:
        """Seconds."""
        return self.span.end - self.span.start

    def lies_in(self, other: Piece) -> bool:
        """Is it another one's part?"""
        inside = other.span.start <= self.span.start and self.span.end <= other.span.end
        return inside and self.owner == other.owner


def pieces(
    audio: Audio, activity: Activity, request: Request, spans: Sequence[Span] | None, longest: float, pause: float
) -> list[Piece]:
    """What may be transcribed, each of at most `longest` seconds, in the order of the spans or of time.

    Without spans, stretches of speech with less than `pause` seconds between them are joined.
    """
    if spans is None:
        speech = stretches(activity, request.vad_onset, request.vad_offset, audio.duration)
        wanted = [(0, span) for span in joined(padded(speech, PADDING_S, audio.duration), longest, pause)]
    else:
        inside = [Span(max(0.0, span.start), min(span.end, audio.duration)) for span in spans]
        wanted = [(n, span) for n, span in enumerate(inside) if span.end > span.start]
        # the caller says that somebody speaks there, so only what is clearly silent is left out
        wanted = [(n, span) for n, span in wanted if activity.hears(span, request.vad_offset)]
    return [Piece(part, n) for n, span in wanted for part in cut(audio, activity, span, longest)]


def gathered(found: Sequence[tuple[Piece, Sequence[Segment]]], spans: Sequence[Span] | None) -> tuple[Segment, ...]:
    """The phrases found in the pieces, as they come, or one segment for each of the given spans."""
    if spans is None:
        return tuple(phrase for _, phrases in found for phrase in phrases)
    owned: dict[int, list[Segment]] = {}
    for piece, phrases in found:
        owned.setdefault(piece.owner, []).extend(phrases)
    return tuple(whole(span, owned.get(n, ())) for n, span in enumerate(spans))


def whole(span: Span, phrases: Sequence[Segment]) -> Segment:
    """One segment of a given span; its language is that of most of what is said in it."""
    spoken: dict[str | None, float] = {}
    for phrase in phrases:
        spoken[phrase.language] = spoken.get(phrase.language, 0.0) + phrase.end - phrase.start
    language = max(spoken, key=lambda one: spoken[one], default=None)
    return Segment(
        span.start,
        span.end,
        (" " if language not in UNSPACED else "").join(phrase.text for phrase in phrases if phrase.text),
        tuple(word for phrase in phrases for word in phrase.words),
        language=language,
    )
