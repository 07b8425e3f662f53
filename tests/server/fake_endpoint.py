"""RunPod's public API on loopback: /run, /status and /cancel of one endpoint, with a worker behind it.

`Worked` is one that answers from a script, `remote_settings` are a server's for this endpoint.

The worker is a handler as the platform's client calls it; what that client makes of its answers is done here, as
measured with the real one. What is not covered: /runsync, /health, webhooks, several workers, execution policies.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from fake_runner import TRANSCRIPT
from pydantic import SecretStr

from hansard import render
from hansard.settings import Settings

KEY = "rpa_key-of-the-test"
ENDPOINT = "ep"
LIMIT = 10_000_000  # bytes of a request

Send = Callable[[dict[str, object]], Awaitable[None]]
Worker = Callable[[dict[str, Any], Send], Awaitable[dict[str, Any]]]


def remote_settings(settings_of: Callable[..., Settings], url: str, **given: Any) -> Settings:
    given = {"runpod_endpoint_id": ENDPOINT, "runpod_api_key": SecretStr(KEY), "runpod_endpoint_url": url} | given
    return settings_of(**given)


class Worked:
    """A worker that answers what it is told to, and keeps what it was asked; while `hold` is true it does not end."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = render.to_result(TRANSCRIPT, words=True)
        self.asked: list[dict[str, Any]] = []
        self.hold = False
        self.stopped = 0

    async def __call__(self, job: dict[str, Any], send: Send) -> dict[str, Any]:
        self.asked.append(job["input"])
        if self.hold:
            await send({"stage": "transcribe", "stage_percent": 10, "percent": 5})
        try:
            while self.hold:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return dict(self.answer)


@dataclass
class Remote:
    """A job on the platform: what /status says of it, and the task of its worker."""

    body: dict[str, Any]
    told: dict[str, Any]
    task: asyncio.Task[None] | None = None


@dataclass
class FakeEndpoint:
    """An async context manager that listens on a free port.

    `faults` are met by calls in order, by their kind (`run`, `status`, `cancel`): a status with its headers and body,
    or None for a connection that ends without an answer.
    """

    worker: Worker
    faults: list[tuple[str, web.Response | None]] = field(default_factory=list)
    jobs: dict[str, Remote] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    run_status: int = 200
    run_pause_s: float = 0.0  # between taking a job and saying so

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._judge], client_max_size=LIMIT)
        base = f"/v2/{ENDPOINT}"
        app.router.add_post(f"{base}/run", self._run)
        app.router.add_get(f"{base}/status/{{id}}", self._status)
        app.router.add_post(f"{base}/cancel/{{id}}", self._cancel)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v2"
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [job.task for job in self.jobs.values() if job.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._runner.cleanup()

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        kind = request.path.split("/")[3] if request.path.count("/") > 2 else ""
        self.calls.append(kind)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.Response(status=401, text="no such key")
        if self.faults and self.faults[0][0] == kind:
            _, fault = self.faults.pop(0)
            if fault is not None:
                return fault
            await request.read()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _run(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.sizes.append(len(raw))
        remote = f"remote-{len(self.sizes) - 1}"
        job = self.jobs[remote] = Remote(json.loads(raw), {"id": remote, "status": "IN_QUEUE"})
        job.task = asyncio.create_task(self._work(remote, job))
        await asyncio.sleep(self.run_pause_s)
        return web.json_response({"id": remote, "status": "IN_QUEUE"}, status=self.run_status)

    async def _work(self, remote: str, job: Remote) -> None:
        async def send(progress: dict[str, object]) -> None:
            job.told["output"] = progress

        job.told["status"] = "IN_PROGRESS"
        try:
            answer = await self.worker({"id": remote, "input": job.body["input"]}, send)
        except asyncio.CancelledError:
            job.told = {"id": remote, "status": "CANCELLED"}
            raise
        answer = {key: value for key, value in answer.items() if key != "refresh_worker"}
        if error := answer.pop("error", None):
            job.told = {"id": remote, "status": "FAILED", "error": error} | ({"output": answer} if answer else {})
        else:
            job.told = {"id": remote, "status": "COMPLETED"} | ({"output": answer} if answer else {})

    async def _status(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.Response(status=404, text="request does not exist")
        return web.json_response(job.told)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.Response(status=404, text="request does not exist")
        assert job.task is not None
        job.task.cancel()
        await asyncio.wait([job.task])
        return web.json_response(job.told)
