"""The endpoints of whisper-asr-webservice, as Speakr and Bazarr call them: options in the query, sound in `audio_file`.

`encode=false` says that the sound has no header: 16-bit samples, mono at 16 kHz. `vad_filter=false` and
`return_speaker_embeddings=true` are refused: speech is always found first, and voices are not given away.

Not covered: a language told from a whole file without transcribing it; `/detect-language` of a file with a header costs
as much as its text, of samples without one at most three minutes of them are heard.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal

import pycountry
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from hansard import __version__
from hansard.errors import RequestError, UnsupportedError
from hansard.server import asking
from hansard.server.access import Caller
from hansard.server.apps import pcm
from hansard.server.apps.routes import Heard, submission_of
from hansard.server.context import Who, core_of, settings_of
from hansard.server.job import Submission
from hansard.server.job_views import answer, written
from hansard.server.openai.answers import plain
from hansard.server.uploads import Form, Upload, received
from hansard.server.waiting import Manner, in_place
from hansard.transcript import Transcript

router = APIRouter(tags=["asr"])

FILE = "audio_file"


class Options(BaseModel, extra="forbid"):
    """What may stand in the query of `/asr`."""

    encode: bool = Field(True, description="false: the sound is 16-bit samples, mono at 16 kHz, without a header")
    task: Literal["transcribe", "translate"] = Field("transcribe", description="translate: into English")
    language: str | None = Field(None, description="language spoken, as in `en`; without it, it is detected")
    model: str | None = Field(None, description="transcriber; without it DEFAULT_MODEL")
    initial_prompt: str | None = Field(None, description="text that sets style and spelling")
    hotwords: str | None = Field(None, description="words to listen for")
    word_timestamps: bool = Field(False, description="return each word with its times, in json")
    vad_filter: bool = Field(True, description="speech is always found first, so false is refused")
    output: Literal["txt", "json", "srt", "vtt", "tsv"] = Field("txt", description="format of the answer")
    diarize: bool | None = Field(None, description="tell speakers apart")
    enable_diarization: bool | None = Field(None, description="the same")
    num_speakers: int | None = Field(None, description="number of speakers, where known")
    min_speakers: int | None = Field(None, description="fewest speakers")
    max_speakers: int | None = Field(None, description="most speakers")
    return_speaker_embeddings: bool = Field(False, description="true is refused")
    video_file: str | None = Field(None, description="where the sound comes from; kept in the job's metadata")

    def fields(self) -> dict[str, object]:
        """The same as a request's fields. Raises RequestError, UnsupportedError."""
        if not self.vad_filter:
            raise UnsupportedError("vad_filter=false is not offered: speech is always found first; leave it out")
        if self.return_speaker_embeddings:
            raise UnsupportedError("return_speaker_embeddings is not offered; leave it out")
        if None not in (self.diarize, self.enable_diarization) and self.diarize != self.enable_diarization:
            raise RequestError("diarize and enable_diarization say the same thing; give one of them")
        return {
            "task": self.task,
            "language": self.language or None,
            "model": self.model or None,
            "prompt": self.initial_prompt or None,
            "hotwords": self.hotwords or None,
            "align_output": self.word_timestamps,
            "diarization": bool(self.diarize or self.enable_diarization),
            "num_speakers": self.num_speakers,
            "min_speakers": self.min_speakers,
            "max_speakers": self.max_speakers,
            "output_formats": [] if self.output == "json" else [self.output],
        }


class Language(BaseModel):
    """The language of a recording."""

    detected_language: str = Field(description="its English name", examples=["English"])
    language_code: str = Field(examples=["en"])
    confidence: float | None = Field(description="0 to 1; null where the model does not tell")
    warnings: list[str] = []


class Version(BaseModel):
    """Which version of the server this is."""

    version: str


def _documented(model: type[BaseModel], *others: str) -> dict[str, Any]:
    sound = {"type": "string", "format": "binary", "description": "the recording"}
    schema = {"type": "object", "properties": {FILE: sound}, "required": [FILE], "additionalProperties": False}
    form = {"schema": schema, "example": {FILE: "(the recording)"}}
    return {
        "response_class": Response,
        "responses": {200: {"model": model, "content": {kind: {"schema": {"type": "string"}} for kind in others}}},
        "openapi_extra": {"requestBody": {"required": True, "content": {"multipart/form-data": form}}},
    }


@router.get("/status", summary="Which version is this?")
async def status() -> Version:
    """The server's version; needs no key."""
    return Version(version=__version__)


@router.post("/asr", summary="Transcribe, as whisper-asr-webservice does", **_documented(Heard, "text/plain"))
async def asr(request: Request, who: Who, options: Annotated[Options, Query()]) -> Response:
    """What was said: `output=json` gives `{text, language, segments}`, any other plain text."""
    submission = await _submission(request, who, options.fields(), headerless=not options.encode)
    if options.video_file:
        submission = replace(submission, metadata={"video_file": options.video_file[:1000]})
    asked = submission.request

    def told(transcript: Transcript) -> Response:
        if options.output != "json":
            return PlainTextResponse(written(asked, transcript, options.output))
        segments = answer(asked, transcript)["segments"]
        language = asked.target_language or "en" if asked.task == "translate" else transcript.language
        return JSONResponse({"text": plain(transcript), "language": language, "segments": segments})

    return await in_place(request, submission, Manner(told, "json" if options.output == "json" else "exact"))


@router.post("/detect-language", summary="Detect the language", **_documented(Language))
async def detect_language(
    request: Request, who: Who, encode: Annotated[bool, Query(description="as for /asr")] = True
) -> Response:
    """Which language is spoken."""
    submission = await _submission(request, who, {}, headerless=not encode, whole=False)
    return await in_place(request, submission, Manner(_language, "json"))


async def _submission(
    request: Request, who: Caller, fields: dict[str, object], *, headerless: bool, whole: bool = True
) -> Submission:
    settings = settings_of(request)
    async with received(request, core_of(request), settings) as form:
        upload = _sound(form)
        if headerless:
            upload = await asyncio.to_thread(pcm.with_header if whole else pcm.excerpt, upload)
        submission = submission_of(fields, upload, who, settings)
        form.leave(submission.recording)
    return submission


def _sound(form: Form) -> Upload:
    """The recording. Raises RequestError."""
    upload = asking.only_file(form, FILE)
    strange = list(form.fields or form.json or ())
    if upload is None or strange:
        where = f"{strange[0][:60]} is not taken in the body; " if strange else ""
        raise RequestError(f"{where}send the recording as the multipart part {FILE}, and options in the query")
    return upload


def _language(transcript: Transcript) -> Response:
    code = transcript.language
    told = Language(
        detected_language=name_of(code),
        language_code=code,
        confidence=transcript.language_probability,
        warnings=list(transcript.warnings),
    )
    return JSONResponse(told.model_dump())


def name_of(code: str) -> str:
    """A language's English name; one that is not known keeps its code."""
    found = pycountry.languages.get(**{"alpha_2" if len(code) == 2 else "alpha_3": code})
    return str(found.name) if found else code
