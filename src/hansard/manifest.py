"""What a folder of weights must hold, as it was when builder/fetch_models.py filled it: the file .hansard.json in it.

The worker looks at names and sizes when it starts; whoever fills the folder looks at the hashes, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from hansard.hub import File

FILE = ".hansard.json"
BLOCK = 1 << 20  # bytes hashed at a time
SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Manifest:
    """The revision of a hub repository that a folder holds, and every file of it."""

    repository: str
    revision: str
    files: tuple[File, ...]


def write(folder: Path, manifest: Manifest) -> None:
    """Put a manifest into its folder, at once or not at all. Raises OSError."""
    part = folder / f"{FILE}.part"
    part.write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    os.replace(part, folder / FILE)


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none that can be read."""
    try:
        given = json.loads((folder / FILE).read_text())
        files = tuple(File(str(file["name"]), str(file["blob"]), int(file["size"])) for file in given["files"])
        return Manifest(str(given["repository"]), str(given["revision"]), files)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def missing(folder: Path) -> tuple[str, ...]:
    """The files that a folder lacks, or has with another size than its manifest says; reads none of them.

    Nothing is missing where there is no manifest; one that cannot be read is missing itself.
    """
    manifest = read(folder)
    if manifest is None:
        return (FILE,) if os.path.lexists(folder / FILE) else ()
    return tuple(file.name for file in manifest.files if _size(folder / file.name) != file.size)


def wrong(folder: Path, files: Iterable[File]) -> tuple[str, ...]:
    """Those of the files that a folder lacks or has with another size or content; reads all of them."""
    return tuple(file.name for file in files if not _is_right(folder / file.name, file))


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits. Raises OSError."""
    return _hashed(path, hashlib.sha256())


def _is_right(path: Path, file: File) -> bool:
    """Is this the file, by the hash that the hub keeps it under: the content's for large ones, git's for small ones?"""
    if _size(path) != file.size:
        return False
    try:
        if len(file.blob) == SHA256_DIGITS:
            return sha256(path) == file.blob
        git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        return _hashed(path, git) == file.blob
    except OSError:
        return False


def _hashed(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
