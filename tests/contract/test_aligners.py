"""One suite that judges every aligner in the table, on clips whose words are known."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hansard.aligners import ALIGNERS, Aligner
from hansard.audio.decode import decode
from hansard.errors import CancelledError, UnsupportedError
from hansard.models import Models
from hansard.settings import Settings
from hansard.transcript import Audio, Segment
from places import CLIPS, ROOT, TINY

pytestmark = pytest.mark.timeout(120)

MODELS = Models(Settings(models_dir=TINY, device="cpu", align_models={"fr": "wav2vec2-tiny-synthetic"}))


@pytest.fixture(scope="module", params=list(ALIGNERS))
def aligner(request: pytest.FixtureRequest) -> Iterator[Aligner]:
    backend = ALIGNERS[request.param]("fr", MODELS)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def french(tmp_path_factory: pytest.TempPathFactory) -> Audio:
    """Two voices in turn, 22 s of French."""
    return decode(CLIPS / "meeting_fr.flac", tmp_path_factory.mktemp("french"), lambda _: None)


@pytest.fixture(scope="module")
def turns() -> list[dict]:
    return json.loads((CLIPS / "meeting_fr.json").read_text())["turns"]


@pytest.fixture(scope="module")
def segments(turns: list[dict]) -> list[Segment]:
    return [Segment(turn["start"], turn["end"], turn["text"], speaker=turn["speaker"]) for turn in turns]


def ignore(_: float) -> None:
    """A report that nobody listens to."""


def test_segments_keep_their_order_text_and_speaker(aligner: Aligner, french: Audio, segments: list[Segment]) -> None:
    found = aligner.align(french, segments[::-1], ignore)
    kept = [(segment.text, segment.speaker, segment.language) for segment in found.segments]
    assert kept == [(segment.text, segment.speaker, segment.language) for segment in segments[::-1]]
    assert found.warnings == ()


def test_words_are_as_written_and_within_their_segment(
    aligner: Aligner, french: Audio, segments: list[Segment]
) -> None:
    for asked, got in zip(segments, aligner.align(french, segments, ignore).segments, strict=True):
        assert [word.text for word in got.words] == asked.text.split()
        assert asked.start <= got.start <= got.words[0].start
        assert got.words[-1].end <= got.end <= asked.end
        assert all(word.start <= word.end for word in got.words)
        assert all(before.end <= after.start for before, after in pairwise(got.words))
        assert all(word.score is not None and 0 <= word.score <= 1 for word in got.words)


def test_words_are_where_they_are_said(
    aligner: Aligner, french: Audio, segments: list[Segment], turns: list[dict]
) -> None:
    found = [word for segment in aligner.align(french, segments, ignore).segments for word in segment.words]
    truth = [word for turn in turns for word in turn["words"]]
    off = [abs(word.start - true["start"]) for word, true in zip(found, truth, strict=True)]
    assert sum(off) / len(off) <= 0.02


def test_the_same_question_has_the_same_answer(aligner: Aligner, french: Audio, segments: list[Segment]) -> None:
    assert aligner.align(french, segments, ignore) == aligner.align(french, segments, ignore)


def test_nothing_in_nothing_out(aligner: Aligner, french: Audio) -> None:
    assert aligner.align(french, [], ignore).segments == ()
    assert aligner.align(french, [Segment(1, 2, "")], ignore).segments == (Segment(1, 2, ""),)


def test_text_where_nobody_speaks_breaks_nothing(aligner: Aligner, no_speech: Audio) -> None:
    asked = [Segment(0, no_speech.duration, "un texte"), Segment(no_speech.duration, no_speech.duration + 1, "après")]
    found = aligner.align(no_speech, asked, ignore)
    assert [segment.text for segment in found.segments] == ["un texte", "après"]
    assert found.segments[1] == asked[1]
    assert len(found.warnings) == 1


def test_a_failure_costs_one_segment_and_is_told(aligner: Aligner, french: Audio, segments: list[Segment]) -> None:
    hopeless = replace(segments[0], text="beaucoup trop de mots " * 50)
    found = aligner.align(french, [hopeless, *segments[1:]], ignore)
    assert found.segments == (hopeless, *aligner.align(french, segments, ignore).segments[1:])
    assert len(found.warnings) == 1


def test_progress_ends_at_one_and_a_cancel_is_heard(aligner: Aligner, french: Audio, segments: list[Segment]) -> None:
    def cancel(_: float) -> None:
        raise CancelledError("enough")

    aligner.align(french, segments, (told := []).append)
    assert told == sorted(told)
    assert told[-1] == 1
    with pytest.raises(CancelledError):
        aligner.align(french, segments, cancel)


@pytest.mark.parametrize("name", ALIGNERS)
def test_a_language_that_nobody_aligns_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError):
        ALIGNERS[name]("tlh", MODELS)


def test_importing_them_is_free() -> None:
    code = "import sys, hansard.aligners; print(*sys.modules)"
    path = {"PYTHONPATH": str(ROOT / "src"), "PATH": str(Path(sys.executable).parent)}
    run = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "torchaudio", "transformers", "whisperx", "num2words"} & set(run.stdout.split())
