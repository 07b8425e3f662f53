"""How the engine of this machine's worker is: noted by the worker, judged from outside by the image's HEALTHCHECK.

python -m hansard.health    exit code 0 when jobs can be done here, else 1; one line says why

The engine process sends a beat every few seconds and the worker notes its arrival in its private folder, so a fresh
note proves that both of them live and run. What it does not tell: whether the job in hand gets on, whether the door
takes jobs, whether the default models could be loaded (a job says that), and which of several workers that share one
WORK_DIR is meant: one that is well is enough.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Literal

from hansard.errors import HansardError
from hansard.settings import load
from hansard.workspace import living_roots

State = Literal["starting", "ready", "unfit", "down"]

FILE = "health"
FRESH_S = 60.0  # a beat may be held up for so long by an import or by a library that keeps other threads waiting


def write(root: Path, state: State) -> None:
    """Note the engine's state and the time in a worker's folder, at once or not at all. Raises OSError."""
    part = root / f"{FILE}.part"
    part.write_text(f"{state} {time.monotonic()}")
    os.replace(part, root / FILE)


def problem(work_dir: Path) -> str | None:
    """What is wrong with the worker in WORK_DIR; None where it is well."""
    try:
        roots = living_roots(work_dir)
    except OSError as error:
        return f"WORK_DIR cannot be read: {error.strerror}"
    found = [_problem_of(root) for root in roots]
    if not found:
        return "no worker of this user runs in WORK_DIR"
    return None if None in found else "; ".join(one for one in found if one)


def _problem_of(root: Path) -> str | None:
    try:
        state, _, told_at = (root / FILE).read_text().partition(" ")
        age = time.monotonic() - float(told_at)
    except (OSError, ValueError):
        return "the engine is still starting"  # nothing was noted so far
    if state == "down":
        return "the engine is down; the next job starts it again"
    if state == "unfit":
        return "this machine cannot do the work; the worker's log says why"
    if not 0 <= age <= FRESH_S:
        return f"no sign of life of the engine for {age:.0f} s"
    return None if state == "ready" else "the engine is still starting"


def main() -> None:
    """The command."""
    try:
        wrong = problem(load().work_dir)
    except HansardError as error:
        wrong = str(error)
    print(f"unhealthy: {wrong}" if wrong else "healthy: the engine is ready")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
