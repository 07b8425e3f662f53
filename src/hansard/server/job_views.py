"""A job and its result as callers see them: the bodies of the jobs API and of its webhooks."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, Field

from hansard import render
from hansard.errors import UnsupportedError
from hansard.request import Request
from hansard.server.job import Job, State
from hansard.server.jobs import JobCore
from hansard.transcript import Transcript


class JobError(BaseModel):
    """Why a job has no result: a stable code, and a sentence that says what to do."""

    code: str
    message: str


class JobView(BaseModel):
    """A job as it is now; times are seconds since 1970."""

    id: str
    state: State
    created: float
    started: float | None = None
    finished: float | None = None
    stage: str | None = Field(None, description="what the engine is doing")
    stage_percent: float = Field(0, description="how much of the stage is done")
    percent: float = Field(0, description="how much of the job is done")
    eta_s: float | None = Field(None, description="seconds to the end; null while that would be a guess")
    position: int | None = Field(None, description="jobs of the queue that come before this one; null once it runs")
    error: JobError | None = None
    metadata: dict[str, Any] = Field({}, description="what came with the job, as it came")


def view(core: JobCore, job: Job) -> JobView:
    """How a job is told."""
    eta = job.eta_s(time.time())
    return JobView(
        id=job.id,
        state=job.state,
        created=job.created,
        started=job.started,
        finished=job.finished,
        stage=job.stage,
        stage_percent=job.stage_percent,
        percent=job.percent,
        eta_s=None if eta is None else round(eta, 1),
        position=core.position(job.id),
        error=JobError(code=job.error[0], message=job.error[1]) if job.error and job.is_final else None,
        metadata=job.submission.metadata,
    )


def answer(request: Request, transcript: Transcript) -> dict[str, Any]:
    """A result as JSON: what a worker on RunPod answers to the same request.

    `logs` holds the timings that `debug` asks for; the server's log has the rest.
    """
    result = render.to_result(transcript, words=request.align_output, task=request.task)
    result |= {name: render.FORMATS[name](transcript) for name in request.output_formats}
    stages = transcript.timings.items() if request.debug else ()
    return {**result, "logs": [f"stage {stage} took {seconds:.3f} s" for stage, seconds in stages]}


def written(request: Request, transcript: Transcript, name: str) -> str:
    """A result in one of render.FORMATS. Raises UnsupportedError where the job has nothing to write in it."""
    refuse(request, transcript, name)
    return render.FORMATS[name](transcript)


def refuse(request: Request, transcript: Transcript, name: str) -> None:
    """Refuse a format in which a job has nothing to write. Raises UnsupportedError."""
    if request.task == "diarization" and name not in ("json", "verbose_json", "rttm"):
        has = "of the formats it has json, verbose_json and rttm"
        raise UnsupportedError(f"task diarization gives turns without text; {has}", "format")
    if name in ("rttm", "diarized_json") and not transcript.turns and not request.wants_speakers:
        raise UnsupportedError(f"format {name} needs a job with diarization: true", "format")
