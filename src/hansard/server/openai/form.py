"""What a caller of OpenAI's audio endpoints asks for: OpenAI's fields and, beside them, every field of a job.

OpenAI's own become a job's: `keywords` its hotwords, a `server_vad` threshold its `vad_onset`, known speakers its
samples, the response format and the granularities its speakers, words and captions. A language may also be Whisper's
English name or `auto`. What cannot be honoured is refused by name, save hints, which cost a warning. Contract:
openai-python 3.52.0, `types/audio`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansard.errors import RequestError, UnsupportedError
from hansard.request import ALIASES, LONGEST_NAME, MOST_PROBLEMS, SETTINGS_NOT_FIELDS, Language, Request, parse
from hansard.server import asking
from hansard.server.form_values import inlined, typed
from hansard.server.job import UPLOADED
from hansard.server.language_names import name_of
from hansard.server.openai.models import asks_for_speakers, own_name
from hansard.server.uploads import Upload
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS

TEXTS = frozenset({"text", "srt", "vtt", "rttm"})  # formats that are no JSON
STREAMED = frozenset({"json", "text", "diarized_json"})

Problem = tuple[str | None, str]
"""The field that is meant, and what is wrong with it; None where a name is no field: it could be any text."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class ServerVad(_Strict):
    """How OpenAI lets callers set what counts as speech."""

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="speech begins above it")
    prefix_padding_ms: int | None = Field(None, description="changes nothing: a warning says so")
    silence_duration_ms: int | None = Field(None, description="changes nothing: a warning says so")


class KnownSpeakers(_Strict):
    """Voices by their names; what every endpoint takes that tells speakers apart."""

    known_speaker_names: list[str] = Field([], max_length=100, description="names of voices")
    known_speaker_references: list[str] = Field(
        [], max_length=100, description="a recording of each, in the same order: a data URI, base64 or a URL"
    )


class TranslationFields(_Strict):
    """OpenAI's fields of a translation that are not a job's own."""

    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = Field(
        "json", description="shape of the answer"
    )


class DiarizationFields(KnownSpeakers):
    """The fields of a diarization that are not a job's own."""

    response_format: Literal["json", "verbose_json", "rttm"] = Field("json", description="shape of the answer")


class TranscriptionFields(KnownSpeakers):
    """OpenAI's fields of a transcription that are not a job's own."""

    response_format: Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"] = Field(
        "json", description="`diarized_json` tells speakers apart"
    )
    stream: bool = Field(
        False,
        description=(
            "answer with server-sent events, which tell the text when the job is done: until then comments keep the "
            "connection; json, text and diarized_json only"
        ),
    )
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        [], description="what verbose_json holds; without it, segments"
    )
    languages: list[Language] = Field(
        [], description="the language, as a list of one; of several one is detected among all, and a warning says so"
    )
    keywords: list[str] = Field([], description="the same as `hotwords`")
    chunking_strategy: Literal["auto"] | ServerVad | None = Field(
        None, description="`auto`, or what counts as speech: `threshold` is `vad_onset`"
    )
    include: list[Literal["logprobs"]] = Field([], description="refused: no engine here tells log probabilities")


_LANGUAGE = {
    "anyOf": [{"type": "string"}, {"type": "null"}],
    "default": None,
    "description": "language spoken: a code as in `en`, or `english`; `auto` detects it, `multi` anew for each chunk",
}


@dataclass(frozen=True)
class Endpoint:
    """What one endpoint takes: its fields beside those of a job, and the tasks it does, the usual one first."""

    fields: type[_Strict]
    tasks: tuple[str, ...]

    @cached_property
    def properties(self) -> dict[str, Any]:
        """The JSON Schema of each field that stands beside those of a job, whole in itself."""
        schema: dict[str, Any] = inlined(self.fields.model_json_schema())["properties"]
        return schema | {"language": _LANGUAGE}

    @cached_property
    def known(self) -> dict[str, Any]:
        """The JSON Schema of every field but the file."""
        schema: dict[str, Any] = asking.fields_schema()["properties"]
        return schema | self.properties


TRANSCRIPTION = Endpoint(TranscriptionFields, ("transcribe", "transcription", "translate"))
TRANSLATION = Endpoint(TranslationFields, ("translate",))
DIARIZATION = Endpoint(DiarizationFields, ("diarization",))


