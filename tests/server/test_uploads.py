"""Bodies of requests: what arrives of them, what is refused, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
import tracemalloc
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fake_runner import FakeRunner
from fastapi import Request

from hansard.server import multipart, uploads
from hansard.server.multipart import MB, TEXT_MB, Parts, harmless
from hansard.server.uploads import received

if TYPE_CHECKING:
    from conftest import Serve, Server

BOUNDARY = "the-boundary"
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
SOUND = bytes(range(256)) * 4000 + b"\r\n--the-boundar"  # a megabyte, and nearly a boundary
PATIENCE_S = 30


@pytest.fixture
def door(serve: Serve) -> Server:
    """A server with an endpoint that says what it received, and keeps nothing."""
    return with_echo(serve(max_audio_mb=2))


def with_echo(server: Server) -> Server:
    async def echo(request: Request) -> dict[str, Any]:
        async with received(request, server.core, server.settings) as form:
            files = {
                field: [file.name, file.size, file.sha256, hashlib.sha256(file.path.read_bytes()).hexdigest()]
                for field, file in form.files.items()
            }
            return {"fields": form.fields, "files": files, "json": form.json}

    server.app.add_api_route("/echo", echo, methods=["POST"])
    return server


def connected(server: Server) -> socket.socket:
    """A bare connection, for requests that no client would send."""
    raw = socket.create_connection((server.http.base_url.host, server.http.base_url.port))
    raw.settimeout(PATIENCE_S)
    return raw


def left(server: Server) -> list[Path]:
    """What lies in the folder of uploads."""
    return list(server.core.uploads.iterdir())


def part(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def refused(server: Server, status: int, **sent: Any) -> str:
    """The sentence of a refusal, after which nothing may be left."""
    answer = server.http.post("/echo", **sent)
    assert answer.status_code == status, answer.text
    assert left(server) == []
    return str(answer.json()["error"]["message"])


def test_a_form_arrives_as_it_was_sent(door: Server) -> None:
    fields = {
        "model": "whisper-1",
        "timestamp_granularities[]": ["word", "segment"],
        "prompt": "Žluťoučký\nkůň",
        "": "",
    }
    fields.pop("")
    told = door.http.post("/echo", data=fields, files={"file": ("a talk.wav", SOUND)}).json()
    digest = hashlib.sha256(SOUND).hexdigest()
    assert told["fields"] == {
        "model": ["whisper-1"],
        "timestamp_granularities[]": ["word", "segment"],
        "prompt": ["Žluťoučký\nkůň"],
    }
    assert told["files"] == {"file": ["a talk.wav", len(SOUND), digest, digest]}
    assert told["json"] is None
    assert left(door) == []


def test_files_of_different_names_lie_apart(door: Server) -> None:
    told = door.http.post("/echo", files={"file": ("a", b"one"), "voice": ("b", b"two")}).json()
    assert {name: file[1] for name, file in told["files"].items()} == {"file": 3, "voice": 3}


def test_json_and_urlencoded_bodies(door: Server) -> None:
    sent = {"input": {"audio": "https://example.com/a.wav", "segments": [{"start": 0.5}]}, "text": "ü"}
    assert door.http.post("/echo", json=sent).json()["json"] == sent
    told = door.http.post("/echo", data={"a": "1&2", "b": ["x", "ü"], "c": ""}).json()
    assert told["fields"] == {"a": ["1&2"], "b": ["x", "ü"], "c": [""]}
    assert door.http.post("/echo").json() == {"fields": {}, "files": {}, "json": None}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xed\xa0\x80"}',
        b"\xff",
        '{"a": "b"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
    ],
    ids=["empty", "cut", "list", "null", "nan", "surrogate", "raw surrogate", "latin", "wide", "deep", "long number"],
)
def test_what_is_no_json_object_is_refused(door: Server, body: bytes) -> None:
    assert "JSON" in refused(door, 400, content=body, headers={"content-type": "application/json"})


def test_json_may_begin_with_a_mark_and_hold_a_pair(door: Server) -> None:
    body = b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}'
    answer = door.http.post("/echo", content=body, headers={"content-type": "application/json"})
    assert answer.json()["json"] == {"a": "\U0001f600"}


def test_json_of_too_many_values_is_refused(door: Server) -> None:
    """Of each value the memory is many times its two bytes."""
    many = b'{"a": [' + b"{}," * uploads.MOST_VALUES + b"{}]}"
    fits = json.dumps({"segments": [{"start": 1.5, "end": 2, "speaker": "A"}] * 45_000}).encode()
    headers = {"content-type": "application/json"}
    assert len(door.http.post("/echo", content=fits, headers=headers).json()["json"]["segments"]) == 45_000
    assert "more than 200000 values" in refused(door, 400, content=many, headers=headers)


def test_text_of_all_requests_together_is_bounded(door: Server) -> None:
    budget = door.app.state.budget
    assert budget.left == uploads.IN_HAND_MB * MB
    long, short = {"prompt": "x" * 5000}, {"prompt": "x" * 500}
    file = {"file": ("a", b"x" * 5000)}
    budget.left = 4000
    for sent in ({"json": long}, {"data": long}, {"data": long, "files": file}):
        answer = door.http.post("/echo", **sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert answer.headers["retry-after"] == "5"
        assert left(door) == []
    for sent in ({"json": short}, {"data": short}, {"data": short, "files": file}):
        assert door.http.post("/echo", **sent).status_code == 200
    assert budget.left == 4000, "what requests held was given back"
    assert door.http.post("/echo", json={"many": [{}] * 100}).status_code == 429, "a value costs more than its bytes"


def test_a_recording_above_the_limit_is_refused_while_it_comes(door: Server) -> None:
    def endless() -> Iterator[bytes]:
        yield part("file", b"", '; filename="a.wav"')[:-2]
        for _ in range(3):
            yield bytes(MB)

    assert "2 MB" in refused(door, 413, content=endless(), headers=MULTIPART)


def test_a_body_that_is_told_to_be_too_large_is_refused_unread(door: Server) -> None:
    """A length of terabytes and never a byte: the answer comes all the same."""
    with socket.create_connection(
        door.http.base_url.host and (door.http.base_url.host, door.http.base_url.port)
    ) as raw:
        raw.sendall(
            f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART['content-type']}\r\n"
            "Content-Length: 9000000000000\r\n\r\n".encode()
        )
        assert b" 413 " in raw.recv(1000)


def test_a_client_that_sends_too_much_gets_to_read_why(serve: Serve) -> None:
    """What is still coming is taken and thrown away, or the client would see a broken connection and send it again."""
    server = with_echo(serve(max_audio_mb=1))
    assert "1 MB" in refused(server, 413, files={"file": ("a.wav", bytes(40 * MB))})


def test_a_huge_field_that_is_no_file_is_refused(door: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "TEXT_MB", 1)
    assert "file part" in refused(door, 413, data={"prompt": "x" * (MB + 1)}, files={"file": ("a", b"x")})
    assert "file part" in refused(door, 413, content=b"x" * (TEXT_MB * MB + 1), headers={"content-type": "text/plain"})


def test_more_fields_than_anybody_needs_are_refused(door: Server) -> None:
    many = {f"field{number}": "" for number in range(multipart.MOST_FIELDS + 1)}
    assert "1000 fields" in refused(door, 400, data=many, files={"file": ("a", b"x")})
    assert "1000 fields" in refused(door, 400, data=many)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "ends before"),
        (b"no boundary at all", "well-formed"),
        (part("a", b"1"), "ends before"),
        (part("file", b"x", '; filename="a"')[:-2], "ends before"),
        (part("file", b"x", '; filename="a"') + part("file", b"y", '; filename="b"') + END, "two files"),
        (part("a", b"\xff") + END, "UTF-8"),
        (part("", b"1") + END, "no name"),
        (f"--{BOUNDARY}\r\nX: y\r\n\r\n1\r\n".encode() + END, "no name"),
        (f"--{BOUNDARY}\r\nX{'x' * 100_000}: y\r\n\r\n1\r\n".encode() + END, "well-formed"),
        (part("file", b"", '; filename="a.wav"') + END, "no bytes"),
    ],
    ids=["empty", "text", "cut", "cut file", "twice", "latin", "unnamed", "undisposed", "header", "empty file"],
)
def test_broken_forms_are_refused(door: Server, body: bytes, told: str) -> None:
    assert told in refused(door, 400, content=body, headers=MULTIPART)


def test_more_files_than_any_endpoint_takes_are_refused(door: Server) -> None:
    """Each is a file that is open."""
    many = {f"file{number}": ("a", b"x") for number in range(multipart.MOST_FILES + 1)}
    assert f"at most {multipart.MOST_FILES} files" in refused(door, 400, files=many)


def test_a_file_is_closed_when_its_part_ends(tmp_path: Path) -> None:
    async def two() -> None:
        parts = Parts(BOUNDARY.encode(), tmp_path, 1)
        await parts.write(part("a", b"one", '; filename="a"') + part("b", b"t", '; filename="b"')[:-2])
        assert [file.closed for file in parts._files] == [True, False]
        await parts.write(b"wo\r\n" + END)
        assert [file.closed for file in parts._files] == [True, True]
        _, files = await parts.finish()
        assert [file.path.read_bytes() for file in files.values()] == [b"one", b"two"]

    asyncio.run(two())


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ("; filename*=UTF-8''%C3%A9%20t.mp3", "é t.mp3"),
        ("; filename*=\"utf-8'en'a.mp3\"", "a.mp3"),
        ("; filename*=iso-8859-1''%E9.mp3", "é.mp3"),
        ("; FileName* = UTF-8''..%2F..%2Fa.mp3", "a.mp3"),
        ("; filename*=nothing''%ff.mp3", "mp3"),
        ("; filename=\"plain.mp3\"; filename*=UTF-8''other.mp3", "plain.mp3"),
    ],
)
def test_a_file_may_be_named_in_the_longer_way_alone(door: Server, extra: str, name: str) -> None:
    told = door.http.post("/echo", content=part("file", b"sound", extra) + END, headers=MULTIPART).json()
    assert told["fields"] == {}
    assert told["files"]["file"][:2] == [name, 5]


def test_other_bodies_are_refused(door: Server) -> None:
    assert "boundary" in refused(door, 400, content=END, headers={"content-type": "multipart/form-data"})
    long = {"content-type": "multipart/form-data; boundary=" + "x" * 1000}
    assert "well-formed" in refused(door, 400, content=END, headers=long)
    assert "multipart/form-data" in refused(door, 400, content=b"RIFF", headers={"content-type": "audio/wav"})
    urlencoded = {"content-type": "application/x-www-form-urlencoded"}
    assert "urlencoded" in refused(door, 400, content=b"a=%ff", headers=urlencoded)


def test_a_file_that_nobody_chose_is_none(door: Server) -> None:
    body = part("a", b"1") + part("file", b"", '; filename=""') + END
    assert door.http.post("/echo", content=body, headers=MULTIPART).json()["files"] == {}
    assert left(door) == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"../../etc/passwd", "passwd"),
        (rb"C:\Users\me\a talk (1).mp3", "a talk (1).mp3"),
        (b"a\r\nSet-Cookie: b\x00\x1b[31m.wav", "aSet-Cookie b[31m.wav"),
        ("Gespräch 録音.ogg".encode(), "Gespräch 録音.ogg"),
        (b"..", ""),
        (b"\xff\xfe.wav", "wav"),
        (b"a" * 5000, "a" * 100),
    ],
)
def test_a_files_name_is_made_harmless(given: bytes, kept: str) -> None:
    assert harmless(given) == kept


def test_the_name_never_decides_where_a_file_lies(door: Server) -> None:
    body = part("../../x", b"sound", '; filename="../../../x.wav"') + END
    told = door.http.post("/echo", content=body, headers=MULTIPART).json()
    assert told["files"]["../../x"][:2] == ["x.wav", 5]


def test_a_client_that_leaves_in_mid_upload_leaves_nothing(door: Server) -> None:
    with connected(door) as raw:
        raw.sendall(
            f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART['content-type']}\r\n"
            f"Content-Length: {MB}\r\n\r\n".encode()
            + part("file", bytes(1000), '; filename="a"')
        )
        until(lambda: left(door))
    until(lambda: not left(door))
    assert door.http.get("/healthz").status_code == 200


def test_a_client_that_falls_silent_is_told_so(serve: Serve) -> None:
    server = with_echo(serve(read_timeout_s=0.05))
    with connected(server) as raw:
        raw.sendall(
            f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART['content-type']}\r\n"
            f"Content-Length: {MB}\r\n\r\n".encode()
            + part("file", bytes(1000), '; filename="a"')
        )
        answer = raw.recv(2000)
    assert b" 400 " in answer
    assert b"stopped coming for 0.05 s" in answer
    assert left(server) == []


def test_a_client_that_trickles_is_told_so(serve: Serve) -> None:
    """A byte within every READ_TIMEOUT_S, and no end."""
    server = with_echo(serve(read_timeout_s=0.2))
    with connected(server) as raw:
        raw.sendall(
            f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART['content-type']}\r\n"
            f"Content-Length: {MB}\r\n\r\n".encode()
            + part("file", b"x", '; filename="a"')[:-2]
        )
        raw.settimeout(0.05)
        answer, end = b"", time.monotonic() + PATIENCE_S
        while not answer and time.monotonic() < end:
            raw.sendall(b"x")
            try:
                answer = raw.recv(2000)
            except TimeoutError:
                continue
    assert b" 400 " in answer
    assert b"comes too slowly" in answer
    until(lambda: not left(server))


def asked(server: Server, length: int, *headers: str) -> bytes:
    """The answer to a request whose body never comes; nothing where it is still waited for."""
    with connected(server) as raw:
        lines = [f"Content-Length: {length}", f"Content-Type: {MULTIPART['content-type']}", *headers]
        raw.sendall(("POST /echo HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        raw.settimeout(0.3)
        try:
            return raw.recv(2000)
        except TimeoutError:
            return b""


def test_a_full_queue_is_told_before_megabytes_come(serve: Serve, runner: FakeRunner) -> None:
    server = with_echo(serve(max_queue=1))
    assert asked(server, 60 * MB) == b""
    gate = runner.gated()
    for name in ("a", "b"):
        assert server.http.post("/v1/jobs", json={"audio": f"https://example.com/{name}.wav"}).status_code == 202
        until(lambda: server.core.running == 1)
    answer = asked(server, 60 * MB)
    assert b" 429 " in answer
    assert b"queue_full" in answer
    assert b"retry-after" in answer.lower()
    assert server.http.post("/echo", content=iter([b"x"]), headers=MULTIPART).status_code == 429, "of unknown length"
    for again in ("Idempotency-Key: mine", "X-Stainless-Retry-Count: 1"):
        assert asked(server, 60 * MB, again) == b"", "it may be a job that exists"
    assert b" 429 " in asked(server, 60 * MB, "X-Stainless-Retry-Count: 0")
    assert b" 413 " in asked(server, 6000 * MB), "what is refused for good is told first"
    assert server.http.post("/echo", json={"small": True}).status_code == 200
    gate.set()


def test_a_disk_that_is_nearly_full_is_told_before_megabytes_come(
    door: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    free = uploads.RESERVE_MB * MB + 2 * MB
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: usage(free))
    assert asked(door, 2 * MB) == b""
    free -= 1
    answer = asked(door, 2 * MB)
    assert b" 500 " in answer
    assert b"disk is nearly full" in answer
    assert door.http.post("/echo", json={"small": True}).status_code == 200


def test_a_full_disk_is_told_and_leaves_nothing(door: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multipart._File, "store", full)
    assert "No space left" in refused(door, 500, files={"file": ("a", SOUND)})


def test_what_was_left_to_others_is_not_discarded(serve: Serve) -> None:
    server = serve()
    kept = []

    async def take(request: Request) -> None:
        async with received(request, server.core, server.settings) as form:
            kept.append(form.files["file"].path)
            form.leave(kept[0])

    server.app.add_api_route("/take", take, methods=["POST"])
    answer = server.http.post("/take", files={"file": ("a", b"mine"), "other": ("b", b"nobody's")})
    assert answer.status_code == 200
    assert kept[0].read_text() == "mine"
    assert len(left(server)) == 1


async def stream(folder: Path, size: int) -> Parts:
    """A form with a file of `size` bytes, in chunks as they come from a socket."""
    parts = Parts(BOUNDARY.encode(), folder, 1000)
    await parts.write(part("file", b"", '; filename="a"')[:-2])
    for _ in range(size // 2**16):
        await parts.write(bytes(2**16))
    await parts.write(b"\r\n" + END)
    return parts


def test_memory_does_not_grow_with_the_upload(tmp_path: Path) -> None:
    """40 uploads of 4 MB at once: 160 MB of sound, each within its batch and a chunk or two."""

    async def many() -> int:
        tracemalloc.start()
        forms = await asyncio.gather(*(stream(tmp_path, 4 * 2**20) for _ in range(40)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        for form in forms:
            _, files = await form.finish()
            assert files["file"].size == 4 * 2**20
            files["file"].remove()
        return peak

    assert asyncio.run(many()) < 40 * 2 * multipart.BATCH + 10 * MB
    assert list(tmp_path.iterdir()) == []


def test_many_uploads_at_once_do_not_mix(door: Server) -> None:
    async def send(client: httpx.AsyncClient, number: int) -> bool:
        content = number.to_bytes(2, "big") * 50_000
        answer = await client.post("/echo", files={"file": (f"{number}.wav", content)}, data={"number": str(number)})
        told = answer.json()
        digest = hashlib.sha256(content).hexdigest()
        return bool(told["files"]["file"] == [f"{number}.wav", 100_000, digest, digest])

    async def all_at_once() -> list[bool]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=door.url, timeout=60, trust_env=False, limits=limits) as client:
            return await asyncio.gather(*(send(client, number) for number in range(50)))

    assert all(asyncio.run(all_at_once()))
    assert left(door) == []


def until(condition: Any) -> None:
    """Return when a condition holds; fail after a time that no machine needs."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
