"""torchaudio's aligners, "bundles": one file each, in the image, in torch's cache, or downloaded into that."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import requests
import urllib3

from hansard.errors import HubError
from hansard.models import Models
from hansard.transcript import Report

BUNDLES = "https://download.pytorch.org/torchaudio/models"  # as in torchaudio.pipelines
CONNECT_S = 10.0
READ_S = 30.0  # between two pieces
PIECE = 1 << 20  # bytes, at most
FOLDER = "torchaudio"  # under MODELS_DIR
PREFIX = "tmp"  # of the folder of a download, which only a killed process leaves behind

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


def folder(name: str, language: str, models: Models) -> Path:
    """The folder that holds a bundle's file: it came with the image, or is in torch's cache, or now is.

    Raises HubError where it cannot be had, and whatever `models.report` raises.
    """
    file, cache = file_of(name), _cache()
    if place := find(name, models):
        return place.parent
    how = f"put {file} into the folder torchaudio of MODELS_DIR, or name another aligner with ALIGN_MODELS"
    if models.settings.hf_hub_offline:
        raise HubError(f"the aligner of language {language} is not on this machine and HF_HUB_OFFLINE is set: {how}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        download(name, cache / file, models.report)
    except (OSError, urllib3.exceptions.HTTPError):  # requests' errors are OSErrors
        raise HubError(f"the aligner of language {language} could not be downloaded: try again, or {how}") from None
    return cache


def find(name: str, models: Models) -> Path | None:
    """A bundle's file on this machine, or None."""
    places = (models.settings.models_dir / FOLDER, _cache())
    return next((file for place in places if (file := place / file_of(name)).is_file()), None)


def forget(name: str) -> None:
    """Delete a bundle's file that was downloaded and cannot be loaded; do nothing for other models."""
    if is_bundle(name):
        (_cache() / file_of(name)).unlink(missing_ok=True)


def file_of(name: str) -> str:
    """The name of a bundle's file."""
    if name in FILES:
        return FILES[name]
    import torchaudio

    return str(getattr(torchaudio.pipelines, name)._path)


def _cache() -> Path:
    """Where torch.hub keeps what it downloads, by torch's own variables: a process without torch asks, too."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def download(name: str, target: Path, report: Report) -> None:
    """Bring a bundle's file to `target` whole or not at all, in a folder that exists.

    torch.hub's own download waits without end, and takes a part for the whole. Raises OSError, urllib3's HTTPError, and
    whatever `report` raises.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=target.parent) as beside:
        part = Path(beside) / target.name
        _receive(f"{BUNDLES}/{file_of(name)}", part, report)
        os.replace(part, target)


def _receive(url: str, part: Path, report: Report) -> None:
    headers = {"Accept-Encoding": "identity"}  # or the length would be that of something else
    with (
        part.open("wb") as out,
        requests.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as response,
    ):
        response.raise_for_status()
        total, received = response.raw.length_remaining, 0
        while piece := response.raw.read1(PIECE):  # as it comes, so that a cancel is heard where it comes slowly
            out.write(piece)
            received += len(piece)
            report(received / total if total else 0.0)