@dataclass(frozen=True, slots=True)
class Ask:
    """A job, and the shape of its answer; `segments` and `words` are what verbose_json is to hold.

    `warnings` say what of the request cannot be followed.
    """

    request: Request
    format: str = "json"
    stream: bool = False
    segments: bool = True
    words: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Draft:
    """A job's fields as they come together, and what is wrong with them."""

    own: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def refuse(self, name: str, problem: str) -> None:
        """Note a problem with a field."""
        self.problems.append((name, problem))

    def settle(self) -> None:
        """Raises RequestError listing the problems; it names the field of the first that is about one."""
        if self.problems:
            meant = next((name for name, _ in self.problems if name), None)
            raise RequestError("; ".join(problem for _, problem in self.problems), meant)

    def given(self, name: str) -> str | None:
        """The spelling under which a field of a job came, if it did."""
        return next((key for key in (name, *ALIASES.get(name, ())) if key in self.own), None)

    def put(self, name: str, value: object, why: str) -> None:
        """Set a field for another that says the same."""
        if spelt := self.given(name):
            self.refuse(spelt, f"{why} and {spelt} say the same thing; give one of them")
        else:
            self.own[name] = value

    def need(self, name: str, why: str) -> None:
        """Switch a field on for another that needs it."""
        spelt = self.given(name)
        if spelt and self.own[spelt] is False:
            self.refuse(spelt, f"{why} needs {name}; leave out {spelt}: false")
        elif not spelt:
            self.own[name] = True


def read(given: Mapping[str, object], upload: Upload | None, endpoint: Endpoint, settings: Settings) -> Ask:
    """The fields of a request, as values, as what is asked for.

    Raises RequestError listing what is wrong, UnsupportedError for what exists at OpenAI and not here.
    """
    fields = {
        name: _meant(name, value) for name, value in given.items() if value is not None and not _is_auto(name, value)
    }
    if upload is None and "file" in fields:
        raise RequestError("file must be a file part of a multipart form, with a filename; it came as text", "file")
    theirs = {name: value for name, value in fields.items() if name in endpoint.fields.model_fields}
    draft = _Draft({name: value for name, value in fields.items() if name not in theirs})
    draft.problems += _strange(draft.own, endpoint)
    source = draft.given("audio")
    if upload and source:
        draft.refuse(source, f"the recording came as a file and as {source}; give one of them")
    if not upload and not source:
        draft.refuse("file", "the recording is missing: send it as a file part named file, or its URL in audio_url")
    wanted, problems = _validated(theirs, endpoint)
    draft.problems += problems
    draft.settle()
    _name_task_and_model(draft, endpoint, settings)
    _fold(draft, wanted)
    draft.settle()
    if upload:
        draft.own["audio"] = UPLOADED
    return _agreeing(parse(draft.own), wanted, tuple(draft.warnings))


def values(fields: Mapping[str, list[str]], endpoint: Endpoint) -> dict[str, object]:
    """A form's texts as the values of an endpoint's fields. Raises RequestError for one that came twice."""
    return typed(fields, endpoint.known)


def _is_auto(name: str, value: object) -> bool:
    """Is this a language that says nothing?"""
    return name in ("language", "languages") and isinstance(value, str) and value.strip().lower() == "auto"


def _meant(name: str, value: object) -> object:
    """A field as a job takes it: the code of a language that came as its English name; any other as it is."""
    if name == "languages" and isinstance(value, list):
        return [_code(item) for item in value if not _is_auto(name, item)]
    return _code(value) if name in ("language", "target_language") else value


def _code(value: object) -> object:
    return _codes().get(value.strip().lower(), value) if isinstance(value, str) else value


@cache
def _codes() -> dict[str, str]:
    """The codes of Whisper's languages by their English names."""
    return {name_of(code): code for code in sorted(TRANSCRIBERS["whisper"].can.languages or ())}


def _strange(own: Mapping[str, object], endpoint: Endpoint) -> list[Problem]:
    """Names that neither OpenAI nor a job has."""
    known = ["file", *endpoint.known]
    problems: list[Problem] = []
    for name in own:
        if len(problems) == MOST_PROBLEMS:  # to look for near names takes its time
            break
        if name not in known and name not in SETTINGS_NOT_FIELDS:  # those have a sentence of their own
            near = difflib.get_close_matches(name.removesuffix("[]"), known, n=1) if len(name) <= LONGEST_NAME else []
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append((None, f"{name[:LONGEST_NAME]} is not a field here{hint}"))
    return problems


def _validated(theirs: Mapping[str, object], endpoint: Endpoint) -> tuple[Any, list[Problem]]:
    try:
        return endpoint.fields.model_validate(theirs), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:20]
        return None, [
            (str(e["loc"][0]), ".".join(map(str, e["loc"])) + f": {e['msg'][0].lower()}{e['msg'][1:]}") for e in found
        ]


