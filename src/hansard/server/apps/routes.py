"""Endpoints of apps that were written for other servers: they wait for the answer on their connection.

Each takes a form whose part `file` is the recording, or JSON with a source in `audio`, and beside it any field of a
request; `language=auto`, as apps have it in WHISPER_LANGUAGE, means that none is given. `asr` has those of
whisper-asr-webservice.
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

AUTO = "auto"  # a language that is no language
FORMAT = "response_format"  # of OpenAI's endpoint, for which apps are written

ELSEWHERE = {"task": "the job to /v1/jobs", FORMAT: "the recording to /v1/audio/transcriptions"}
"""Where to go with another value of a field that has only one here."""


class Health(BaseModel):
    """That the server lives, and DEFAULT_MODEL or what stands in for it; null where an endpoint decides."""

    status: str = Field(examples=["ok"])
    model: str | None = Field(examples=["large-v3"])


class Heard(BaseModel, extra="allow"):
    """What was said, and beside it each of the job's `output_formats` under its own name."""

    text: str
    language: str = Field(description="of the text: what is spoken, or translated into", examples=["en"])
    segments: list[Segment]
    warnings: list[str] = Field(description="what had to be given up")


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


def documented(model: type[BaseModel], beside: Mapping[str, Any]) -> dict[str, Any]:
    """What FastAPI is to know of an endpoint that reads its body itself; `beside` are fields not as a job has them."""
    language: dict[str, Any] = asking.fields_schema()["properties"]["language"]
    language = {**language, "anyOf": [*language["anyOf"], {"type": "string", "const": AUTO}]}
    return {
        "response_class": Response,
        "responses": {200: {"model": model}},
        "openapi_extra": {"requestBody": asking.bodies({"language": language, **beside}, {"language": "en"})},
    }


_ONLY_JSON = {
    FORMAT: {
        "anyOf": [{"type": "string", "enum": ["json"]}, {"type": "null"}],
        "default": "json",
        "description": "always json; the others are at /v1/audio/transcriptions",
    }
}


@router.get("/health", summary="Is the server there, and with which model?")
async def health(request: Request) -> Health:
    """Whether the server lives; needs no key."""
    return Health(status="ok", model=await asyncio.to_thread(_model, settings_of(request)))


@router.post("/transcribe", summary="Transcribe, in short", **documented(Heard, _ONLY_JSON))
async def transcribe(request: Request, who: Who) -> Response:
    """What was said, for an app whose WHISPER_API_URL is this address."""
    return await _answered(request, who, {FORMAT: "json"}, heard)


@router.post(
    "/api/audio/transcribe",
    summary="Transcribe, with all that is known",
    **documented(Transcribed, asking.task_schema("transcribe")),
)
async def audio_transcribe(request: Request, who: Who) -> Response:
    """What was said, with everything that is known of it, and what did the work."""
    settings = settings_of(request)

    def told(asked: Asked, transcript: Transcript) -> dict[str, Any]:
        text = {"text": plain(transcript), "language": transcript.language}
        return text | answer(asked, transcript) | _runtime(transcript, settings)

    return await _answered(request, who, {"task": "transcribe"}, told)


@router.post(
    "/api/diarization/process",
    summary="Diarize, with all that is known",
    **documented(Processed, asking.task_schema("diarization")),
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
    translated = asked.task == "translate"
    return {
        "text": plain(transcript),
        "language": (asked.target_language or "en") if translated else transcript.language,
        "segments": whole["transcriptions" if asked.task == "transcription" else "segments"],
        "warnings": whole["warnings"],
        **{name: whole[name] for name in asked.output_formats},
    }


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
            raise RequestError(f"{name} is always {value} here; leave it out, or send {ELSEWHERE[name]}")
    fields |= fixed
    if FORMAT in fixed:  # of the answer, not of the job
        del fields[FORMAT]
    return submission_of(fields, asking.only_file(form, "file"), who, settings)


def submission_of(fields: Mapping[str, object], upload: Upload | None, who: Caller, settings: Settings) -> Submission:
    """A job that its caller waits for. Raises RequestError."""
    given = {name: value for name, value in fields.items() if name != "language" or not _is_auto(value)}
    asked = asking.request_from(given, upload, settings)
    same = digest(who.owner, upload.sha256 if upload else "", asked)
    return Submission(asked, upload.path if upload else None, who.owner, same, awaited=True)


def _is_auto(language: object) -> bool:
    return isinstance(language, str) and language.strip().lower() == AUTO


def _model(settings: Settings) -> str | None:
    if settings.runpod_endpoint_id:
        return settings.default_model
    return default_transcriber(Models(settings)).model


def _runtime(transcript: Transcript, settings: Settings) -> dict[str, Any]:
    device = "runpod" if settings.runpod_endpoint_id else "cuda" if settings.on_gpu else "cpu"
    details = Details(sample_rate=SAMPLE_RATE, device=device, model=transcript.model)
    return {"runtime": Runtime(details=details).model_dump()}
