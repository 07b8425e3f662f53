"""What every request meets first and last: an id, a line in the log, a place in the numbers, and a net for crashes.

A plain ASGI layer, so that answers stream through it. The id is the caller's own `x-request-id` where that is a sane
one, else a new one; it goes into the answer and into every line that is logged on the way.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextvars import ContextVar
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hansard.errors import HansardError
from hansard.server import problems
from hansard.server.access import address_of
from hansard.server.metrics import NOWHERE, Metrics

log = logging.getLogger(__name__)

current: ContextVar[str | None] = ContextVar("request", default=None)
"""The id of the request in hand."""

CLIENT_LEFT = 499  # nginx's status for a client that went away before its answer
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds by machines
_SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Requests:
    """The layer; `metrics` is where it counts."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        exchange = _Exchange(given if _SANE.fullmatch(given) else f"req_{uuid.uuid4().hex}", send, self._metrics)
        token = current.set(exchange.id)
        begin = time.perf_counter()
        try:
            await _caught(self._app, scope, receive, exchange)
        finally:
            seconds = time.perf_counter() - begin
            self._metrics.answered(scope["method"], _route(scope), exchange.status, seconds)
            _note(scope, exchange.status, seconds)
            current.reset(token)


class _Exchange:
    """One request: its id, how far its answer is, and the status it is counted under."""

    def __init__(self, request_id: str, send: Send, metrics: Metrics) -> None:
        self.id, self._send, self._metrics = request_id, send, metrics
        self.status = CLIENT_LEFT
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        await self._send(message)

    def failed(self, code: str, status: int) -> None:
        """Count an error that no handler of the application has told."""
        self.status = status
        self._metrics.refused(code)


async def _caught(app: ASGIApp, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
    """Answer even where the app fails. An answer that has begun is left unended, which the caller sees as a failure."""
    try:
        await app(scope, receive, exchange.send)
    except ClientDisconnect:
        exchange.status = CLIENT_LEFT
    except asyncio.CancelledError:  # the server stops, and this took longer than it waits
        exchange.failed("stopping", HTTPStatus.SERVICE_UNAVAILABLE)
        if not exchange.started:
            await problems.stopping()(scope, receive, exchange.send)
    except Exception as error:
        late = error.__cause__  # how the framework tells of an error after the answer had begun
        if exchange.started and isinstance(late, HansardError):
            log.warning("the answer ended in an error: %s", late)
            exchange.failed(late.code, problems.kind_of(late).status)
            return
        log.exception("the request failed")
        exchange.failed(HansardError.code, HTTPStatus.INTERNAL_SERVER_ERROR)
        if not exchange.started:
            await problems.crash(exchange.id)(scope, receive, exchange.send)


def _route(scope: Scope) -> str:
    """The template of the address, as in /v1/jobs/{job_id}: there are as many as routes."""
    return str(getattr(scope.get("route"), "path", None) or NOWHERE)


def _note(scope: Scope, status: int, seconds: float) -> None:
    """One line; the address as it came, percent-encoded and without its query, which may hold a key."""
    address = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")[:200]
    fields = {
        "method": scope["method"],
        "path": address,
        "status": status,
        "seconds": round(seconds, 4),
        "client": str(address_of(scope) or "-"),
    }
    expected = scope["path"] in QUIET and status in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE)
    level = logging.DEBUG if expected else logging.INFO
    log.log(
        level, "%(method)s %(path)s %(status)d in %(seconds).3f s from %(client)s", fields, extra={"fields": fields}
    )
