"""The answer and the files: strict little parsers for SRT and WebVTT, tables, and text that means harm."""

from __future__ import annotations

import html
import json
import random
import re
import time
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest

from hansard.render import FORMATS, MEDIA, lines, to_result
from hansard.request import OutputFormat
from hansard.transcript import Segment, Transcript, Turn, Word

A, B = "SPEAKER_00", "SPEAKER_01"
HOSTILE = (
    "a --> b ---> c <!-- d",
    "00:00:01,000 --> 00:00:02,000\n\n1",
    "<script>alert(1)</script> & <v Eve>",
    "line\n\nbreak\r\n\r\nbreak\u2028\u2029\x85\x0b\x0cbreak",
    "tab\tand\x00nul\x1b[31m\ud800",
    "שלום \u202eעולם مرحبا",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301",
    "NOTE WEBVTT STYLE &amp; &lt;",
    " \n\t ",
    "",
)


def transcript(*segments: Segment, turns: tuple[Turn, ...] = (), **other: Any) -> Transcript:
    known: dict[str, Any] = {
        "language": "en",
        "language_probability": 0.98765432,
        "duration": 10.00049,
        "model": "large-v3",
        "timings": {"decode": 0.12345},
    }
    return Transcript(segments, turns, **{**known, **other})


def spoken(text: str, speaker: str | None = None, *, words: int = 0, pace: float = 0.3) -> Segment:
    """A segment of the text at a steady pace; cut at spaces into words, or into words of `words` characters."""
    texts = [text[at : at + words] for at in range(0, len(text), words)] if words else text.split()
    timed = tuple(Word(word, at * pace, (at + 1) * pace, 0.9, speaker) for at, word in enumerate(texts))
    return Segment(0, len(texts) * pace, text, timed, speaker)


class Caption(NamedTuple):
    start: int
    end: int
    rows: list[str]


STAMP = r"(\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3})"


def parsed(blocks: list[str], point: str) -> list[Caption]:
    """Captions of blocks of a line of times and one or more lines of text; anything else is an error."""
    captions = []
    for block in blocks:
        times, *rows = block.split("\n")
        match = re.fullmatch(f"{STAMP} --> {STAMP}", times)
        assert match, times
        assert times.count(point) == 2
        numbers = [int(number) for number in match.groups()]
        start, end = (
            ((hours * 60 + minutes) * 60 + whole) * 1000 + rest
            for hours, minutes, whole, rest in (numbers[:4], numbers[4:])
        )
        assert start < end
        assert rows
        assert all(row.strip() == row and row.splitlines() == [row] and "-->" not in row for row in rows)
        captions.append(Caption(start, end, rows))
    assert [caption.start for caption in captions] == sorted(caption.start for caption in captions)
    return captions


