"""Paths of the clips, and what the machine has, for every test."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from places import DATA


def pytest_report_header() -> str:
    """The versions that decide what a run means."""
    names = ("runpod", "torch", "pyannote.audio", "whisperx", "faster-whisper", "av", "pocketsphinx")
    return "engines: " + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


@pytest.fixture(scope="session")
def meeting() -> Path:
    """The two-voice clip of tests/data/make_meeting.py, 18 s."""
    return DATA / "meeting.ogg"


@pytest.fixture(scope="session")
def meeting_truth() -> list[dict[str, Any]]:
    """Its turns: speaker, start, end, text."""
    return json.loads((DATA / "meeting.json").read_text())["turns"]
