"""Connections that send too much of a head, or too little of it, or none: real sockets before a real uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from hansard.server import protocol
from hansard.server.protocol import MOST_HEAD, Protocol

PATIENCE_S = 30
SOON_S = 0.3  # for HEAD_S
HOST = b"Host: localhost\r\n"

Connect = Callable[[], socket.socket]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """/slow answers late; /early before its body has come; any other with the number of bytes of its body."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * SOON_S)
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    told = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})


@contextmanager
def serving() -> Iterator[Connect]:
    """A server with the protocol, and how to connect to it."""
    config = uvicorn.Config(
        app, http=Protocol, log_config=None, access_log=False, ws="none", lifespan="off", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as connections:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        until(lambda: server.started)

        def connect() -> socket.socket:
            raw = connections.enter_context(socket.create_connection(listener.getsockname()))
            raw.settimeout(PATIENCE_S)
            return raw

        yield connect
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connections to a server that waits as long as the real one."""
    with serving() as way:
        yield way


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Connections to a server that waits for a moment only."""
    monkeypatch.setattr(protocol, "HEAD_S", SOON_S)
    with serving() as way:
        yield way


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def send_all(raw: socket.socket, data: bytes, piece: int = 8192) -> int:
    """Send until the other side has had enough; how much that was."""
    sent = 0
    try:
        while sent < len(data):
            sent += raw.send(data[sent : sent + piece])
    except OSError:
        pass
    return sent


def rest(raw: socket.socket) -> bytes:
    """Everything that comes until the connection ends, which it must."""
    told = b""
    try:
        while more := raw.recv(65_536):
            told += more
    except ConnectionError:
        pass
    return told


def answer(raw: socket.socket) -> bytes:
    """One answer of `app`: its body ends with a digit."""
    told = b""
    while not (told.partition(b"\r\n\r\n")[2]):
        more = raw.recv(65_536)
        assert more, told
        told += more
    return told


HEADS = {
    "one header": b"GET / HTTP/1.1\r\nX: " + b"x" * 10 * MOST_HEAD,
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * MOST_HEAD,
    "a name": b"GET / HTTP/1.1\r\n" + b"x" * 10 * MOST_HEAD,
    "an address": b"GET /" + b"x" * 10 * MOST_HEAD,
    "an end": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MOST_HEAD // 5) + b"\r\n",
    "nothing at all": b"\r\n" * 10 * MOST_HEAD,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_too_large_a_head_is_refused(connect: Connect, head: bytes) -> None:
    raw = connect()
    send_all(raw, head)
    told = rest(raw)
    status, _, body = told.partition(b"\r\n\r\n")
    assert b" 431 " in status
    assert json.loads(body)["error"]["code"] == "request_header_fields_too_large"
    assert "64 KB" in json.loads(body)["error"]["message"]


def test_an_endless_head_is_not_kept(connect: Connect) -> None:
    """After the refusal it is thrown away for a moment, and then the connection is gone."""
    raw = connect()
    send_all(raw, HEADS["one header"])
    assert b" 431 " in raw.recv(1000)
    begin = time.monotonic()
    while send_all(raw, bytes(65_536)) == 65_536:
        assert time.monotonic() < begin + PATIENCE_S


def test_a_head_below_the_limit_is_taken(connect: Connect) -> None:
    raw = connect()
    for _ in range(3):
        raw.sendall(b"POST /" + b"x" * 30_000 + b" HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 30_000 + b"\r\n")
        raw.sendall(b"Content-Length: 3\r\n\r\nabc")
        assert answer(raw).endswith(b"\r\n\r\n3")


def test_bodies_are_not_counted(connect: Connect) -> None:
    raw, size = connect(), 20 * MOST_HEAD
    raw.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size)
    raw.sendall(bytes(size))
    assert answer(raw).endswith(b"%d" % size)
    raw.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    raw.sendall(b"1\r\nx\r\n" * MOST_HEAD + b"0\r\n\r\n")
    assert answer(raw).endswith(b"%d" % MOST_HEAD)


@pytest.mark.parametrize(
    "tail", [b"0\r\nX: " + b"x" * 10 * MOST_HEAD, b"0\r\n" + b"X: y\r\n" * MOST_HEAD, b"5;" + b"x" * 10 * MOST_HEAD]
)
def test_trailers_are_heads_too(connect: Connect, tail: bytes) -> None:
    raw = connect()
    raw.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
    send_all(raw, tail)
    assert b" 200 " not in rest(raw)


def test_what_is_no_request_is_told_so_in_the_shape_of_every_error(connect: Connect) -> None:
    raw = connect()
    raw.sendall(b"\x16\x03\x01 is how TLS begins\r\n\r\n")
    status, _, body = rest(raw).partition(b"\r\n\r\n")
    assert b" 400 " in status
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_thousands_of_requests_at_once_are_cut_off(connect: Connect) -> None:
    raw = connect()
    send_all(raw, b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n" + (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 5000)
    assert rest(raw).count(b" 200 ") < 100


def test_a_few_requests_at_once_are_answered_in_turn(connect: Connect) -> None:
    raw = connect()
    raw.sendall((b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 10)
    assert rest(raw).count(b" 200 ") == 10


# Who keeps us waiting


def ends_soon(raw: socket.socket, trickle: bytes = b"") -> bytes:
    """What comes until the connection is ended, though a byte is sent now and then."""
    begin = time.monotonic()
    raw.settimeout(SOON_S / 6)
    told = b""
    while time.monotonic() < begin + PATIENCE_S:
        try:
            more = raw.recv(65_536)
            if not more:
                return told
            told += more
        except TimeoutError:
            if trickle:
                send_all(raw, trickle)
        except ConnectionError:
            return told
    raise AssertionError("the connection lives on")


def test_who_says_nothing_is_cut_off(soon: Connect) -> None:
    begin = time.monotonic()
    assert ends_soon(soon()) == b""
    assert time.monotonic() - begin >= SOON_S * 0.9


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n" + HOST + b"X: "])
def test_who_never_ends_a_head_is_cut_off(soon: Connect, start: bytes) -> None:
    raw = soon()
    raw.sendall(start)
    assert ends_soon(raw, b"\r\n" if not start else b"x") == b""


def test_the_next_head_has_as_much_time(soon: Connect) -> None:
    raw = soon()
    raw.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert b" 200 " in answer(raw)
    time.sleep(2 * SOON_S)  # idle, for which uvicorn has its own time
    raw.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert b" 200 " in answer(raw)
    raw.sendall(b"GET / HTTP/1.1\r\nX: ")
    assert ends_soon(raw, b"x") == b""


def test_answers_and_bodies_may_take_longer(soon: Connect) -> None:
    raw = soon()
    raw.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
    assert b" 200 " in answer(raw)
    raw.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 8\r\n\r\n")
    for _ in range(8):
        time.sleep(SOON_S / 2)
        raw.sendall(b"x")
    assert answer(raw).endswith(b"8")


def test_a_body_that_goes_on_after_its_answer_is_cut_off(soon: Connect) -> None:
    raw = soon()
    raw.sendall(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n")
    assert b" 200 " in ends_soon(raw, b"x")


def test_a_body_that_ends_after_its_answer_leaves_the_connection_usable(soon: Connect) -> None:
    raw = soon()
    raw.sendall(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n")
    assert b" 200 " in answer(raw)
    raw.sendall(b"abc")
    time.sleep(2 * SOON_S)
    raw.sendall(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert b" 200 " in answer(raw)
    assert ends_soon(raw) == b"", "and when nothing follows it is closed"


def test_a_connection_is_closed_when_nothing_follows_a_late_body(soon: Connect) -> None:
    raw = soon()
    raw.sendall(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n")
    assert b" 200 " in answer(raw)
    raw.sendall(b"abc")
    assert ends_soon(raw) == b""