def read_srt(text: str) -> list[Caption]:
    if not text:
        return []
    assert text.endswith("\n")
    assert "\n\n\n" not in text
    blocks = [block.split("\n", 1) for block in text[:-1].split("\n\n")]
    assert [number for number, _ in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    return parsed([block for _, block in blocks], ",")


def read_vtt(text: str) -> list[Caption]:
    """Captions of a WebVTT file; of tags it knows one `<v name>` before the text, which it keeps as `name|text`."""
    header, *blocks = text.removesuffix("\n").split("\n\n")
    assert header == "WEBVTT"
    captions = parsed(blocks, ".")
    for caption in captions:
        caption.rows[0] = re.sub(r"^<v ([^<>]+)>", r"\1|", caption.rows[0])
        assert not any(set(row) & set("<>") or re.search(r"&(?!(amp|lt|gt);)", row) for row in caption.rows)
    return [Caption(start, end, [html.unescape(row) for row in rows]) for start, end, rows in captions]


def squeezed(text: str) -> str:
    return "".join(text.split())


# The answer


def test_the_answer_in_full() -> None:
    words = (Word(" Hello", 0.10004, 0.5, 0.987654, A), Word("there.", 0.5, 1.0, None, A))
    given = transcript(Segment(0.0999, 1.00051, " Hello there.", words, A), Segment(2, 3, "Hm."), warnings=("w",))
    assert to_result(given, words=True) == {
        "segments": [
            {
                "start": 0.1,
                "end": 1.001,
                "text": "Hello there.",
                "speaker": A,
                "words": [
                    {"word": "Hello", "start": 0.1, "end": 0.5, "score": 0.9877, "speaker": A},
                    {"word": "there.", "start": 0.5, "end": 1.0, "speaker": A},
                ],
            },
            {"start": 2.0, "end": 3.0, "text": "Hm.", "words": []},
        ],
        "detected_language": "en",
        "language_probability": 0.9877,
        "duration": 10.0,
        "speakers": [A],
        "model": "large-v3",
        "timings": {"decode": 0.123},
        "warnings": ["w"],
    }


def test_what_is_not_known_is_left_out() -> None:
    result = to_result(transcript(spoken("Hello there."), language_probability=None), words=False)
    assert set(result) == {"segments", "detected_language", "duration", "model", "timings", "warnings"}
    assert result["segments"] == [{"start": 0.0, "end": 0.6, "text": "Hello there."}]


def test_a_named_speaker_and_a_language_of_its_own_stand_on_the_segment() -> None:
    named = Segment(0, 1, "Bonjour.", speaker=A, language="fr", speaker_id="Alice", similarity=0.87654321)
    made = transcript(named, Segment(1, 2, "Oui.", speaker=B))
    assert to_result(made)["segments"] == [
        {
            "start": 0.0,
            "end": 1.0,
            "text": "Bonjour.",
            "speaker": A,
            "speaker_id": "Alice",
            "similarity": 0.8765,
            "language": "fr",
        },
        {"start": 1.0, "end": 2.0, "text": "Oui.", "speaker": B},
    ]
    assert FORMATS["txt"](made) == f"Alice: Bonjour.\n\n{B}: Oui.\n"
    assert FORMATS["srt"](made).split("\n")[2] == "Alice: Bonjour."
    assert "<v Alice>Bonjour." in FORMATS["vtt"](made)
    assert "\tAlice\tBonjour." in FORMATS["tsv"](made)


def test_turns_alone_have_no_text_and_no_language() -> None:
    result = to_result(transcript(Segment(0, 1, "", speaker=A), language=""), task="diarization")
    assert result["segments"] == [{"start": 0.0, "end": 1.0, "speaker": A}]
    assert "detected_language" not in result


def test_task_transcription_has_its_own_name_for_the_list() -> None:
    result = to_result(transcript(Segment(0, 1, "Yes.", speaker="Eve"), Segment(0.5, 1, "")), task="transcription")
    assert result["transcriptions"] == [
        {"start": 0.0, "end": 1.0, "text": "Yes.", "speaker": "Eve"},
        {"start": 0.5, "end": 1.0, "text": ""},
    ]
    assert "segments" not in result


def test_speakers_are_in_the_order_in_which_they_first_speak() -> None:
    given = [Segment(at, at + 1, "x", speaker=who) for at, who in enumerate(["b", None, "a", "b", "c"])]
    assert to_result(transcript(*given), words=False)["speakers"] == ["b", "a", "c"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_no_number_that_json_does_not_have(bad: float) -> None:
    words = (Word("a", bad, bad, bad), Word("b", 1.5, bad, 0.5))
    given = transcript(
        Segment(1, 2, "a b", words),
        Segment(bad, bad, "c"),
        duration=9,
        language_probability=bad,
        timings={"align": bad},
    )
    result = json.loads(json.dumps(to_result(given, words=True), allow_nan=False))
    assert result["segments"][0]["words"] == [
        {"word": "a", "start": 1.0, "end": 2.0},
        {"word": "b", "start": 1.5, "end": 2.0, "score": 0.5},
    ]
    assert (result["segments"][1]["start"], result["segments"][1]["end"]) == (0.0, 9.0)
    assert "language_probability" not in result
    for write in FORMATS.values():
        assert "nan" not in write(given)


def plain(value: object) -> bool:
    """Whether the value is made of exactly JSON's own Python types."""
    if type(value) is dict:
        return all(type(key) is str and plain(item) for key, item in value.items())
    if type(value) is list:
        return all(plain(item) for item in value)
    return type(value) in (str, int, float)


def test_numpy_numbers_and_strings_become_plain_ones() -> None:
    word = Word(np.str_("a"), np.float32(0.1), np.float64(1.1), np.float16(0.5), np.str_(A))
    given = transcript(
        Segment(np.float32(0.1), np.int64(2), np.str_(" a"), (word,), np.str_(A)),
        duration=np.float64(3.3),
        language_probability=np.float32(0.7),
        timings={"align": np.float64(1)},
    )
    result = to_result(given, words=True)
    assert plain(result)
    assert result["segments"] == [
        {
            "start": 0.1,
            "end": 2.0,
            "text": "a",
            "speaker": A,
            "words": [{"word": "a", "start": 0.1, "end": 1.1, "score": 0.5, "speaker": A}],
        }
    ]


def test_a_time_just_below_zero_is_written_as_zero() -> None:
    assert json.dumps(to_result(transcript(Segment(-0.0001, 1, "a")), words=False)["segments"]).count("-") == 0


# Lines of the command line


def test_lines() -> None:
    given = [
        Segment(59.999, 61, "one\ntwo", speaker=A),
        Segment(3599.9, 3600, "so"),
        Segment(3600, 3601, "on"),
        Segment(360_000, 360_001, "x\x1b[2J"),
    ]
    result: Any = to_result(transcript(*given), words=False)
    assert lines(result["segments"]) == [f"[00:59] {A}: one two", "[59:59] so", "[1:00:00] on", "[100:00:00] x [2J"]
    assert lines([]) == []


# Every format


def test_there_is_a_writer_for_every_format_a_job_may_ask_for() -> None:
    assert set(FORMATS) == set(get_args(OutputFormat))


def test_every_format_has_a_media_type_with_its_charset() -> None:
    assert set(MEDIA) == set(FORMATS)
    assert all(kind.endswith("; charset=utf-8") for kind in MEDIA.values())


@pytest.mark.parametrize(
    ("name", "empty"), [("srt", ""), ("vtt", "WEBVTT\n"), ("txt", ""), ("tsv", "start\tend\ttext\n"), ("rttm", "")]
)
def test_nothing_said(name: str, empty: str) -> None:
    assert FORMATS[name](transcript()) == empty


def test_captions_with_speakers() -> None:
    given = transcript(spoken("Are you in?", A), Segment(2, 3, "Yes & no.", speaker="Tom <T>"), Segment(4, 5, "Hm."))
    assert FORMATS["srt"](given) == (
        "1\n00:00:00,000 --> 00:00:00,900\nSPEAKER_00: Are you in?\n\n"
        "2\n00:00:02,000 --> 00:00:03,000\nTom <T>: Yes & no.\n\n"
        "3\n00:00:04,000 --> 00:00:05,000\nHm.\n"
    )
    assert FORMATS["vtt"](given) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.900\n<v SPEAKER_00>Are you in?\n\n"
        "00:00:02.000 --> 00:00:03.000\n<v Tom &lt;T&gt;>Yes &amp; no.\n\n"
        "00:00:04.000 --> 00:00:05.000\nHm.\n"
    )


STAMPS = {
    0.0: "00:00:00,000",
    0.0004: "00:00:00,000",
    0.9996: "00:00:01,000",
    59.9996: "00:01:00,000",
    3599.9999: "01:00:00,000",
    86_399.9994: "23:59:59,999",
    360_000.5: "100:00:00,500",
    3_600_000.0: "1000:00:00,000",
    -0.5: "00:00:00,000",
}


@pytest.mark.parametrize(("seconds", "stamp"), STAMPS.items())
def test_times_of_captions(seconds: float, stamp: str) -> None:
    given = transcript(Segment(seconds, seconds + 2, "x"))
    assert FORMATS["srt"](given).split("\n")[1].split(" --> ")[0] == stamp
    assert f"\n{stamp.replace(',', '.')} --> " in FORMATS["vtt"](given)


def test_captions_last_a_millisecond_at_least_and_come_in_order() -> None:
    given = transcript(
        Segment(5, 6, "later"), Segment(1, 1, "none"), Segment(3, 2, "backwards"), Segment(2, 2.0001, "x")
    )
    expected = [(1000, 1001), (2000, 2001), (3000, 3001), (5000, 6000)]
    assert [(c.start, c.end) for c in read_srt(FORMATS["srt"](given))] == expected
    assert [(c.start, c.end) for c in read_vtt(FORMATS["vtt"](given))] == expected


def test_a_long_segment_is_cut_after_punctuation_into_captions_of_two_lines() -> None:
    text = (
        "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
        "conceived in Liberty, and dedicated to the proposition that all men are created equal."
    )
    captions = read_vtt(FORMATS["vtt"](transcript(spoken(text))))
    assert [caption.rows for caption in captions] == [
        ["Four score and seven years ago our fathers", "brought forth on this continent,"],
        ["a new nation, conceived in Liberty,"],
        ["and dedicated to the proposition that all", "men are created equal."],
    ]
    assert [(c.start, c.end) for c in captions] == [(0, 3900), (3900, 5700), (5700, 9000)]


def test_a_caption_may_end_at_a_closing_quote() -> None:
    text = (
        "He stood up and he said to all of us: “We leave at once.” Then nobody said a word for quite a while after that"
    )
    rows = [" ".join(caption.rows) for caption in read_srt(FORMATS["srt"](transcript(spoken(text))))]
    assert rows[0] == "He stood up and he said to all of us: “We leave at once.”"


def test_a_word_without_text_makes_no_caption() -> None:
    words = tuple(Word(text, at * 9.0, at * 9.0 + 1) for at, text in enumerate(["so", "", "it", ""]))
    captions = read_srt(FORMATS["srt"](transcript(Segment(0, 30, "so it", words))))
    assert captions == [Caption(0, 1000, ["so"]), Caption(18_000, 19_000, ["it"])]


def test_the_name_counts_in_srt_where_it_is_shown_and_not_in_vtt() -> None:
    given = transcript(spoken("a " * 40 + "end", A, pace=0.05))  # 83 characters
    assert [len(c.rows) for c in read_srt(FORMATS["srt"](given))] == [2, 1]
    assert [len(c.rows) for c in read_vtt(FORMATS["vtt"](given))] == [2]


def test_seven_seconds_are_kept_though_the_text_is_short() -> None:
    captions = read_srt(FORMATS["srt"](transcript(spoken("a b c d e f g h", pace=2.5))))
    assert [" ".join(caption.rows) for caption in captions] == ["a b", "c d", "e f", "g h"]


def test_japanese_is_cut_between_words_and_no_space_appears() -> None:
    text = "これは長い日本語の文章です。" * 13
    captions = read_vtt(FORMATS["vtt"](transcript(spoken(text, words=2, pace=0.1), language="ja")))
    assert "".join(row for caption in captions for row in caption.rows) == text
    assert all(len(row) <= 42 for caption in captions for row in caption.rows)
    assert len(captions) == 3  # 13 * 14 characters, at most 84 in a caption
    assert all(len(caption.rows) <= 2 for caption in captions)


def test_a_word_longer_than_a_line_stays_whole() -> None:
    url = "https://example.org/" + "x" * 60
    captions = read_srt(FORMATS["srt"](transcript(spoken(f"See {url} for more", A))))
    assert [row for caption in captions for row in caption.rows].count(url) == 1
    assert squeezed("".join(row for c in captions for row in c.rows)).replace(f"{A}:", "") == f"See{url}formore"


def test_without_words_there_is_one_caption_of_wrapped_lines() -> None:
    text = "word " * 60
    (caption,) = read_srt(FORMATS["srt"](transcript(Segment(0, 60, text, speaker=A))))
    assert (caption.start, caption.end) == (0, 60_000)
    assert all(len(row) <= 42 for row in caption.rows)
    assert " ".join(caption.rows) == f"{A}: {text}".strip()


@pytest.mark.parametrize("speaker", [None, A, "Anna Maria von und zu Lichtenstein-Hohenberg the Second"])
@pytest.mark.parametrize("seed", range(25))
def test_what_holds_for_any_captions(seed: int, speaker: str | None) -> None:
    chance = random.Random(seed)
    texts = [chance.choice("abcdefg") * chance.randint(1, 9) + chance.choice(["", "", ",", "."]) for _ in range(120)]
    pace = chance.choice([0.05, 0.3, 2.0, 8.0])
    given = transcript(spoken(" ".join(texts), speaker, pace=pace))
    for name, captions in (("srt", read_srt(FORMATS["srt"](given))), ("vtt", read_vtt(FORMATS["vtt"](given)))):
        label = "" if speaker is None else f"{speaker}: " if name == "srt" else f"{speaker}|"
        rows = [" ".join(caption.rows).removeprefix(label.strip()).strip() for caption in captions]
        assert " ".join(rows) == " ".join(texts)
        assert all(len(caption.rows) <= 2 for caption in captions)
        shown = [row.removeprefix(label if name == "vtt" else "") for c in captions for row in c.rows]
        assert all(len(row) <= 42 or row == label.strip() for row in shown)
        assert all(caption.end - caption.start <= max(7000, pace * 1000) for caption in captions)
        assert all(left.end <= right.start for left, right in pairwise(captions))


@pytest.mark.parametrize("timed", [True, False], ids=["words", "no words"])
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str, timed: bool) -> None:
    segment = spoken(f"{text} " * 9, text, pace=0.5) if timed else Segment(0, 1, text, speaker=text)
    given = transcript(segment, Segment(50, 51, "end", speaker=B), turns=(Turn(0, 1, text), Turn(1, 2, B)))
    files = {name: write(given) for name, write in FORMATS.items()}
    for file in files.values():
        assert not set(file) & set("\x00\x1b\x0b\x0c\r\x85\u2028\u2029\ud800")
    assert read_srt(files["srt"])[-1].rows == [f"{B}: end"]
    assert read_vtt(files["vtt"])[-1].rows == [f"{B}|end"]
    heard = re.sub("[\x00-\x1f\x85\ud800\u2028\u2029]", "", squeezed(text))
    caption = read_vtt(files["vtt"])[0]
    said = squeezed("".join(caption.rows).rpartition("|")[2])
    assert (heard == "") == (caption.start == 50_000)
    assert said.startswith(heard) or heard == ""
    assert {row.count("\t") for row in files["tsv"].removesuffix("\n").split("\n")} == {3}
    assert {len(row.split()) for row in files["rttm"].splitlines()} == {10}
    assert files["txt"].endswith(f"{B}: end\n")


