"""The endpoints of whisper-asr-webservice, as Speakr and Bazarr call them: options in the query, sound in `audio_file`.

An option without a value means its default. `encode=false` says that the sound has no header: 16-bit samples, mono at
16 kHz. `vad_filter` is taken as it comes and changes nothing, for here speech is always found first; `false`, which
that server has for its default, is no refusal of that. What else is asked for and cannot be given is left out, and a
warning says so: speaker embeddings, the number of speakers where nobody is told apart, the words of a translation. JSON
has its warnings in `warnings`, text in the header `X-Warnings`.

Not covered: a language told from a whole file without transcribing it; `/detect-language` costs as much as the text of
at most three minutes, and of a file with a header the time to decode all of it.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field, model_validator

from hansard import __version__
from hansard.errors import CancelledError, EngineError, RequestError
from hansard.server import asking
from hansard.server.access import Caller
from hansard.server.apps import pcm
from hansard.server.apps.routes import Heard, heard, submission_of
from hansard.server.context import Who, core_of, settings_of
from hansard.server.job import Submission
from hansard.server.job_views import written
from hansard.server.language_names import name_of
from hansard.server.openai.answers import warned
from hansard.server.uploads import Form, Upload, received
from hansard.server.waiting import Manner, in_place
from hansard.settings import Settings
from hansard.transcript import Transcript

router = APIRouter(tags=["asr"])

FILE = "audio_file"
COUNTS = ("num_speakers", "min_speakers", "max_speakers")

_DECODERS = ThreadPoolExecutor(2, "decode")  # few, each takes a core; and uploads need the threads of all others


class Sent(BaseModel, extra="forbid"):
    """What may stand in the query of either address."""

    encode: bool = Field(True, description="false: the sound is 16-bit samples, mono at 16 kHz, without a header")
    video_file: str | None = Field(None, description="where the sound comes from; kept in the job's metadata")

    @model_validator(mode="before")
    @classmethod
    def _without_the_empty(cls, given: object) -> object:
        """What has no value says nothing; a name that nobody knows is still refused."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value != "" or name not in cls.model_fields}

    def metadata(self) -> dict[str, object]:
        """What is kept with the job."""
        return {"video_file": self.video_file[:1000]} if self.video_file else {}


class Options(Sent):
    """What may stand in the query of `/asr`."""

    task: Literal["transcribe", "translate"] = Field("transcribe", description="translate: into English")
    language: str | None = Field(None, description="language spoken, as in `en`; without it, or `auto`, it is detected")
    model: str | None = Field(None, description="transcriber; without it DEFAULT_MODEL")
    initial_prompt: str | None = Field(None, description="text that sets style and spelling")
    hotwords: str | None = Field(None, description="words to listen for")
    word_timestamps: bool = Field(False, description="return each word with its times, in json; not of a translation")
    vad_filter: bool = Field(False, description="changes nothing: speech is always found first")
    output: Literal["txt", "json", "srt", "vtt", "tsv"] = Field("txt", description="format of the answer")
    diarize: bool | None = Field(None, description="tell speakers apart")
    enable_diarization: bool | None = Field(None, description="the same")
    num_speakers: int | None = Field(None, description="number of speakers, where known; counts only with diarize")
    min_speakers: int | None = Field(None, description="fewest speakers; counts only with diarize")
    max_speakers: int | None = Field(None, description="most speakers; counts only with diarize")
    return_speaker_embeddings: bool = Field(False, description="true gives a warning and no embeddings")

    def fields(self) -> dict[str, object]:
        """The same as a request's fields. Raises RequestError."""
        if None not in (self.diarize, self.enable_diarization) and self.diarize != self.enable_diarization:
            raise RequestError("diarize and enable_diarization say the same thing; give one of them")
        fields: dict[str, object] = {
            "task": self.task,
            "language": self.language,
            "model": self.model,
            "prompt": self.initial_prompt,
            "hotwords": self.hotwords,
            "align_output": self.word_timestamps and self.task != "translate",
            "diarization": self._diarizes,
            "output_formats": [] if self.output == "json" else [self.output],
        }
        return fields | ({name: getattr(self, name) for name in COUNTS} if self._diarizes else {})

    def left_out(self) -> list[str]:
        """What is asked for and not done, each as a warning."""
        counts = [name for name in COUNTS if getattr(self, name) is not None]
        reasons = {
            f"without diarize nobody is told apart, so left out: {', '.join(counts)}": counts and not self._diarizes,
            "speaker embeddings are not given away, so return_speaker_embeddings was left out": (
                self.return_speaker_embeddings
            ),
            "the words of a translation have no times of their own, so word_timestamps was left out": (
                self.word_timestamps and self.task == "translate"
            ),
        }
        return [reason for reason, holds in reasons.items() if holds]

    @property
    def _diarizes(self) -> bool:
        return bool(self.diarize or self.enable_diarization)


class Language(BaseModel):
    """The language of a recording."""

    detected_language: str = Field(description="its English name, in lower case", examples=["english"])
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
    """What was said: `output=json` gives `{text, language, segments, warnings}`, any other text and `X-Warnings`."""
    submission = await _submission(request, who, options, options.fields(), whole=True)
    asked, left_out = submission.request, options.left_out()

    def told(transcript: Transcript) -> Response:
        warnings = [*left_out, *transcript.warnings]
        if options.output != "json":
            return PlainTextResponse(written(asked, transcript, options.output), headers=warned(warnings))
        return JSONResponse(heard(asked, transcript) | {"warnings": warnings})

    return await in_place(request, submission, Manner(told, "json" if options.output == "json" else "exact"))


@router.post("/detect-language", summary="Detect the language", **_documented(Language))
async def detect_language(request: Request, who: Who, sent: Annotated[Sent, Query()]) -> Response:
    """Which language is spoken; of a recording of more than three minutes as much is heard, from all over it."""
    submission = await _submission(request, who, sent, {}, whole=False)
    return await in_place(request, submission, Manner(_language, "json"))


async def _submission(
    request: Request, who: Caller, sent: Sent, fields: dict[str, object], *, whole: bool
) -> Submission:
    settings = settings_of(request)
    async with received(request, core_of(request), settings) as form:
        upload = await _ready(_sound(form), settings, headerless=not sent.encode, whole=whole)
        submission = replace(submission_of(fields, upload, who, settings), metadata=sent.metadata())
        form.leave(submission.recording)
    return submission


async def _ready(upload: Upload, settings: Settings, *, headerless: bool, whole: bool) -> Upload:
    """What is to be heard of an upload. Raises AudioError, and EngineError where it cannot be written."""
    try:
        if not whole:
            return await _excerpt(upload, settings, headerless=headerless)
        return await asyncio.to_thread(pcm.with_header, upload) if headerless else upload
    except OSError as error:
        told = f"the recording could not be made ready on the server: {error.strerror}; try again later"
        raise EngineError(told) from None


async def _excerpt(upload: Upload, settings: Settings, *, headerless: bool) -> Upload:
    """What of an upload tells its language. When nobody waits for it any more, as the server stops, decoding ends."""
    unwanted = threading.Event()

    def report(_: float) -> None:
        if unwanted.is_set():
            raise CancelledError("nobody waits for the recording any more")

    work = partial(pcm.excerpt, upload, settings, report, headerless=headerless)
    try:
        return await asyncio.get_running_loop().run_in_executor(_DECODERS, work)
    finally:
        unwanted.set()


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
