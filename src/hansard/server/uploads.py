"""From the body of a request to fields and files, as it comes in: sound goes to disk and is never whole in memory.

A body may be multipart/form-data (`multipart`), JSON or urlencoded. Each file lies in a folder of its own under the
core's `uploads`, which the core takes over with a submission. What cannot be taken in the end is refused before it
comes: megabytes for a queue that is full or a disk that nearly is.

Not covered: raw sound as the whole body; the disk that other bodies on their way will need.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from python_multipart.multipart import parse_options_header

from hansard.audio.download import SLOWEST
from hansard.errors import EngineError, QueueFullError, RequestError, TooLargeError
from hansard.server.jobs import JobCore
from hansard.server.multipart import MB, MOST_FIELDS, TEXT_MB, TOO_MUCH_TEXT, Parts, Upload, too_large
from hansard.settings import Settings

__all__ = ["Budget", "Form", "Upload", "received"]

IN_HAND_MB = 200  # of text of all requests at once; as values it takes several times as much
SMALL = MB  # bytes: so short a body is read before it is judged
RESERVE_MB = 200  # of disk that uploads leave to results and to the log
MOST_VALUES = 200_000  # in a JSON body
VALUE = 100  # bytes of memory that one costs, though two stand for it
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Budget:
    """The bytes of text that all requests in hand may hold together. Belongs to one event loop."""

    def __init__(self, most: int = IN_HAND_MB * MB) -> None:
        self.left = most


class Hold:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = 0

    def add(self, size: int) -> None:
        """Hold more. Raises QueueFullError where other requests hold too much for that."""
        if size > self._budget.left:
            raise QueueFullError("the server holds as much text of requests as it can; try again soon", retry_after_s=5)
        self._budget.left -= size
        self._held += size

    def release(self) -> None:
        """Give all of it back; twice is fine."""
        self._budget.left += self._held
        self._held = 0


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
    not what it says, stops coming or crawls, QueueFullError where the queue is full or too much text is in hand,
    EngineError where it cannot be stored, starlette's ClientDisconnect when the caller leaves. Whatever is raised, no
    file is left behind.
    """
    _refuse_in_vain(request, core, settings)
    hold = Hold(request.app.state.budget)
    try:
        form = await _receive(request, hold, core.uploads, settings)
        try:
            yield form
        finally:
            form.discard()
    finally:
        hold.release()


def _refuse_in_vain(request: Request, core: JobCore, settings: Settings) -> None:
    """Raises QueueFullError, EngineError for a large body that could not become a job, before it comes.

    Who sends the same again may be given the job that exists, for which no place in the queue is needed.
    """
    length = _length(request)
    if "transfer-encoding" not in request.headers and not SMALL < length <= (settings.max_audio_mb + TEXT_MB) * MB:
        return  # it is no loss, or refused for good
    resent = "idempotency-key" in request.headers or request.headers.get("x-stainless-retry-count", "0") != "0"
    if (waiting := core.waiting) >= settings.max_queue and not resent:
        raise QueueFullError(f"{waiting} jobs are waiting; try again later")
    if shutil.disk_usage(core.uploads).free < length + RESERVE_MB * MB:
        raise EngineError("the server's disk is nearly full; try again later, or give a URL")


async def _receive(request: Request, hold: Hold, folder: Path, settings: Settings) -> Form:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        parts = Parts(options.get(b"boundary", b""), folder, settings.max_audio_mb, hold.add)
        return await _multipart(request, parts, settings)
    body = await _text(request, hold, settings)
    if kind == b"application/x-www-form-urlencoded":
        return Form(_urlencoded(body), {})
    if kind == b"application/json" or kind.endswith(b"+json"):
        hold.add(VALUE * await asyncio.to_thread(_values, body))
        return Form({}, {}, await asyncio.to_thread(_json, body))  # of megabytes it takes a while
    if body:
        raise RequestError("send multipart/form-data, application/json or application/x-www-form-urlencoded")
    return Form({}, {})


async def _multipart(request: Request, parts: Parts, settings: Settings) -> Form:
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


async def _text(request: Request, hold: Hold, settings: Settings) -> bytearray:
    """A body without files, whole."""
    body = bytearray()
    async for chunk in _chunks(request, TEXT_MB * MB, TooLargeError(TOO_MUCH_TEXT), settings):
        hold.add(len(chunk))
        body += chunk
    return body


async def _chunks(request: Request, most: int, too_much: TooLargeError, settings: Settings) -> AsyncIterator[bytes]:
    """A body's bytes as they come.

    Raises `too_much` above `most` of them, before the first if the caller says so, and RequestError where they stop
    coming or crawl: a byte now and then would satisfy READ_TIMEOUT_S for ever.
    """
    if _length(request) > most:
        raise too_much
    length, waited = 0, 0.0
    stream = request.stream()
    while True:
        since = time.monotonic()
        try:
            async with asyncio.timeout(settings.read_timeout_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise RequestError(f"the body stopped coming for {settings.read_timeout_s:g} s; send it again") from None
        if chunk is None:
            return
        length += len(chunk)
        waited += time.monotonic() - since  # for the caller alone, not for this machine's disk
        if length > most:
            raise too_much
        if waited > 2 * settings.read_timeout_s + length / SLOWEST:
            raise RequestError(f"the body comes too slowly: {length} bytes in {waited:.0f} s")
        yield chunk


def _length(request: Request) -> int:
    """The bytes of a body as its caller tells them, 0 where it does not."""
    told = request.headers.get("content-length", "")
    return int(told) if told.isdecimal() else 0


def _urlencoded(body: bytearray) -> dict[str, list[str]]:
    """Raises RequestError."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise RequestError(f"the body is not urlencoded UTF-8 text of at most {MOST_FIELDS} fields") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _values(body: bytearray) -> int:
    """At least as many values as a JSON body holds. Raises RequestError above MOST_VALUES."""
    count = sum(map(body.count, (b"{", b"[", b",")))
    if count > MOST_VALUES:
        raise RequestError(f"the body holds more than {MOST_VALUES} values")
    return count


def _json(body: bytearray) -> dict[str, Any]:
    """Raises RequestError."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair is JSON, but no text that can be sent
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON in UTF-8, as its Content-Type says") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object of named fields")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
