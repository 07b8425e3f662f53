"""What the next server must know of each job that is under way at RunPod: a small file under STATE_DIR."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

NAME = re.compile(r"[\w.-]+")  # of a job there: it becomes a part of addresses
KEPT_S = 8 * 24 * 3600  # RunPod forgets every job after a week, and so its note is of no use


@dataclass
class Job:
    """A job on its way: its name there once it is posted, and the warnings that it cost to send.

    `stored` says that its recording may be in the bucket, `over` that it has ended there. `posting` is the call that
    gives it to the platform.
    """

    id: str
    remote: str | None = None
    warnings: tuple[str, ...] = ()
    stored: bool = False
    over: bool = False
    posting: asyncio.Task[None] | None = None


class Notes:
    """A folder with a file for each job; a disk that fails costs no more than a job that is done and paid for twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, job_id: str) -> Job | None:
        """A job that was posted before; what cannot be read is as if it were not there."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            told = json.loads((self._folder / job_id).read_text())
            if NAME.fullmatch(told["remote"]):
                return Job(job_id, told["remote"], tuple(map(str, told["warnings"])), bool(told["stored"]))
        return None

    def write(self, job: Job) -> None:
        """Keep what a job is called there."""
        told = json.dumps({"remote": job.remote, "warnings": job.warnings, "stored": job.stored})
        new = self._folder / f"{job.id}.new"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new.write_text(told)
            new.replace(self._folder / job.id)  # a file that was cut off would be worse than none
        except OSError as error:
            log.warning("STATE_DIR does not take the note of job %s: %s", job.id, error.strerror)

    def remove(self, job_id: str) -> None:
        """Forget a job, whether or not it was known."""
        try:
            (self._folder / job_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("the note of job %s cannot be removed: %s", job_id, error.strerror)

    def sweep(self) -> None:
        """Forget the jobs that the platform has forgotten, which nobody took up."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()
