"""RunPod's own API in front of this server: a caller of an endpoint changes its base URL and nothing else.

The routes lie under any endpoint's id, with or without `/v2` before it, and under no id at all. What differs: an input
that no worker would take is refused at once (400) and not with a failed job; of `policy` there is `executionTimeout`
only; `s3Config` and `/retry` are not offered, and refused by name. `/stream` streams nothing, as with this product's
own worker, which gives its answer whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from hansard.errors import ForbiddenError, HansardError, RequestError
from hansard.health import State
from hansard.server import asking
from hansard.server.context import Core, Given, JobId, Who, settings_of
from hansard.server.health import state_of
from hansard.server.job import Job, Submission
from hansard.server.jobs import JobCore
from hansard.server.native import checked_webhook
from hansard.server.runpod.views import RunStatus, Status, status, status_of
from hansard.server.uploads import Form, received
from hansard.settings import Settings

ROOTS = ("", "/{endpoint_id}", "/v2/{endpoint_id}")
FIELDS = ("input", "webhook", "policy")
LIMITS_MS = (5_000, 7 * 86_400_000)  # of `executionTimeout`, as at RunPod
ANY_ID = {
    "name": "endpoint_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "any id: this server is one endpoint",
}
CANCEL_S = 2.0  # RunPod's client waits three seconds for the answer to a cancellation

router = APIRouter(tags=["runpod"])
_cancelling: set[asyncio.Task[Job]] = set()  # a task that nobody holds may vanish


class Jobs(BaseModel):
    """How many of the caller's jobs are in each state."""

    completed: int
    failed: int
    inProgress: int  # noqa: N815
    inQueue: int  # noqa: N815
    retried: int


class Workers(BaseModel):
    """How many jobs this server may work on at once, told as RunPod tells its workers."""

    idle: int
    initializing: int
    ready: int
    running: int
    throttled: int
    unhealthy: int


class Health(BaseModel):
    """The state of the queue and of those who work on it."""

    jobs: Jobs
    workers: Workers


class Streamed(BaseModel):
    """What a job gave since the last look: this product's worker gives nothing before its answer."""

    id: str
    status: Status
    stream: list[dict[str, Any]] = []


class Purged(BaseModel):
    """What became of the queue."""

    removed: int = Field(description="jobs that waited, and are cancelled now")
    status: Literal["completed"] = "completed"


def _body() -> dict[str, Any]:
    """The body of a run, as OpenAPI tells it."""
    schema = {
        "type": "object",
        "properties": {
            "input": asking.body_schema({}),
            "webhook": {
                "type": ["string", "null"],
                "format": "uri",
                "description": "URL that is sent the final status",
            },
            "policy": {
                "type": ["object", "null"],
                "description": "how long the job may be worked on",
                "properties": {
                    "executionTimeout": {
                        "type": "integer",
                        "minimum": LIMITS_MS[0],
                        "maximum": LIMITS_MS[1],
                        "description": "milliseconds of work after which the job ends as TIMED_OUT",
                    }
                },
                "additionalProperties": False,
            },
        },
        "required": ["input"],
        "additionalProperties": False,
    }
    example = {"input": {"audio": asking.EXAMPLE, "diarization": True}}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


async def run(request: Request, who: Who, core: Core) -> dict[str, Any]:
    """Take a job and answer at once."""
    job = await _submitted(request, who.owner, core)
    return {"id": job.id, "status": status_of(job)}


async def runsync(
    request: Request,
    who: Who,
    core: Core,
    wait: Annotated[int, Query(ge=1_000, le=300_000, description="milliseconds to wait")] = 90_000,
) -> dict[str, Any]:
    """Take a job and wait for it, at most as long as asked; then its status says where it stands, to be asked again."""
    job = await _submitted(request, who.owner, core)
    with suppress(TimeoutError):
        async with asyncio.timeout(wait / 1000):
            job = await core.wait(job.id, who.owner)
    return await _told(core, core.get(job.id, who.owner))


async def told(job_id: JobId, who: Who, core: Core) -> dict[str, Any]:
    """Where a job stands, and what it gave."""
    return await _told(core, core.get(job_id, who.owner))


async def cancel(job_id: JobId, who: Who, core: Core) -> dict[str, Any]:
    """Stop a job; its engine may take some seconds more. A job that has ended stays as it is."""
    job = core.get(job_id, who.owner)
    if not job.is_final:
        stopping = asyncio.create_task(core.cancel(job_id, who.owner))
        _cancelling.add(stopping)
        stopping.add_done_callback(_stopped)
        await asyncio.wait([stopping], timeout=CANCEL_S)
        job = core.get(job_id, who.owner)
    return {"id": job.id, "status": status_of(job)}


async def stream(job_id: JobId, who: Who, core: Core) -> Streamed:
    """Where a job stands, for a caller who reads its answer as it comes."""
    job = core.get(job_id, who.owner)
    return Streamed(id=job.id, status=status_of(job))


