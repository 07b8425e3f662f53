"""Words to speakers: a table for each rule, a slow and obvious second implementation, and what always holds."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest

from hansard.speakers.assign import assign, pieces
from hansard.transcript import Segment, Turn, Word

A, B, C = "SPEAKER_00", "SPEAKER_01", "anna"


def segment(text: str, *times: tuple[float, float], start: float | None = None, end: float | None = None) -> Segment:
    """A segment whose words are the text's, one per pair of times."""
    words = tuple(Word(word, *span, score=0.5) for word, span in zip(text.split(), times, strict=True))
    return Segment(times[0][0] if start is None else start, times[-1][1] if end is None else end, text, words)


def seconds(text: str) -> Segment:
    """A segment whose words last one second each, from 0."""
    return segment(text, *((float(at), at + 1.0) for at in range(len(text.split()))))


def by_letter(letters: str) -> list[Turn]:
    """Turns of one second each, from 0, one per letter."""
    return [Turn(float(at), at + 1.0, letter) for at, letter in enumerate(letters)]


def speakers(segments: tuple[Segment, ...]) -> list[str | None]:
    return [word.speaker for part in segments for word in part.words]


ONE_WORD = {
    "most overlap": ((1.0, 2.0), [Turn(0, 1.4, A), Turn(1.4, 3, B)], B),
    "summed over a speaker's turns": ((0.0, 1.0), [Turn(0, 0.3, A), Turn(0.3, 0.7, B), Turn(0.7, 1, A)], A),
    "tie takes the earlier turn": ((1.0, 1.4), [Turn(1.2, 2, B), Turn(0, 1.2, A)], A),
    "tie of overlapping turns": ((1.0, 2.0), [Turn(0.5, 3, B), Turn(0.7, 3, A)], B),
    "an ended turn is no earlier turn": ((2.0, 3.0), [Turn(0, 1, B), Turn(2, 2.5, A), Turn(2.5, 3, B)], A),
    # The middle of the long turn (5 s) is 6 s away, that of the short one (13.1 s) 2 s: the edge decides.
    "gap: long turn nearer by edge": ((11.0, 11.2), [Turn(0, 10.5, A), Turn(13, 13.2, B)], A),
    "gap: short turn nearer by edge": ((11.0, 11.2), [Turn(9, 10, A), Turn(12, 60, B), Turn(10.5, 10.6, C)], C),
    "gap: long turn ahead nearer by edge": ((11.0, 11.2), [Turn(9, 10, A), Turn(11.9, 60, B)], B),
    "gap: same distance takes the earlier turn": ((2.0, 3.0), [Turn(4, 5, A), Turn(0, 1, B)], B),
    "before every turn": ((0.0, 0.1), [Turn(5, 6, A), Turn(4, 4.1, B)], B),
    "after every turn": ((9.0, 9.1), [Turn(0, 6, A), Turn(4, 4.1, B)], A),
    "longest end, not last start": ((9.0, 9.1), [Turn(0, 8, A), Turn(6, 7, B), Turn(11, 12, C)], A),
    "zero length inside a turn": ((1.5, 1.5), [Turn(0, 1, A), Turn(1, 2, B)], B),
    "zero length on an edge": ((1.0, 1.0), [Turn(1, 2, A), Turn(0, 1, B)], B),
    "zero length in a gap": ((3.0, 3.0), [Turn(0, 1, A), Turn(4, 5, B)], B),
    "touching by an edge only": ((1.0, 1.5), [Turn(0, 1, A), Turn(1.6, 2, B)], A),
    "a turn of zero length": ((1.0, 2.0), [Turn(1.5, 1.5, A), Turn(1.9, 3, B)], B),
}


@pytest.mark.parametrize(("span", "turns", "speaker"), ONE_WORD.values(), ids=ONE_WORD.keys())
@pytest.mark.parametrize("with_words", [True, False], ids=["word", "segment without words"])
def test_speaker_of_one_span(span: tuple[float, float], turns: list[Turn], speaker: str, with_words: bool) -> None:
    given = segment("word", span) if with_words else Segment(*span, "some text")
    (part,) = assign([given], turns)
    assert part.speaker == speaker
    assert [word.speaker for word in part.words] == [speaker] * with_words


