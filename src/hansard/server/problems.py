"""Every error as an answer in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

`KINDS` says of each code of `errors` what it is in HTTP. The types are OpenAI's. OpenAI's SDK resends by itself on
408, 409, 429 and from 500 up; where sending the same again is pointless the answer says so in `x-should-retry`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from hansard.errors import HansardError, RateError
from hansard.joblog import redact, secrets_in_hand
from hansard.settings import Settings

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 2_000  # characters: it may repeat what the caller sent, of any size
LONGEST_LOOK = 2 * LONGEST_MESSAGE  # characters of it in which secrets are looked for: they take little of it away
MOST_PROBLEMS = 20  # told at once
SHOWN = 100  # characters of an address that does not exist


class ProblemDetail(BaseModel):
    """What is wrong and what to do about it."""

    message: str = Field(examples=["num_speakers needs diarization: true"])
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(None, description="the field that is meant, where it is one")
    code: str | None = Field(None, description="stable name of the problem", examples=["invalid_request"])


class Problem(BaseModel):
    """An error, in OpenAI's shape."""

    error: ProblemDetail


@dataclass(frozen=True, slots=True)
class Kind:
    """What an error is in HTTP; `again`: the same request may well succeed later."""

    status: int
    type: str
    again: bool = False


_REQUEST = Kind(400, "invalid_request_error")
_PERMISSION = Kind(403, "permission_error")
_MISSING = Kind(404, "not_found_error")
_CONFLICT = Kind(409, "conflict_error")
_OURS = Kind(500, "server_error")
_OURS_NOW = Kind(500, "server_error", again=True)
_BEHIND = Kind(502, "server_error", again=True)
_AWAY = Kind(503, "server_error", again=True)

KINDS: dict[str, Kind] = {
    "internal": _OURS,
    "invalid_request": _REQUEST,
    "unsupported": _REQUEST,
    "bad_audio": _REQUEST,
    "fetch_failed": _REQUEST,
    "url_refused": _REQUEST,
    "audio_too_large": Kind(413, "invalid_request_error"),
    "audio_too_long": _REQUEST,
    "not_audio": _REQUEST,
    "no_audio_stream": _REQUEST,
    "empty_audio": _REQUEST,
    "encrypted_audio": _REQUEST,
    "engine_failed": _OURS_NOW,
    "engine_missing": Kind(501, "server_error"),
    "engine_crashed": _OURS_NOW,
    "unfit": Kind(503, "server_error"),
    "out_of_memory": _OURS,
    "service_failed": _BEHIND,
    "model_unavailable": _AWAY,
    "token_missing": _PERMISSION,
    "token_refused": _PERMISSION,
    "terms_not_accepted": _PERMISSION,
    "model_not_found": _MISSING,
    "hub_unreachable": _AWAY,
    "invalid_settings": _OURS,
    "access_denied": Kind(401, "authentication_error"),
    "forbidden": _PERMISSION,
    "rate_limited": Kind(429, "rate_limit_error", again=True),
    "queue_full": Kind(429, "rate_limit_error", again=True),
    "job_not_found": _MISSING,
    "job_not_finished": _CONFLICT,
    "cancelled": _CONFLICT,
    "timed_out": Kind(504, "server_error"),
    "result_too_large": _OURS,
}

_HEADERS = {
    "x-request-id": {"schema": {"type": "string"}, "description": "the id of the request in the server's log"},
    "x-should-retry": {"schema": {"const": "false"}, "description": "where the same request would fail again"},
    "Retry-After": {"schema": {"type": "integer"}, "description": "seconds, where waiting helps"},
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": Problem,
        "headers": _HEADERS,
        "description": "The request cannot be done as it is; `error.message` says what to change",
    },
    "5XX": {
        "model": Problem,
        "headers": _HEADERS,
        "description": "The server cannot do it, at least not now; `error.message` says why",
    },
}
"""What every endpoint may answer besides its own, for OpenAPI."""


def kind_of(error: HansardError) -> Kind:
    """What an error is in HTTP."""
    return KINDS[error.code]


def answer(error: HansardError, settings: Settings) -> JSONResponse:
    """An error of ours as the answer to a request."""
    kind = kind_of(error)
    headers = {} if kind.again else {"x-should-retry": "false"}
    if isinstance(error, RateError):
        headers["Retry-After"] = str(error.retry_after_s)
    if kind.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="hansard"'
    return JSONResponse(body(error, settings), kind.status, headers)


