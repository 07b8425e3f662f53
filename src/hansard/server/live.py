"""A job that is not final, in the memory of the process that does it, and how its work becomes its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from hansard import joblog
from hansard.errors import CancelledError, EngineError, HansardError, TimeLimitError
from hansard.progress import Overall
from hansard.server.job import Job, State
from hansard.stages import StageReport
from hansard.transcript import Transcript

log = logging.getLogger(__name__)

RUNS = 2  # of a job whose server was stopped in mid-work


class Live:
    """A job that is not final: its newest state, who holds it, and the task that does it."""

    def __init__(self, job: Job) -> None:
        joblog.register(job.id, job.submission.request.secrets())
        self.job = job
        self.changed = asyncio.Event()
        self.holders = 0
        self.abandoned: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[Transcript] | None = None
        self.stopping = False

    def tell(self, job: Job) -> None:
        if job.is_final:
            joblog.forget(job.id)
        self.job = job
        self.changed.set()
        self.changed = asyncio.Event()  # those who wait have the old one

    def hold(self) -> None:
        self.holders += 1
        self.keep()

    def keep(self) -> None:
        """Have nothing happen because nobody waits."""
        if self.abandoned:
            self.abandoned.cancel()
            self.abandoned = None


def reporter(live: Live, overall: Overall) -> StageReport:
    """What a runner calls with its progress, from any thread."""
    loop = asyncio.get_running_loop()

    def note(stage: str, fraction: float) -> None:
        if not live.job.is_final:
            state = overall.update(stage, fraction)
            begun = live.job.started if live.job.stage else time.time()  # an endpoint has a queue of its own before
            of_stage, of_all = state.stage_percent, state.percent
            live.tell(replace(live.job, started=begun, stage=stage, stage_percent=of_stage, percent=of_all))

    def report(stage: str, fraction: float) -> None:
        loop.call_soon_threadsafe(note, stage, fraction)

    return report


@asynccontextmanager
async def limited(seconds: float | None) -> AsyncIterator[None]:
    """Stop what is done inside after so long, if at all. Raises TimeLimitError then."""
    try:
        async with asyncio.timeout(seconds) as timer:
            yield
    except TimeoutError:
        if not timer.expired():
            raise
        raise TimeLimitError(f"the job took longer than the {seconds:g} s that it was given; give it more") from None


def unbegun(job: Job) -> Job:
    """A running job as one that waits."""
    return replace(job, state="queued", started=None, stage=None, stage_percent=0.0, percent=0.0)


def outcome(live: Live, task: asyncio.Task[Transcript]) -> tuple[State, HansardError | None]:
    """How a job's work ended: its final state, and why it has no result."""
    if task.cancelled():
        if live.stopping:
            return "cancelled", CancelledError("the job was cancelled")
        return "failed", EngineError("the job was stopped before it was done; send it again")
    match task.exception():
        case None:
            return "completed", None
        case CancelledError() as error:
            return "cancelled", error
        case HansardError() as error:
            return "failed", error
        case error:
            return "failed", internal(live.job, error)


def internal(job: Job, mistake: BaseException) -> HansardError:
    """What is told of a mistake of ours; the log has the rest."""
    log.error("job %s failed", job.id, exc_info=mistake)
    return HansardError(f"this is our mistake; the server's log has the details under job {job.id}")


def ended(job: Job, state: State, error: HansardError | None = None) -> Job:
    percent = 100.0 if state == "completed" else job.percent
    # Half a surrogate pair, as a cut emoji leaves it in JSON, is no text that could be written.
    told = (error.code, error.sentence.encode("utf-8", "replace").decode()) if error else None
    return replace(job, state=state, finished=time.time(), percent=percent, error=told)


def unrepeatable(job: Job) -> str | None:
    """Why a job that the last process left cannot be done by this one."""
    files = [path for path in (job.submission.recording, *job.submission.samples) if path]
    if job.state == "running" and job.runs >= RUNS:
        return "the server was stopped twice while this job ran; send it again"
    if job.submission.request.huggingface_access_token:
        return "the server was restarted and keeps no tokens; send the job again"
    if not all(path.is_file() for path in files):
        return "the server was restarted and the recording is gone; send the job again"
    return None