def test_on_a_tie_the_previous_speaker_goes_on() -> None:
    turns = [Turn(0, 1.5, A), Turn(1, 2.5, B), Turn(2.5, 4, A)]
    (first, rest) = assign([seconds("Yes. so then")], turns)
    assert (first.speaker, rest.speaker) == (A, B)  # the second word is B's, the third is half B's and half A's
    assert speakers((rest,)) == [B, B]


def test_a_tie_in_a_gap_keeps_the_previous_speaker_though_the_next_turn_is_as_near() -> None:
    turns = [Turn(0, 1, A), Turn(1, 2, B), Turn(3, 4, A), Turn(3, 4, B)]
    assert speakers(assign([segment("No. well", (1, 2), (2.4, 2.6))], turns)) == [B, B]


SENTENCES = {
    "one word inside": ("we all go home", "AABA", "AAAA"),
    "two words inside": ("we all go home now", "ABBAA", "AAAAA"),
    "three words inside": ("we all go home now", "ABBBA", "ABBBA"),
    "short answer first": ("Yes we all go", "BAAA", "BAAA"),
    "short answer last": ("we all go yes", "AAAB", "AAAB"),
    "short answer between sentences": ("we go. Yes. we stay", "AABAA", "AABAA"),
    "two sentences, a flip in each": ("we all go. they all stay", "ABABAB", "AAABBB"),
    "between two others": ("we all go home", "ABCC", "ABCC"),
    "shortest run first": ("a b c d e f", "AABBAB", "AABBBB"),
    "alternating": ("a b c d e", "ABABA", "AAAAA"),
    "no punctuation": ("a b c d e f g h", "AAABBAAA", "AAAAAAAA"),
    "question in brackets": ("(is it?) yes it is", "AABAA", "AABAA"),
    "closing quote": ("he left.” Yes he did", "AABAA", "AABAA"),
    "Japanese": ("行く。 はい。 行く 行く", "ABAA", "ABAA"),
    "Hindi": ("वह गया। हाँ वह गया", "AABAA", "AABAA"),
    "ellipsis": ("well… yes it is", "ABAA", "ABAA"),
    "a number is no end": ("about 3.5 million or so", "ABAAA", "AAAAA"),
    "an abbreviation counts as an end": ("ask Mr. Smith about it", "AABAA", "AABAA"),
}


@pytest.mark.parametrize(("text", "heard", "expected"), SENTENCES.values(), ids=SENTENCES.keys())
def test_short_runs_inside_a_sentence_are_not_flipped(text: str, heard: str, expected: str) -> None:
    assert "".join(str(who) for who in speakers(assign([seconds(text)], by_letter(heard)))) == expected


def test_a_sentence_ends_with_its_segment() -> None:
    given = [segment("we go", (0, 1), (1, 2)), segment("yes", (2, 3)), segment("and so", (3, 4), (4, 5))]
    assert [part.speaker for part in assign(given, by_letter("AABAA"))] == ["A", "B", "A"]


def test_without_turns_nothing_changes() -> None:
    given = [seconds("we go. Yes."), Segment(0, 1, "text")]
    assert assign(given, []) == tuple(given)
    assert assign([], by_letter("AB")) == ()


def test_an_uncut_segment_keeps_its_text_and_times() -> None:
    given = segment("  Hello,\tthere ", (1.2, 1.5), (1.5, 2), start=1, end=2.5)
    (part,) = assign([given], [Turn(0, 9, A)])
    assert (part.start, part.end, part.text, part.speaker) == (1, 2.5, "  Hello,\tthere ", A)
    assert [word.score for word in part.words] == [0.5, 0.5]


