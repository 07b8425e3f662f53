"""RunPod's API, called with RunPod's own client: a caller of an endpoint changes the base URL and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import runpod
from fake_runner import TRANSCRIPT, FakeRunner, Play

from hansard import render
from hansard.errors import AudioError
from hansard.server.runpod import routes

if TYPE_CHECKING:
    from conftest import Serve, Server

pytestmark = pytest.mark.timeout(60)

JOB = {"audio": "https://example.com/meeting.mp3", "diarization": True}
LONG_S = 30  # however busy the machine

Endpoint = Callable[..., Any]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """RunPod's client for an endpoint of a server: `endpoint(server, key="key", base="/v2")`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def made(server: Server, key: str = "key", base: str = "/v2") -> Any:
        monkeypatch.setattr(runpod, "endpoint_url_base", server.url + base)
        return runpod.Endpoint("any-id", api_key=key)

    return made


@pytest.mark.parametrize("base", ["/v2", ""])
def test_run_status_output(serve: Serve, runner: FakeRunner, endpoint: Endpoint, base: str) -> None:
    gate = runner.gated()
    job = endpoint(serve(), base=base).run({"input": {**JOB, "output_formats": ["srt"]}})
    assert job.status() in ("IN_QUEUE", "IN_PROGRESS")
    gate.set()
    output = job.output(timeout=LONG_S)
    assert job.status() == "COMPLETED"
    assert output == {**render.to_result(TRANSCRIPT), "srt": render.FORMATS["srt"](TRANSCRIPT), "logs": []}
    asked = runner.calls[0].request
    assert (asked.audio, asked.diarization) == (JOB["audio"], True)


def test_run_sync(server: Server, endpoint: Endpoint) -> None:
    output = endpoint(server).run_sync(JOB)  # the client itself puts it into "input"
    assert [segment["text"] for segment in output["segments"]] == ["good morning", "hello"]


def test_the_whole_status(server: Server, endpoint: Endpoint) -> None:
    told = server.http.post("/v2/x/runsync", json={"input": JOB}).json()
    assert set(told) == {"id", "status", "delayTime", "executionTime", "output"}
    assert told["status"] == "COMPLETED"
    assert min(told["delayTime"], told["executionTime"]) >= 0
    assert server.http.get(f"/v2/other/status/{told['id']}").json() == told


def test_runsync_waits_no_longer_than_asked(server: Server, runner: FakeRunner, endpoint: Endpoint) -> None:
    gate = runner.gated(reports=(("transcribe", 0.5),))
    told = server.http.post("/runsync", params={"wait": 1000}, json={"input": JOB}).json()
    assert told["status"] == "IN_PROGRESS"
    assert told["output"]["stage"] == "transcribe"
    queued = server.http.post("/run", json={"input": {**JOB, "language": "fr"}}).json()
    assert queued == {"id": queued["id"], "status": "IN_QUEUE"}
    assert server.http.get(f"/status/{queued['id']}").json() == queued
    gate.set()
    job = runpod.endpoint.Job("any", told["id"], endpoint(server).rp_client)
    assert job.output(timeout=LONG_S)["duration"] == TRANSCRIPT.duration


def test_a_failure_is_a_code_and_a_sentence(server: Server, runner: FakeRunner, endpoint: Endpoint) -> None:
    runner.plays.append(Play(AudioError("this recording cannot be used")))
    job = endpoint(server).run(JOB)
    assert job.output(timeout=LONG_S) is None
    assert job.status() == "FAILED"
    told = server.http.get(f"/status/{job.job_id}").json()
    assert (told["error"], "output" in told) == ("bad_audio: this recording cannot be used", False)


def test_cancel(server: Server, runner: FakeRunner, endpoint: Endpoint) -> None:
    runner.gated()
    client = endpoint(server)
    running, queued = client.run(JOB), client.run({**JOB, "language": "fr"})
    for job in (queued, running):
        assert job.cancel() == {"id": job.job_id, "status": "CANCELLED"}
        assert job.output(timeout=LONG_S) is None
        assert job.status() == "CANCELLED"
    assert {call.job_id for call in runner.calls} <= {running.job_id}


def test_what_has_ended_cannot_be_cancelled(server: Server, endpoint: Endpoint) -> None:
    job = endpoint(server).run(JOB)
    job.output(timeout=LONG_S)
    assert job.cancel()["status"] == "COMPLETED"
    assert server.http.get(f"/status/{job.job_id}").json()["status"] == "COMPLETED"


def test_health_counts_the_callers_jobs(serve: Serve, runner: FakeRunner, endpoint: Endpoint) -> None:
    server = serve(api_keys=("mine", "theirs"))
    mine = endpoint(server, key="mine")
    mine.run_sync(JOB)
    runner.plays.append(Play(AudioError("no")))
    mine.run_sync(JOB)
    gate = runner.gated()
    mine.run(JOB)
    last = mine.run({**JOB, "language": "fr"})
    health = mine.health()
    assert {name: health["jobs"][name] for name in ("completed", "failed")} == {"completed": 1, "failed": 1}
    assert health["jobs"]["inProgress"] + health["jobs"]["inQueue"] == 2
    assert set(health["workers"]) == {"idle", "initializing", "ready", "running", "throttled", "unhealthy"}
    assert set(endpoint(server, key="theirs").health()["jobs"].values()) == {0}
    gate.set()
    last.output(timeout=LONG_S)


