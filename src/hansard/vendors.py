"""What every use of a vendor's package asks for: silence, no telemetry, files found without an import, memory told."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansard.errors import EngineMissingError, OutOfMemoryError

SIGNS = ("out of memory", "ALLOC_FAILED", "allocate memory")
"""What CTranslate2, torch, cuBLAS, cuDNN and the system say in a RuntimeError when memory is full."""


def no_room(error: BaseException) -> bool:
    """Does an error, a vendor's or ours, mean that memory ran out?"""
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


LOST = ("CUDA error", "CUDA failed with error", "CUDNN_STATUS", "CUBLAS_STATUS")
"""How torch and CTranslate2 begin what they say of a GPU that no longer answers this process."""


def gpu_lost(error: BaseException) -> bool:
    """Does an error mean that this process can do nothing more on its GPU, whatever it tries?"""
    return isinstance(error, RuntimeError) and not no_room(error) and any(sign in str(error) for sign in LOST)


def without_frames(error: Exception) -> Exception:
    """The same error, and those behind it, without the frames they came through, which hold all that was made there."""
    seen: set[int] = set()
    behind: list[BaseException | None] = [error]
    while behind:
        one = behind.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            behind += [one.__cause__, one.__context__]
    return error


def give_back_memory() -> None:
    """Let go of what nobody refers to, and of the GPU's memory that torch keeps for itself: CTranslate2 may need it."""
    gc.collect()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if empty_cache := getattr(cuda, "empty_cache", None):  # there is none while another thread still imports torch
        empty_cache()


class _Silence:
    """Warnings off while at least one thread wants it: their filters belong to the process, not to a thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0

    def begin(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._depth += 1

    def end(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._before.__exit__(None, None, None)


_silence = _Silence()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a vendor's warnings (old checkpoints, codecs, retired functions) out of the log: none is the caller's."""
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()


def import_pyannote() -> None:
    """Import pyannote.audio with its telemetry off, and without lightning's remarks on the age of checkpoints.

    Raises EngineMissingError where it is not installed.
    """
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # read at its import: nothing is sent anywhere
    with quiet():
        try:
            import pyannote.audio  # noqa: F401 - for what its import does
        except ImportError:
            raise EngineMissingError("pyannote.audio is not installed: install requirements.txt") from None
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its import had set its own level


def packaged(package: str, file: str) -> Path:
    """A file inside an installed package, without importing the package. Raises EngineMissingError."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise EngineMissingError(
        f"{package} is not installed: install requirements.txt, and for the embedded engines "
        "builder/requirements-embedded.txt"
    )
