"""What tests of the job core send to it, and how they wait for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fake_runner import FakeRunner

from hansard.request import parse
from hansard.server.job import Job, Submission
from hansard.server.jobs import JobCore
from hansard.server.store import FILE
from hansard.settings import Settings

SOUND = b"RIFF" + bytes(100)


@asynccontextmanager
async def opened(settings: Settings, runner: FakeRunner) -> AsyncIterator[JobCore]:
    async with JobCore(settings, runner) as core:
        yield core
    assert runner.closed


def asked(core: JobCore | None = None, **given: Any) -> Submission:
    """A submission; with a core, one whose recording came as a file."""
    audio = "upload" if core else "https://example.com/a.mp3"
    request = parse({"audio": audio, **given.pop("fields", {})})
    recording = None
    if core:
        folder = core.uploads / f"folder-{len(list(core.uploads.iterdir()))}"
        folder.mkdir()
        recording = folder / "audio"
        recording.write_bytes(SOUND)
    return Submission(request, recording, **given)


async def until(true: Callable[[], bool]) -> None:
    """Return once it is true; the test's time limit is the only one."""
    while not true():
        await asyncio.sleep(0.005)


async def state(core: JobCore, job: Job, wanted: str) -> Job:
    await until(lambda: core.get(job.id, job.submission.owner).state == wanted)
    return core.get(job.id, job.submission.owner)


def uploads(core: JobCore) -> list[str]:
    return sorted(path.name for path in core.uploads.iterdir())


def rename(settings: Settings, old: str, new: str) -> None:
    """Take the table away from the server, or give it back: a disk that fails for a while."""
    db = sqlite3.connect(settings.state_dir / FILE)
    db.execute(f"ALTER TABLE {old} RENAME TO {new}")
    db.close()
