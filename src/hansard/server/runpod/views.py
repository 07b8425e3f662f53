"""A job as RunPod's API tells it: `id`, `status`, times in milliseconds, and `output` or `error`."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, Field

from hansard.errors import CancelledError, TimeLimitError
from hansard.server.job import Job, State
from hansard.server.job_views import answer
from hansard.transcript import Transcript

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]

STATUSES: dict[State, Status] = {
    "queued": "IN_QUEUE",
    "running": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
}


class RunStatus(BaseModel):
    """A job; what is not known yet is left out."""

    id: str
    status: Status
    delayTime: int | None = Field(None, description="milliseconds in the queue")  # noqa: N815
    executionTime: int | None = Field(None, description="milliseconds of work")  # noqa: N815
    output: dict[str, Any] | None = Field(None, description="the worker's answer; while it works, its progress")
    error: str | None = Field(None, description="code: sentence")


def status(job: Job, transcript: Transcript | None) -> dict[str, Any]:
    """How a job is told; the transcript is that of a completed one."""
    told = RunStatus(id=job.id, status=status_of(job), output=_output(job, transcript))
    if job.started is not None:
        told.delayTime = _milliseconds(job.started - job.created)
        told.executionTime = _milliseconds((job.finished or time.time()) - job.started) if job.is_final else None
    if job.state == "failed" and job.error:
        told.error = f"{job.error[0]}: {job.error[1]}"
    return told.model_dump(exclude_none=True)


def status_of(job: Job) -> Status:
    """A job's status; one that was told to stop is cancelled, although its engine takes a moment to do so."""
    code = job.error[0] if job.error else None
    if code == TimeLimitError.code:
        return "TIMED_OUT"
    return "CANCELLED" if code == CancelledError.code else STATUSES[job.state]


def _output(job: Job, transcript: Transcript | None) -> dict[str, Any] | None:
    if transcript is not None:
        return answer(job.submission.request, transcript)
    if job.state == "running" and job.stage is not None:
        return {"stage": job.stage, "stage_percent": job.stage_percent, "percent": job.percent}
    return None


def _milliseconds(seconds: float) -> int:
    return max(0, round(1000 * seconds))