def body(error: HansardError, settings: Settings) -> dict[str, Any]:
    """An error of ours in OpenAI's shape: the body of an answer, or of an event in a stream."""
    return _shape(_clean(error.sentence, settings), kind_of(error).type, error.code, error.param)


def crash(request_id: str) -> JSONResponse:
    """The answer where we failed and do not know why; the log does, under the request's id."""
    sentence = f"this is our mistake; the server's log has the details under request {request_id}"
    return JSONResponse(_shape(sentence, _OURS.type, "internal"), 500, {"x-should-retry": "false"})


def stopping() -> JSONResponse:
    """The answer where the server is being stopped in mid-work; the one that comes after it knows the job."""
    sentence = "the server is being stopped; send the request again in a moment"
    return JSONResponse(_shape(sentence, _AWAY.type, "stopping"), _AWAY.status, {"Retry-After": "5"})


def unread(status: HTTPStatus, sentence: str) -> JSONResponse:
    """The answer to what no application has seen, as it is no request or too large a one."""
    return JSONResponse(_shape(sentence, _REQUEST.type, _code(status)), status, {"x-should-retry": "false"})


def install(app: FastAPI) -> None:
    """Have the app answer its errors this way; what nobody foresaw is caught further out, by `requests`."""
    app.add_exception_handler(HansardError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HansardError)
    request.app.state.metrics.refused(error.code)
    told = answer(error, request.app.state.settings)
    sentence = _clean(error.sentence, request.app.state.settings)[:LONGEST_MESSAGE]
    one_line = "".join(letter if letter.isprintable() else "?" for letter in sentence)
    log.info("%s: %s", error.code, one_line)
    return told


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Parameters that FastAPI refuses; what the caller sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    request.app.state.metrics.refused("invalid_request")
    problems = list(error.errors())
    sentences = [_sentence(problem) for problem in problems[:MOST_PROBLEMS]]
    param = _field(problems[0]["loc"]) if problems else None
    told = _shape("; ".join(sentences), _REQUEST.type, "invalid_request", param)
    return JSONResponse(told, _REQUEST.status, {"x-should-retry": "false"})


async def _http(request: Request, error: Exception) -> JSONResponse:
    """What the router refuses: an address or a method that does not exist."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = _code(status)
    request.app.state.metrics.refused(code)
    where = f"{request.method} {_path(request)}"
    sentence = {
        HTTPStatus.NOT_FOUND: f"there is no {where} here; /docs lists what there is",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{where} does not exist, but another method does; /docs lists what there is",
    }.get(status, str(error.detail))
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    headers = {**dict(error.headers or {}), "x-should-retry": "false"}
    return JSONResponse(_shape(sentence, kind, code), int(status), headers)


def _code(status: HTTPStatus) -> str:
    return status.phrase.lower().replace(" ", "_")


def _clean(sentence: str, settings: Settings) -> str:
    """A sentence without secrets; it may repeat what the caller sent, so it is cut before they are looked for."""
    secrets = (*settings.secrets(), *secrets_in_hand())
    told = redact(sentence[:LONGEST_LOOK], secrets)
    if len(sentence) > LONGEST_LOOK:  # the cut may have gone through a secret, of which a part is not found
        told = told[: -max((len(secret) for secret in secrets), default=1)]
    return told


def _path(request: Request) -> str:
    """The address without its query, as it came: percent-encoded."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return raw.decode("latin-1")[:SHOWN]


def _shape(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    text = message.encode("utf-8", "replace").decode()
    if len(text) > LONGEST_MESSAGE:
        text = text[:LONGEST_MESSAGE] + "…"
    return Problem(error=ProblemDetail(message=text, type=kind, param=param, code=code)).model_dump()


def _sentence(problem: Mapping[str, Any]) -> str:
    field, what = _field(problem["loc"]), str(problem["msg"]).removeprefix("Value error, ")
    return f"{field}: {what[0].lower()}{what[1:]}" if field else what


def _field(where: Sequence[str | int]) -> str | None:
    """The name of the field in a place such as ("query", "limit"); None for the body as a whole."""
    return ".".join(str(part) for part in where[1:] if isinstance(part, str)) or None