def _name_task_and_model(draft: _Draft, endpoint: Endpoint, settings: Settings) -> None:
    task = draft.own.setdefault("task", endpoint.tasks[0])
    if task not in endpoint.tasks:
        draft.refuse("task", f"task: this endpoint takes {' or '.join(endpoint.tasks)}; leave it out")
    model = draft.own.get("model")
    if isinstance(model, str):
        if asks_for_speakers(model, settings):
            _need_speakers(draft, f"model {model}")
        draft.own["model"] = own_name(model, settings)


def _fold(draft: _Draft, wanted: Any) -> None:
    """OpenAI's fields into a job's."""
    if isinstance(wanted, KnownSpeakers):
        _fold_speakers(draft, wanted)
    if isinstance(wanted, TranscriptionFields):
        _fold_speech(draft, wanted)
    answer = wanted.response_format
    if answer in TEXTS:
        for name in ("output_formats", "debug", *(("align_output",) if answer == "text" else ())):
            if (spelt := draft.given(name)) and draft.own[spelt]:
                draft.refuse(spelt, f"{spelt} has no place in response_format {answer}; ask for verbose_json")
        if answer != "text":
            draft.own["output_formats"] = [answer]


def _fold_speakers(draft: _Draft, known: KnownSpeakers) -> None:
    names, references = known.known_speaker_names, known.known_speaker_references
    if len(names) != len(references):
        counts = f"{len(names)} and {len(references)}"
        problem = f"known_speaker_names and known_speaker_references must be as many; they are {counts}"
        draft.refuse("known_speaker_references", problem)
    elif names and draft.own.get("channels") == "separate":
        problem = "known_speaker_names are looked for in a mix of all channels; leave out channels: separate"
        draft.refuse("known_speaker_names", problem)
    elif names:
        why = "known_speaker_names"
        samples = [{"name": name, "audio": sound} for name, sound in zip(names, references, strict=True)]
        draft.put("speaker_samples", samples, why)
        draft.need("speaker_verification", why)
        _need_speakers(draft, why)


def _fold_speech(draft: _Draft, wanted: TranscriptionFields) -> None:
    if wanted.include:
        raise UnsupportedError("include: no engine here tells logprobs; leave it out", "include")
    if wanted.keywords:
        draft.put("hotwords", ", ".join(wanted.keywords), "keywords")
    _fold_languages(draft, wanted.languages)
    if isinstance(vad := wanted.chunking_strategy, ServerVad):
        hints = [name for name in ("prefix_padding_ms", "silence_duration_ms") if getattr(vad, name) is not None]
        if hints:
            draft.warnings.append(f"{' and '.join(hints)} of chunking_strategy cannot be set here and changed nothing")
        if vad.threshold is not None:
            draft.put("vad_onset", vad.threshold, "the threshold of chunking_strategy")
    if wanted.response_format == "diarized_json":
        _need_speakers(draft, "response_format diarized_json")
    if "word" in wanted.timestamp_granularities:
        draft.need("align_output", "timestamp_granularities word")


def _fold_languages(draft: _Draft, languages: list[str]) -> None:
    """One of `languages` is the language; among several no engine chooses, so they stay a hint."""
    if not languages or draft.own.get("language") in languages:
        return
    if len(languages) == 1 or draft.given("language"):
        draft.put("language", languages[0], "languages")
    else:
        named = " and ".join((", ".join(languages[:-1]), languages[-1]))
        draft.warnings.append(f"the language was detected among all, not only among the languages {named}")


def _need_speakers(draft: _Draft, why: str) -> None:
    """Have speakers told apart where the job does not do so in another way."""
    if draft.own["task"] in ("transcribe", "translate") and draft.own.get("channels") != "separate":
        draft.need("diarization", why)


def _agreeing(request: Request, wanted: Any, warnings: tuple[str, ...]) -> Ask:
    """What is asked for, if the shape of the answer has room for it."""
    answer, granularities, stream = wanted.response_format, [], False
    if isinstance(wanted, TranscriptionFields):
        granularities, stream = wanted.timestamp_granularities, wanted.stream
    if granularities and answer != "verbose_json":
        raise RequestError("timestamp_granularities need response_format verbose_json", "timestamp_granularities")
    if stream and answer not in STREAMED:
        raise RequestError(f"response_format {answer} cannot be streamed; leave out stream, or ask for json", "stream")
    segments = not granularities or "segment" in granularities
    return Ask(request, answer, stream, segments, words=request.align_output, warnings=warnings)
