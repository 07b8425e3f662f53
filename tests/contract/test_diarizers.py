"""One suite that judges every diarizer in the table; a backend whose engine is absent skips, saying why.

Backends with weights of their own are judged on small ones, made by tests/models/make_pyannote.py.
"""

import importlib.util
import runpy
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
from hansard.models import Models
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE, Audio, Diarization, Turn
from places import ROOT

pytestmark = pytest.mark.timeout(300)

KNOWN = [(backend, model) for backend, cls in DIARIZERS.items() for model in cls.models]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """What finds small models under the published names, and asks no hub."""
    folder = tmp_path_factory.mktemp("models")
    runpy.run_path(str(ROOT / "tests" / "models" / "make_pyannote.py"))["make"](folder)
    nowhere = folder / "none"
    return Models(
        Settings(models_dir=folder, hf_home=nowhere, cached_models_dir=nowhere, hf_hub_offline=True, device="cpu")
    )


@pytest.fixture(scope="module", params=KNOWN, ids=[model for _, model in KNOWN])
def diarizer(request: pytest.FixtureRequest, models: Models) -> Iterator[Diarizer]:
    backend, model = request.param
    try:
        backend = DIARIZERS[backend](model, models)
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


@pytest.fixture(scope="module")
def one_each(speech: Audio, meeting_truth: list) -> Audio:
    """The first two turns of the speech, one of each voice."""
    half = round(meeting_truth[1]["end"] * SAMPLE_RATE) + SAMPLE_RATE // 2
    return Audio(speech.samples[:, :half])


@pytest.fixture(scope="module")
def told(diarizer: Diarizer, speech: Audio, asked: Request) -> tuple[Diarization, list[float]]:
    """What is made of the speech, and the progress that was told."""
    seen: list[float] = []
    return diarizer.diarize(speech, asked, seen.append), seen


@pytest.fixture(scope="module")
def call(diarizer: Diarizer, telephone: tuple[Audio, Annotation], asked: Request) -> Diarization:
    """What is made of the telephone call."""
    return diarizer.diarize(telephone[0], asked, ignore)


def test_tells_two_voices_apart(told: tuple[Diarization, list[float]], meeting_truth: list) -> None:
    truth = Annotation()
    for number, turn in enumerate(meeting_truth):
        truth[Span(turn["start"], turn["end"]), number] = turn["speaker"]
    assert error_rate(truth, told[0].turns) <= 0.02


def test_follows_a_telephone_call(diarizer: Diarizer, call: Diarization, telephone: tuple[Audio, Annotation]) -> None:
    if DIARIZERS["pyannote"] is type(diarizer):
        pytest.skip("the small models know synthetic voices only")
    assert error_rate(telephone[1], call.turns) <= 0.05


def test_turns_are_in_order_and_named_by_appearance(told: tuple[Diarization, list[float]], speech: Audio) -> None:
    found, _ = told
    names = list(dict.fromkeys(turn.speaker for turn in found.turns))
    assert names == [f"SPEAKER_{number:02d}" for number in range(len(names))]
    for turns in (found.turns, found.exclusive):
        assert list(turns) == sorted(turns, key=lambda turn: turn.start)
        assert all(0 <= turn.start < turn.end <= speech.duration + 0.5 for turn in turns)


def test_exclusive_turns_never_overlap(call: Diarization) -> None:
    assert all(a.end <= b.start + 1e-6 for a, b in pairwise(call.exclusive))
    assert {turn.speaker for turn in call.exclusive} <= {turn.speaker for turn in call.turns}
    assert any(a.end > b.start + 1e-6 for a, b in pairwise(call.turns))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({"num_speakers": 1}, 1), ({"max_speakers": 1}, 1), ({"num_speakers": 3}, 3), ({"min_speakers": 3}, 3)],
)
def test_counts_are_honoured(
    diarizer: Diarizer, speech: Audio, one_each: Audio, counts: dict[str, int], expected: int
) -> None:
    sound = one_each if expected == 1 else speech  # in which a third voice can be heard by who must
    found = diarizer.diarize(sound, parse({"audio": "data:,", "diarization": True, **counts}), ignore)
    heard = len({turn.speaker for turn in found.turns})
    assert heard == expected or any("not the number asked for" in warning for warning in found.warnings)
    if expected == 1:
        assert heard == 1


def test_says_what_it_needs(diarizer: Diarizer) -> None:
    assert all(isinstance(repository, str) for needs in diarizer.models.values() for repository in needs)
    assert 0 < diarizer.same_voice < 1


def test_each_voice_is_that_of_its_speaker(
    diarizer: Diarizer, speech: Audio, one_each: Audio, asked: Request, meeting_truth: list
) -> None:
    """The third and fourth of four turns, embedded alone, against the speakers of the first and second."""
    voices = diarizer.diarize(one_each, asked, ignore).voices
    assert list(voices) == ["SPEAKER_00", "SPEAKER_01"]
    for turn, speaker in zip(meeting_truth[2:], voices, strict=True):
        start, end = (round(turn[side] * SAMPLE_RATE) for side in ("start", "end"))
        known = diarizer.embed(Audio(speech.samples[:, start:end]))
        assert known is not None
        assert known.dtype == np.float32
        for name, voice in voices.items():
            likeness = float(known @ voice / np.linalg.norm(known) / np.linalg.norm(voice))
            assert (likeness >= diarizer.same_voice) == (name == speaker)


# scope: else the recordings would come first in the order of the tests, and every diarizer be loaded once for each
@pytest.mark.parametrize("no_speech", ["silence", "noise", "click", "20 ms"], indirect=True, scope="function")
def test_no_speech_gives_no_turns_and_no_voice(diarizer: Diarizer, no_speech: Audio, asked: Request) -> None:
    assert diarizer.embed(no_speech) is None
    found = diarizer.diarize(no_speech, asked, ignore)
    assert found.turns == ()
    assert not found.voices


def test_one_short_word_is_one_speaker(diarizer: Diarizer, speech: Audio, asked: Request) -> None:
    word = Audio(speech.samples[:, 8000:14400])
    assert len({turn.speaker for turn in diarizer.diarize(word, asked, ignore).turns}) <= 1


def test_reports_progress(told: tuple[Diarization, list[float]]) -> None:
    _, seen = told
    assert seen == sorted(seen)
    assert 0 <= seen[0] < seen[-1] <= 1


def test_stops_when_told_and_works_again_as_before(
    diarizer: Diarizer, told: tuple[Diarization, list[float]], speech: Audio, asked: Request
) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        diarizer.diarize(speech, asked, stop)
    assert diarizer.diarize(speech, asked, ignore) == told[0], "the same recording gets another answer"


def test_loudness_does_not_matter(diarizer: Diarizer, one_each: Audio, asked: Request) -> None:
    quiet = Audio((one_each.samples // 8).astype(np.int16))
    assert len({turn.speaker for turn in diarizer.diarize(quiet, asked, ignore).turns}) == 2
