"""How the engine of this machine's worker is: noted by the worker, judged from outside by the image's HEALTHCHECK.

python -m hansard.health    exit code 0 when jobs can be done here, else 1; one line says why

The engine process sends a beat every few seconds and the worker notes its arrival in its private folder, so a fresh
note proves that both of them live and run. What it does not tell: whether the job in hand gets on, whether the door
takes jobs, whether the default models could be loaded (/readyz and the jobs say that), and which of several workers
that share one WORK_DIR is meant: one that is well is enough.

A server with LAZY_LOAD_MODELS has no engine until the first job, which starts it: that it runs is enough. One with
RUNPOD_ENDPOINT_ID never has: it is known by the lock of its STATE_DIR. The platform gives that variable to its workers,
too, so it counts only where there is no worker.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Literal

from hansard.errors import HansardError
from hansard.settings import Settings, load
from hansard.workspace import is_held, living_roots

State = Literal["starting", "ready", "unfit", "down"]

FILE = "health"
SERVER_LOCK = "lock"  # in STATE_DIR
NOBODY = "no worker of this user runs in WORK_DIR"
FRESH_S = 60.0  # a beat may be held up for so long by an import or by a library that keeps other threads waiting


def write(root: Path, state: State) -> None:
    """Note the engine's state and the time in a worker's folder, at once or not at all. Raises OSError."""
    part = root / f"{FILE}.part"
    part.write_text(f"{state} {time.monotonic()}")
    os.replace(part, root / FILE)


def verdict(settings: Settings) -> tuple[bool, str]:
    """Can jobs be done by what runs here with these settings, and a few words on why."""
    wrong = problem(settings.work_dir, lazy=settings.lazy_load_models)
    if wrong is None:
        return True, "the engine is ready" + (" or starts with the first job" if settings.lazy_load_models else "")
    if wrong == NOBODY and settings.runpod_endpoint_id is not None:
        runs = is_held(settings.state_dir / SERVER_LOCK)
        return runs, "the server runs, a RunPod endpoint does its jobs" if runs else "no server holds STATE_DIR"
    return False, wrong


def problem(work_dir: Path, lazy: bool = False) -> str | None:
    """What is wrong with the worker in WORK_DIR; None where it is well. `lazy`: it is without an engine at first."""
    try:
        roots = living_roots(work_dir)
    except OSError as error:
        return f"WORK_DIR cannot be read: {error.strerror}"
    found = [_problem_of(root, lazy) for root in roots]
    if not found:
        return NOBODY
    return None if None in found else "; ".join(one for one in found if one)


def _problem_of(root: Path, lazy: bool) -> str | None:
    try:
        state, _, told_at = (root / FILE).read_text().partition(" ")
        age = time.monotonic() - float(told_at)
    except FileNotFoundError:
        return None if lazy else "the engine is still starting"  # nothing was noted so far
    except (OSError, ValueError):
        return "the engine is still starting"
    if state == "down":
        return "the engine is down; it is started again by itself"
    if state == "unfit":
        return "this machine cannot do the work; the worker's log says why"
    if not 0 <= age <= FRESH_S:
        return f"no sign of life of the engine for {age:.0f} s"
    return None if state == "ready" or lazy else "the engine is still starting"


def main() -> None:
    """The command."""
    try:
        well, why = verdict(load())
    except HansardError as error:
        well, why = False, str(error)
    print(f"{'healthy' if well else 'unhealthy'}: {why}")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