def test_a_key_is_needed_and_jobs_are_the_callers(serve: Serve, endpoint: Endpoint) -> None:
    server = serve(api_keys=("mine", "theirs"))
    with pytest.raises(RuntimeError, match="401"):
        endpoint(server, key="wrong").run(JOB)
    job = endpoint(server, key="mine").run(JOB)
    told = server.http.get(f"/v2/x/status/{job.job_id}", headers={"Authorization": "Bearer theirs"})
    assert (told.status_code, told.json()["error"]["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"input": {"audio": JOB["audio"], "diarise": True}}, "did you mean diarize"),
        ({"input": {**JOB, "audio": ""}}, "audio"),
        ({"input": [1]}, "input must be an object"),
        ({}, "input must be an object"),
        ({"input": JOB, "s3Config": {"accessId": "x"}}, "s3Config"),
        ({"input": JOB, "webhook": "file:///etc/passwd"}, "neither an http nor an https"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: Server, body: dict[str, Any], told: str) -> None:
    answer = server.http.post("/v2/x/run", json=body)
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]["message"]


def test_a_form_is_told_where_to_go(server: Server) -> None:
    answer = server.http.post("/run", files={"file": b"sound"})
    assert answer.status_code == 400
    assert "/v1/jobs" in answer.json()["error"]["message"]
    assert not list(server.core.uploads.iterdir())


def test_a_webhook_gets_the_status(serve: Serve, endpoint: Endpoint) -> None:
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        thread = Thread(target=receiver.handle_request)
        thread.start()
        server = serve(allow_private_urls=True)
        job = endpoint(server).run({"input": JOB, "webhook": f"http://127.0.0.1:{receiver.server_port}/"})
        job.output(timeout=LONG_S)
        thread.join(LONG_S)
    assert got == [server.http.get(f"/status/{job.job_id}").json()]


def test_a_slow_cancel_is_told_at_once(server: Server, runner: FakeRunner, endpoint: Endpoint) -> None:
    stopping, run = Event(), runner.run

    async def slow(*given: Any) -> Any:
        try:
            return await run(*given)
        except asyncio.CancelledError:
            await asyncio.to_thread(stopping.wait)
            raise

    runner.run = slow  # type: ignore[method-assign]
    runner.gated()
    job = endpoint(server).run(JOB)
    while job.status() != "IN_PROGRESS":
        pass
    assert job.cancel(timeout=LONG_S)["status"] == "CANCELLED"
    told = server.http.get(f"/v2/x/status/{job.job_id}").json()
    stopping.set()
    assert told["status"] == "CANCELLED"


def test_a_stream_ends_with_the_job(server: Server, runner: FakeRunner, endpoint: Endpoint) -> None:
    gate = runner.gated()
    job = endpoint(server).run(JOB)
    told = server.http.get(f"/v2/x/stream/{job.job_id}").json()
    assert (told["status"] in ("IN_QUEUE", "IN_PROGRESS"), told["stream"]) == (True, [])
    gate.set()
    assert list(job.stream()) == []
    assert job.status() == "COMPLETED"


def test_the_queue_can_be_emptied(server: Server, runner: FakeRunner, endpoint: Endpoint) -> None:
    gate = runner.gated()
    client = endpoint(server)
    first = client.run(JOB)
    while first.status() != "IN_PROGRESS":
        pass
    waiting = [client.run({**JOB, "hotwords": word}) for word in "ab"]
    assert client.purge_queue(timeout=LONG_S) == {"removed": 2, "status": "completed"}
    assert [job.status() for job in waiting] == ["CANCELLED"] * 2
    gate.set()
    assert first.output(timeout=LONG_S)["segments"]


def test_a_time_limit_is_kept(server: Server, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "LIMITS_MS", (1, 10_000))
    runner.gated()
    body = {"input": JOB, "policy": {"executionTimeout": 50}}
    told = server.http.post("/v2/x/runsync", json=body).json()
    assert (told["status"], told["error"].partition(":")[0]) == ("TIMED_OUT", "timed_out")


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"executionTimeout": 4_999}, "from 5000"),
        ({"executionTimeout": True}, "whole milliseconds"),
        ({"executionTimeout": "60000"}, "whole milliseconds"),
        ({"ttl": 60_000}, "ttl is nothing that this server offers"),
        ({"lowPriority": True}, "lowPriority is nothing"),
        ([], "policy must be an object"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(server: Server, policy: object, told: str) -> None:
    answer = server.http.post("/v2/x/run", json={"input": JOB, "policy": policy})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "policy", [None, {}, {"executionTimeout": None, "lowPriority": False}, {"executionTimeout": 3_600_000}]
)
def test_a_policy_that_can_is_taken(server: Server, policy: object) -> None:
    assert server.http.post("/v2/x/runsync", json={"input": JOB, "policy": policy}).json()["status"] == "COMPLETED"


@pytest.mark.asyncio
async def test_the_asynchronous_client(serve: Serve, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    monkeypatch.setattr(runpod, "endpoint_url_base", server.url + "/v2")
    async with aiohttp.ClientSession() as session:
        client = runpod.AsyncioEndpoint("any-id", session, api_key="key")
        job = await client.run(JOB)
        assert (await job.output(timeout=LONG_S))["segments"]
        gate = runner.gated()
        other = await client.run({**JOB, "hotwords": "x"})
        assert (await other.cancel())["status"] == "CANCELLED"
        gate.set()
        assert (await client.purge_queue())["removed"] == 0
        assert (await client.health())["jobs"]["completed"] == 1


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("ready", {"idle": 1, "ready": 1}),
        ("starting", {"initializing": 1}),
        ("down", {"unhealthy": 1}),
        ("unfit", {"unhealthy": 1}),
    ],
)
def test_workers_are_as_the_engine_is(
    server: Server, monkeypatch: pytest.MonkeyPatch, state: str, told: dict[str, int]
) -> None:
    monkeypatch.setattr(routes, "state_of", lambda *_: state)
    workers = server.http.get("/v2/x/health").json()["workers"]
    assert {name: count for name, count in workers.items() if count} == told
