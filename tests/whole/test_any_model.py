"""One meeting, any of the models: the whole way of a job is the same whoever transcribes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import pytest

from hansard.pipeline import Stock
from hansard.transcribers import TRANSCRIBERS
from hansard.transcript import Transcript
from jobs import run_job
from places import CLIPS, TINY
from subjects import SUBJECTS, Subject

pytestmark = pytest.mark.timeout(240)

Truth = Callable[[str], list[dict[str, Any]]]

MEETING = CLIPS / "meeting_en_2voices.flac"
OTHERS = [name for name in TRANSCRIBERS if name not in ("whisper", "sphinx")]  # which other tests of this folder have
ALIGNER = {"en": str(TINY / "wav2vec2-tiny-synthetic")}


@dataclass(frozen=True)
class Worker:
    """A warm worker, and the model that it is judged on."""

    stock: Stock
    subject: Subject

    def hear(self, recording: Path = MEETING, **fields: object) -> Transcript:
        asked = {"model": self.subject.model, "language": "en", **fields}
        return run_job(self.stock, recording, asked)


@pytest.fixture(scope="module", params=OTHERS)
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    subject = SUBJECTS[request.param]
    with subject.world(tmp_path_factory.mktemp("world")) as settings:
        more = {"align_models": ALIGNER, "diarization_model": "embedded"}
        stock = Stock(settings.model_copy(update=more))
        yield Worker(stock, subject)
        stock.shelf.close()


@pytest.fixture(scope="module")
def minutes(worker: Worker) -> Transcript:
    """The meeting with speakers and words."""
    return worker.hear(diarization=True, align_output=True)


def plain(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))


def test_every_word_has_its_time_and_its_speaker(minutes: Transcript) -> None:
    assert minutes.segments
    assert {turn.speaker for turn in minutes.turns} == {"SPEAKER_00", "SPEAKER_01"}
    for segment in minutes.segments:
        assert 0 <= segment.start < segment.end <= minutes.duration
        assert segment.text.split() == [word.text for word in segment.words]
        assert {word.speaker for word in segment.words} == {segment.speaker}
        for one, other in itertools.pairwise(segment.words):
            assert one.start <= one.end <= other.start + 1e-6


def test_what_was_said_is_the_same_by_any_way(worker: Worker, minutes: Transcript, truth: Truth) -> None:
    """Through files, services and compression; by random weights, some text all the same."""
    heard = plain(" ".join(segment.text for segment in minutes.segments))
    assert heard
    if worker.subject.understands:
        said = plain(" ".join(turn["text"] for turn in truth("meeting_en_2voices")))
        assert jiwer.wer(said, heard) <= 0.1


def test_the_answer_names_the_model_and_the_language(worker: Worker, minutes: Transcript) -> None:
    assert (minutes.model, minutes.language) == (worker.subject.model, "en")
    assert set(minutes.timings) >= {"decode", "transcribe", "diarize", "assign"}


def test_turns_that_are_given_are_kept(worker: Worker) -> None:
    turns = [{"start": 5.2, "end": 6.9, "speaker": "Anna"}, {"start": 1.7, "end": 4.9, "speaker": "Boris"}]
    heard = worker.hear(task="transcription", segments=turns)
    assert [(s.start, s.end, s.speaker) for s in heard.segments] == [(5.2, 6.9, "Anna"), (1.7, 4.9, "Boris")]
    assert all(segment.text for segment in heard.segments)


def test_a_silent_recording_says_nothing(worker: Worker) -> None:
    heard = worker.hear(CLIPS / "silence_noise.flac", diarization=True)
    assert heard.segments == ()
