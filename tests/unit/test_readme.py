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


def _told() -> set[str]:
    """The paths in the README's tree that have a phrase: two spaces a level, folders end with a slash."""
    lines = README.split("## Where things are")[1].split("```")[1].splitlines()
    paths: set[str] = set()
    folders: list[str] = []
    for line in lines:
        names = re.match(r"( *)(\S+(?:, \S+)*)( {2,}\S|$)", line)
        if names is None or len(names[1]) > 2 * len(folders):  # a phrase that goes on
            continue
        del folders[len(names[1]) // 2 :]
        if names[3]:
            paths |= {"".join(folders) + name for name in names[2].split(", ")}
        if names[2].endswith("/"):
            folders.append(names[2])
    return paths


@pytest.mark.parametrize("file", _sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_has_its_phrase_in_the_tree(file: Path) -> None:
    path = file.relative_to(ROOT).as_posix()
    assert re.sub(r"requirements.*", "requirements*.in", path) in _told()


def test_commands_named_exist_and_run_from_anywhere() -> None:
    for command in set(re.findall(r"`?(builder/[a-z]+)\b(?![.-])", README)):
        path = ROOT / command
        assert path.is_dir() or path.stat().st_mode & 0o111, command
