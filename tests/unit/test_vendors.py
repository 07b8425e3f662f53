"""What vendors say when memory is full, and that silence asked for by one thread is not ended by another."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from hansard.errors import EngineMissingError, OutOfMemoryError
from hansard.vendors import gpu_lost, no_room, packaged, quiet
from places import ROOT


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA failed with error out of memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), True),
        (OutOfMemoryError("said by ourselves"), True),
        (RuntimeError("CUDA driver version is insufficient"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_how_memory_is_said_to_be_full(error: Exception, is_memory: bool) -> None:
    assert no_room(error) is is_memory


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA failed with error unspecified launch failure"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"), False),
        (RuntimeError("CUDA failed with error out of memory"), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_how_a_gpu_is_said_to_be_lost(error: Exception, is_lost: bool) -> None:
    assert gpu_lost(error) is is_lost


def test_silence_lasts_until_the_last_thread_that_asked_for_it_is_done() -> None:
    """The first to begin is the first to end; what the second one's vendor says then must not be an error."""
    begun, over = threading.Event(), threading.Event()
    said: list[str] = []

    def second() -> None:
        with quiet():
            begun.set()
            assert over.wait(20)
            warnings.warn("of a vendor", UserWarning, stacklevel=1)
            said.append("and nobody minded")

    thread = threading.Thread(target=second)
    with quiet():
        thread.start()
        assert begun.wait(20)
    over.set()
    thread.join(20)
    assert said == ["and nobody minded"]
    with pytest.raises(UserWarning, match="loud again"):
        warnings.warn("loud again", UserWarning, stacklevel=1)


def test_silence_ends_with_an_error_too() -> None:
    with pytest.raises(LookupError), quiet():
        raise LookupError
    with pytest.raises(UserWarning, match="loud again"):
        warnings.warn("loud again", UserWarning, stacklevel=1)


def test_pyannote_is_imported_without_telemetry_and_without_remarks() -> None:
    code = (
        "import os, logging; from hansard.vendors import import_pyannote; import_pyannote();"
        "from pyannote.audio.telemetry.metrics import is_metrics_enabled; print(os.environ['PYANNOTE_METRICS_ENABLED'],"
        "is_metrics_enabled(), logging.getLogger('lightning.pytorch').level)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["0", "False", str(logging.ERROR)]
    assert run.stderr == ""


MISSING = "no_such_package"


def test_a_file_of_a_package_is_found_without_importing_it() -> None:
    assert packaged("whisperx", "assets/pytorch_model.bin").stat().st_size > 1_000_000
    with pytest.raises(EngineMissingError, match=r"no_such_package is not installed: install requirements.txt"):
        packaged(MISSING, "a.bin")
