"""Whole jobs on small real models in local folders: no network, no token, one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from hansard.pipeline import Stock
from hansard.settings import Settings
from hansard.transcript import Transcript
from jobs import run_job
from places import CLIPS, TINY

Hear = Callable[..., Transcript]


@pytest.fixture(scope="session")
def settings() -> Settings:
    """A worker whose every model is a folder: Whisper and aligner under MODELS_DIR, the diarizer in its packages."""
    return Settings(
        models_dir=TINY,
        hf_hub_offline=True,
        device="cpu",
        default_model="whisper-tiny-synthetic-ct2",
        align_models=dict.fromkeys(("en", "fr", "ru"), "wav2vec2-tiny-synthetic"),
        diarization_model="embedded",
    )


@pytest.fixture(scope="session")
def stock(settings: Settings) -> Iterator[Stock]:
    made = Stock(settings)
    yield made
    made.shelf.close()


@pytest.fixture(scope="session")
def hear(stock: Stock) -> Hear:
    """`hear("meeting_fr", align_output=True)`: a clip, the whole way; the same job is run only once."""

    @cache
    def once(clip: str, fields: str) -> Transcript:
        return run_job(stock, CLIPS / f"{clip}.flac", json.loads(fields))

    return lambda clip, **fields: once(clip, json.dumps(fields, sort_keys=True))


@pytest.fixture(scope="session")
def truth() -> Callable[[str], list[dict[str, Any]]]:
    """The turns of a clip: speaker, language, text, start, end, and words with their times."""
    return lambda clip: list(json.loads((CLIPS / f"{clip}.json").read_text())["turns"])
