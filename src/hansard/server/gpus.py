"""The GPUs of this machine as the driver's library tells them: no context on them, no torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU now: memory in bytes, and the percent of the last moments in which it worked."""

    index: int
    name: str
    memory_used: int
    memory_total: int
    busy_percent: int | None


def gpus() -> tuple[Gpu, ...]:
    """Every GPU; none where there is no driver. Takes some milliseconds; may be called from any thread."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_look(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:  # a GPU that has fallen off the bus
        return ()
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _look(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    busy = None
    with suppress(nvml.NVMLError):  # a slice of a GPU does not tell
        busy = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return Gpu(index, str(nvml.nvmlDeviceGetName(handle)), int(memory.used), int(memory.total), busy)
