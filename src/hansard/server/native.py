"""The jobs API: send a job, look at it, fetch what it gave, be told of its progress, forget it.

A job's body is its fields (`request.Request`) and beside them `webhook` and `metadata`, as JSON with a source in
`audio`, or as a form whose part `file` is the recording. Callers see their own jobs only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

from hansard import render
from hansard.audio import guard
from hansard.errors import JobUnfinishedError, RequestError
from hansard.request import Request as Asked
from hansard.server import asking
from hansard.server.access import Caller
from hansard.server.answer_models import (
    Diarization,
    DiarizedTranscription,
    Result,
    VerboseTranscription,
    stream,
    texts,
)
from hansard.server.context import Core, Given, JobId, Who
from hansard.server.job import FINAL, State, Submission
from hansard.server.job_views import JobView, answer, refuse, view, written
from hansard.server.jobs import JobCore
from hansard.server.openai.answers import respond
from hansard.server.openai.form import Ask
from hansard.server.uploads import Form, received
from hansard.server.waiting import stream_of
from hansard.settings import Settings
from hansard.transcript import Transcript

router = APIRouter(tags=["jobs"])

MOST_METADATA = 16_384  # bytes of JSON
DEEPEST = 32  # levels of it
LONGEST_KEY = 255  # characters of an idempotency key
LOOK_S = 5.0  # between two looks at a job that tells nothing: its place in the queue moves all the same

Format = Literal["json", "verbose_json", "diarized_json", "text", "txt", "srt", "vtt", "tsv", "rttm"]
OPENAIS = ("verbose_json", "diarized_json")  # shapes of OpenAI's endpoints, whatever the door the job came by

Told = Result | VerboseTranscription | DiarizedTranscription | Diarization


class JobList(BaseModel):
    """The newest jobs of a caller, the newest first."""

    jobs: list[JobView]


def _body() -> dict[str, Any]:
    """The bodies that make a job, as OpenAPI tells them."""
    beside = {
        "webhook": {
            "type": "string",
            "format": "uri",
            "description": "http(s) URL that is told when the job has ended",
        },
        "metadata": {
            "type": "object",
            "description": f"data of yours, given back; at most {MOST_METADATA} bytes of JSON",
        },
    }
    return {"requestBody": asking.bodies(beside, {"diarization": True, "metadata": {"meeting": 7}})}


@router.post("/v1/jobs", status_code=202, summary="Send a job", openapi_extra=_body())
async def submit(
    request: Request,
    response: Response,
    who: Who,
    core: Core,
    settings: Given,
    idempotency_key: Annotated[
        str | None, Header(max_length=LONGEST_KEY, min_length=1, description="a name of yours for this job")
    ] = None,
) -> JobView:
    """Take a job and answer at once; its address is in `Location`.

    The same `Idempotency-Key` with the same job gives the job that exists, with another job a 400.
    """
    async with received(request, core, settings) as form:
        submission = await asyncio.to_thread(_submission, form, who, idempotency_key, settings)
        form.leave(submission.recording)
    job = await core.submit(submission)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return view(core, job)


@router.get("/v1/jobs", summary="List your jobs")
async def jobs(
    who: Who,
    core: Core,
    limit: Annotated[int, Query(ge=1, le=1000, description="most jobs that are told")] = 20,
    state: Annotated[State | None, Query(description="only the jobs in it")] = None,
) -> JobList:
    """Your newest jobs, the newest first; with `state` only those in it.

    On a server that is open to anybody it is empty: who has an id there may ask for that job.
    """
    if who.shared:
        return JobList(jobs=[])
    return JobList(jobs=[view(core, job) for job in core.list(who.owner, limit, state)])


@router.get("/v1/jobs/{job_id}", summary="Look at a job")
async def job(job_id: JobId, who: Who, core: Core) -> JobView:
    """How far a job is."""
    return view(core, core.get(job_id, who.owner))


@router.delete("/v1/jobs/{job_id}", status_code=204, summary="Stop and forget a job")
async def delete(job_id: JobId, who: Who, core: Core) -> None:
    """Stop a job if it is not finished, and forget it and its result."""
    await core.delete(job_id, who.owner)


@router.get(
    "/v1/jobs/{job_id}/result",
    summary="Fetch a job's result",
    response_class=Response,
    responses={200: {"model": Told, "content": {kind: {"schema": {"type": "string"}} for kind in texts()}}},
)
async def result(
    job_id: JobId,
    who: Who,
    core: Core,
    format: Annotated[
        Format,
        Query(description="of the answer; verbose_json and diarized_json are OpenAI's shapes, text is the same as txt"),
    ] = "json",
) -> Response:
    """What a completed job gave: the JSON that a worker on RunPod answers or OpenAI's, or text in one of the formats.

    Of a job that is not finished 409; of a failed one the error that it failed with. Speakers need a job that told them
    apart: else rttm and diarized_json are refused.
    """
    found = core.get(job_id, who.owner)
    if not found.is_final:
        raise JobUnfinishedError(f"the job is {found.state}; ask again, or follow /v1/jobs/{job_id}/events")
    transcript = await asyncio.to_thread(core.result, job_id, who.owner)
    return await asyncio.to_thread(_told, found.submission.request, transcript, format)


def _told(asked: Asked, transcript: Transcript, name: str) -> Response:
    """A result in one of the formats. Raises UnsupportedError."""
    if name == "json":
        told = json.dumps(answer(asked, transcript), ensure_ascii=False)
        return Response(told.encode("utf-8", "replace"), media_type="application/json")
    if name in OPENAIS:
        refuse(asked, transcript, name)
        return respond(Ask(asked, name, words=asked.align_output), transcript)
    name = "txt" if name == "text" else name
    return Response(written(asked, transcript, name), media_type=render.MEDIA[name])


@router.get(
    "/v1/jobs/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses={
        200: {"content": stream("progress", *sorted(FINAL))},
        204: {"description": "the last event was read before"},
    },
)
async def events(
    job_id: JobId,
    who: Who,
    core: Core,
    last_event_id: Annotated[str | None, Header(description="sent by a browser that connects again")] = None,
) -> Response:
    """Server-sent events: `progress` whenever the job has changed, then one named by its final state, and the end.

    Each event's data is the job. The first tells how the job is now, so whoever was cut off connects again; a browser
    that connects again after the last event is told (204) that there is no more.
    """
    core.get(job_id, who.owner)
    if last_event_id in FINAL:
        return Response(status_code=204)
    return stream_of(_events(core, job_id, who.owner))


async def _events(core: JobCore, job_id: str, owner: str) -> AsyncIterator[dict[str, str]]:
    """A job's events; what has not changed is not told again."""
    told: JobView | None = None
    async with aclosing(_looks(core, job_id, owner)) as looks:  # type: ignore[type-var]
        async for now in looks:
            name = now.state if now.state in FINAL else "progress"
            if told is None or now.model_copy(update={"eta_s": told.eta_s}) != told:
                yield {"event": name, "id": name, "data": now.model_dump_json()}
            told = now