def test_a_segment_is_cut_at_each_of_its_turns() -> None:
    given = segment("Are you in? Yes. And you? No.", *((at + 0.1, at + 0.9) for at in range(7)), start=0, end=8)
    parts = assign([given], [Turn(0, 3, A), Turn(3, 4, B), Turn(4, 6, A), Turn(6, 7, C)])
    assert [(p.start, p.end, p.text, p.speaker) for p in parts] == [
        (0.1, 2.9, "Are you in?", A),
        (3.1, 3.9, " Yes.", B),
        (4.1, 5.9, " And you?", A),
        (6.1, 6.9, " No.", C),
    ]


def test_a_segment_without_words_takes_the_speaker_with_most_time_in_it() -> None:
    turns = [Turn(0, 10, A), Turn(10, 25, B), Turn(25, 35, A)]
    assert [part.speaker for part in assign([Segment(0, 35, "text"), Segment(8, 24, "text")], turns)] == [A, B]


PIECES = {
    "spaces": ("Hello there.  Yes", ["Hello", "there.", "Yes"], ["Hello", " there.", "  Yes"]),
    "bare words": ("“Hello there.” “Yes?”", ["Hello", "there", "Yes"], ["“Hello", " there.”", " “Yes?”"]),
    "Japanese": ("行こう。「はい」、元気", ["行こう", "はい", "元気"], ["行こう。", "「はい」、", "元気"]),
    "Whisper's leading spaces": (" So it is.", [" So", " it", " is."], [" So", " it", " is."]),
    "a word the aligner left out": ("in 2024 we", ["in", "we"], ["in", " 2024 we"]),
    "never cut inside a left-out word": ("the cat a b", ["the", "a", "b"], ["the", " cat", " a b"]),
    "repeated": ("no no no", ["no", "no", "no"], ["no", " no", " no"]),
    "empty word": ("a b", ["a", "", "b"], ["a", "", " b"]),
    "not in the text": ("ten men", ["10", "men"], ["10", " men"]),
    "not in order": ("a b", ["b", " a "], ["b", " a"]),
    "no words": ("a b", [], []),
    "emoji and right to left": ("שלום 👩‍👩‍👧 مرحبا", ["שלום", "👩‍👩‍👧", "مرحبا"], ["שלום", " 👩‍👩‍👧", " مرحبا"]),
}


@pytest.mark.parametrize(("text", "words", "expected"), PIECES.values(), ids=PIECES.keys())
def test_text_is_cut_at_its_words(text: str, words: list[str], expected: list[str]) -> None:
    assert pieces(text, [Word(word, 0, 0) for word in words]) == expected


def test_japanese_text_is_cut_without_spaces() -> None:
    words = tuple(Word(word, float(at), at + 1.0) for at, word in enumerate(["元気", "ですか", "はい", "元気", "です"]))
    given = Segment(0, 5, "元気ですか？「はい、元気です。」", words)
    parts = assign([given], by_letter("AABBB"))
    assert [part.text for part in parts] == ["元気ですか？", "「はい、元気です。」"]


def test_words_that_are_not_in_the_text_are_joined_by_spaces() -> None:
    given = segment("10 men? Yes 20 men", *((float(at), at + 1.0) for at in range(5)))
    given = Segment(given.start, given.end, "ten men? Yes twenty men", given.words)
    assert "".join(part.text for part in assign([given], by_letter("AABBB"))) == "10 men? Yes 20 men"


def random_case(seed: int, longest_turn: int) -> tuple[list[Segment], list[Turn]]:
    """Segments and turns on a grid of 0.1 s, so that edges meet and ties happen."""
    chance = random.Random(seed)
    tenths = sorted(chance.randrange(300) for _ in range(40))
    spans = [(at, at + chance.randrange(8)) for at in tenths]
    words = [
        Word(chance.choice(["yes", "no.", "so", "はい。", "a,", "3.5"]), start / 10, end / 10) for start, end in spans
    ]
    segments = []
    while words:
        size = chance.randint(1, 12)
        part, words = tuple(words[:size]), words[size:]
        text = chance.choice(["", " ", "\n"]).join(word.text for word in part)
        segments.append(Segment(part[0].start, part[-1].end, text, part))
    starts = [chance.randrange(300) for _ in range(25)]
    turns = [Turn(at / 10, (at + chance.randrange(longest_turn)) / 10, chance.choice("ABC")) for at in starts]
    return segments, turns


