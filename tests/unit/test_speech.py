"""Where somebody speaks: stretches for sphinx, the two models of voice activity, and where a recording is cut."""

import importlib.util
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hansard.audio import speech, voice_activity
from hansard.audio.decode import decode
from hansard.audio.speech import (
    LONGEST_SPAN_S,
    Activity,
    cut,
    find_speech,
    joined,
    padded,
    speaks,
    stretches,
)
from hansard.audio.voice_activity import VoiceActivity, load_voice_activity
from hansard.errors import CancelledError, EngineMissingError, OutOfMemoryError
from hansard.transcript import SAMPLE_RATE, Audio, Span
from places import ROOT

CLIPS = ROOT / "tests/models/tiny-synthetic/clips"
ONSET, OFFSET = 0.5, 0.363


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


# The models of voice activity


@pytest.fixture(scope="module", params=["pyannote", "silero"])
def voices(request: pytest.FixtureRequest) -> VoiceActivity:
    return load_voice_activity(request.param, "cpu")


def recording(name: str) -> tuple[Audio, list[dict[str, Any]]]:
    samples, _ = soundfile.read(CLIPS / f"{name}.flac", dtype="int16")
    return Audio(samples[None]), json.loads((CLIPS / f"{name}.json").read_text())["turns"]


def test_each_model_hears_what_is_said_and_no_noise(voices: VoiceActivity) -> None:
    audio, turns = recording("meeting_en_fr")
    activity = voices(audio, ignore)
    found = stretches(activity, ONSET, OFFSET, audio.duration)
    times = np.arange(0, audio.duration, 0.01)
    said = np.any([(times >= turn["start"]) & (times < turn["end"]) for turn in turns], axis=0)
    heard = np.any([(times >= span.start) & (times < span.end) for span in found], axis=0)
    assert np.mean(heard[said]) > 0.94
    assert np.mean(heard[~said]) < 0.5  # the pauses between sentences are short
    assert len(activity.probability) * activity.step == pytest.approx(audio.duration, abs=0.1)
    assert stretches(voices(recording("silence_noise")[0], ignore), ONSET, OFFSET, 30) == []


def test_each_model_takes_the_shortest_of_recordings(voices: VoiceActivity) -> None:
    for samples in (0, 1, 300, 8000):
        assert voices(Audio(np.zeros((1, samples), np.int16)), ignore).probability.max(initial=0) < OFFSET


def test_each_model_reports_and_stops_when_told(voices: VoiceActivity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_activity, "BLOCK_S", 6.0)
    monkeypatch.setattr(voice_activity.PyanNet, "BATCH", 4)
    audio, _ = recording("meeting_fr")
    seen: list[float] = []
    voices(audio, seen.append)
    assert seen == sorted(seen)
    assert len(seen) >= 4
    assert seen[-1] == 1.0

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        voices(audio, stop)


def test_blocks_and_batches_change_nothing(voices: VoiceActivity, monkeypatch: pytest.MonkeyPatch) -> None:
    audio, _ = recording("meeting_fr")
    whole = voices(audio, ignore).probability
    monkeypatch.setattr(voice_activity, "BLOCK_S", 10.0)
    monkeypatch.setattr(voice_activity.PyanNet, "BATCH", 3)
    parts = voices(audio, ignore).probability
    assert parts.shape == whole.shape
    assert np.mean(speaks(parts, ONSET, OFFSET) == speaks(whole, ONSET, OFFSET)) > 0.995


def test_speech_is_where_whisperx_finds_it() -> None:
    """Its own voice activity detection on the same weights, ten windows for each stretch of 5 s."""
    import torch
    from whisperx.vads.pyannote import Binarize, load_vad_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = load_vad_model("cpu")
    ours = load_voice_activity("pyannote", "cpu")
    same = []
    for name in ("meeting_en_2voices", "meeting_ru"):
        whole, _ = recording(name)
        audio = Audio(whole.samples[:, : 20 * SAMPLE_RATE])
        activity = ours(audio, ignore)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = original({"waveform": torch.from_numpy(audio.mono())[None], "sample_rate": SAMPLE_RATE})
        expected = [(s.start, s.end) for s in Binarize(onset=ONSET, offset=OFFSET)(scores).get_timeline()]
        found = [(s.start, s.end) for s in stretches(activity, ONSET, OFFSET, audio.duration)]
        times = np.arange(0, audio.duration, 0.01)
        frames = [np.array([any(a <= t < b for a, b in spans) for t in times]) for spans in (expected, found)]
        same.append(frames[0] == frames[1])
    assert np.mean(np.concatenate(same)) >= 0.97


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EngineMissingError, match="whisperx"):
        load_voice_activity("pyannote", "cpu")


def test_windows_are_fewer_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU's memory, which holds only so many windows."""
    voices = load_voice_activity("pyannote", "cpu")
    audio, _ = recording("meeting_fr")
    expected = voices(audio, ignore)
    model, sizes, room = voices._model, [], 5  # type: ignore[attr-defined]

    def scarce(windows: Any) -> Any:
        sizes.append(len(windows))
        if len(windows) > room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return model(windows)

    monkeypatch.setattr(voices, "_model", scarce)
    found = voices(audio, ignore)
    assert np.allclose(found.probability, expected.probability, atol=1e-3)
    assert expected.warnings == ()
    assert found.warnings == ("memory was short: speech was looked for in 4 windows at a time, not 32",)
    assert max(sizes[2:]) <= room < sizes[0]
    room = 0
    with pytest.raises(OutOfMemoryError):
        voices(audio, ignore)


