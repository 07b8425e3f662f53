"""One connection as uvicorn speaks it, with the limits that uvicorn leaves out: on heads, and on who keeps us waiting.

A head is the request line, the headers and the trailers of a request. Whoever sends more of it than MOST_HEAD, or
takes longer than HEAD_S over it, is cut off; so is whoever goes on with a body for HEAD_S after its answer. Bodies
that are still wanted are `uploads`' to judge.

Not covered: a caller that does not read its answer keeps it in memory for as long as the connection lives.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from hansard.server import problems

MOST_HEAD = 64 * 1024  # bytes
HEAD_S = 30.0  # seconds from the first moment that a head may come to its end
MOST_AHEAD = 32  # requests sent before the answers to those before them: a packet of 256 KB holds thousands
LINGER_S = 2.0  # seconds in which a refusal can be read: closed at once, what still comes would take it along


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which ends a connection whose head is too large or does not end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = 0  # bytes of this request's head that the parser has told
        self._untold = 0  # bytes since it last told anything: a part of a head, or nothing that is ever told
        self._refused = False
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._untold += len(data)
        super().data_received(data)
        if self._untold > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of a request is too large.")
        if self._answering:
            self._stop_waiting()
        elif self.timeout_keep_alive_task is None:  # uvicorn stops its own when anything comes
            self._wait()

    # What the parser tells

    def on_message_begin(self) -> None:
        self._head = self._untold = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._untold = 0
        super().on_headers_complete()
        if len(self.pipeline) > MOST_AHEAD:
            raise ValueError("too many requests at once")  # the parser stops, as over all that is no request

    def on_chunk_header(self) -> None:
        self._untold = 0

    def on_body(self, body: bytes) -> None:
        self._untold = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._untold = 0
        super().on_message_complete()
        if not self._answering:  # the end of a body whose answer came first: uvicorn would wait for ever
            self._stop_waiting()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # What uvicorn does

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read. In the middle of an answer nothing can be said: the connection ends."""
        self._refused = True
        if self._answering:
            self.transport.close()
            return
        answer = problems.unread(HTTPStatus.BAD_REQUEST, "what came is no HTTP request")
        if max(self._head, self._untold) > MOST_HEAD:
            sentence = f"the request line and headers are larger than {MOST_HEAD // 1024} KB"
            answer = problems.unread(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, sentence)
        head = [b"%s: %s\r\n" % field for field in (*answer.raw_headers, (b"connection", b"close"))]
        self.transport.write(b"".join([STATUS_LINE[answer.status_code], *head, b"\r\n", answer.body]))
        self.transport.write_eof()
        self._stop_waiting()
        self._limit = self.loop.call_later(LINGER_S, self.transport.close)

    @property
    def _answering(self) -> bool:
        """Is it our turn?"""
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, size: int) -> None:
        """Note a part of the head. Raises ValueError, over which the parser stops, past MOST_HEAD."""
        self._untold = 0
        self._head += size
        if self._head > MOST_HEAD:
            raise ValueError("too large a head")

    def _wait(self) -> None:
        """It is the caller's turn, for HEAD_S from now if it was not before."""
        if self._limit is None:
            self._limit = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
