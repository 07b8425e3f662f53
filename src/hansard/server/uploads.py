"""From the body of a request to fields and files, as it comes in: sound goes to disk and is never whole in memory.

A body may be multipart/form-data (`multipart`), JSON or urlencoded. Each file lies in a folder of its own under the
core's `uploads`, which the core takes over with a submission.

Not covered: raw sound as the whole body.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.multipart import parse_options_header

from hansard.errors import EngineError, RequestError, TooLargeError
from hansard.server.jobs import JobCore
from hansard.server.multipart import MB, MOST_FIELDS, TEXT_MB, TOO_MUCH_TEXT, Parts, Upload, too_large
from hansard.settings import Settings

__all__ = ["Form", "Upload", "received"]


@dataclass(frozen=True, slots=True)
class Form:
    """What a request's body held; a field may come more than once. `json` is its object where it was JSON."""

    fields: dict[str, list[str]]
    files: dict[str, Upload]
    json: dict[str, Any] | None = None

    def leave(self, recording: Path | None) -> None:
        """Leave the file at this path, or what was made of it beside it, to somebody else: `discard` keeps it."""
        for name, upload in list(self.files.items()):
            if recording is not None and upload.path.parent == recording.parent:
                del self.files[name]

    def discard(self) -> None:
        """Remove the files that nobody took; twice is fine."""
        while self.files:
            self.files.popitem()[1].remove()


@asynccontextmanager
async def received(request: Request, core: JobCore, settings: Settings) -> AsyncIterator[Form]:
    """The body of a request for as long as it takes to make something of it; files not left to others are then gone.

    Raises TooLargeError above MAX_AUDIO_MB, EmptyAudioError for a file without bytes, RequestError for a body that is
    not what it says or stops coming, EngineError where it cannot be stored, starlette's ClientDisconnect when the
    caller leaves. Whatever is raised, no file is left behind.
    """
    form = await _receive(request, core, settings)
    try:
        yield form
    finally:
        form.discard()


async def _receive(request: Request, core: JobCore, settings: Settings) -> Form:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        return await _multipart(request, options.get(b"boundary", b""), core.uploads, settings)
    body = await _text(request, settings)
    if kind == b"application/x-www-form-urlencoded":
        return Form(_urlencoded(body), {})
    if kind == b"application/json" or kind.endswith(b"+json"):
        return Form({}, {}, await asyncio.to_thread(_json, body))  # of megabytes it takes a while
    if body:
        raise RequestError("send multipart/form-data, application/json or application/x-www-form-urlencoded")
    return Form({}, {})


async def _multipart(request: Request, boundary: bytes, folder: Path, settings: Settings) -> Form:
    parts = Parts(boundary, folder, settings.max_audio_mb)
    try:
        most = (settings.max_audio_mb + TEXT_MB) * MB
        async for chunk in _chunks(request, most, too_large(settings.max_audio_mb), settings):
            await parts.write(chunk)
        return Form(*await parts.finish())
    except OSError as error:
        parts.remove()
        raise EngineError(f"the upload could not be stored on the server: {error.strerror}; try again later") from None
    except BaseException:
        parts.remove()
        raise


async def _text(request: Request, settings: Settings) -> bytes:
    """A body without files, whole."""
    chunks = _chunks(request, TEXT_MB * MB, TooLargeError(TOO_MUCH_TEXT), settings)
    return b"".join([chunk async for chunk in chunks])


async def _chunks(request: Request, most: int, too_much: TooLargeError, settings: Settings) -> AsyncIterator[bytes]:
    """A body's bytes as they come. Raises `too_much` above `most` of them, before the first if the caller says so."""
    told = request.headers.get("content-length", "")
    length = int(told) if told.isdecimal() else 0
    if length > most:
        raise too_much
    length = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(settings.read_timeout_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise RequestError(f"the body stopped coming for {settings.read_timeout_s:g} s; send it again") from None
        if chunk is None:
            return
        length += len(chunk)
        if length > most:
            raise too_much
        yield chunk


def _urlencoded(body: bytes) -> dict[str, list[str]]:
    """Raises RequestError."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise RequestError(f"the body is not urlencoded UTF-8 text of at most {MOST_FIELDS} fields") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _json(body: bytes) -> dict[str, Any]:
    """Raises RequestError."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text that can be sent
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON in UTF-8, as its Content-Type says") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object of named fields")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
