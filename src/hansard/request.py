"""What a job may ask: one pydantic model, from which the JSON Schema and the README's table are derived or tested.

Strict types, no unknown names, null means "the default". Callers of the known workers keep their own spelling:
`ALIASES` lists it. `parse` reports every problem at once, in one sentence each.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from hansard.errors import RequestError

OutputFormat = Literal["srt", "vtt", "txt", "tsv", "rttm"]

ALIASES: dict[str, tuple[str, ...]] = {
    "audio": ("audio_url", "audio_file", "audio_base64"),
    "prompt": ("initial_prompt",),
    "diarization": ("diarize",),
    "align_output": ("word_timestamps",),
    "huggingface_access_token": ("hf_token",),
}

SETTINGS_NOT_FIELDS: dict[str, str] = {
    "no_speech_threshold": "NO_SPEECH_THRESHOLD",
    "log_prob_threshold": "LOGPROB_THRESHOLD",
    "logprob_threshold": "LOGPROB_THRESHOLD",
    "compression_ratio_threshold": "COMPRESSION_RATIO_THRESHOLD",
}

MOST_PROBLEMS = 20  # told at once; a job with more is not a slip of the pen
LONGEST_NAME = 60  # characters of a name that are told again

_REGION = re.compile(r"(-.*|_[a-z0-9]{2,4}([-_.].*)?)\Z", re.DOTALL)  # after a language: en-US, zh_Hant_TW, fr_FR.UTF-8

Source = Annotated[str, StringConstraints(min_length=1)]
Language = Annotated[
    str,
    BeforeValidator(lambda value: _REGION.sub("", value.strip().lower()) if isinstance(value, str) else value),
    StringConstraints(pattern=r"^([a-z]{2,3}|multi)$"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^\s*([A-Za-z]{2,3}|[Mm][Uu][Ll][Tt][Ii])(-.*|_[A-Za-z0-9]{2,4}([-_.].*)?)?\s*$",
        }
    ),
]
"""A code such as `en`; `EN`, `en-US` and `en_US` mean the same. `multi` decides anew for each stretch of speech."""
Count = Annotated[int, Field(ge=1, le=50)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class SpeakerSample(_Strict):
    """A known voice: a name and a recording of it, given like the job's own audio."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    url: Source | None = Field(None, description="http(s) URL of the sample")
    audio: Source | None = Field(None, description="the sample as a URL, data URI or base64")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.audio is None):
            raise ValueError("give exactly one of url and audio")
        return self


class GivenSegment(_Strict):
    """A stretch of the recording whose speaker the caller already knows; times in seconds."""

    start: Annotated[float, Field(ge=0)]
    end: float
    speaker: str

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.end <= self.start:
            raise ValueError("end must be after start")
        return self


