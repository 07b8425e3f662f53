"""Callers who wait for a job on their connection: kept alive, told the right status, never given the work twice.

    asked ── the job ends within the patience ─▶ its answer or its error, with the right status
      └───── it takes longer ─▶ 200, a filler every few seconds ─▶ the answer
                                                              └──▶ an error: the connection is broken off

A response that has begun cannot change its status. So an error after that ends it in mid-body: a client that sends the
request again is given the same job (by its digest), which nobody has heard yet, and with it the error and its status.
The patience is half of what the caller says that it waits (TIMEOUTS), at most 15 s.

Not covered: answers without a filler (captions and plain text, in which every byte counts) cannot be kept alive.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request as HttpRequest
from fastapi import Response
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from hansard.errors import HansardError
from hansard.request import Request
from hansard.server import problems
from hansard.server.context import core_of, settings_of
from hansard.server.job import Job, Submission
from hansard.server.jobs import JobCore
from hansard.settings import Settings
from hansard.transcript import Transcript

log = logging.getLogger(__name__)

PATIENCE_S = 15.0  # before a response begins without its answer
BEAT_S = 5.0  # between two fillers
SHORTEST_S = 0.2  # of either, whatever a caller says
TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")  # in seconds, as OpenAI's Python and Node packages say

HEARTBEAT_S = 15  # between two comments of a stream that tells of jobs or models
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy that buffers would keep the fillers


Kind = Literal["json", "events", "exact"]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a job's answer is sent.

    `render` makes the whole response. `kind` says what may go before its body to keep a connection alive: spaces
    before `json`, comments before `events`, nothing before `exact`.
    """

    render: Callable[[Transcript], Response]
    kind: Kind


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds before a response begins, and between two fillers."""

    patience: float = PATIENCE_S
    beat: float = BEAT_S


def rhythm(headers: Mapping[str, str]) -> Rhythm:
    """What a caller's own time-out allows."""
    half = max(SHORTEST_S, min(_seconds(headers.get(name, "")) for name in TIMEOUTS) / 2)
    return Rhythm(min(PATIENCE_S, half), min(BEAT_S, half))


def _seconds(text: str) -> float:
    """A time-out as a caller tells it; without end where it tells none."""
    try:
        seconds = float(text)
    except ValueError:
        return math.inf
    return seconds if math.isfinite(seconds) else math.inf


def digest(owner: str, sound: str, request: Request) -> str:
    """What makes two requests the same job: the caller, the sound (its sha256, "" for a URL) and every option."""
    told = (owner, sound, request.model_dump_json(), *request.secrets())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def stream_of(events: AsyncIterator[dict[str, str]]) -> EventSourceResponse:
    """A response of server-sent events that keeps its connection alive."""
    return EventSourceResponse(events, ping=HEARTBEAT_S, headers=HEADERS)


async def in_place(http: HttpRequest, submission: Submission, manner: Manner) -> Response:
    """Make a submission a job, and wait for it in its caller's place."""
    core, settings = core_of(http), settings_of(http)
    return Awaited(core, await core.submit(submission), manner, rhythm(http.headers), settings)


class Awaited(Response):
    """The response to a caller who waits for a job. Raises the job's error while the status can still be its own."""

    def __init__(self, core: JobCore, job: Job, manner: Manner, pace: Rhythm, settings: Settings) -> None:
        super().__init__()
        self._core = core
        self._settings = settings
        self._job = job
        self._manner = manner
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer when it is there. Raises ClientDisconnect when the caller leaves first."""
        owner = self._job.submission.owner
        with self._core.awaiting(self._job.id):
            ended = asyncio.ensure_future(self._core.wait(self._job.id, owner))
            gone = asyncio.ensure_future(_gone(receive))
            try:
                begun = await self._keep_alive(ended, gone, send)
                if gone.done():
                    raise ClientDisconnect
                if begun:
                    await self._finish(ended, gone, send)
                else:
                    await self._answer(ended, gone, (scope, receive, send))
            finally:
                for task in (ended, gone):
                    task.cancel()
                await asyncio.gather(ended, gone, return_exceptions=True)

    async def _keep_alive(self, ended: asyncio.Future[Job], gone: asyncio.Future[None], send: Send) -> bool:
        """Return when the job has ended or the caller has gone, and say whether the response has begun."""
        begun = False
        waits = self._pace.patience if self._manner.kind != "exact" else None
        either: set[asyncio.Future[Any]] = {ended, gone}
        while not (await asyncio.wait(either, timeout=waits, return_when=asyncio.FIRST_COMPLETED))[0]:
            if not begun:
                await send(_start(self._manner))
            begun, waits = True, self._pace.beat
            await send(_part(self._filler(), more=True))
        return begun

    def _filler(self) -> bytes:
        if self._manner.kind == "json":
            return b" "
        job = self._core.get(self._job.id, self._job.submission.owner)
        return f": {job.stage or job.state} {job.percent:.0f} %\n\n".encode()

    async def _answer(
        self, ended: asyncio.Future[Job], gone: asyncio.Future[None], where: tuple[Scope, Receive, Send]
    ) -> None:
        """The whole response. Raises the job's error."""
        try:
            response = await self._rendered(ended)
        except HansardError:
            self._core.heard(self._job.id)
            raise
        await response(*where)
        if not gone.done():
            self._core.heard(self._job.id)

    async def _finish(self, ended: asyncio.Future[Job], gone: asyncio.Future[None], send: Send) -> None:
        """The rest of a response that has begun. Raises the job's error once that was told, for the log and numbers."""
        try:
            told = bytes((await self._rendered(ended)).body)
        except HansardError as error:
            told = json.dumps(problems.body(error, self._settings)).encode()
            if self._manner.kind == "json":  # nothing follows: the server breaks the connection off
                await send(_part(told, more=True))
            else:
                left = gone.done()
                await send(_part(b"data: " + told + b"\n\n", more=False))
                if not left:
                    self._core.heard(self._job.id)
            raise
        left = gone.done()
        await send(_part(told, more=False))
        if not left:
            self._core.heard(self._job.id)

    async def _rendered(self, ended: asyncio.Future[Job]) -> Response:
        job = await ended
        return await asyncio.to_thread(self._render, job)  # hours of speech take their time

    def _render(self, job: Job) -> Response:
        return self._manner.render(self._core.result(job.id, job.submission.owner))


async def _gone(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(manner: Manner) -> dict[str, object]:
    kind = "application/json" if manner.kind == "json" else "text/event-stream; charset=utf-8"
    headers = {"Content-Type": kind, **HEADERS}
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }


def _part(content: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": content, "more_body": more}
