"""Calls of a service over HTTP: one limit of time for all of a call, and sockets that can be shut from outside.

Nothing of the environment steers it: no proxy, no netrc, no redirect followed, no cookie kept. The key is in one
header of its session and nowhere else. requests is imported with this module, so import it where it is needed.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

from requests import Request, RequestException, Response, Session, Timeout
from requests.adapters import HTTPAdapter
from requests.exceptions import SSLError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as SlowError
from urllib3.util import Timeout as Limit

from hansard.errors import CancelledError, ServiceError
from hansard.retries import TOO_MANY, passes, retry_after
from hansard.settings import Settings
from hansard.transcribers.voxtral_pace import PassingError

LONGEST_RETRY_AFTER_S = 60.0
LARGEST_ANSWER = 1 << 25  # bytes; the text of ten minutes is a few thousand
BLOCK = 1 << 16


class Wire:
    """The connections of one job, for as many threads as `at_once`; no body goes on being sent once `stop` is set.

    A call takes at most VOXTRAL_TIMEOUT_S from its first byte to its last; a service that sends its headers drop by
    drop can draw it out.
    """

    def __init__(self, settings: Settings, key: str | None, at_once: int, stop: threading.Event) -> None:
        self._connect_s = min(settings.connect_timeout_s, settings.voxtral_timeout_s)
        self._total_s = settings.voxtral_timeout_s
        self._stop = stop
        self._sockets = _Sockets()
        self._session = _session(key, at_once)

    def post(self, url: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer to `body`, which is in the terms of requests.

        Raises PassingError where there is none, or where it says `not now`; ServiceError for a certificate that is not
        trusted, CancelledError.
        """
        until = time.monotonic() + self._total_s
        try:
            return self._send(url, body, until)
        except SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ServiceError(
                    "the certificate of the service behind VOXTRAL_ENDPOINT cannot be trusted; correct the address"
                ) from None
            failed = "broke off the connection"
        except (Timeout, SlowError, TimeoutError):
            failed = f"did not answer within {self._total_s:g} s"
        except (RequestException, HTTPError, OSError):
            late = time.monotonic() >= until  # with some of the body still to be sent
            slow = f"did not take the sound within {self._total_s:g} s"
            failed = slow if late else "could not be reached or broke off its answer"
        raise PassingError(failed)

    def close(self) -> None:
        """Ends the calls under way, each of which raises, and lets go of all connections."""
        self._sockets.shut()
        self._session.close()

    def _send(self, url: str, body: Mapping[str, Any], until: float) -> tuple[int, bytes]:
        request = self._session.prepare_request(Request("POST", url, **body))
        assert isinstance(request.body, bytes)
        upload = _Upload(request.body, until, self._stop, self._sockets)
        request.body = upload  # type: ignore[assignment]
        limit = Limit(total=self._total_s, connect=self._connect_s)
        try:
            with self._session.send(request, timeout=limit, allow_redirects=False, stream=True) as response:  # type: ignore[arg-type]
                status = response.status_code
                if passes(status):
                    raise PassingError(
                        f"answers {status}", min(retry_after(response), LONGEST_RETRY_AFTER_S), busy=status == TOO_MANY
                    )
                return status, _content(response, until)
        finally:
            upload.over()


class _Sockets:
    """The sockets of the calls under way; once shut, they and all that come later are of no use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: set[socket.socket] = set()
        self._shut = False

    def add(self, used: socket.socket) -> None:
        with self._lock:
            self._used.add(used)
            if self._shut:
                _shut(used)

    def discard(self, used: socket.socket) -> None:
        with self._lock:
            self._used.discard(used)

    def shut(self) -> None:
        with self._lock:
            self._shut = True
            for used in self._used:
                _shut(used)


def _shut(used: socket.socket) -> None:
    """Wake the thread that reads or writes there; it sees the end of the connection."""
    with suppress(OSError):
        socket.socket.shutdown(used, socket.SHUT_RDWR)  # that of TLS would take the thread's cipher away


class _Upload:
    """The body of a call, sent in blocks for as long as the call may take and the job goes on.

    In one go, all of it would have to be sent within the limit for connecting: urllib3 sets no other before it is.
    """

    def __init__(self, content: bytes, until: float, stop: threading.Event, sockets: _Sockets) -> None:
        self._content, self._until, self._stop, self._sockets = io.BytesIO(content), until, stop, sockets
        self._socket: socket.socket | None = None

    def goes_through(self, used: socket.socket) -> None:
        """From here on it is sent there."""
        self._socket = used
        self._sockets.add(used)

    def read(self, size: int) -> bytes:
        """The next block. Raises TimeoutError, CancelledError."""
        left = self._until - time.monotonic()
        if self._stop.is_set():
            raise CancelledError("the job was stopped")
        if left <= 0:
            raise TimeoutError
        if self._socket:
            self._socket.settimeout(left)
        return self._content.read(size)

    def over(self) -> None:
        """The call has ended, whichever way."""
        if self._socket:
            self._sockets.discard(self._socket)


class _Plain(HTTPConnection):
    """urllib3's connection, which tells the body of a call, an _Upload, by which socket it is sent."""

    def request(self, method: str, url: str, body: Any = None, *args: Any, **options: Any) -> None:
        if self.sock is None:
            self.connect()
        body.goes_through(self.sock)
        super().request(method, url, body, *args, **options)


class _Encrypted(_Plain, HTTPSConnection):
    """The same for https."""


class _Adapter(HTTPAdapter):
    """An adapter with these two kinds of connection."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        assert isinstance(pool, HTTPConnectionPool)
        pool.ConnectionCls = _Encrypted if pool.scheme == "https" else _Plain
        return pool


def _session(key: str | None, at_once: int) -> Session:
    session = Session()
    session.trust_env = False  # or a netrc would replace the key, and a proxy would see it
    session.headers.update({"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "hansard"})
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    if key:
        session.headers["Authorization"] = f"Bearer {key}"
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_connections=1, pool_maxsize=at_once, max_retries=0))
    return session


def _content(response: Response, until: float) -> bytes:
    """The body of an answer. Raises TimeoutError where it is not whole by then, PassingError where it has no end."""
    content = bytearray()
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if (connection := response.raw.connection) and connection.sock:
            connection.sock.settimeout(left)  # requests' own limit starts anew with every block
        block = response.raw.read1(BLOCK, decode_content=True)
        if not block:
            return bytes(content)
        content += block
        if len(content) > LARGEST_ANSWER:
            raise PassingError("answered with something that is no transcript")
