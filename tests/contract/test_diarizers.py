"""One suite that judges every diarizer in the table; a backend whose engine is absent skips, saying why."""

import importlib.util
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Timeline
from pyannote.core import Segment as Span
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate

from hansard.diarizers import DIARIZERS, Diarizer
from hansard.errors import CancelledError, EngineMissingError
from hansard.request import Request, parse
from hansard.transcript import Audio, Turn

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module", params=list(DIARIZERS))
def diarizer(request: pytest.FixtureRequest) -> Iterator[Diarizer]:
    try:
        backend = DIARIZERS[request.param]()
    except EngineMissingError as error:
        pytest.skip(str(error))
    yield backend
    backend.close()


def ignore(_: float) -> None:
    """A report that nobody listens to."""


def error_rate(truth: Annotation, turns: tuple[Turn, ...]) -> float:
    """Diarization error rate with the customary collar of 0.25 s on each side."""
    found = Annotation()
    for number, turn in enumerate(turns):
        found[Span(turn.start, turn.end), number] = turn.speaker
    everything = Timeline([Span(0, max(turn.end for turn in turns) + 1)])
    return float(DiarizationErrorRate(collar=0.5)(truth, found, uem=everything))


@pytest.fixture(scope="module")
def telephone() -> tuple[Audio, Annotation]:
    """The 30 s of two people on the telephone, with overlap, that ride in the pyannote.audio package."""
    [folder] = importlib.util.find_spec("pyannote.audio").submodule_search_locations
    samples, _ = soundfile.read(Path(folder) / "sample/sample.wav", dtype="int16")
    return Audio(samples[None]), load_rttm(str(Path(folder) / "sample/sample.rttm"))["sample"]


def test_tells_two_voices_apart(diarizer: Diarizer, speech: Audio, asked: Request, meeting_truth: list) -> None:
    truth = Annotation()
    for number, turn in enumerate(meeting_truth):
        truth[Span(turn["start"], turn["end"]), number] = turn["speaker"]
    assert error_rate(truth, diarizer.diarize(speech, asked, ignore).turns) <= 0.02


def test_follows_a_telephone_call(diarizer: Diarizer, telephone: tuple[Audio, Annotation], asked: Request) -> None:
    audio, truth = telephone
    assert error_rate(truth, diarizer.diarize(audio, asked, ignore).turns) <= 0.05


def test_turns_are_in_order_and_named_by_appearance(diarizer: Diarizer, speech: Audio, asked: Request) -> None:
    found = diarizer.diarize(speech, asked, ignore)
    names = list(dict.fromkeys(turn.speaker for turn in found.turns))
    assert names == [f"SPEAKER_{number:02d}" for number in range(len(names))]
    for turns in (found.turns, found.exclusive):
        assert list(turns) == sorted(turns, key=lambda turn: turn.start)
        assert all(0 <= turn.start < turn.end <= speech.duration + 0.5 for turn in turns)


def test_exclusive_turns_never_overlap(diarizer: Diarizer, telephone: tuple[Audio, Annotation], asked: Request) -> None:
    found = diarizer.diarize(telephone[0], asked, ignore)
    assert all(a.end <= b.start + 1e-6 for a, b in pairwise(found.exclusive))
    assert {turn.speaker for turn in found.exclusive} <= {turn.speaker for turn in found.turns}
    assert any(a.end > b.start + 1e-6 for a, b in pairwise(found.turns))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({"num_speakers": 1}, 1), ({"max_speakers": 1}, 1), ({"num_speakers": 3}, 3), ({"min_speakers": 3}, 3)],
)
def test_counts_are_honoured(diarizer: Diarizer, speech: Audio, counts: dict[str, int], expected: int) -> None:
    found = diarizer.diarize(speech, parse({"audio": "data:,", "diarization": True, **counts}), ignore)
    heard = len({turn.speaker for turn in found.turns})
    assert heard == expected or any("not the number asked for" in warning for warning in found.warnings)
    if expected == 1:
        assert heard == 1


def test_no_speech_gives_no_turns(diarizer: Diarizer, no_speech: Audio, asked: Request) -> None:
    assert diarizer.diarize(no_speech, asked, ignore).turns == ()


def test_one_short_word_is_one_speaker(diarizer: Diarizer, speech: Audio, asked: Request) -> None:
    word = Audio(speech.samples[:, 8000:14400])
    assert len({turn.speaker for turn in diarizer.diarize(word, asked, ignore).turns}) <= 1


def test_reports_progress(diarizer: Diarizer, speech: Audio, asked: Request) -> None:
    seen: list[float] = []
    diarizer.diarize(speech, asked, seen.append)
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] <= 1


def test_stops_when_told_and_works_again(diarizer: Diarizer, speech: Audio, asked: Request) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        diarizer.diarize(speech, asked, stop)
    assert diarizer.diarize(speech, asked, ignore).turns


def test_same_recording_same_answer(diarizer: Diarizer, speech: Audio, asked: Request) -> None:
    first, second = (diarizer.diarize(speech, asked, ignore) for _ in range(2))
    assert first == second


def test_loudness_does_not_matter(diarizer: Diarizer, speech: Audio, asked: Request) -> None:
    quiet = Audio((speech.samples // 8).astype(np.int16))
    assert len({turn.speaker for turn in diarizer.diarize(quiet, asked, ignore).turns}) == 2
