"""What a folder of weights must hold, told from its manifest and from the hashes of the hub."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from hansard import manifest
from hansard.hub import File
from hansard.manifest import Manifest
from hansard.models import Models
from hansard.settings import Settings

SMALL = b'{"small": true}'
LARGE = b"weights" * 500_000  # more than one block


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small file, a large one in a folder of its own, and their manifest."""
    folder = tmp_path / "models" / "name"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_bytes(SMALL)
    (folder / "part" / "model.bin").write_bytes(LARGE)
    manifest.write(folder, Manifest("org/name", "f" * 40, files()))
    return folder


def files() -> tuple[File, ...]:
    git = hashlib.sha1(b"blob %d\0" % len(SMALL) + SMALL).hexdigest()
    return (
        File("config.json", git, len(SMALL)),
        File("part/model.bin", hashlib.sha256(LARGE).hexdigest(), len(LARGE)),
    )


def test_what_is_written_is_read(folder: Path) -> None:
    assert manifest.read(folder) == Manifest("org/name", "f" * 40, files())
    assert manifest.missing(folder) == manifest.wrong(folder, files()) == ()
    assert {path.name for path in folder.iterdir()} == {"config.json", "part", ".hansard.json"}


def test_a_manifest_does_not_make_a_model_of_a_folder_or_hide_one(folder: Path) -> None:
    models = Models(Settings(models_dir=folder.parent, hf_hub_offline=True))
    assert models.find("org/name") == folder
    (folder / "part" / "model.bin").unlink()
    assert models.find("org/name") is None


@pytest.mark.parametrize("name", ["config.json", "part/model.bin"])
def test_a_file_that_is_gone_or_cut_short_is_missing(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    assert manifest.missing(folder) == manifest.wrong(folder, files()) == (name,)
    (folder / name).unlink()
    assert manifest.missing(folder) == manifest.wrong(folder, files()) == (name,)
    (folder / name).mkdir()
    assert manifest.missing(folder) == manifest.wrong(folder, files()) == (name,)


@pytest.mark.parametrize("name", ["config.json", "part/model.bin"])
def test_a_byte_that_has_turned_is_wrong_but_not_missing(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert manifest.missing(folder) == ()
    assert manifest.wrong(folder, files()) == (name,)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": []}', '{"files": [{"name": "x"}]}', "\x00\xff"])
def test_a_manifest_that_cannot_be_read_is_missing(folder: Path, text: str) -> None:
    (folder / manifest.FILE).write_text(text)
    assert manifest.read(folder) is None
    assert manifest.missing(folder) == (manifest.FILE,)


def test_nothing_is_missing_where_there_is_no_manifest(tmp_path: Path) -> None:
    assert manifest.missing(tmp_path) == manifest.missing(tmp_path / "none") == ()
    assert manifest.read(tmp_path) is None


def test_a_small_files_hash_is_gits_own(folder: Path) -> None:
    try:
        told = subprocess.run(
            ["git", "hash-object", "--no-filters", folder / "config.json"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert manifest.wrong(folder, [File("config.json", told.stdout.strip(), len(SMALL))]) == ()
