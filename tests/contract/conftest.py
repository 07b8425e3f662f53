"""Recordings that every backend must cope with, decoded by the product's own decoder."""

from pathlib import Path

import numpy as np
import pytest

from hansard.audio.decode import decode
from hansard.request import Request, parse
from hansard.transcript import SAMPLE_RATE, Audio


@pytest.fixture(scope="session")
def speech(meeting: Path, tmp_path_factory: pytest.TempPathFactory) -> Audio:
    """Two voices in turn, 18 s of English."""
    return decode(meeting, tmp_path_factory.mktemp("speech"), lambda _: None)


@pytest.fixture(scope="session", params=["silence", "noise", "click", "20 ms"])
def no_speech(request: pytest.FixtureRequest) -> Audio:
    """Recordings in which nobody says a word."""
    random = np.random.default_rng(0)
    samples = {
        "silence": np.zeros(5 * SAMPLE_RATE),
        "noise": random.normal(0, 200, 5 * SAMPLE_RATE),
        "click": np.concatenate([np.zeros(8000), random.normal(0, 9000, 200), np.zeros(8000)]),
        "20 ms": random.normal(0, 200, 320),
    }[request.param]
    return Audio(samples.astype(np.int16)[None])


@pytest.fixture(scope="session")
def asked() -> Request:
    """A job that asks for nothing but its defaults, and for speakers."""
    return parse({"audio": "data:,", "diarization": True})
