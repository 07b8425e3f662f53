"""torchaudio's aligners, "bundles": one file each, in the image, or downloaded beside the hub's cache.

A file that is in torch's own cache is used where it lies. A download that broke off leaves its part, from which the
next one goes on; of two processes that want one file the second waits for the first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3

from hansard.errors import HubError
from hansard.models import Models
from hansard.transcript import Report

BUNDLES = "https://download.pytorch.org/torchaudio/models"  # as in torchaudio.pipelines
CONNECT_S = 10.0
READ_S = 30.0  # between two pieces
PIECE = 1 << 20  # bytes, at most
LOOK_S = 0.2  # between two looks at whether another process has the file
FOLDER = "torchaudio"  # under MODELS_DIR, and under HF_HOME
PREFIX = "tmp"  # of the folders that downloads of older versions left behind

STARTS_ANEW = (200, 206, 416)  # answers to "go on from here" after which a part is of no use, if that is not what comes

Heard = Callable[[int, int | None], None]
"""`heard(received, total)`: bytes that are here, with those of an earlier try; None where the server does not say."""

FILES = {
    "WAV2VEC2_ASR_BASE_960H": "wav2vec2_fairseq_base_ls960_asr_ls960.pth",
    "VOXPOPULI_ASR_BASE_10K_DE": "wav2vec2_voxpopuli_base_10k_asr_de.pt",
    "VOXPOPULI_ASR_BASE_10K_ES": "wav2vec2_voxpopuli_base_10k_asr_es.pt",
    "VOXPOPULI_ASR_BASE_10K_FR": "wav2vec2_voxpopuli_base_10k_asr_fr.pt",
    "VOXPOPULI_ASR_BASE_10K_IT": "wav2vec2_voxpopuli_base_10k_asr_it.pt",
}
"""The bundles of WhisperX's table and their files, for processes that must not import torch; a test compares them."""


def is_bundle(name: str) -> bool:
    """Is this the name of one of torchaudio's bundles?"""
    if name in FILES:
        return True
    import torchaudio

    return name in torchaudio.pipelines.__all__


def folder(name: str, language: str, models: Models, heard: Heard | None = None) -> Path:
    """The folder that holds a bundle's file: it came with the image, or was downloaded before, or now is.

    Raises HubError where it cannot be had, and whatever `models.report` and `heard` raise.
    """
    if place := find(name, models):
        return place.parent
    file, target = file_of(name), models.settings.hf_home / FOLDER
    how = f"put {file} into the folder torchaudio of MODELS_DIR, or name another aligner with ALIGN_MODELS"
    if models.settings.hf_hub_offline:
        raise HubError(f"the aligner of language {language} is not on this machine and HF_HUB_OFFLINE is set: {how}")
    try:
        target.mkdir(parents=True, exist_ok=True)
        download(name, target / file, models.report, heard)
    except (OSError, urllib3.exceptions.HTTPError):  # requests' errors are OSErrors
        raise HubError(f"the aligner of language {language} could not be downloaded: try again, or {how}") from None
    return target


def find(name: str, models: Models) -> Path | None:
    """A bundle's file on this machine, or None."""
    places = (models.settings.models_dir / FOLDER, *_writable(models))
    return next((file for place in places if (file := place / file_of(name)).is_file()), None)


def forget(name: str, models: Models) -> None:
    """Delete a bundle's file that was downloaded and cannot be loaded; do nothing for other models."""
    for place in _writable(models) if is_bundle(name) else ():
        (place / file_of(name)).unlink(missing_ok=True)


def file_of(name: str) -> str:
    """The name of a bundle's file."""
    if name in FILES:
        return FILES[name]
    import torchaudio

    return str(getattr(torchaudio.pipelines, name)._path)


def _writable(models: Models) -> tuple[Path, Path]:
    """Where files lie that were downloaded, by us or by torch."""
    return models.settings.hf_home / FOLDER, _cache()


def _cache() -> Path:
    """Where torch.hub keeps what it downloads, by torch's own variables: a process without torch asks, too."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def download(name: str, target: Path, report: Report, heard: Heard | None = None) -> None:
    """Bring a bundle's file to `target` whole or not at all, in a folder that exists.

    torch.hub's own download waits without end, and takes a part for the whole. Raises OSError, urllib3's HTTPError, and
    whatever `report` and `heard` raise.
    """

    def tell(received: int, total: int | None) -> None:
        if heard:
            heard(received, total)
        report(min(received / total, 0.99) if total else 0.0)

    path = target.with_name(f"{target.name}.part")
    with _held(path, target, lambda: report(0.0)) as part:
        if part is not None:
            _receive(f"{BUNDLES}/{file_of(name)}", part, tell)
            os.replace(path, target)
    report(1.0)


@contextmanager
def _held(path: Path, target: Path, wait: Callable[[], None]) -> Iterator[BinaryIO | None]:
    """A file to add to that no other process writes; None where another one has brought the target meanwhile."""
    while True:
        with path.open("ab") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EWOULDBLOCK:
                    wait()
                    time.sleep(LOOK_S)
                    continue  # disks that know no locks are written without one
            if target.is_file():
                if _is_at(part, path):
                    path.unlink()
                yield None
                return
            if _is_at(part, path):  # or another one has made it the target, and that was removed since
                yield part
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _receive(url: str, part: BinaryIO, tell: Heard) -> None:
    """Add to a part what it lacks; where the server does not go on from there, all of it anew."""
    begin = part.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"}  # or the length would be that of something else
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as response:
        if begin and response.status_code in STARTS_ANEW and not _goes_on(response, begin):
            part.truncate(0)
            if response.status_code != requests.codes.ok:
                _receive(url, part, tell)
                return
            begin = 0
        response.raise_for_status()
        left = response.raw.length_remaining
        received, total = begin, None if left is None else begin + left
        tell(received, total)
        while piece := response.raw.read1(PIECE):  # as it comes, so that a cancel is heard where it comes slowly
            part.write(piece)
            received += len(piece)
            tell(received, total)
    part.flush()


def _goes_on(response: requests.Response, begin: int) -> bool:
    """Is this answer the rest of a file from this byte on?"""
    return response.status_code == requests.codes.partial and bool(
        re.match(rf"bytes {begin}-", response.headers.get("Content-Range", ""))
    )
