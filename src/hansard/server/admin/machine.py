"""This machine and what is installed on it, seen without importing an engine."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import psutil

from hansard import __version__
from hansard.allowance import cpus, memory
from hansard.errors import EngineMissingError
from hansard.server.admin.views import DiskView, GpuView, MachineView
from hansard.server.gpus import gpus
from hansard.settings import Settings
from hansard.vendors import packaged

PACKAGES = (
    *("torch", "torchaudio", "ctranslate2", "pyannote.audio", "whisperx", "faster-whisper", "transformers"),
    *("nemo_toolkit", "mistral_common", "pocketsphinx", "huggingface_hub", "fastapi"),
)
FOLDERS = ("state_dir", "hf_home", "work_dir")


def machine(settings: Settings) -> MachineView:
    """Processors and memory that this process may use, disks and GPUs now. Takes some milliseconds."""
    may_use = memory()
    return MachineView(
        cpus=cpus(),
        cpu_percent=psutil.cpu_percent(),
        memory_total=may_use.total,
        memory_available=may_use.available,
        gpus=[GpuView(**asdict(gpu)) for gpu in gpus()],
        disks=[disk for name in FOLDERS for disk in _disk(name, settings)],
    )


def versions() -> dict[str, str | None]:
    """Ours, of each package, and the CUDA runtime that torch was built for; None for what is not installed."""
    found: dict[str, str | None] = {"hansard": __version__, "torch_cuda": _torch_cuda()}
    for package in PACKAGES:
        found[package] = None
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _torch_cuda() -> str | None:
    """As torch/version.py says, which is read: importing it would import torch."""
    try:
        text = packaged("torch", "version.py").read_text()
    except EngineMissingError:
        return None
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return match[1] if match else None


def _disk(field: str, settings: Settings) -> list[DiskView]:
    """The disk under a folder, or under what there is of its path."""
    place = getattr(settings, field)
    for folder in (place, *place.parents):
        with suppress(OSError):
            usage = shutil.disk_usage(folder)
            return [DiskView(setting=field.upper(), total=usage.total, free=usage.free)]
    return []
