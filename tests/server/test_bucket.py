"""The bucket for what is too large for a request: against a storage that speaks S3, and one that refuses."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import pytest_asyncio
import scripted_engine
from fake_endpoint import FakeEndpoint, Send, Worked, remote_settings
from fake_runner import TRANSCRIPT
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

import handler
from hansard.engine import child
from hansard.errors import CancelledError, ServiceError, SettingsError
from hansard.request import parse
from hansard.server import runners
from hansard.server.runpod import bucket as bucket_module
from hansard.server.runpod import runner as runpod_runner
from hansard.server.runpod.bucket import Bucket
from hansard.server.runpod.runner import RunPodRunner
from hansard.settings import Settings
from hansard.transcript import Transcript
from places import ROOT

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # of a transfer that was stopped
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),  # of moto's server
]

SECRET = "secret-of-the-test"
SRC = str(ROOT / "src")
SettingsOf = Callable[..., Settings]


def of(url: str) -> dict[str, Any]:
    """The settings of a bucket there."""
    return {
        "bucket_endpoint_url": url,
        "bucket_name": "recordings",
        "bucket_access_key_id": "key-of-the-test",
        "bucket_secret_access_key": SecretStr(SECRET),
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "main", scripted_engine.main)
    monkeypatch.setattr(runpod_runner, "POLL_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """The address of a storage without a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(storage: str) -> Iterator[Any]:
    """A client of the storage, in which there is an empty bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=storage,
        aws_access_key_id="other",
        aws_secret_access_key="other",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="recordings")
    yield client
    for name in names(client):
        client.delete_object(Bucket="recordings", Key=name)
    client.delete_bucket(Bucket="recordings")
    client.close()


def names(s3: Any) -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket="recordings").get("Contents", [])]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """More than a request takes, with a sound and an order for the scripted engine."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + bytes(11_000_000) + scripted_engine.ORDER + b"speak")
    return path


# The settings


@pytest.mark.parametrize("missing", sorted(of("http://127.0.0.1")))
def test_a_bucket_that_is_half_given_is_refused(settings_of: SettingsOf, missing: str) -> None:
    given = of("http://127.0.0.1") | {missing: SecretStr(" ") if "secret" in missing else " "}
    with pytest.raises(SettingsError) as refused:
        runners.choose(remote_settings(settings_of, "http://127.0.0.1/v2", **given))
    assert refused.value.sentence == f"a bucket needs {missing.upper()} too; or leave out all of BUCKET_"
    del given[missing]
    alone = {missing: of("http://127.0.0.1")[missing]}
    with pytest.raises(SettingsError) as refused:
        runners.choose(remote_settings(settings_of, "http://127.0.0.1/v2", **alone))
    assert all(name.upper() in refused.value.sentence for name in given)


@pytest.mark.parametrize("address", ["127.0.0.1", "ftp://127.0.0.1", "http://", "http://a/?b=c"])
def test_an_address_that_is_none_is_refused(settings_of: SettingsOf, address: str) -> None:
    with pytest.raises(SettingsError, match="BUCKET_ENDPOINT_URL"):
        runners.choose(remote_settings(settings_of, "http://127.0.0.1/v2", **of(address)))


def test_the_secret_is_one(settings_of: SettingsOf) -> None:
    settings = settings_of(**of("http://127.0.0.1"))
    assert SECRET in settings.secrets()
    assert SECRET not in repr(settings)


def test_a_server_without_a_bucket_loads_no_client_of_storages() -> None:
    code = "import sys, hansard.server.runpod.runner; print({'boto3', 'botocore'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": SRC}
    )
    assert run.stdout.strip() == "set()"


# The bucket


def test_a_recording_comes_and_goes(storage: str, s3: Any, settings_of: SettingsOf, recording: Path) -> None:
    bucket = Bucket(settings_of(**of(storage)))
    for _ in range(2):
        bucket.put("abc", recording, threading.Event())
        assert names(s3) == ["hansard/abc"]
    address = bucket.address("abc")
    assert "X-Amz-Expires=86400&" in address
    assert SECRET not in address
    assert httpx.get(address, trust_env=False).content == recording.read_bytes()
    for _ in range(2):
        bucket.remove("abc")
        assert names(s3) == []


def test_a_large_one_goes_in_parts(
    storage: str, s3: Any, settings_of: SettingsOf, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 * 2**20)
    bucket = Bucket(settings_of(**of(storage)))
    bucket.put("abc", recording, threading.Event())
    assert s3.head_object(Bucket="recordings", Key="hansard/abc")["ETag"].strip('"').endswith("-3")
    assert httpx.get(bucket.address("abc"), trust_env=False).content == recording.read_bytes()


