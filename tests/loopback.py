"""An HTTP server on the loopback that plays what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from served import Served

PATIENCE_S = 5.0  # no play lasts longer, whatever becomes of the test


class Asked(NamedTuple):
    path: str
    headers: Message


class Player(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE_S
    server: Loopback

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append(Asked(self.path, self.headers))
        self.server.plays[self.path.partition("?")[0]](self)

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        """A whole answer; underscores in header names stand for hyphens, Content_Length can be made to lie."""
        self.start(status, **{"Content_Length": len(body), **headers})
        self.wfile.write(body)

    def start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def first(self) -> bool:
        """Whether this path is asked for the first time."""
        return sum(asked.path == self.path for asked in self.server.asked) == 1

    def stall(self) -> None:
        """Send nothing more until the test is over."""
        self.server.over.wait(PATIENCE_S)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


Play = Callable[[Player], None]


class Loopback(Served):
    def __init__(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        super().__init__(Player, address)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.plays: dict[str, Play] = {}
        self.asked: list[Asked] = []
        self._scheme = "https" if tls else "http"

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.server_port}{path}"