class Request(_Strict):
    """One job: one recording and what to do with it."""

    audio: Source = Field(repr=False, description="the recording: an http(s) URL, a data URI, base64, or a file: URL")
    task: Literal["transcribe", "translate", "diarization", "transcription"] = Field(
        "transcribe", description="what to make of the recording"
    )
    model: str | None = Field(
        None, description="transcriber (with task diarization: the diarizer); null takes DEFAULT_MODEL"
    )
    language: Language | None = Field(
        None, description="language spoken, as in `en`; null detects it, `multi` anew for each chunk"
    )
    target_language: Language | None = Field(
        None, description="with task translate, the language to write; null means `en`"
    )
    prompt: str | None = Field(None, description="text that sets style and spelling")
    hotwords: str | None = Field(None, description="words to listen for")
    temperature: Probability | None = Field(None, description="randomness of decoding; null takes the model's own way")
    beam_size: Annotated[int, Field(ge=1, le=20)] | None = Field(None, description="hypotheses kept while decoding")
    batch_size: Annotated[int, Field(ge=1, le=256)] | None = Field(None, description="chunks decoded at once")
    diarization: bool = Field(False, description="tell speakers apart")
    num_speakers: Count | None = Field(None, description="number of speakers, where known")
    min_speakers: Count | None = Field(None, description="fewest speakers")
    max_speakers: Count | None = Field(None, description="most speakers")
    align_output: bool = Field(False, description="return each word with its times")
    vad_onset: Probability = Field(0.5, description="speech begins above this probability")
    vad_offset: Probability = Field(0.363, description="speech ends below this probability")
    language_detection_min_prob: Probability = Field(0.0, description="warn when the language is less sure than this")
    language_detection_max_tries: Annotated[int, Field(ge=1, le=100)] = Field(
        5, description="speech chunks that vote on the language"
    )
    speaker_verification: bool = Field(False, description="name speakers by `speaker_samples`")
    speaker_samples: list[SpeakerSample] = Field(
        [], max_length=100, description="known voices, each `{name, url}` or `{name, audio}`"
    )
    speaker_threshold: Probability | None = Field(None, description="similarity from which a voice is named")
    segments: list[GivenSegment] | None = Field(None, description="known turns, each `{start, end, speaker}`")
    output_formats: list[OutputFormat] = Field(
        [], max_length=len(get_args(OutputFormat)), description="formats returned beside the segments"
    )
    channels: Literal["mix", "separate"] = Field("mix", description="mix all channels, or one speaker per channel")
    huggingface_access_token: SecretStr | None = Field(None, description="token for gated models; never logged")
    debug: bool = Field(False, description="add the timings of each stage to the log tail")

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        problems = list(self._disagreements())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _disagreements(self) -> list[str]:
        counts = (self.num_speakers, self.min_speakers, self.max_speakers)
        counted = any(count is not None for count in counts)
        rules = {
            "min_speakers is greater than max_speakers": (self.min_speakers or 1) > (self.max_speakers or 50),
            "num_speakers already says how many; leave out min_speakers and max_speakers": (
                self.num_speakers is not None and counts[1:] != (None, None)
            ),
            "num_speakers, min_speakers and max_speakers need diarization: true": (counted and not self.wants_speakers),
            "vad_offset is greater than vad_onset": (
                "vad_offset" in self.model_fields_set and self.vad_offset > self.vad_onset
            ),
            "channels: separate already gives one speaker per channel; leave out diarization": (
                self.channels == "separate" and (self.diarization or self.task == "diarization")
            ),
            "task transcription hears all channels as one; leave out channels": (
                self.channels == "separate" and self.task == "transcription"
            ),
            "speaker_verification needs speaker_samples": self.speaker_verification and not self.speaker_samples,
            "speaker_verification needs diarization: true": (self.speaker_verification and not self.wants_speakers),
            "speaker_samples and speaker_threshold need speaker_verification: true": (
                (bool(self.speaker_samples) or self.speaker_threshold is not None) and not self.speaker_verification
            ),
            "target_language needs task: translate": (
                self.target_language not in (None, self.language) and self.task != "translate"
            ),
            "target_language must be one language": self.target_language == "multi",
            "segments belong to task: transcription": self.segments is not None and self.task != "transcription",
            "segments already say who speaks; leave out diarization": self.segments is not None and self.diarization,
            "task diarization gives turns without text; of output_formats it takes rttm only": (
                self.task == "diarization" and bool(set(self.output_formats) - {"rttm"})
            ),
            "task diarization gives turns without text; leave out align_output": (
                self.task == "diarization" and self.align_output
            ),
            "the words of a translation have no times of their own; leave out align_output": (
                self.task == "translate" and self.align_output
            ),
            "output format rttm needs diarization: true": (
                "rttm" in self.output_formats
                and not self.wants_speakers
                and self.channels == "mix"
                and self.segments is None
            ),
        }
        return [problem for problem, broken in rules.items() if broken]

    @property
    def wants_speakers(self) -> bool:
        """Is a diarizer needed: asked for, or because the task is about turns that are not given?"""
        return (
            self.diarization or self.task == "diarization" or (self.task == "transcription" and self.segments is None)
        )

    def secrets(self) -> tuple[str, ...]:
        """Values of this job that no log and no answer may hold."""
        token = self.huggingface_access_token
        told = token.get_secret_value().strip() if token else ""
        return (told,) if told else ()