class Soon(threading.Event):
    """Set after some looks at it."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("when", [(5, 0), (5, 1), (5, 10), (50, 1), (50, 10)])
def test_an_upload_can_be_stopped(
    storage: str, s3: Any, settings_of: SettingsOf, recording: Path, monkeypatch: pytest.MonkeyPatch, when: Any
) -> None:
    part_mb, looks = when
    monkeypatch.setattr(bucket_module, "PART_BYTES", part_mb * 2**20)
    begin = time.monotonic()
    with pytest.raises(CancelledError):
        Bucket(settings_of(**of(storage))).put("abc", recording, Soon(looks))
    assert time.monotonic() - begin < 5
    assert names(s3) == []
    assert not s3.list_multipart_uploads(Bucket="recordings").get("Uploads")


class Refusing(ThreadingHTTPServer):
    """A storage that refuses everything, or takes recordings slowly."""

    daemon_threads = True

    def __init__(self, status: int = 200, code: str = "", pace: float = 0.0) -> None:
        self.status, self.code, self.pace = status, code, pace
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Refusal)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)  # type: ignore[arg-type]

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that were given up."""


class Refusal(BaseHTTPRequestHandler):
    server: Refusing

    def do_PUT(self) -> None:
        self.server.asked.append(self.command)
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            time.sleep(self.server.pace)
            left -= len(self.rfile.read(min(left, 65_536)) or bytes(left))
        body = f"<Error><Code>{self.server.code}</Code><Message>key-of-the-test</Message></Error>".encode()
        body = body if self.server.code else b""
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_POST = do_GET = do_PUT  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


SAID = [
    (403, "AccessDenied", "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY"),
    (403, "SignatureDoesNotMatch", "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY"),
    (404, "NoSuchBucket", "correct BUCKET_NAME"),
    (400, "AuthorizationHeaderMalformed", "BUCKET_REGION"),
    (409, "Whatever", "it answers 409"),
]


@pytest.mark.parametrize(("status", "code", "told"), SAID)
def test_a_refusal_says_what_to_correct(
    settings_of: SettingsOf, tmp_path: Path, status: int, code: str, told: str
) -> None:
    (tmp_path / "a").write_bytes(b"sound")
    with Refusing(status, code) as storage:
        bucket = Bucket(settings_of(**of(storage.url)))
        for work in (lambda: bucket.put("abc", tmp_path / "a", threading.Event()), lambda: bucket.remove("abc")):
            with pytest.raises(ServiceError, match=told) as refused:
                work()
            assert "key-of" not in str(refused.value)
            assert SECRET not in str(refused.value)


def test_a_bucket_that_does_not_exist(storage: str, settings_of: SettingsOf, recording: Path) -> None:
    with pytest.raises(ServiceError, match="BUCKET_NAME"):
        Bucket(settings_of(**of(storage))).put("abc", recording, threading.Event())


def test_a_storage_out_of_reach(settings_of: SettingsOf, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"sound")
    with pytest.raises(ServiceError, match=r"cannot be reached.*BUCKET_ENDPOINT_URL"):
        Bucket(settings_of(**of("http://127.0.0.1:1"))).put("abc", tmp_path / "a", threading.Event())


# The way of a job


@pytest.fixture
def worked() -> Worked:
    return Worked()


@pytest_asyncio.fixture
async def endpoint(worked: Worked) -> AsyncIterator[FakeEndpoint]:
    async with FakeEndpoint(worked) as made:
        yield made


async def do(runner: RunPodRunner, recording: Path) -> Transcript:
    request = parse({"audio": "upload"})
    return await runner.run("abc", request, recording, await runner.check(request), lambda *_: None)


async def started(settings_of: SettingsOf, endpoint: FakeEndpoint, storage: str) -> RunPodRunner:
    runner = RunPodRunner(remote_settings(settings_of, endpoint.url, **of(storage)))
    await runner.start()
    return runner


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_the_worker_fetches_what_no_request_takes(
    storage: str, s3: Any, settings_of: SettingsOf, tmp_path: Path, recording: Path
) -> None:
    before = logging.getLogger().handlers[:]
    asked: list[str] = []
    async with AsyncExitStack() as stack:
        theirs = {"work_dir": tmp_path / "worker", "log_file": tmp_path / "log.txt", "allow_private_urls": True}
        worker = handler.Worker(settings_of(**theirs), echo=False)
        stack.callback(worker.close)

        async def handle(job: dict[str, Any], send: Send) -> dict[str, Any]:
            asked.append(job["input"]["audio"])
            return await worker.handle(job, send)

        endpoint = await stack.enter_async_context(FakeEndpoint(handle))
        runner = await started(settings_of, endpoint, storage)
        stack.push_async_callback(runner.close)
        found = await do(runner, recording)
        small = tmp_path / "small.wav"
        small.write_bytes(b"RIFF" + scripted_engine.ORDER + b"speak")
        await do(runner, small)
    logging.getLogger().handlers[:] = before
    assert found.model == hashlib.sha256(recording.read_bytes()).hexdigest()
    assert found.warnings == TRANSCRIPT.warnings, "nothing was made smaller"
    assert asked[0].startswith(f"{storage}/recordings/hansard/abc?")
    assert asked[1].startswith("data:"), "what fits goes without the bucket"
    assert names(s3) == []


