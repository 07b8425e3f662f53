"""The names of languages are Whisper's, and where it has none those of ISO 639."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansard.errors import EngineMissingError
from hansard.server import language_names
from hansard.server.language_names import name_of
from places import ROOT


@pytest.fixture
def fresh() -> Iterator[None]:
    """The table is read again, in the test and after it."""
    language_names._of_whisper.cache_clear()
    yield
    language_names._of_whisper.cache_clear()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("en", "english"),
        ("fr", "french"),
        ("ru", "russian"),
        ("el", "greek"),
        ("jw", "javanese"),
        ("yue", "cantonese"),
        ("haw", "hawaiian"),
        ("my", "myanmar"),
        ("ht", "haitian creole"),
        ("jv", "javanese"),
        ("ga", "irish"),
        ("ast", "asturian"),
        ("rus", "russian"),
        ("grc", "ancient greek"),
        ("ia", "interlingua"),
        ("xx", "xx"),
        ("xxx", "xxx"),
        ("multi", "multi"),
        ("", ""),
    ],
)
def test_a_code_has_its_name(code: str, name: str) -> None:
    assert name_of(code) == name


def test_the_table_is_whispers(fresh: None) -> None:
    tokenizer = pytest.importorskip("transformers.models.whisper.tokenization_whisper")
    assert language_names._of_whisper() == tokenizer.LANGUAGES


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from hansard.server.language_names import name_of; assert name_of('jw') == 'javanese'; "
        "sys.exit(sorted({'transformers', 'torch', 'faster_whisper'} & set(sys.modules)) or 0)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr


def test_without_the_engine_there_are_the_names_of_iso(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    def missing(package: str, file: str) -> None:
        raise EngineMissingError(f"{package} is not installed")

    monkeypatch.setattr(language_names, "packaged", missing)
    assert [name_of(code) for code in ("en", "el", "jw")] == ["english", "modern greek", "jw"]


def test_a_table_that_has_moved_is_no_table(monkeypatch: pytest.MonkeyPatch, fresh: None, tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("OTHERS = {'en': 'not this'}\n")
    monkeypatch.setattr(language_names, "packaged", lambda *_: source)
    assert name_of("en") == "english"
