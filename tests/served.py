"""An HTTP server on the loopback for as long as a `with` lasts: what the stand-ins for services have in common."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class Served(ThreadingHTTPServer):
    """`over` tells the handlers that the test has ended, so that nothing is withheld any longer."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), handler)
        self.over = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self._thread.join(20)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in mid-body is what many tests are about."""