def slowly(words: list[Word], turns: list[Turn]) -> list[str]:
    """The rule for single words, by looking at every turn for every word, in whole tenths of seconds."""
    found: list[str] = []
    ordered = sorted(turns, key=lambda turn: turn.start)
    for word in words:
        edges = [
            (min(round(word.end * 10), round(t.end * 10)) - max(round(word.start * 10), round(t.start * 10)), t.speaker)
            for t in ordered
        ]
        best = max(edge for edge, _ in edges)
        if best > 0:
            shares = {who: sum(e for e, s in edges if s == who and e > 0) for e, who in edges if e > 0}
            tied = [who for who, share in shares.items() if share == max(shares.values())]
        else:
            tied = [who for edge, who in edges if edge == best]
        found.append(found[-1] if found and found[-1] in tied else tied[0])
    return found


@pytest.mark.parametrize(
    "longest_turn", [3, 12, 150], ids=["short turns", "turns like words", "long overlapping turns"]
)
@pytest.mark.parametrize("seed", range(60))
def test_single_words_as_the_slow_rule_says(seed: int, longest_turn: int) -> None:
    segments, turns = random_case(seed, longest_turn)
    words = [word for given in segments for word in given.words]
    alone = [Segment(word.start, word.end, word.text, (word,)) for word in words]
    assert [part.speaker for part in assign(alone, turns)] == slowly(words, turns)


@pytest.mark.parametrize("seed", range(60))
def test_what_holds_for_any_input(seed: int) -> None:
    segments, turns = random_case(seed, 12)
    random.Random(seed).shuffle(turns)
    for given in segments:
        parts = assign([given], turns)
        kept = [(word.text, word.start, word.end) for part in parts for word in part.words]
        assert kept == [(word.text, word.start, word.end) for word in given.words]
        assert "".join(part.text for part in parts) == given.text
        assert all({word.speaker for word in part.words} == {part.speaker} for part in parts)
        assert all(left.speaker != right.speaker for left, right in pairwise(parts))
        assert [part.start for part in parts] == sorted(part.start for part in parts)
        assert all(part.start <= part.end for part in parts)


def test_segments_together_are_as_segments_alone_where_no_tie_looks_back() -> None:
    given = [seconds("we all go. Yes."), segment("they stay", (5, 6), (6, 7)), Segment(7, 9, "text")]
    turns = [Turn(0, 3.2, A), Turn(3.2, 6.1, B), Turn(6.1, 9, C)]
    assert assign(given, turns) == tuple(part for one in given for part in assign([one], turns))


def test_the_order_of_segments_does_not_matter_to_the_sweep() -> None:
    given = [segment("late word", (8, 9), (9, 10)), segment("early word", (0, 1), (1, 2))]
    assert [part.speaker for part in assign(given, [Turn(0, 3, A), Turn(4, 5, C), Turn(7, 10, B)])] == [B, A]


def test_a_day_of_speech_takes_about_a_second() -> None:
    turns = [Turn(at * 1.5, at * 1.5 + 1.4, f"SPEAKER_{at % 7:02d}") for at in range(20_000)]
    words = [Word("word." if at % 9 == 0 else "word", at * 0.3, at * 0.3 + 0.25) for at in range(100_000)]
    chunks = [words[at : at + 50] for at in range(0, len(words), 50)]
    given = [Segment(c[0].start, c[-1].end, " ".join(w.text for w in c), tuple(c)) for c in chunks]
    began = time.process_time()
    parts = assign(given, turns)
    assert time.process_time() - began < 3  # 20,000 turns for each of 100,000 words would take minutes
    assert sum(len(part.words) for part in parts) == 100_000
    assert len(parts) > 10_000
