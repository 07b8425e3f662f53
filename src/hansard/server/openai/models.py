"""The names of models that a caller of the OpenAI endpoints may use: our own, and aliases for them.

MODEL_ALIASES comes first; without it OpenAI's own names mean the default model. An alias of a model that tells
speakers apart asks for that as well.
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
    if name is None:
        return None
    if name in settings.model_aliases:
        return settings.model_aliases[name] or None
    return None if name in OPENAI else name


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
