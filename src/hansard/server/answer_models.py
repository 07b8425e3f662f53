"""The JSON answers as OpenAPI tells them; what is not known is left out of an answer.

`render`, `openai_answers` and `openai_models` make the answers themselves; a test holds the two together.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hansard import render
from hansard.plan import STAGES

SEGMENT = {"start": 0.484, "end": 3.594, "text": "good morning everyone", "speaker": "SPEAKER_00"}
USAGE = {"type": "duration", "seconds": 18.065}
TEXT = "good morning everyone"


def _shown(**example: Any) -> ConfigDict:
    """A model that shows an example, and beside its fields has one for each of the job's `output_formats`."""
    return ConfigDict(extra="allow", json_schema_extra={"examples": [example]})


class Word(BaseModel):
    """A word and its times in seconds; `score` is how sure the model is, 0 to 1."""

    word: str
    start: float
    end: float
    score: float | None = None
    speaker: str | None = None


class Segment(BaseModel):
    """A stretch of speech, in seconds; without `text` where the task is to tell speakers apart."""

    start: float
    end: float
    text: str | None = None
    speaker: str | None = Field(None, description="who speaks, where speakers were told apart")
    speaker_id: str | None = Field(None, description="the name of the known voice")
    similarity: float | None = Field(None, description="how alike that voice is, -1 to 1")
    language: str | None = Field(None, description="the code of its own language")
    words: list[Word] | None = Field(None, description="with align_output")


class Result(BaseModel):
    """What a worker on RunPod answers to the same job."""

    model_config = _shown(
        segments=[SEGMENT],
        detected_language="en",
        duration=18.065,
        speakers=["SPEAKER_00"],
        model="large-v3",
        timings={"transcribe": 2.943},
        warnings=[],
        logs=[],
    )

    segments: list[Segment] | None = None
    transcriptions: list[Segment] | None = Field(None, description="in place of segments with task transcription")
    detected_language: str | None = None
    language_probability: float | None = None
    duration: float = Field(description="seconds of sound")
    speakers: list[str] | None = None
    model: str
    timings: dict[str, float] = Field(description=f"seconds by stage: {', '.join(STAGES)}")
    warnings: list[str] = Field(description="what had to be given up")
    logs: list[str] = Field([], description="the timings, with debug")


class Usage(BaseModel):
    """What OpenAI would charge by."""

    type: Literal["duration"]
    seconds: float


class _Told(BaseModel):
    """What every answer of OpenAI's endpoints ends with."""

    usage: Usage
    model: str
    warnings: list[str] | None = Field(None, description="what had to be given up")
    timings: dict[str, float] | None = Field(None, description="seconds by stage, with debug")


class Language(BaseModel):
    """A language that is spoken."""

    code: str


class Transcription(_Told):
    """response_format json."""

    model_config = _shown(text=TEXT, languages=[{"code": "en"}], usage=USAGE, model="large-v3")

    text: str
    languages: list[Language] | None = None
    words: list[Word] | None = Field(None, description="with align_output")


class VerboseSegment(Segment):
    """A segment as Whisper tells it; `tokens` is empty, and of an engine that does not say how sure it is, so are 0."""

    id: int
    seek: int
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseTranscription(_Told):
    """response_format verbose_json."""

    model_config = _shown(
        task="transcribe",
        language="english",
        duration=18.065,
        text=TEXT,
        languages=[{"code": "en"}],
        segments=[],
        usage=USAGE,
        model="large-v3",
    )

    task: Literal["transcribe", "translate"]
    language: str = Field(description="its English name, in lower case; empty where it is not known")
    duration: float
    text: str
    languages: list[Language] | None = Field(None, description="by their codes; not of a translation")
    segments: list[VerboseSegment] | None = None
    words: list[Word] | None = None


class DiarizedSegment(BaseModel):
    """A stretch of one speaker: the name of a known voice, else a letter, `unknown` where none was told apart."""

    type: Literal["transcript.text.segment"]
    id: str
    start: float
    end: float
    text: str
    speaker: str


class DiarizedTranscription(_Told):
    """response_format diarized_json."""

    model_config = _shown(
        task="transcribe",
        duration=18.065,
        text=TEXT,
        segments=[{**SEGMENT, "type": "transcript.text.segment", "id": "seg_0", "speaker": "A"}],
        usage=USAGE,
        model="large-v3",
    )

    task: Literal["transcribe", "translate"]
    duration: float
    text: str
    segments: list[DiarizedSegment]
    words: list[Word] | None = None


class SpeakerTurn(BaseModel):
    """A stretch in which somebody speaks."""

    id: int
    start: float
    end: float
    speaker: str | None = None


class SpeakerSums(BaseModel):
    """How much one speaker says."""

    id: str
    speech_seconds: float
    segments: int


class Diarization(_Told):
    """Who speaks when; `speakers` and `timings` with verbose_json."""

    model_config = _shown(
        task="diarization",
        duration=18.065,
        num_speakers=1,
        segments=[{"id": 0, "start": 0.484, "end": 3.594, "speaker": "SPEAKER_00"}],
        usage=USAGE,
        model="embedded",
    )

    task: Literal["diarization"]
    duration: float
    num_speakers: int
    speakers: list[SpeakerSums] | None = None
    segments: list[SpeakerTurn]


class ModelItem(BaseModel):
    """A name that a request may give as its model."""

    id: str = Field(examples=["whisper-1"])
    object: Literal["model"]
    created: int = Field(description="not known, so 0")
    owned_by: str
    root: str | None = Field(None, description="the model that an alias stands for")


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ModelItem]


def texts(*names: str) -> list[str]:
    """The media types of some of render.FORMATS, or of all, without their charset."""
    return sorted({render.MEDIA[name].split(";")[0] for name in names or render.MEDIA})


def stream(*names: str) -> dict[str, Any]:
    """Server-sent events for OpenAPI: the schema is that of each event; `names` are theirs where they have any."""
    data = {"type": "string", "contentMediaType": "application/json"}
    named = {"event": {"type": "string", "enum": list(names)}} if names else {}
    event = {"type": "object", "properties": {"id": {"type": "string"}, **named, "data": data}, "required": ["data"]}
    return {"text/event-stream": {"schema": event}}
