"""From the body of an HTTP request to a submission, for every door but OpenAI's: fields in, a checked request out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from hansard.errors import RequestError
from hansard.request import ALIASES, Request, json_schema, parse
from hansard.server.form_values import inlined, typed
from hansard.server.job import UPLOADED
from hansard.server.openai.models import own_name
from hansard.server.uploads import Form, Upload
from hansard.server.waiting import digest
from hansard.settings import Settings

EXAMPLE = "https://example.com/meeting.mp3"
SOURCES = ("audio", *ALIASES["audio"])


def given(form: Form) -> dict[str, object]:
    """The fields of a body as values: JSON as it is, text by the types of a request's fields."""
    return dict(form.json) if form.json is not None else typed(form.fields, fields_schema()["properties"])


def request_from(fields: Mapping[str, object], upload: Upload | None, settings: Settings) -> Request:
    """A request whose sound is an upload, or the source that its fields name; MODEL_ALIASES hold for its model.

    Raises RequestError.
    """
    payload = dict(fields)
    if upload is not None:
        sources = [name for name in SOURCES if payload.get(name) is not None]
        if sources:
            raise RequestError(f"the recording came as a file and as {sources[0]}; give one of them")
        payload["audio"] = UPLOADED
    if isinstance(model := payload.get("model"), str):
        payload["model"] = own_name(model, settings)
    return parse(payload)


def only_file(form: Form, name: str) -> Upload | None:
    """The one file of a form, left in it. Raises RequestError for a file of another name."""
    for other in form.files:
        if other != name:
            raise RequestError(f"the file {other[:60]} is not taken here; send one recording, as {name}")
    return form.files.get(name)


def sameness(owner: str, request: Request, upload: Upload | None, *more: object) -> str:
    """What is the same job: the caller, the sound, the options, and whatever else tells jobs apart."""
    told = [digest(owner, upload.sha256 if upload else "", request), more]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@cache
def fields_schema() -> dict[str, Any]:
    """The JSON Schema of a request's fields, whole in itself: within OpenAPI a reference would name something else."""
    return inlined(json_schema())


def body_schema(beside: Mapping[str, Any], *, file: str | None = None) -> dict[str, Any]:
    """The JSON Schema of a body: a request's fields and what stands beside them; with `file` as its sound."""
    schema = fields_schema()
    properties = {**schema["properties"], **beside}
    if file is None:
        return {**schema, "properties": properties}
    properties = {name: _in_a_form(field) for name, field in properties.items() if name not in SOURCES}
    sound = {"type": "string", "format": "binary", "description": "the recording, in any container or codec"}
    rest = {key: value for key, value in schema.items() if key != "oneOf"}
    return {**rest, "properties": {file: sound, **properties}, "required": [file]}


def _in_a_form(field: Mapping[str, Any]) -> dict[str, Any]:
    """A field's schema without null, for which a form has no text."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {key: value for key, value in field.items() if (key, value) != ("default", None)}
    return rest | ({"anyOf": kinds} if kinds else {})


def task_schema(*tasks: str) -> dict[str, Any]:
    """The field `task` of an endpoint that does some tasks only, the usual one first."""
    kinds = [{"type": "string", "enum": list(tasks)}, {"type": "null"}]
    return {"task": {"anyOf": kinds, "default": tasks[0], "description": "what to make of the recording"}}


def bodies(beside: Mapping[str, Any], example: Mapping[str, Any], *, file: str = "file") -> dict[str, Any]:
    """The body of a job for OpenAPI, as a form with a file or as JSON with a source; `example` is beside either."""
    form = {"schema": body_schema(beside, file=file), "example": {file: "(the recording)", **example}}
    text = {"schema": body_schema(beside), "example": {"audio": EXAMPLE, **example}}
    return {"required": True, "content": {"multipart/form-data": form, "application/json": text}}
