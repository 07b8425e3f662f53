"""What models have in common when they are loaded: what a failure means; on torch, device and arithmetic too."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hansard.errors import HansardError, ModelError, OutOfMemoryError, SettingsError
from hansard.hub import DISK_ERRORS
from hansard.settings import Settings
from hansard.vendors import gpu_lost, no_room, quiet

log = logging.getLogger(__name__)

COMPUTE_TYPES = ("bfloat16", "float16", "float32")


def repository_of(model: str, known: Mapping[str, tuple[str, ...]]) -> str:
    """Where the weights of a model are: the one repository of a known name, else what the name itself says."""
    [repository] = known.get(model, (model,))
    return repository


def check_compute_type(settings: Settings, who: str) -> None:
    """Raises SettingsError for an arithmetic that these models do not have."""
    if settings.compute_type not in (None, *COMPUTE_TYPES):
        known = ", ".join(COMPUTE_TYPES)
        raise SettingsError(
            f"COMPUTE_TYPE is {settings.compute_type}, which {who} has not; unset it, or take one of {known}"
        )


def device_and_dtype(settings: Settings, who: str) -> tuple[str, Any]:
    """Where and in which torch dtype to load a model. Raises SettingsError where that is impossible.

    Unless COMPUTE_TYPE says otherwise: float32 on a CPU; on a GPU bfloat16, or float16 where that is only emulated.
    """
    import torch

    check_compute_type(settings, who)
    if not settings.on_gpu:
        return "cpu", getattr(torch, settings.compute_type or "float32")
    if not torch.cuda.is_available():
        raise SettingsError("models are to run on a GPU and none can be used; set DEVICE=cpu, or mend the driver")
    native = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "cuda", getattr(torch, settings.compute_type or native)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn whatever a vendor raises while it reads a model's files into ModelError or OutOfMemoryError.

    Each kind of broken file has an exception of its own; only a GPU that is lost is told as it is.
    """
    try:
        with quiet():
            yield
    except HansardError:
        raise
    except Exception as error:
        if gpu_lost(error):
            raise
        if no_room(error):
            raise OutOfMemoryError(
                f"model {name} does not fit into memory; take a smaller one, a leaner COMPUTE_TYPE or a larger machine"
            ) from None
        log.warning("model %s cannot be loaded", name, exc_info=error)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise ModelError(
                f"model {name} cannot be loaded: {os.strerror(error.errno)}; make room on the disk of WORK_DIR"
            ) from None
        raise ModelError(
            f"model {name} cannot be loaded: its files are damaged or of another kind; fetch them again"
        ) from None
