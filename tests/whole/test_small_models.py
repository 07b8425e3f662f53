"""What comes out of whole jobs on small real models: text, word times, languages, speakers, and nothing for silence.

The models understand these clips and little else; the figures show that nothing is lost on the way, not how good a
full-size model is. Their own error, measured without us, is in tests/models/tiny-synthetic/README.md.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from hansard.pipeline import Stock
from hansard.plan import GPU_DIARIZER
from hansard.settings import Settings
from hansard.transcript import Transcript, Word
from hub import Hub
from jobs import run_job
from places import CLIPS, TINY

pytestmark = pytest.mark.timeout(300)

Hear = Callable[..., Transcript]
Truth = Callable[[str], list[dict[str, Any]]]

TIMED = ("meeting_en_2voices", "meeting_fr", "meeting_ru")
LANGUAGES = {"meeting_en_2voices": "en", "meeting_fr": "fr", "meeting_ru": "ru"}
WORST_WER = {"meeting_en_2voices": 0.05, "meeting_fr": 0.02, "meeting_ru": 0.10}
WITH_WORDS = {"align_output": True}


def plain(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def said(turns: list[dict[str, Any]]) -> list[str]:
    return [word for turn in turns for word in plain(turn["text"])]


def matched(turns: list[dict[str, Any]], heard: Transcript) -> list[tuple[dict[str, Any], str, Word]]:
    """Each word said that was heard as such: its truth, its speaker's turn, and the word heard."""
    words = [(word, turn["speaker"]) for turn in turns for word in turn["words"]]
    found = [word for segment in heard.segments for word in segment.words]
    pairs = SequenceMatcher(
        None, ["".join(plain(w["word"])) for w, _ in words], ["".join(plain(w.text)) for w in found], autojunk=False
    )
    return [
        (*words[block.a + at], found[block.b + at]) for block in pairs.get_matching_blocks() for at in range(block.size)
    ]


@pytest.mark.parametrize("clip", TIMED)
def test_the_text_is_what_was_said(hear: Hear, truth: Truth, clip: str) -> None:
    heard = hear(clip, **WITH_WORDS)
    text = [word for segment in heard.segments for word in plain(segment.text)]
    assert jiwer.wer(" ".join(said(truth(clip))), " ".join(text)) <= WORST_WER[clip]
    assert heard.warnings == ()


@pytest.mark.parametrize("clip", TIMED)
def test_the_language_is_detected(hear: Hear, clip: str) -> None:
    heard = hear(clip, **WITH_WORDS)
    assert heard.language == LANGUAGES[clip]
    assert heard.language_probability is not None
    assert heard.language_probability > 0.9


@pytest.mark.parametrize("clip", TIMED)
def test_words_are_where_they_were_said(hear: Hear, truth: Truth, clip: str) -> None:
    pairs = matched(truth(clip), hear(clip, **WITH_WORDS))
    assert len(pairs) > 0.85 * len(said(truth(clip)))
    starts = np.abs([word.start - known["start"] for known, _, word in pairs])
    ends = np.abs([word.end - known["end"] for known, _, word in pairs])
    assert starts.mean() < 0.02
    assert np.quantile(starts, 0.95) < 0.06
    assert ends.mean() < 0.06
    assert all(word.score is not None and 0 <= word.score <= 1 for _, _, word in pairs)


@pytest.mark.parametrize("clip", TIMED)
def test_words_make_up_the_text_and_lie_in_their_segment(hear: Hear, clip: str) -> None:
    for segment in hear(clip, **WITH_WORDS).segments:
        assert segment.text.split() == [word.text for word in segment.words]
        assert segment.start <= segment.words[0].start
        assert segment.words[-1].end <= segment.end


def test_each_stretch_of_a_mixed_recording_has_its_language(hear: Hear, truth: Truth) -> None:
    heard = hear("meeting_en_fr", language="multi", **WITH_WORDS)
    for segment in heard.segments:
        middle = (segment.start + segment.end) / 2
        nearest = min(truth("meeting_en_fr"), key=lambda turn: abs((turn["start"] + turn["end"]) / 2 - middle))
        assert segment.language == nearest["language"], segment.text
    assert {segment.language for segment in heard.segments} == {"en", "fr"}
    pairs = matched(truth("meeting_en_fr"), heard)
    assert len(pairs) >= 0.85 * len(said(truth("meeting_en_fr")))
    assert np.abs([word.start - known["start"] for known, _, word in pairs]).mean() < 0.02


def test_silence_and_noise_give_no_words(hear: Hear) -> None:
    heard = hear("silence_noise", diarization=True, **WITH_WORDS)
    assert (heard.segments, heard.turns) == ((), ())
    assert heard.duration == pytest.approx(30.0, abs=0.1)


def test_each_word_has_its_speaker(hear: Hear, truth: Truth) -> None:
    """The voices are told apart by the embedded diarizer, which takes some words for the other's: 9 of 10 are right."""
    turns = truth("meeting_en_2voices")
    heard = hear("meeting_en_2voices", diarization=True, num_speakers=2, **WITH_WORDS)
    pairs = [(speaker, str(word.speaker)) for _, speaker, word in matched(turns, heard)]
    assert {label for _, label in pairs} == {"SPEAKER_00", "SPEAKER_01"}
    right = sum(speaker == label for speaker, label in pairs)
    assert right >= 0.9 * len(pairs)


