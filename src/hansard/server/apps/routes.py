"""Endpoints of apps that were written for other servers: they wait for the answer on their connection.

Each takes a form whose part `file` is the recording, or JSON with a source in `audio`, and beside it any field of a
request. `asr` has those of whisper-asr-webservice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from hansard.errors import RequestError
from hansard.models import Models
from hansard.plan import default_transcriber
from hansard.request import Request as Asked
from hansard.server import asking
from hansard.server.access import Caller
from hansard.server.answer_models import Segment
from hansard.server.context import Who, core_of, settings_of
from hansard.server.job import Submission
from hansard.server.job_views import answer
from hansard.server.openai.answers import plain
from hansard.server.uploads import Form, Upload, received
from hansard.server.waiting import Manner, digest, in_place
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE, Transcript

router = APIRouter(tags=["apps"])

Fields = dict[str, object]


class Health(BaseModel):
    """That the server lives, and what transcribes where no model is named; null where an endpoint on RunPod decides."""

    status: str = Field(examples=["ok"])
    model: str | None = Field(examples=["large-v3"])


class Heard(BaseModel):
    """What was said."""

    text: str
    language: str
    segments: list[Segment]


class Details(BaseModel):
    """What did the work."""

    sample_rate: int = Field(description="Hz, of the sound that the models heard")
    device: str = Field(description="cuda, cpu, or runpod where an endpoint did it")
    model: str


class Runtime(BaseModel):
    """How the work was done."""

    details: Details


class Processed(BaseModel, extra="allow"):
    """The answer of a worker on RunPod, and beside it `runtime`."""

    segments: list[dict[str, Any]]
    duration: float
    model: str
    warnings: list[str]
    runtime: Runtime


class Transcribed(Processed):
    """The same with the whole text and its language."""

    text: str
    language: str


def documented(model: type[BaseModel], task: str | None = None) -> dict[str, Any]:
    """What FastAPI is to know of an endpoint that reads its body itself."""
    return {
        "response_class": Response,
        "responses": {200: {"model": model}},
        "openapi_extra": {"requestBody": asking.bodies(asking.task_schema(task) if task else {}, {"language": "en"})},
    }


@router.get("/health", summary="Is the server there, and with which model?")
async def health(request: Request) -> Health:
    """Whether the server lives; needs no key."""
    return Health(status="ok", model=await asyncio.to_thread(_model, settings_of(request)))


@router.post("/transcribe", summary="Transcribe, in short", **documented(Heard))
async def transcribe(request: Request, who: Who) -> Response:
    """What was said, for an app whose WHISPER_API_URL is this address."""
    return await _answered(request, who, {}, heard)


@router.post(
    "/api/audio/transcribe", summary="Transcribe, with all that is known", **documented(Transcribed, "transcribe")
)
async def audio_transcribe(request: Request, who: Who) -> Response:
    """What was said, with everything that is known of it, and what did the work."""
    settings = settings_of(request)

    def told(asked: Asked, transcript: Transcript) -> dict[str, Any]:
        text = {"text": plain(transcript), "language": transcript.language}
        return text | answer(asked, transcript) | _runtime(transcript, settings)

    return await _answered(request, who, {"task": "transcribe"}, told)


@router.post(
    "/api/diarization/process", summary="Diarize, with all that is known", **documented(Processed, "diarization")
)
async def diarization_process(request: Request, who: Who) -> Response:
    """Who spoke when, without the words."""
    settings = settings_of(request)

    def told(asked: Asked, transcript: Transcript) -> dict[str, Any]:
        return answer(asked, transcript) | _runtime(transcript, settings)

    return await _answered(request, who, {"task": "diarization"}, told)


def heard(asked: Asked, transcript: Transcript) -> dict[str, Any]:
    """The short answer."""
    whole = answer(asked, transcript)
    return {"text": plain(transcript), "language": transcript.language, "segments": whole["segments"]}


async def _answered(
    request: Request, who: Caller, fixed: Fields, told: Callable[[Asked, Transcript], dict[str, Any]]
) -> Response:
    settings = settings_of(request)
    async with received(request, core_of(request), settings) as form:
        submission = await asyncio.to_thread(_submission, form, fixed, who, settings)
        form.leave(submission.recording)
    asked = submission.request
    return await in_place(request, submission, Manner(lambda done: JSONResponse(told(asked, done)), "json"))


def _submission(form: Form, fixed: Fields, who: Caller, settings: Settings) -> Submission:
    fields = asking.given(form)
    for name, value in fixed.items():
        if fields.get(name) not in (None, value):
            raise RequestError(f"{name} is always {value} here; leave it out, or send the job to /v1/jobs")
    return submission_of(fields | fixed, asking.only_file(form, "file"), who, settings)


def submission_of(fields: Mapping[str, object], upload: Upload | None, who: Caller, settings: Settings) -> Submission:
    """A job that its caller waits for. Raises RequestError."""
    asked = asking.request_from(fields, upload, settings)
    same = digest(who.owner, upload.sha256 if upload else "", asked)
    return Submission(asked, upload.path if upload else None, who.owner, same, awaited=True)


def _model(settings: Settings) -> str | None:
    if settings.runpod_endpoint_id:
        return settings.default_model
    return default_transcriber(Models(settings)).model


def _runtime(transcript: Transcript, settings: Settings) -> dict[str, Any]:
    device = "runpod" if settings.runpod_endpoint_id else "cuda" if settings.on_gpu else "cpu"
    details = Details(sample_rate=SAMPLE_RATE, device=device, model=transcript.model)
    return {"runtime": Runtime(details=details).model_dump()}
