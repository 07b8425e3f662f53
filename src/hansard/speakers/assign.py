"""Words to speakers: each word goes to the speaker it shares most time with; segments are cut where that changes.

Pure: no model, no file. Speakers' labels are kept as given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

from hansard.transcript import Segment, Turn, Word

ISLAND = 2  # words: a run this short inside one sentence is taken for a mistake of the diarizer, not for an answer

_TERMINAL = tuple(".?!…‥。．｡？！⁇⁈⁉‽।॥؟۔։՜՞።፧។။")
_OPENING = "([{（［｛「『【〈《〔“‘«‹¿¡"
_CLOSING = "\"'`”’“‘»«›‹)]}）］｝」』】〉》〕＂＇"


def assign(segments: Sequence[Segment], turns: Sequence[Turn]) -> tuple[Segment, ...]:
    """The segments with a speaker each, cut where the speaker changes; unchanged when there are no turns.

    A word takes the speaker with whom it shares most time, summed over that speaker's turns; in no turn, the one
    nearest by edge. On a tie (to the microsecond) the previous word's speaker stays, else the earlier turn wins. A
    segment without words is treated like one word. Words and turns need not be sorted; turns may overlap.

    Inside a sentence, one or two words between words of one other speaker take that speaker; at the start or the end
    of a sentence they are left alone, since a short answer is real. A sentence ends at terminal punctuation, and at
    the end of its segment. Not covered: the point of an abbreviation or an initial ("Mr.", "J.") counts as an end,
    so that words beside it stay as they were heard; text without punctuation is one sentence.

    The texts of a segment's parts, put together, are its text: the space at a cut leads the later part. A part spans
    its words; a segment that is not cut keeps its own times and text.
    """
    if not turns:
        return tuple(segments)
    spans = [(span.start, span.end) for segment in segments for span in (segment.words or (segment,))]
    heard = iter(_speakers(spans, turns))
    return tuple(
        part for segment in segments for part in _attributed(segment, list(islice(heard, len(segment.words) or 1)))
    )


def pieces(text: str, words: Sequence[Word]) -> list[str]:
    """A segment's text cut into one piece per word; joined, the pieces are the text.

    A space leads the later piece; where there is none (Japanese), an opening bracket goes to the later piece and all
    else between two words to the earlier. When a word is not in the text in its order, the pieces are the words
    themselves, spaced.
    """
    cuts, position = [0], 0
    for index, word in enumerate(words):
        bare = word.text.strip()
        found = text.find(bare, position)
        if found < 0:
            return [f"{' ' if place else ''}{word.text.strip()}" for place, word in enumerate(words)]
        if index:
            cuts.append(_cut(text, position, found))
        position = found + len(bare)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)][: len(words)]


def _cut(text: str, start: int, stop: int) -> int:
    """Where to cut between two words, of which one ends at `start` and the next begins at `stop`."""
    between = text[start:stop]
    space = next((place for place, character in enumerate(between) if character.isspace()), None)
    return start + (len(between.rstrip(_OPENING)) if space is None else space)


def _attributed(segment: Segment, heard: list[str]) -> Iterator[Segment]:
    """The segment's parts; `heard` has the speaker of each word, or of the segment where it has no words."""
    if not segment.words:
        yield replace(segment, speaker=heard[0])
        return
    speakers = _steady(segment.words, heard)
    words = [replace(word, speaker=speaker) for word, speaker in zip(segment.words, speakers, strict=True)]
    runs = [tuple(run) for _, run in groupby(words, key=lambda word: word.speaker)]
    if len(runs) == 1:
        yield replace(segment, words=runs[0], speaker=speakers[0])
        return
    texts = iter(pieces(segment.text, words))
    for run in runs:
        text = "".join(islice(texts, len(run)))
        yield replace(segment, start=run[0].start, end=run[-1].end, text=text, words=run, speaker=run[0].speaker)


def _speakers(spans: Sequence[tuple[float, float]], turns: Sequence[Turn]) -> list[str]:
    """The speaker of each span (start, end): one sweep over both in order of time, since a day has 100,000 words."""
    waiting = sorted(turns, key=lambda turn: turn.start)
    found = [""] * len(spans)
    near: list[Turn] = []  # begun and not over, and those that ended last
    position, previous = 0, None
    for index in sorted(range(len(spans)), key=lambda place: spans[place][0]):
        start, end = spans[index]
        begun = position
        while position < len(waiting) and waiting[position].start <= end:
            position += 1
        near = _still_near(near + waiting[begun:position], start)
        touching = [turn for turn in near if turn.start <= end and turn.end >= start]
        candidates = touching or near + _next(waiting, position)
        found[index] = previous = _closest(start, end, candidates, previous)
    return found


def _still_near(turns: list[Turn], start: float) -> list[Turn]:
    """Those of the turns that a span beginning at `start` or later can still touch, and those that ended last."""
    last = max((turn.end for turn in turns if turn.end < start), default=start)
    return [turn for turn in turns if turn.end >= last]


def _next(waiting: list[Turn], position: int) -> list[Turn]:
    """The next turn to begin, with any that begin together with it."""
    stop = position
    while stop < len(waiting) and waiting[stop].start == waiting[position].start:
        stop += 1
    return waiting[position:stop]


def _closest(start: float, end: float, turns: list[Turn], previous: str | None) -> str:
    """The speaker who shares most seconds with the span; where nobody shares any, the one with the smallest gap."""
    shared: dict[str, float] = {}
    for turn in turns:
        common = min(end, turn.end) - max(start, turn.start)  # below zero: the gap between their edges
        known = shared.get(turn.speaker)
        if known is None:
            shared[turn.speaker] = common
        else:
            shared[turn.speaker] = known + common if known > 0 and common > 0 else max(known, common)
    # To the microsecond: 1.4 - 1.2 and 1.2 - 1.0 are a tie, whatever binary fractions make of them.
    most = round(max(shared.values()), 6)
    tied = [speaker for speaker, common in shared.items() if round(common, 6) == most]
    return previous if previous in tied else tied[0]


def _steady(words: Sequence[Word], heard: list[str]) -> list[str]:
    """The speakers of a segment's words, without the flips of one or two words inside a sentence."""
    steady: list[str] = []
    start = 0
    for stop, word in enumerate(words, 1):
        if stop == len(words) or word.text.rstrip().rstrip(_CLOSING).endswith(_TERMINAL):
            sentence = heard[start:stop]
            for longest in range(1, ISLAND + 1):  # the shortest first: it is the likeliest mistake
                sentence = _without_islands(sentence, longest)
            steady += sentence
            start = stop
    return steady


def _without_islands(speakers: list[str], longest: int) -> list[str]:
    """The speakers of a sentence's words, short runs between two runs of one other speaker given to that one."""
    runs = [(speaker, len(list(run))) for speaker, run in groupby(speakers)]
    followers = [speaker for speaker, _ in runs[1:]] + [None]
    kept: list[str] = []
    for (speaker, count), follower in zip(runs, followers, strict=True):
        island = count <= longest and kept and kept[-1] == follower
        kept += [kept[-1] if island else speaker] * count
    return kept