# From probabilities to stretches and chunks


def activity_of(*parts: tuple[float, float], step: float = 0.01) -> Activity:
    """An activity made of (probability, seconds)."""
    return Activity(np.concatenate([np.full(round(s / step), p, np.float32) for p, s in parts]), step)


def test_a_span_is_heard_by_its_likeliest_moment() -> None:
    activity = activity_of((0.0, 1.0), (0.4, 0.01), (0.1, 1.0))
    assert activity.hears(Span(0.5, 1.5), OFFSET)
    assert not activity.hears(Span(1.1, 1.5), OFFSET)
    assert not activity.hears(Span(3.0, 3.0), OFFSET)


def test_speech_begins_above_onset_and_ends_below_offset() -> None:
    values = [0.4, 0.6, 0.4, 0.37, 0.3, 0.4, 0.45, 0.9, 0.1, 0.4]
    expected = [False, True, True, True, False, False, False, True, False, False]
    assert speaks(np.array(values, np.float32), ONSET, OFFSET).tolist() == expected
    assert speaks(np.zeros(0, np.float32), ONSET, OFFSET).tolist() == []


def test_hysteresis_is_that_of_a_loop_over_frames() -> None:
    values = np.random.default_rng(0).random(5000).astype(np.float32)
    state, expected = False, []
    for value in values:
        state = value > ONSET or (state and value >= OFFSET)
        expected.append(state)
    assert speaks(values, ONSET, OFFSET).tolist() == expected


def test_stretches_have_the_times_of_their_frames() -> None:
    activity = activity_of((0.0, 1.0), (0.9, 2.0), (0.1, 1.0), (0.9, 1.0))
    assert [(round(s.start, 3), round(s.end, 3)) for s in stretches(activity, ONSET, OFFSET, 4.5)] == [(1, 3), (4, 4.5)]
    assert stretches(activity, 0.95, OFFSET, 5) == []
    assert len(stretches(activity, 0.2, 0.6, 5)) == 2  # an offset above the onset counts as the onset


def test_padding_never_passes_the_middle_of_a_pause() -> None:
    spans = [Span(0.1, 1.0), Span(1.2, 2.0), Span(4.0, 4.9)]
    assert padded(spans, 0.2, 5.0) == [Span(0.0, 1.1), Span(1.1, 2.2), Span(3.8, 5.0)]
    assert padded([], 0.2, 5.0) == []


def test_neighbours_are_joined_up_to_a_length_and_not_across_long_pauses() -> None:
    spans = [Span(0, 8), Span(8.5, 16), Span(16.5, 25), Span(25.5, 31), Span(35, 36)]
    assert joined(spans, 30, 2) == [Span(0, 25), Span(25.5, 31), Span(35, 36)]


def noise(duration: float, level: float = 1000.0) -> Audio:
    sound = np.random.default_rng(0).normal(0, level, round(duration * SAMPLE_RATE))
    return Audio(sound.astype(np.int16)[None])


def test_long_speech_is_cut_where_speech_is_least_likely() -> None:
    activity = activity_of((0.9, 24.0), (0.6, 0.4), (0.9, 20.6))
    pieces = cut(noise(45), activity, Span(0, 45), 30)
    assert len(pieces) == 2
    assert 24.0 <= pieces[0].end <= 24.4
    assert pieces[0].end == pieces[1].start
    assert (pieces[0].start, pieces[1].end) == (0, 45)


def test_where_all_is_speech_the_quietest_moment_decides() -> None:
    audio = noise(45)
    audio.samples[:, 20 * SAMPLE_RATE : 20 * SAMPLE_RATE + 4000] = 0
    pieces = cut(audio, activity_of((0.9, 45.0)), Span(0, 45), 30)
    assert 20.0 <= pieces[0].end <= 20.25


@pytest.mark.parametrize("length", [29.9, 30.1, 31, 45, 59.9, 60.1, 100, 601])
def test_pieces_cover_the_span_and_none_is_too_long_or_a_crumb(length: float) -> None:
    pieces = cut(noise(length + 1), activity_of((0.9, length + 1)), Span(0.5, 0.5 + length), 30)
    assert pieces[0].start == 0.5
    assert pieces[-1].end == 0.5 + length
    assert all(before.end == after.start for before, after in itertools.pairwise(pieces))
    assert all(14 <= piece.end - piece.start <= 30 for piece in pieces)


def test_no_word_is_cut_where_there_is_a_pause(clip: Audio, meeting_truth: list[dict[str, Any]]) -> None:
    activity = load_voice_activity("pyannote", "cpu")(clip, ignore)
    for piece in cut(clip, activity, Span(0, clip.duration), 6)[:-1]:
        assert not any(turn["start"] + 0.1 < piece.end < turn["end"] - 0.1 for turn in meeting_truth)