# Text and tables


def test_txt_has_a_paragraph_for_each_run_of_a_speaker() -> None:
    said = [("Hello.", A), (" How are\nyou? ", A), ("", B), ("", A), ("Fine.", B), ("Good.", A), ("Hm.", None)]
    given = [Segment(at, at + 1, text, speaker=who) for at, (text, who) in enumerate(said)]
    assert FORMATS["txt"](transcript(*given)) == (f"{A}: Hello. How are you?\n\n{B}: Fine.\n\n{A}: Good.\n\nHm.\n")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("Hello.", "There."), "Hello. There.\n"),
        (("はい。", "元気です", "よ。"), "はい。元気ですよ。\n"),
        (("你好", "hello", "world"), "你好 hello world\n"),
        (("네.", "그래요"), "네. 그래요\n"),
        (("สวัสดี", "ครับ"), "สวัสดี ครับ\n"),
    ],
)
def test_txt_joins_as_the_script_does(texts: tuple[str, ...], expected: str) -> None:
    assert FORMATS["txt"](transcript(*(Segment(0, 1, text) for text in texts))) == expected


def test_tsv_is_whispers_own_without_speakers() -> None:
    given = transcript(Segment(0.0004, 1.2345, " a\tb\nc"), Segment(2, 3, ""))
    assert FORMATS["tsv"](given) == "start\tend\ttext\n0\t1234\ta b c\n2000\t3000\t\n"


