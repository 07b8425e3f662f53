"""A job that is not final, in the memory of the process that does it, and how its work becomes its end."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from hansard.errors import CancelledError, EngineError, HansardError
from hansard.progress import Overall
from hansard.server.job import Job, State
from hansard.stages import StageReport

log = logging.getLogger(__name__)

RUNS = 2  # of a job whose server was stopped in mid-work


class Live:
    """A job that is not final: its newest state, who holds it, and the task that does it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.changed = asyncio.Event()
        self.holders = 0
        self.abandoned: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False

    def tell(self, job: Job) -> None:
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
            live.tell(replace(live.job, stage=stage, stage_percent=state.stage_percent, percent=state.percent))

    def report(stage: str, fraction: float) -> None:
        loop.call_soon_threadsafe(note, stage, fraction)

    return report


def outcome(live: Live, task: asyncio.Task[None]) -> tuple[State, HansardError | None]:
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
            log.error("job %s failed", live.job.id, exc_info=error)
            sentence = f"this is our mistake; the server's log has the details under job {live.job.id}"
            return "failed", HansardError(sentence)


def ended(job: Job, state: State, error: HansardError | None = None) -> Job:
    percent = 100.0 if state == "completed" else job.percent
    told = (error.code, error.sentence) if error else None
    return replace(job, state=state, finished=time.time(), percent=percent, error=told)


def unrepeatable(job: Job) -> str | None:
    """Why a job that the last process left cannot be done by this one."""
    recording = job.submission.recording
    if job.state == "running" and job.runs >= RUNS:
        return "the server was stopped twice while this job ran; send it again"
    if job.submission.request.huggingface_access_token:
        return "the server was restarted and keeps no tokens; send the job again"
    if recording is not None and not recording.is_file():
        return "the server was restarted and the recording is gone; send the job again"
    return None