async def purge(who: Who, core: Core) -> Purged:
    """Stop those of the caller's jobs that are not being worked on."""
    if who.shared:
        raise ForbiddenError("strangers share this queue, so none may empty it; give a key of yours")
    return Purged(removed=core.purge(who.owner))


async def health(request: Request, who: Who, core: Core, settings: Given) -> Health:
    """The caller's jobs, and how busy the server is."""
    counts = core.counts(who.owner)
    jobs = Jobs(
        completed=counts.get("completed", 0),
        failed=counts.get("failed", 0),
        inProgress=counts.get("running", 0),
        inQueue=counts.get("queued", 0),
        retried=0,
    )
    return Health(jobs=jobs, workers=_workers(state_of(request.app.state.runner, settings), core))


def _workers(state: State, core: JobCore) -> Workers:
    """The places for jobs as workers: all of them are as the engine is."""
    idle = core.at_once - core.running if state == "ready" else 0
    starting, sick = (core.at_once * (state in states) for states in (("starting",), ("down", "unfit")))
    running = core.running
    return Workers(idle=idle, initializing=starting, ready=idle, running=running, throttled=0, unhealthy=sick)


def _add_routes() -> None:
    """Each route at each of its addresses; OpenAPI shows those under `/v2`. `/health` alone is another endpoint."""
    for root in ROOTS:
        shown: dict[str, Any] = {"include_in_schema": root.startswith("/v2"), "openapi_extra": {"parameters": [ANY_ID]}}
        made = shown | {"openapi_extra": shown["openapi_extra"] | _body()}
        job: dict[str, Any] = {"response_model": RunStatus, "response_model_exclude_none": True}
        _add(f"{root}/run", run, "POST", "Send a job", made | job)
        _add(f"{root}/runsync", runsync, "POST", "Send a job and wait for it", made | job)
        _add(f"{root}/status/{{job_id}}", told, "GET", "Ask for a job", shown | job)
        _add(f"{root}/cancel/{{job_id}}", cancel, "POST", "Stop a job", shown | job)
        _add(f"{root}/stream/{{job_id}}", stream, "GET", "Read a job's answer as it comes", shown)
        _add(f"{root}/purge-queue", purge, "POST", "Empty the queue", shown)
        if root:
            _add(f"{root}/health", health, "GET", "Ask for the queue", shown)


def _add(path: str, endpoint: Callable[..., Any], method: str, summary: str, about: dict[str, Any]) -> None:
    router.add_api_route(path, endpoint, methods=[method], summary=f"{summary}, as at RunPod", **about)


_add_routes()


async def _submitted(request: Request, owner: str, core: JobCore) -> Job:
    settings = settings_of(request)
    async with received(request, core, settings) as form:
        submission = await asyncio.to_thread(_submission, form, owner, settings)
    return await core.submit(submission)


def _submission(form: Form, owner: str, settings: Settings) -> Submission:
    """A body as a submission. Raises RequestError, RefusedUrlError."""
    if form.json is None:
        raise RequestError('send JSON, as in {"input": {"audio": "https://…"}}; a recording as a file goes to /v1/jobs')
    strange = [name for name, value in form.json.items() if name not in FIELDS and value is not None]
    if strange:
        raise RequestError(f"{strange[0][:60]} is nothing that this server offers; leave it out")
    fields = form.json.get("input")
    if not isinstance(fields, dict):
        raise RequestError("input must be an object of named fields")
    webhook = checked_webhook(form.json.get("webhook"))
    limit_s = _limit_s(form.json.get("policy"))
    asked = asking.request_from(fields, None, settings)
    digest = asking.sameness(owner, asked, None, "runpod", webhook, limit_s)
    return Submission(asked, owner=owner, digest=digest, webhook=webhook, webhook_shape="runpod", limit_s=limit_s)


def _limit_s(policy: object) -> float | None:
    """The seconds of work that a policy allows. Raises RequestError."""
    given = {} if policy is None else policy
    if not isinstance(given, dict):
        raise RequestError("policy must be an object")
    strange = [name for name, value in given.items() if name != "executionTimeout" and value]
    if strange:
        raise RequestError(f"policy: {strange[0][:60]} is nothing that this server offers; leave it out")
    limit, (least, most) = given.get("executionTimeout"), LIMITS_MS
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or not least <= limit <= most:
        raise RequestError(f"policy: executionTimeout must be whole milliseconds from {least} to {most}")
    return limit / 1000


async def _told(core: JobCore, job: Job) -> dict[str, Any]:
    done = job.state == "completed"
    transcript = await asyncio.to_thread(core.result, job.id, job.submission.owner) if done else None
    return await asyncio.to_thread(status, job, transcript)


def _stopped(task: asyncio.Task[Job]) -> None:
    _cancelling.discard(task)
    with suppress(HansardError, asyncio.CancelledError):  # the job was forgotten meanwhile
        task.result()