def test_tsv_has_a_column_for_speakers() -> None:
    given = transcript(Segment(0, 1, "a", speaker="Tom\tT"), Segment(2, 3, "b"))
    assert FORMATS["tsv"](given) == "start\tend\tspeaker\ttext\n0\t1000\tTom T\ta\n2000\t3000\t\tb\n"


def test_rttm() -> None:
    turns = (Turn(0.0306, 1.5, A), Turn(1.2, 360_001.25, " Tom  the\tCat "), Turn(3, 3.0001, B), Turn(4, 5, " "))
    assert FORMATS["rttm"](transcript(turns=turns)) == (
        "SPEAKER recording 1 0.031 1.469 <NA> <NA> SPEAKER_00 <NA> <NA>\n"
        "SPEAKER recording 1 1.200 360000.050 <NA> <NA> Tom_the_Cat <NA> <NA>\n"
        "SPEAKER recording 1 4.000 1.000 <NA> <NA> <NA> <NA> <NA>\n"
    )


def test_rttm_has_the_names_that_were_recognised() -> None:
    segments = (Segment(0, 1, "", speaker=A, speaker_id="Ann Lee", similarity=0.9), Segment(1, 2, "", speaker=B))
    turns = (Turn(0, 1, A), Turn(1, 2, B), Turn(1.5, 2, A), Turn(2, 3, "SPEAKER_02"))
    rows = FORMATS["rttm"](transcript(*segments, turns=turns)).splitlines()
    assert [row.split()[7] for row in rows] == ["Ann_Lee", B, "Ann_Lee", "SPEAKER_02"]


def test_text_of_any_length_is_joined_once() -> None:
    """Four times the segments take about four times as long; joined one by one they would take sixteen."""

    def spent(count: int) -> float:
        given = transcript(*(Segment(at, at + 1, "some words that somebody said") for at in range(count)))
        times = []
        for _ in range(3):
            began = time.process_time()
            FORMATS["txt"](given)
            times.append(time.process_time() - began)
        return min(times)

    assert spent(20_000) < 8 * spent(5_000)


def test_one_segment_of_hours_takes_no_more_than_a_moment() -> None:
    words = tuple(Word("" if at % 9 == 0 else "word,", at * 0.3, at * 0.3 + 0.2) for at in range(50_000))
    text = " ".join(word.text for word in words)
    given = transcript(Segment(0, 15_000, text, words), *(spoken("so it is " * 30) for _ in range(200)))
    began = time.process_time()
    captions = read_srt(FORMATS["srt"](given))
    assert time.process_time() - began < 4
    assert len(captions) > 2_500
