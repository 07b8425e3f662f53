"""What this process may use of its machine: memory and processors, less where a container's limits say so.

Reads /proc and /sys. Limits are those of the control groups that the process is in, of version 2 or 1, and of those
around them as far as they can be seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

GROUPS = Path("/sys/fs/cgroup")
OF_PROCESS = Path("/proc/self/cgroup")

# Of each version: the limit, what is in use, and what of that is only a cache of files, as memory.stat names it.
MEMORY = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that this process and those beside it in its container may use together, and what is left of them."""

    total: int
    available: int


def memory() -> Memory:
    """The machine's memory, or what a limit leaves of it."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for controller, (limit, usage, cached) in MEMORY.items():
        for group in _groups(controller):
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and most < machine.total:
                total = min(total, most)
                if used is not None:
                    available = min(available, max(0, most - used + _stat(group / "memory.stat", cached)))
    return Memory(total, available)


def cpus() -> int:
    """Processors that this process may use at a time."""
    most = float(len(os.sched_getaffinity(0)))
    for group in _groups(""):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            most = min(most, int(quota) / int(period))
    for group in _groups("cpu"):
        quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota_us is not None and quota_us > 0 and period_us:
            most = min(most, quota_us / period_us)
    return max(1, math.ceil(most))


def _groups(controller: str) -> Iterator[Path]:
    """The group of this process and those around it; of version 2, which has one tree for all, without a name."""
    root = GROUPS / controller
    own = PurePosixPath("/")
    for line in _text(OF_PROCESS).splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(",") and (controller or number == "0"):
            own = PurePosixPath(path)
    for group in (own, *own.parents):
        # Within a container the whole path may be the host's, and the tree begin with the container's own group.
        yield root / str(group).lstrip("/")


def _number(file: Path) -> int | None:
    with suppress(ValueError):  # "max"
        return int(_text(file))
    return None


def _stat(file: Path, name: str) -> int:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
