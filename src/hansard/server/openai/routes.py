"""OpenAI's audio endpoints, for any client of theirs: transcriptions, translations, models; diarization beside.

A synchronous caller is kept waiting as `waiting` says. Which fields there are says `openai_form`, what comes back
`openai_answers`.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from hansard.server import asking
from hansard.server.access import Caller
from hansard.server.answer_models import (
    Diarization,
    DiarizedTranscription,
    ModelItem,
    ModelList,
    Transcription,
    VerboseTranscription,
    stream,
    texts,
)
from hansard.server.context import Given, Who, core_of, settings_of
from hansard.server.job import Submission
from hansard.server.openai import form as openai_form
from hansard.server.openai import models as openai_models
from hansard.server.openai.answers import respond
from hansard.server.openai.form import DIARIZATION, TRANSCRIPTION, TRANSLATION, Ask, Endpoint
from hansard.server.uploads import Form, received
from hansard.server.waiting import Kind, Manner, digest, in_place
from hansard.settings import Settings

router = APIRouter(tags=["openai"])

TEXTS = texts("txt", "srt", "vtt")

Transcribed = Transcription | VerboseTranscription | DiarizedTranscription
Translated = Transcription | VerboseTranscription


def _documented(endpoint: Endpoint, example: dict[str, Any], answer: Any, *others: str) -> dict[str, Any]:
    """What OpenAPI tells of an endpoint: its body with a file or with a URL, its answer in JSON and its other kinds."""
    told: dict[str, Any] = {kind: {"schema": {"type": "string"}} for kind in others}
    told |= stream() if "stream" in endpoint.properties else {}
    return {
        "openapi_extra": {
            "requestBody": asking.bodies(endpoint.properties | asking.task_schema(*endpoint.tasks), example)
        },
        "responses": {200: {"model": answer, "description": "In the asked response_format", "content": told}},
        "response_class": Response,
    }


@router.post(
    "/v1/audio/transcriptions",
    summary="Transcribe a recording",
    **_documented(
        TRANSCRIPTION,
        {"model": "whisper-1", "response_format": "diarized_json"},
        Transcribed,
        *TEXTS,
    ),
)
async def transcriptions(http: Request, who: Who) -> Response:
    """The words of a recording, with speakers where asked, in any of OpenAI's response formats or as a stream.

    An answer in JSON and a stream keep their connection alive until the job is done; text, srt and vtt cannot. Of a
    recording that takes longer than your client waits ask for one of the former.
    """
    return await _answer(http, who, TRANSCRIPTION)


@router.post(
    "/v1/audio/translations",
    summary="Translate a recording",
    **_documented(TRANSLATION, {"model": "whisper-1"}, Translated, *TEXTS),
)
async def translations(http: Request, who: Who) -> Response:
    """The words of a recording in English, or where the model can in `target_language`.

    An answer in JSON keeps its connection alive until the job is done; text, srt and vtt cannot. Of a recording that
    takes longer than your client waits ask for JSON.
    """
    return await _answer(http, who, TRANSLATION)


@router.post(
    "/v1/audio/diarization",
    summary="Tell who speaks when",
    **_documented(DIARIZATION, {"num_speakers": 2}, Diarization, "text/plain"),
)
async def diarization(http: Request, who: Who) -> Response:
    """Who speaks when, as JSON or RTTM."""
    return await _answer(http, who, DIARIZATION)


@router.get("/v1/models", summary="List the models", response_model=ModelList, response_model_exclude_none=True)
async def models(settings: Given, who: Who) -> dict[str, Any]:
    """Every model name that is known here, with the aliases."""
    return {"object": "list", "data": await asyncio.to_thread(openai_models.listed, settings)}


@router.get(
    "/v1/models/{name:path}",
    summary="Look up a model",
    response_model=ModelItem,
    response_model_exclude_none=True,
)
async def model(settings: Given, who: Who, name: Annotated[str, Path(description="its id")]) -> dict[str, Any]:
    """One of the names that are known here."""
    return await asyncio.to_thread(openai_models.item, name, settings)


async def _answer(http: Request, who: Caller, endpoint: Endpoint) -> Response:
    """Take a request in, make it a job, and wait for that in the caller's place."""
    settings = settings_of(http)
    async with received(http, core_of(http), settings) as form:
        ask, submission = await asyncio.to_thread(_asked, form, who, endpoint, settings)  # voices may be megabytes
        form.leave(submission.recording)
    return await in_place(http, submission, _manner(ask))


def _asked(form: Form, who: Caller, endpoint: Endpoint, settings: Settings) -> tuple[Ask, Submission]:
    """What a form asks for. Raises RequestError."""
    upload = asking.only_file(form, "file")
    given = openai_form.values(form.fields, endpoint) if form.json is None else form.json
    ask = openai_form.read(given, upload, endpoint, settings)
    same = digest(who.owner, upload.sha256 if upload else "", ask.request)
    recording = upload.path if upload else None
    return ask, Submission(ask.request, recording, who.owner, same, awaited=True)


def _manner(ask: Ask) -> Manner:
    kind: Kind = "events" if ask.stream else "exact" if ask.format in openai_form.TEXTS else "json"
    return Manner(lambda transcript: respond(ask, transcript), kind)
