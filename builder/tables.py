"""Write the tables of README.md anew from the code they describe: request fields, settings, error codes.

Run: .venv/bin/python builder/tables.py     builder/check fails while a table is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from hansard import errors  # noqa: E402 - after src is on the path
from hansard.request import ALIASES, json_schema  # noqa: E402
from hansard.settings import Settings  # noqa: E402


def fill(readme: str) -> str:
    """README's text with every table as the code has it now."""
    for name, table in {"request": request_table(), "settings": settings_table(), "errors": errors_table()}.items():
        head, begin, rest = readme.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- /{name} -->")
        assert end, f"README has no place for the table {name}"
        readme = head + begin + table + end + tail
    return readme


def request_table() -> str:
    """One row for each field of a job's input."""
    schema = json_schema()
    other_names = {alias for aliases in ALIASES.values() for alias in aliases}
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{alias}`" for alias in ALIASES.get(name, ())),
            _kind(field),
            "" if field.get("default") in (None, [], False) else f"`{field['default']}`",
            field["description"],
        )
        for name, field in schema["properties"].items()
        if name not in other_names
    ]
    return _table(("field", "also called", "type", "default", "meaning"), rows)


def settings_table() -> str:
    """One row for each environment variable."""
    rows = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = [str(choice) for choice in alias.choices] if alias is not None and hasattr(alias, "choices") else [name]
        default = "the system's folder for them" if field.default_factory else f"`{_shown(field.default)}`"
        rows.append((", ".join(f"`{n.upper()}`" for n in names), default, field.description or ""))
    return _table(("variable", "default", "meaning"), rows)


def errors_table() -> str:
    """One row for each code, from the tree drawn in errors.py."""
    drawn = re.findall(r"(\w+Error)\s{2,}(\w+)\s{2,}(\S.*)", errors.__doc__ or "")
    return _table(("code", "what happened"), [(f"`{code}`", meaning) for _, code, meaning in drawn])


def _kind(field: dict[str, Any]) -> str:
    """A field's type in a few words."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    words = []
    for kind in kinds:
        if "enum" in kind:
            words.append(" \\| ".join(kind["enum"]))
        elif kind.get("type") == "array":
            words.append("list of " + _kind(kind["items"]))
        elif "$ref" in kind:
            words.append("objects")
        else:
            low, high = kind.get("minimum"), kind.get("maximum")
            words.append(kind["type"] + (f" {low}-{high}" if low is not None and high is not None else ""))
    return " or ".join(words)


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, tuple):
        return ":".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---" for _ in head], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(fill(path.read_text()))
