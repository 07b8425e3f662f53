"""The names of models that a caller of the OpenAI endpoints may use: our own, and aliases for them.

MODEL_ALIASES comes first, also for what an alias stands for; without it OpenAI's own names mean the default model. The
model that tells speakers apart asks for that by its own name and by every alias of it.
"""

from __future__ import annotations

from typing import Any

from hansard.diarizers import DIARIZERS
from hansard.errors import ModelMissingError
from hansard.models import Models
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS

DIARIZING = "gpt-4o-transcribe-diarize"

OPENAI = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-03-20",
    "gpt-4o-mini-transcribe-2025-12-15",
    DIARIZING,
)
"""What the `openai` package names in its types (3.52.0), and the older date of the mini model."""


def own_name(name: str | None, settings: Settings) -> str | None:
    """The model that a caller's name stands for; None is the default one."""
    last = _way(name, settings)[-1] if name is not None else ""
    return None if last in OPENAI else last or None


def asks_for_speakers(name: str, settings: Settings) -> bool:
    """Does a caller's name stand for the model that tells speakers apart?"""
    return DIARIZING in _way(name, settings)


def _way(name: str, settings: Settings) -> list[str]:
    """A caller's name, and from alias to alias what it stands for; it ends before it would go in a circle."""
    way = [name]
    while (target := settings.model_aliases.get(way[-1])) is not None and target not in way:
        way.append(target)
    return way


def listed(settings: Settings) -> list[dict[str, Any]]:
    """Every name as OpenAI lists models, our own first; `root` is the model that an alias stands for.

    Reads MODELS_DIR. A repository of the hub may be named without standing here. `created` is not known, so 0.
    """
    tables: tuple[dict[str, Any], ...] = (TRANSCRIBERS, DIARIZERS)
    own = [name for table in tables for backend in table.values() for name in backend.models]
    names = dict.fromkeys([*own, *Models(settings).names(), *settings.model_aliases, *OPENAI])
    return [_item(name, own_name(name, settings)) for name in names]


def item(name: str, settings: Settings) -> dict[str, Any]:
    """One of `listed`. Raises ModelMissingError."""
    for known in listed(settings):
        if known["id"] == name:
            return known
    raise ModelMissingError(f"there is no model {name[:100]!r} here; GET /v1/models lists those that are")


def _item(name: str, root: str | None) -> dict[str, Any]:
    about = {"id": name, "object": "model", "created": 0, "owned_by": "hansard"}
    return about | ({"root": root} if root not in (name, None) else {})