@pytest.mark.asyncio
async def test_a_failed_job_leaves_nothing_and_shows_no_address(
    storage: str, s3: Any, settings_of: SettingsOf, recording: Path, worked: Worked, endpoint: FakeEndpoint
) -> None:
    runner = await started(settings_of, endpoint, storage)
    worked.hold = True
    job = asyncio.create_task(do(runner, recording))
    await until(lambda: worked.asked)
    assert names(s3) == ["hansard/abc"]
    worked.answer = {"error": f"could not fetch {worked.asked[0]['audio']}"}
    worked.hold = False
    with pytest.raises(ServiceError, match="could not fetch") as failed:
        await job
    assert "X-Amz" not in str(failed.value)
    assert names(s3) == []
    await runner.close()


@pytest.mark.asyncio
async def test_a_cancelled_job_leaves_nothing(
    storage: str, s3: Any, settings_of: SettingsOf, recording: Path, worked: Worked, endpoint: FakeEndpoint
) -> None:
    runner = await started(settings_of, endpoint, storage)
    worked.hold = True
    job = asyncio.create_task(do(runner, recording))
    await until(lambda: worked.asked)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert names(s3) == []
    assert worked.stopped == 1
    await runner.close()


@pytest.mark.asyncio
async def test_a_job_cancelled_while_it_is_sent(
    settings_of: SettingsOf, recording: Path, worked: Worked, endpoint: FakeEndpoint
) -> None:
    with Refusing(pace=0.2) as storage:
        runner = await started(settings_of, endpoint, storage.url)
        job = asyncio.create_task(do(runner, recording))
        await until(lambda: "PUT" in storage.asked)
        job.cancel()
        begin = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert time.monotonic() - begin < 10, "the rest would take half a minute"
        assert storage.asked == ["PUT", "DELETE"]
        assert endpoint.calls == []
        await runner.close()


@pytest.mark.asyncio
async def test_a_job_that_cannot_be_sent_fails(
    settings_of: SettingsOf, recording: Path, endpoint: FakeEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with Refusing(403, "AccessDenied") as storage:
        runner = await started(settings_of, endpoint, storage.url)
        with pytest.raises(ServiceError, match="BUCKET_SECRET_ACCESS_KEY"):
            await do(runner, recording)
        await runner.close()
    assert endpoint.calls == []
    assert "the recording of job abc stays in the bucket" in caplog.text


@pytest.mark.asyncio
async def test_a_job_left_to_the_next_server_keeps_its_recording(
    storage: str, s3: Any, settings_of: SettingsOf, recording: Path, worked: Worked, endpoint: FakeEndpoint
) -> None:
    runner = await started(settings_of, endpoint, storage)
    worked.hold = True
    job = asyncio.create_task(do(runner, recording))
    await until((settings_of().state_dir / "remote" / "abc").exists)
    runner.release()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await runner.close()
    assert names(s3) == ["hansard/abc"]
    assert worked.stopped == 0
    worked.hold = False
    runner = await started(settings_of, endpoint, storage)
    assert (await do(runner, recording)).language == "en"
    assert names(s3) == []
    assert len(endpoint.jobs) == 1
    await runner.close()


@pytest.mark.asyncio
async def test_a_job_left_while_it_is_sent_is_sent_anew(
    storage: str, s3: Any, settings_of: SettingsOf, recording: Path, endpoint: FakeEndpoint
) -> None:
    with Refusing(pace=0.2) as slow:
        runner = await started(settings_of, endpoint, slow.url)
        job = asyncio.create_task(do(runner, recording))
        await until(lambda: "PUT" in slow.asked)
        runner.release()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await runner.close()
        assert slow.asked == ["PUT"]
    runner = await started(settings_of, endpoint, storage)
    assert (await do(runner, recording)).language == "en"
    assert names(s3) == []
    assert len(endpoint.jobs) == 1
    await runner.close()