def test_a_language_without_an_aligner_keeps_whispers_own_times(truth: Truth, settings: Settings) -> None:
    """WhisperX's table names a model for French, but it is not here and the hub must not be asked."""
    stock = Stock(settings.model_copy(update={"align_models": {}}))
    heard = run_job(stock, CLIPS / "meeting_fr.flac", {"language": "fr", **WITH_WORDS})
    stock.shelf.close()
    assert len(heard.warnings) == 1
    assert heard.warnings[0].startswith("word times of language fr are the model's own, less exact: ")
    assert "HF_HUB_OFFLINE" in heard.warnings[0]
    starts = np.abs([word.start - known["start"] for known, _, word in matched(truth("meeting_fr"), heard)])
    assert len(starts) > 45
    assert starts.mean() < 0.2


def test_a_whole_job_runs_on_folders_alone(settings: Settings, truth: Truth, tmp_path: Path) -> None:
    """Whisper, aligner and a pipeline laid out like community-1, all under MODELS_DIR: no token, no hub."""
    runpy.run_path(str(TINY.parent / "make_pyannote.py"))["make"](tmp_path)
    for folder in ("whisper-tiny-synthetic-ct2", "wav2vec2-tiny-synthetic"):
        (tmp_path / folder).symlink_to(TINY / folder)
    stock = Stock(settings.model_copy(update={"models_dir": tmp_path, "diarization_model": GPU_DIARIZER}))
    heard = run_job(stock, CLIPS / "meeting_en_2voices.flac", {"diarization": True})
    stock.shelf.close()
    turns = truth("meeting_en_2voices")
    pairs = [(speaker, word.speaker) for _, speaker, word in matched(turns, heard)]
    assert len(pairs) > 100
    assert sum(speaker == label for speaker, label in pairs) >= 0.98 * len(pairs)
    assert heard.warnings == ()


def test_without_a_token_a_whole_job_loses_its_speakers_and_says_so(settings: Settings) -> None:
    stock = Stock(settings.model_copy(update={"diarization_model": GPU_DIARIZER}))
    heard = run_job(stock, CLIPS / "meeting_fr.flac", {"diarization": True})
    stock.shelf.close()
    assert len(heard.segments) == 7
    assert {segment.speaker for segment in heard.segments} == {None}
    assert [warning.split(":")[0] for warning in heard.warnings] == ["speakers were not told apart"]


def test_a_model_is_downloaded_once_with_progress_and_then_needs_no_hub(settings: Settings, tmp_path: Path) -> None:
    reports: list[float] = []

    def note(stage: str, fraction: float) -> None:
        if stage == "load":
            reports.append(fraction)

    with Hub({"Systran/faster-whisper-tiny": TINY / "whisper-tiny-synthetic-ct2"}) as hub:
        given = {"hf_hub_offline": False, "hf_endpoint": hub.url, "hf_home": tmp_path}
        online = Stock(settings.model_copy(update=given))
        first = run_job(online, CLIPS / "meeting_fr.flac", {"model": "tiny"}, note)
        online.shelf.close()
    assert reports == sorted(reports)
    assert reports[-1] == 1.0
    offline = Stock(settings.model_copy(update={"hf_home": tmp_path}))
    again = run_job(offline, CLIPS / "meeting_fr.flac", {"model": "tiny"}, note)
    offline.shelf.close()
    assert [segment.text for segment in again.segments] == [segment.text for segment in first.segments]
    assert first.model == "tiny"


# The tasks of the first worker


def test_given_turns_come_back_with_their_text_in_their_order(hear: Hear, truth: Truth) -> None:
    turns = truth("meeting_fr")[::-1]
    given = [{"start": turn["start"], "end": turn["end"], "speaker": f"voice of {turn['speaker']}"} for turn in turns]
    heard = hear("meeting_fr", task="transcription", segments=given)
    assert [(s.start, s.end, s.speaker) for s in heard.segments] == [
        (g["start"], g["end"], g["speaker"]) for g in given
    ]
    errors = [
        jiwer.wer(" ".join(plain(turn["text"])), " ".join(plain(segment.text)) or "-")
        for turn, segment in zip(turns, heard.segments, strict=True)
    ]
    assert np.mean(errors) <= 0.1


def test_turns_that_are_not_given_are_found(hear: Hear, truth: Truth) -> None:
    heard = hear("meeting_fr", task="transcription")
    text = [word for segment in heard.segments for word in plain(segment.text)]
    assert jiwer.wer(" ".join(said(truth("meeting_fr"))), " ".join(text)) <= 0.1
    assert {segment.speaker for segment in heard.segments} == {"SPEAKER_00", "SPEAKER_01"}


def test_turns_alone(hear: Hear, truth: Truth) -> None:
    heard = hear("meeting_en_2voices", task="diarization")
    spoken = sum(turn["end"] - turn["start"] for turn in truth("meeting_en_2voices"))
    assert sum(s.end - s.start for s in heard.segments) == pytest.approx(spoken, rel=0.15)
    assert all(segment.text == "" and segment.speaker for segment in heard.segments)
    assert set(heard.timings) == {"decode", "diarize"}
