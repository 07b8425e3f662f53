"""Where somebody speaks: found in blocks, as if there were none."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansard.audio import speech
from hansard.audio.decode import decode
from hansard.audio.speech import LONGEST_SPAN_S, Span, find_speech
from hansard.errors import CancelledError
from hansard.transcript import SAMPLE_RATE, Audio


def ignore(_: float) -> None:
    """A report that nobody listens to."""


@pytest.fixture(scope="module")
def clip(meeting: Path, tmp_path_factory: pytest.TempPathFactory) -> Audio:
    return decode(meeting, tmp_path_factory.mktemp("speech"), ignore)


def find(audio: Audio, onset: float = 0.5, offset: float = 0.363) -> list[Span]:
    return find_speech(audio, onset, offset, ignore)


def test_every_line_is_found_and_little_else(clip: Audio, meeting_truth: list[dict[str, Any]]) -> None:
    spans = find(clip)
    spoken = sum(turn["end"] - turn["start"] for turn in meeting_truth)
    for turn in meeting_truth:
        middle = (turn["start"] + turn["end"]) / 2
        assert any(span.start <= middle <= span.end for span in spans)
    assert spoken <= sum(span.end - span.start for span in spans) <= spoken + len(spans) * 0.8


def test_spans_are_in_order_apart_and_inside(clip: Audio) -> None:
    spans = find(clip)
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))
    assert all(0 <= span.start < span.end <= clip.duration for span in spans)


@pytest.mark.parametrize("block", [7.3, 12.0, 21.0])
def test_blocks_cut_no_word(clip: Audio, monkeypatch: pytest.MonkeyPatch, block: float) -> None:
    """Whatever the length of a block (longer than any span), each span begins and ends where it does without blocks."""
    whole = find(clip)
    monkeypatch.setattr(speech, "BLOCK_S", block)
    found = find(clip)
    edges = [edge for span in whole for edge in (span.start, span.end)]
    assert found
    for span in found:
        assert min(abs(span.start - edge) for edge in edges) < 0.3
        assert min(abs(span.end - edge) for edge in edges) < 0.3


def test_speech_without_a_pause_is_cut(clip: Audio, meeting_truth: list[dict[str, Any]]) -> None:
    """The words of one line over and over, with no silence between."""
    turn = meeting_truth[2]
    line = clip.samples[:, round(turn["start"] * SAMPLE_RATE) : round(turn["end"] * SAMPLE_RATE)]
    endless = Audio(np.tile(line, (1, 12)))
    spans = find(endless)
    assert max(span.end - span.start for span in spans) <= LONGEST_SPAN_S + 0.5
    assert sum(span.end - span.start for span in spans) > 0.9 * endless.duration


def test_onset_decides_what_counts_as_speech(clip: Audio) -> None:
    eager, strict = find(clip, 0.2, 0.1), find(clip, 0.99, 0.98)
    assert sum(s.end - s.start for s in strict) < sum(s.end - s.start for s in eager)


def test_silence_and_nothing_have_no_speech() -> None:
    assert find(Audio(np.zeros((1, 5 * SAMPLE_RATE), np.int16))) == []
    assert find(Audio(np.zeros((1, 10), np.int16))) == []


def test_reports_each_block_and_stops_when_told(clip: Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "BLOCK_S", 5.0)
    seen: list[float] = []
    find_speech(clip, 0.5, 0.363, seen.append)
    assert seen == sorted(seen)
    assert len(seen) >= 4
    assert seen[-1] == 1.0

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        find_speech(clip, 0.5, 0.363, stop)