def parse(payload: object) -> Request:
    """A job's `input` as a Request.

    Raises RequestError with one sentence that lists every problem found.
    """
    if not isinstance(payload, dict):
        raise RequestError(f"input must be an object of named fields, not {_json_type(payload)}")
    given, problems = _canonical(payload)
    request = None
    try:
        request = Request.model_validate(given)
    except ValidationError as error:
        problems += [_sentence(dict(e)) for e in error.errors(include_url=False, include_input=False)[:MOST_PROBLEMS]]
    if problems or request is None:
        raise RequestError("; ".join(problems))
    return request


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job's `input`: the model's own, with every alias, and null wherever a default exists."""
    schema = Request.model_json_schema()
    fields = schema["properties"]
    del schema["required"]
    for name, field in fields.items():
        fields[name] = _or_null(field)
    for name, aliases in ALIASES.items():
        for alias in aliases:
            fields[alias] = {**fields[name], "title": alias, "description": f"the same as `{name}`"}
    spellings = {name: (name, *aliases) for name, aliases in ALIASES.items()}
    schema["oneOf"] = [_given(name) for name in spellings.pop("audio")]
    schema["allOf"] = [{"not": {"allOf": [_given(name) for name in names]}} for names in spellings.values()]
    return schema


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """A field's schema that takes null too, which means its default."""
    told = {key: value for key, value in field.items() if key in ("default", "title", "description")}
    kinds = field.get("anyOf") or [{key: value for key, value in field.items() if key not in told}]
    null = {"type": "null"}
    return {**told, "anyOf": kinds if null in kinds else [*kinds, null]}


def _given(name: str) -> dict[str, Any]:
    """The schema of an object in which a field is there and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _canonical(payload: dict[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fold aliases into their fields and drop nulls; say what cannot be folded."""
    given: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    problems: list[str] = []
    owner = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
    for key, value in payload.items():
        name = owner.get(key, key)
        if name not in Request.model_fields:
            if len(problems) < MOST_PROBLEMS:
                problems.append(_bad_name(key))
        elif value is None:
            continue
        elif name in given:
            problems.append(f"{spelt[name]} and {key} say the same thing; give one of them")
        else:
            given[name], spelt[name] = value, key
    problems += _wrong_kind_of_audio(spelt.get("audio"), given.get("audio"))
    return given, problems


def _wrong_kind_of_audio(key: str | None, value: object) -> list[str]:
    if not isinstance(value, str):
        return []
    if key == "audio_base64" and "://" in value:
        return ["audio_base64 holds a URL; send it as audio_url"]
    if key == "audio_url" and "://" not in value and not value.startswith("data:"):
        return ["audio_url holds no URL; send base64 as audio_base64"]
    return []


def _bad_name(key: object) -> str:
    """The sentence for a name that is no field."""
    if key in SETTINGS_NOT_FIELDS:
        variable = SETTINGS_NOT_FIELDS[str(key)]
        return f"{key} is a setting of the worker, not a field of a job; set the environment variable {variable}"
    known = [*Request.model_fields, *(alias for aliases in ALIASES.values() for alias in aliases)]
    name = str(key)
    near = difflib.get_close_matches(name, known, n=1) if len(name) <= LONGEST_NAME else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name[:LONGEST_NAME]} is not a field of a job{hint}"


def _sentence(error: dict[str, Any]) -> str:
    """One pydantic error in our words: where, then what."""
    where = ".".join(str(part)[:LONGEST_NAME] for part in error["loc"])
    what = str(error["msg"]).removeprefix("Value error, ")
    if where == "audio" and error["type"] == "missing":
        return "audio is missing: give audio, audio_url, audio_file or audio_base64"
    if where == "language" and error["type"] == "string_pattern_mismatch":
        return "language must be a code such as en, fr or ru"
    return f"{where}: {what[0].lower()}{what[1:]}" if where else what


def _json_type(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
