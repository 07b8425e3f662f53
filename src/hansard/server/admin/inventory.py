"""The models that this server can use, and what is on its disk of each; loads no engine, asks no network.

They are the names of the tables, the models that settings name, and what lies under MODELS_DIR or in the hub's cache.
Names of one backend with the same weights are one entry. An aligner's key is `aligner:` and its language.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hansard.aligners import bundles
from hansard.aligners.table import aligners
from hansard.diarizers import DIARIZERS
from hansard.errors import EngineMissingError, ModelMissingError, RequestError
from hansard.models import Models, shown
from hansard.plan import (
    ALIGNER,
    Choice,
    default_diarizer,
    default_transcriber,
    diarizer_named,
    transcriber_named,
)
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS

Kind = Literal["transcriber", "diarizer", "aligner"]

PREFIX = "aligner:"  # in no folder's and no repository's name is a colon


@dataclass(frozen=True, slots=True)
class Entry:
    """A model: the names it goes by, the last of which is its key, and what must be on this machine to load it.

    `needs` are repositories, folders or torchaudio's bundles; none: the weights ride in a package, or lie with a
    service.
    """

    kind: Kind
    backend: str
    models: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What callers call it."""
        return tuple(f"{PREFIX}{model}" if self.kind == "aligner" else shown(model) for model in self.models)

    @property
    def key(self) -> str:
        return self.names[-1]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What the engine may know it as; the last one is what it is loaded as."""
        return tuple(Choice(self.backend, model) for model in self.models)


@dataclass(frozen=True, slots=True)
class Found:
    """What is on the disk of a model: is it all there, and how many bytes is that."""

    whole: bool
    size: int


def entries(settings: Settings) -> dict[str, Entry]:
    """Every model by its key. Reads the disk."""
    models = Models(settings)
    found = [*_of_table("transcriber", TRANSCRIBERS, models), *_of_table("diarizer", DIARIZERS, models)]
    known = {name for entry in found for name in (*entry.models, *entry.needs)}
    choices = [default_transcriber(models), default_diarizer(models)]
    for name in (*models.names(), *_in_cache(settings)):
        choices += [choice for choice in (_choice(name, models),) if choice and name not in known]
    found += [_entry(choice, models) for choice in dict.fromkeys(choices) if choice.model not in known]
    with suppress(EngineMissingError):  # without WhisperX nothing is aligned
        found += [Entry("aligner", ALIGNER, (language,), (name,)) for language, name in aligners(settings).items()]
    return {entry.key: entry for entry in found}


def entry_named(name: str, settings: Settings) -> Entry:
    """The model of this name: one of `entries`, or a repository of the hub. Raises ModelMissingError."""
    for entry in entries(settings).values():
        if name in entry.names:
            return entry
    models = Models(settings)
    if models.is_repository(name) and (choice := _choice(name, models)):
        return _entry(choice, models)
    raise ModelMissingError(f"there is no model {name[:100]!r} here; GET /api/admin/status lists those that are")


def missing(entry: Entry, settings: Settings) -> list[str]:
    """What a model needs and is not on this machine; a pipeline's config.yaml may name more once it is here."""
    models = Models(settings)
    return [name for name in _needs(entry, models) if _place(name, models) is None]


def look(entry: Entry, settings: Settings) -> Found:
    """What is on the disk of a model."""
    models = Models(settings)
    places = [_place(name, models) for name in _needs(entry, models)]
    return Found(None not in places, sum(_size(place) for place in places if place))


def _of_table(kind: Kind, table: dict[str, Any], models: Models) -> Iterator[Entry]:
    for backend, cls in table.items():
        alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, repositories in cls.models.items():
            alike[repositories or (name,)].append(name)
        for names in alike.values():
            needs = cls.models[names[0]]
            yield Entry(kind, backend, tuple(dict.fromkeys((*needs[:1], *names))), needs)


def _choice(name: str, models: Models) -> Choice | None:
    """What would use a model that no table knows."""
    for named in (transcriber_named, diarizer_named):
        with suppress(RequestError):
            return named(name, models)
    return None


def _entry(choice: Choice, models: Models) -> Entry:
    kind: Kind = "diarizer" if choice.backend in DIARIZERS else "transcriber"
    on_disk = models.is_repository(choice.model) or models.find(choice.model) is not None
    return Entry(kind, choice.backend, (choice.model,), (choice.model,) if on_disk else ())


def _needs(entry: Entry, models: Models) -> tuple[str, ...]:
    return DIARIZERS[entry.backend].needs(entry.models[-1], models) if entry.kind == "diarizer" else entry.needs


def _in_cache(settings: Settings) -> Iterable[str]:
    """The repositories in the hub's cache that are whole."""
    try:
        folders = sorted(os.listdir(settings.hf_home / "hub"))
    except OSError:
        return []
    names = [f"{match[1]}/{match[2]}" for folder in folders if (match := re.fullmatch("models--(.+?)--(.+)", folder))]
    return [name for name in names if Models(settings).kind(name)]


def _place(name: str, models: Models) -> Path | None:
    return bundles.find(name, models) if name in bundles.FILES else models.find(name)


def _size(place: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    total = 0
    for path in [place] if place.is_file() else place.rglob("*"):
        with suppress(OSError):  # removed in this moment
            total += path.stat().st_size if path.is_file() else 0
    return total
