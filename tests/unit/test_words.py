"""Which aligner times which segment, and what happens where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from hansard.aligners import Alignment
from hansard.errors import HubError, OutOfMemoryError, UnsupportedError
from hansard.transcript import Audio, Report, Segment, Transcription, Word
from hansard.words import time_words

SOUND = Audio(np.zeros((1, 160_000), np.int16))


class Aligner:
    """Times every word of a segment to the whole segment, under the name of its language."""

    def __init__(self, language: str) -> None:
        self.language = language

    def align(self, audio: Audio, segments: Sequence[Segment], report: Report) -> Alignment:
        assert audio is SOUND
        report(0.5)
        report(1.0)
        timed = tuple(
            Segment(s.start, s.end, s.text, (Word(self.language, s.start, s.end),), language=s.language)
            for s in segments
        )
        return Alignment(timed, (f"from {self.language}",))

    def close(self) -> None: ...


def own(_: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
    report(1.0)
    return tuple(replace(s, words=(Word(f"own {s.language}", s.start, s.end),)) for s in segments)


def time(text: Transcription, *, known: str = "en fr", reports: list[float] | None = None) -> Transcription:
    def aligner_for(language: str) -> Aligner:
        if language == "hub":
            raise HubError("the hub does not answer")
        if language == "big":
            raise OutOfMemoryError("too big")
        if language not in known.split():
            raise UnsupportedError(f"no aligner for {language}")
        return Aligner(language)

    return time_words(SOUND, text, aligner_for, own, (reports if reports is not None else []).append)


def test_words_without_any_times_are_said_to_be_missing() -> None:
    def none(_: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
        return tuple(segments)

    def no_aligner(language: str) -> Aligner:
        raise UnsupportedError("no aligner")

    text = Transcription((Segment(0, 1, "hello"),), "xx")
    timed = time_words(SOUND, text, no_aligner, none, lambda _: None)
    assert timed.segments == text.segments
    assert timed.warnings == ("word times of language xx are missing: no aligner",)


def hows(text: Transcription) -> list[str]:
    return [segment.words[0].text if segment.words else "-" for segment in text.segments]


def test_segments_of_a_text_go_to_the_aligner_of_its_language() -> None:
    timed = time(Transcription((Segment(0, 1, "a"), Segment(1, 2, "b")), "en", 0.9, ("kept",)))
    assert hows(timed) == ["en", "en"]
    assert (timed.language, timed.language_probability) == ("en", 0.9)
    assert timed.warnings == ("kept", "from en")


def test_each_language_goes_to_its_own_aligner_and_the_order_stays() -> None:
    segments = tuple(Segment(i, i + 1, "x", language=code) for i, code in enumerate(["en", "fr", "en", None, "fr"]))
    timed = time(Transcription(segments, "en"))
    assert hows(timed) == ["en", "fr", "en", "en", "fr"]
    assert [segment.start for segment in timed.segments] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("code", "says"), [("tlh", "no aligner for tlh"), ("hub", "the hub does not answer"), ("big", "too big")]
)
def test_without_an_aligner_the_models_own_times_serve_and_a_warning_says_so(code: str, says: str) -> None:
    segments = (Segment(0, 1, "x", language=code), Segment(1, 2, "y", language="en"))
    timed = time(Transcription(segments, "en"))
    assert hows(timed) == [f"own {code}", "en"]
    assert [segment.language for segment in timed.segments] == [code, "en"]
    assert timed.warnings[0] == f"word times of language {code} are the model's own, less exact: {says}"


def test_a_segment_without_a_language_of_its_own_gets_none_by_being_timed() -> None:
    timed = time(Transcription((Segment(0, 1, "x"),), "tlh"))
    assert hows(timed) == ["own tlh"]
    assert timed.segments[0].language is None


def test_what_has_words_or_no_text_is_left_alone() -> None:
    words = (Word("done", 0, 1),)
    timed = time(Transcription((Segment(0, 1, "done", words), Segment(1, 2, "  "), Segment(2, 3, "x")), "en"))
    assert hows(timed) == ["done", "-", "en"]


def test_nothing_said_asks_for_no_aligner() -> None:
    text = Transcription((), "en")
    assert time(text, known="") == text


def test_progress_runs_once_from_0_to_1() -> None:
    reports: list[float] = []
    segments = tuple(Segment(i, i + 1, "x", language=code) for i, code in enumerate(["en", "fr", "tlh", "en"]))
    time(Transcription(segments, "en"), reports=reports)
    assert reports == sorted(reports)
    assert reports[-1] == pytest.approx(1.0)
    assert reports[0] == pytest.approx(0.25)
