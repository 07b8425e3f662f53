"""The README says what the code does: its tables, its file tree and its commands."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from places import ROOT

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "builder/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(tables: ModuleType) -> None:
    assert tables.fill(README) == README, "run .venv/bin/python builder/tables.py"


def test_a_stale_table_is_noticed(tables: ModuleType) -> None:
    stale = README.replace("| `beam_size` |", "| `beams` |")
    assert stale != README
    assert tables.fill(stale) == README


def _sources() -> list[Path]:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "builder").iterdir()]
    return [file for file in files if file.is_file() and file.name != "__init__.py"]


@pytest.mark.parametrize("file", _sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_has_its_phrase_in_the_tree(file: Path) -> None:
    tree = README.split("## Where things are")[1].split("## ")[0]
    if file.match("requirements*"):
        assert "requirements*.in" in tree
    else:
        assert re.search(rf"(?m)(^|[\s,]){re.escape(file.name)},?\s+\S", tree), file


def test_commands_named_exist_and_run_from_anywhere() -> None:
    for command in set(re.findall(r"`?(builder/[a-z]+)\b(?![.-])", README)):
        path = ROOT / command
        assert path.is_dir() or path.stat().st_mode & 0o111, command
