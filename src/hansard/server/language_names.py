"""The English names of languages, in lower case as Whisper's callers know them: `english` for `en`."""

from __future__ import annotations

import ast
import re
from functools import cache

import pycountry

from hansard.errors import EngineMissingError
from hansard.vendors import packaged

_IN_BRACKETS = re.compile(r"\s*\([^)]*\)")  # as in "Modern Greek (1453-)"


def name_of(code: str) -> str:
    """A language's name by its code: Whisper's own, which knows `jw`, else that of ISO 639; an unknown code itself."""
    if name := _of_whisper().get(code):
        return name
    kind = {2: "alpha_2", 3: "alpha_3"}.get(len(code))
    found = pycountry.languages.get(**{kind: code}) if kind else None
    return _IN_BRACKETS.sub("", found.name).lower() if found else code


@cache
def _of_whisper() -> dict[str, str]:
    """The table of Whisper's tokenizer, read from its source: its import would take seconds."""
    try:
        source = packaged("transformers", "models/whisper/tokenization_whisper.py").read_text()
    except EngineMissingError:  # a server in front of an endpoint does without it
        return {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(it := node.targets[0], ast.Name) and it.id == "LANGUAGES":
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    return {}
