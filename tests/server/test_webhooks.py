"""Webhooks: what is sent and how it is signed, what is tried again, where nothing is sent, and what a restart keeps."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import queue
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from fake_runner import TRANSCRIPT, FakeRunner, Play
from pydantic import SecretStr

from hansard.errors import AudioError, SettingsError
from hansard.server import webhooks
from hansard.server.webhooks import signed, signing_key

if TYPE_CHECKING:
    from conftest import Serve, Server

pytestmark = pytest.mark.timeout(60)

SECRET = "whsec_" + base64.b64encode(b"a key of some bytes").decode()
LONG_S = 30  # however busy the machine


@dataclass
class Receiver:
    """Somebody's server: the messages that it got, and what it answers to each in turn, then 200."""

    answers: list[int] = field(default_factory=list)
    got: queue.Queue[tuple[dict[str, str], bytes]] = field(default_factory=queue.Queue)
    gate: Event | None = None
    url: str = ""

    def message(self) -> tuple[dict[str, str], bytes]:
        """The next message: its headers in small letters, and its body."""
        return self.got.get(timeout=LONG_S)

    def told(self) -> dict[str, Any]:
        """What the next message says."""
        said: dict[str, Any] = json.loads(self.message()[1])
        return said


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback, which has no patience with redirects: it would note the second request too."""
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.got.put(({name.lower(): value for name, value in self.headers.items()}, body))
            if state.gate:
                state.gate.wait(LONG_S)
            status = state.answers.pop(0) if state.answers else 200
            self.send_response(status)
            if status in (301, 307):
                self.send_header("Location", state.url + "elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/hooks/"
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "FIRST_WAIT_S", 0)


def sent(server: Server, url: str, **fields: Any) -> str:
    """The id of a job with a webhook."""
    answer = server.http.post("/v1/jobs", json={"audio": "https://example.com/a.mp3", "webhook": url, **fields})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def wait_until_told(server: Server) -> None:
    """Return when no message is outstanding."""
    end = time.monotonic() + LONG_S
    while server.core.undelivered():
        assert time.monotonic() < end, "the message is still outstanding"
        time.sleep(0.01)


def test_a_completed_job_is_told_with_its_result_and_signed(serve: Serve, receiver: Receiver) -> None:
    server = serve(allow_private_urls=True, webhook_secret=SecretStr(SECRET))
    job_id = sent(server, receiver.url, metadata={"meeting": 7}, diarization=True)
    headers, body = receiver.message()
    told = json.loads(body)
    assert (told["id"], told["state"], told["error"]) == (job_id, "completed", None)
    assert told["metadata"] == {"meeting": 7}
    wait_until_told(server)
    assert told["result"] == server.http.get(f"/v1/jobs/{job_id}/result").json()
    assert (headers["content-type"], headers["webhook-id"]) == ("application/json", f"msg_{job_id}")
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(b"a key of some bytes", content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    assert receiver.got.empty()


def test_without_a_secret_it_is_unsigned(serve: Serve, receiver: Receiver) -> None:
    sent(serve(allow_private_urls=True), receiver.url)
    headers, _ = receiver.message()
    assert "webhook-signature" not in headers
    assert headers["webhook-id"]


def test_the_signature_of_the_specification() -> None:
    """The example that the specification's own libraries are tested with."""
    key = signing_key(SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    headers = signed(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_any_text_is_a_key_but_broken_base64_is_none() -> None:
    assert signing_key(SecretStr(" plain words ")) == b"plain words"
    assert signing_key(SecretStr(" ")) is signing_key(None) is None
    with pytest.raises(SettingsError, match="WEBHOOK_SECRET"):
        signing_key(SecretStr("whsec_*"))


def test_a_failed_and_a_cancelled_job_are_told(serve: Serve, runner: FakeRunner, receiver: Receiver) -> None:
    server = serve(allow_private_urls=True)
    runner.plays.append(Play(AudioError("this recording cannot be used")))
    sent(server, receiver.url)
    told = receiver.told()
    assert (told["state"], told["error"]["code"], "result" in told) == ("failed", "bad_audio", False)
    runner.gated()
    job_id = sent(server, receiver.url, language="en")
    server.http.delete(f"/v1/jobs/{job_id}")
    assert (receiver.told()["state"], "result" in told) == ("cancelled", False)


def test_a_large_result_is_to_be_fetched(serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MOST_RESULT", 100)
    sent(serve(allow_private_urls=True), receiver.url)
    told = receiver.told()
    assert (told["state"], "result" in told) == ("completed", False)


def test_it_is_sent_again_until_it_is_taken(serve: Serve, receiver: Receiver) -> None:
    receiver.answers = [500, 429, 503]
    server = serve(allow_private_urls=True)
    job_id = sent(server, receiver.url)
    messages = [receiver.message() for _ in range(4)]
    assert {headers["webhook-id"] for headers, _ in messages} == {f"msg_{job_id}"}
    assert len({body for _, body in messages}) == 1
    wait_until_told(server)
    assert receiver.got.empty()


@pytest.mark.parametrize(("status", "tries"), [(500, webhooks.TRIES), (404, 1), (307, 1)])
def test_it_is_given_up(serve: Serve, receiver: Receiver, status: int, tries: int) -> None:
    """After some tries, or at once where another would not help; a redirect is not followed."""
    receiver.answers = [status] * 20
    server = serve(allow_private_urls=True)
    sent(server, receiver.url)
    receiver.message()
    wait_until_told(server)
    assert receiver.got.qsize() == tries - 1


def test_nothing_listens_and_nothing_suffers(
    serve: Serve, runner: FakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(allow_private_urls=True)
    job_id = sent(server, "http://user:password@127.0.0.1:9/private/hook?key=1")
    with server.http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        stream.read()
    wait_until_told(server)
    assert server.http.get(f"/v1/jobs/{job_id}").json()["state"] == "completed"
    assert "given up" in caplog.text
    for secret in ("password", "private", "key=1"):
        assert secret not in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_private_addresses_get_nothing(
    serve: Serve, receiver: Receiver, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    server = serve()
    sent(server, receiver.url.replace("127.0.0.1", host))
    job_ended(server)
    wait_until_told(server)
    assert "private address" in caplog.text
    assert receiver.got.empty()


def job_ended(server: Server) -> None:
    """Return when the newest job has ended."""
    job_id = server.http.get("/v1/jobs").json()["jobs"][0]["id"]
    with server.http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        stream.read()


def test_what_was_not_told_is_told_after_a_restart(serve: Serve, receiver: Receiver) -> None:
    receiver.gate, receiver.answers = Event(), [500]
    first = serve(allow_private_urls=True)
    job_id = sent(first, receiver.url)
    before = receiver.message()
    first.stop()
    receiver.gate.set()
    second = serve(allow_private_urls=True)
    after = receiver.message()
    assert after[0]["webhook-id"] == before[0]["webhook-id"] == f"msg_{job_id}"
    assert json.loads(after[1])["result"]["segments"][0]["text"] == TRANSCRIPT.segments[0].text
    wait_until_told(second)
    second.stop()
    serve(allow_private_urls=True)
    assert receiver.got.empty()


def test_a_slow_receiver_holds_up_no_job(serve: Serve, receiver: Receiver) -> None:
    receiver.gate = Event()
    server = serve(allow_private_urls=True)
    ids = [sent(server, receiver.url, hotwords=str(number)) for number in range(webhooks.AT_ONCE + 2)]
    job_ended(server)
    states = {job["state"] for job in server.http.get("/v1/jobs").json()["jobs"]}
    receiver.gate.set()
    assert states == {"completed"}
    assert {receiver.told()["id"] for _ in ids} == set(ids)


def test_receivers_that_drip_hold_up_nobody(serve: Serve, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the patience for a byte, but a try as a whole has its limit."""
    monkeypatch.setattr(webhooks, "TIMES_S", (5.0, 0.5))
    monkeypatch.setattr(webhooks, "AT_ONCE", 2)
    monkeypatch.setattr(webhooks, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as slow, dripping(slow):
        server = serve(allow_private_urls=True)
        for number in range(4):
            sent(server, f"http://127.0.0.1:{slow.getsockname()[1]}/", hotwords=str(number))
        job_id = sent(server, receiver.url)
        assert receiver.told()["id"] == job_id
        wait_until_told(server)


@contextlib.contextmanager
def dripping(listener: socket.socket) -> Iterator[None]:
    """Have every connection answered with a header that never ends."""
    over = Event()

    def drip() -> None:
        found: list[socket.socket] = []
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                found.append(listener.accept()[0])
                found[-1].sendall(b"HTTP/1.1 200 OK\r\nx-drop: ")
            for connection in found:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")
        for connection in found:
            connection.close()

    listener.settimeout(0.05)
    thread = Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_body_that_could_not_be_made_is_told_by_the_next_server(
    serve: Serve, runner: FakeRunner, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("our mistake")

    monkeypatch.setattr(webhooks.Webhooks, "_body", broken)
    server = serve(allow_private_urls=True)
    job_id = sent(server, receiver.url)
    while server.http.get(f"/v1/jobs/{job_id}").json()["state"] != "completed":
        time.sleep(0.01)
    server.stop()
    monkeypatch.undo()
    monkeypatch.setattr(webhooks, "FIRST_WAIT_S", 0)
    serve(allow_private_urls=True)
    assert receiver.told()["id"] == job_id


def test_a_redirect_is_not_followed(serve: Serve, receiver: Receiver) -> None:
    receiver.answers = [307]
    server = serve(allow_private_urls=True)
    sent(server, receiver.url)
    receiver.message()
    wait_until_told(server)
    assert receiver.got.empty()
