"""What the transcribers are judged on: for each of the table a model, the world it lives in, and a recording."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import voxtral_server
from hansard.settings import Settings
from places import CLIPS, DATA, ROOT, TINY

small_voxtral = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "make_voxtral.py")))
small_canary = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "make_canary.py")))


@contextmanager
def folders(_: Path) -> Iterator[Settings]:
    """A worker whose models are folders of this repository, or ride in packages."""
    yield Settings(models_dir=TINY, hf_hub_offline=True, device="cpu")


@dataclass(frozen=True)
class Subject:
    """What a backend is judged on: a model of it, and a recording of English that this model understands.

    `world` makes what the model needs, in an empty folder, and gives the settings of a worker that has it. A model of
    random weights understands nothing: it is judged on all but the words.
    """

    model: str
    recording: Path = CLIPS / "meeting_en_2voices.flac"
    truth: Path = CLIPS / "meeting_en_2voices.json"
    world: Callable[[Path], AbstractContextManager[Settings]] = folders
    understands: bool = True


SUBJECTS = {
    "whisper": Subject("whisper-tiny-synthetic-ct2"),
    "voxtral": Subject(small_voxtral.NAME, world=small_voxtral.worker, understands=False),
    "voxtral_transcriptions": Subject("voxtral-mini-latest", world=partial(voxtral_server.service, dialect="mistral")),
    "voxtral_chat": Subject("voxtral-small-latest", world=partial(voxtral_server.service, dialect="vllm")),
    "canary": Subject(small_canary.NAME, world=small_canary.worker, understands=False),
    "sphinx": Subject("sphinx", DATA / "meeting.ogg", DATA / "meeting.json"),
}