async def _looks(core: JobCore, job_id: str, owner: str) -> AsyncIterator[JobView]:
    """The job now, whenever it changes, and every LOOK_S; ends with its final state."""
    changes = aiter(core.changes(job_id, owner))
    coming = asyncio.ensure_future(anext(changes, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=LOOK_S)
            if done and coming.result() is None:
                return
            yield (
                view(core, coming.result() or core.get(job_id, owner)) if done else view(core, core.get(job_id, owner))
            )
            if done:
                coming = asyncio.ensure_future(anext(changes, None))
    finally:
        coming.cancel()


def _submission(form: Form, who: Caller, key: str | None, settings: Settings) -> Submission:
    """A body as a submission. Raises RequestError, RefusedUrlError."""
    fields = asking.given(form)
    webhook, metadata = checked_webhook(fields.pop("webhook", None)), _metadata(fields.pop("metadata", None))
    upload = asking.only_file(form, "file")
    request = asking.request_from(fields, upload, settings)
    digest = asking.sameness(who.owner, request, upload, webhook, metadata)
    recording = upload.path if upload else None
    return Submission(request, recording, who.owner, digest, key, webhook=webhook, metadata=metadata)


def checked_webhook(value: object) -> str | None:
    """A URL to be told when a job has ended. Raises RequestError, RefusedUrlError."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError("webhook must be an http(s) URL")
    guard.check_url(value)
    return value


def _metadata(value: object) -> dict[str, object]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RequestError("metadata must be a JSON object") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError("metadata must be a JSON object")
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        raise RequestError("metadata holds a number or a text that JSON has not, or lies too deep") from None
    if size > MOST_METADATA or not _is_flat(value, DEEPEST):
        limits = f"{MOST_METADATA} bytes and {DEEPEST} levels"
        raise RequestError(f"metadata is larger than {limits}; keep the rest yourself, under the job's id")
    return value


def _is_flat(value: object, levels: int) -> bool:
    """Has a value at most so many levels of objects and lists? What writes JSON cannot write any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_is_flat(part, levels - 1) for part in inner)
