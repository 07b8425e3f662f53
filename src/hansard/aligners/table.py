"""Which model aligns which language, read without importing an engine: WhisperX's tables, from its source."""

from __future__ import annotations

import ast
from functools import cache

from hansard.errors import UnsupportedError
from hansard.settings import Settings
from hansard.vendors import packaged

TABLES = ("DEFAULT_ALIGN_MODELS_HF", "DEFAULT_ALIGN_MODELS_TORCH")


def aligners(settings: Settings) -> dict[str, str]:
    """The hub id, folder or torchaudio bundle of each language: ALIGN_MODELS, else WhisperX's.

    Raises EngineMissingError without WhisperX.
    """
    return {**_of_whisperx(), **settings.align_models}


def aligner_of(language: str, settings: Settings) -> str:
    """The one of a language. Raises UnsupportedError for a language that has none, EngineMissingError."""
    known = aligners(settings)
    if language not in known:
        raise UnsupportedError(f"there is no aligner for language {language}; name one with ALIGN_MODELS")
    return known[language]


@cache
def _of_whisperx() -> dict[str, str]:
    found: dict[str, str] = {}
    for node in ast.parse(packaged("whisperx", "alignment.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name) and target.id in TABLES:
            found |= ast.literal_eval(node.value)
    return found
