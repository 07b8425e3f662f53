"""RunPod's platform on loopback, as a worker meets it: it hands out jobs, takes what is posted and judges it.

The real SDK talks to it over HTTP, in a process of its own. Whatever a worker sends that the real platform would
refuse, or that would leave a caller with a wrong answer, is a line in `violations`.

What is covered: job-take, job-take-batch, job-stop, ping, job-done, job-stream, and recordings for jobs to fetch.
What is not covered: the public side (/run, /status, webhooks), autoscaling and execution timeouts.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

API_KEY = "key-of-the-test"
ENDPOINT = "ep"
RESULT_LIMIT = 10_000_000  # bytes; the platform answers 400 to a larger result
CHUNK_BYTES = 8_192  # of a recording that is served slowly
LOOK_AGAIN_S = 0.02

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Post:
    """What arrived at job-done or job-stream: in which order, when (time.monotonic) and how it was answered."""

    job_id: str
    body: dict[str, Any]
    raw: bytes
    order: int
    at: float
    answered: int
    streamed: bool = False

    @property
    def is_progress(self) -> bool:
        return self.body.get("status") == "IN_PROGRESS"

    @property
    def is_final(self) -> bool:
        return not self.is_progress and not self.streamed

    @property
    def output(self) -> Any:
        return self.body.get("output")

    @property
    def error(self) -> Any:
        return self.body.get("error")


@dataclass(frozen=True)
class Call:
    """A request without a body that matters: job-take or ping."""

    at: float
    query: dict[str, str]


@dataclass
class Job:
    """A job's way through the platform; times are time.monotonic, None until it happens."""

    id: str
    input: Any
    taken_at: float | None = None
    stopped_at: float | None = None
    done_at: float | None = None
    lost: bool = False  # its result was refused for good: the SDK does not try again


@dataclass
class Recording:
    """A file for jobs to fetch, and how often it was asked for."""

    content: bytes
    delay_s_per_chunk: float
    status: int
    requested: int = 0


@dataclass
class _State:
    """All that the two threads share; touched only while the condition of FakePlatform is held."""

    jobs: dict[str, Job] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    takes: list[Call] = field(default_factory=list)
    pings: list[Call] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)
    recordings: dict[str, Recording] = field(default_factory=dict)


class FakePlatform:
    """The platform: a context manager that listens from `__enter__` to `__exit__` on a free port of loopback.

    A poll that finds nothing is held for `hold_s` seconds: a worker that is told to leave waits that long at most.
    """

    def __init__(self, hold_s: float = 1.0) -> None:
        self._hold_s = hold_s
        self._state = _State()
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-platform", daemon=True)
        self._runner: web.AppRunner | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def submit(self, job_input: Any, job_id: str | None = None) -> str:
        """Queue a job; gives its id."""
        with self._changed:
            job_id = job_id or f"job-{len(self._state.jobs) + 1}"
            assert job_id not in self._state.jobs, f"{job_id} was submitted before"
            self._state.jobs[job_id] = Job(job_id, job_input)
            self._state.waiting.append(job_id)
            return job_id

    def cancel(self, job_id: str) -> None:
        """Take the job out of the queue, or tell the worker that has it to stop."""
        with self._changed:
            if job_id in self._state.waiting:
                self._state.waiting.remove(job_id)
            else:
                self._state.stops.append(job_id)

    def fail_next_done(self, statuses: list[int]) -> None:
        """Answer the next final posts with these statuses, then accept again."""
        with self._changed:
            self._state.refusals.extend(statuses)

    def serve(self, name: str, content: bytes, *, delay_s_per_chunk: float = 0.0, status: int = 200) -> str:
        """Put a recording behind a URL; with a delay, `CHUNK_BYTES` at a time."""
        with self._changed:
            self._state.recordings[name] = Recording(content, delay_s_per_chunk, status)
        return f"http://127.0.0.1:{self.port}/audio/{name}"

    def env(self, worker_id: str, home: Path) -> dict[str, str]:
        """The environment in which the SDK, in a process of its own, works for this platform."""
        with self._changed:
            self._state.workers.add(worker_id)
        base = f"http://127.0.0.1:{self.port}/v2/{ENDPOINT}"
        return {
            "HOME": str(home),
            "RUNPOD_AI_API_KEY": API_KEY,
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_LOG_LEVEL": "INFO",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=X",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=X",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=X",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
        }

    def wait_final(self, job_id: str, timeout: float) -> Post:
        """The accepted result of a job."""
        job = self._state.jobs[job_id]
        found = self._wait(
            lambda: job.lost or self._find(job_id, lambda p: p.is_final and p.answered == 200), timeout, job_id
        )
        assert isinstance(found, Post), f"{job_id}: its result was refused: {self.violations}"
        return found

    def wait_progress(self, job_id: str, timeout: float, where: Callable[[Post], bool] = lambda _: True) -> Post:
        """The first progress post of a job that fulfils `where`."""
        return self._wait(lambda: self._find(job_id, lambda p: p.is_progress and where(p)), timeout, job_id)

    def wait_taken(self, job_id: str, timeout: float) -> float:
        """When a worker took the job."""
        return self._wait(lambda: self._state.jobs[job_id].taken_at, timeout, job_id)

    def wait_stopped(self, job_id: str, timeout: float) -> float:
        """When a worker was told to stop the job."""
        return self._wait(lambda: self._state.jobs[job_id].stopped_at, timeout, job_id)

    def wait_take(self, timeout: float) -> Call:
        """The first request for a job."""
        return self._wait(lambda: next(iter(self._state.takes), None), timeout, "job-take")

    def wait_ping(self, timeout: float, where: Callable[[Call], bool] = lambda _: True) -> Call:
        """The first ping that fulfils `where`."""
        return self._wait(lambda: next(filter(where, self._state.pings), None), timeout, "ping")

    def wait_requested(self, name: str, timeout: float) -> int:
        """How often the recording was asked for, once it was."""
        return self._wait(lambda: self._state.recordings[name].requested, timeout, name)

    def posts(self, job_id: str) -> list[Post]:
        """Everything posted for a job, in order of arrival."""
        with self._changed:
            return [post for post in self._state.posts if post.job_id == job_id]

    def requests_for(self, name: str) -> int:
        """How often a recording was asked for."""
        with self._changed:
            return self._state.recordings[name].requested

    def places_with(self, text: str) -> list[str]:
        """First lines of the requests to the platform (recordings apart) that hold `text` anywhere."""
        with self._changed:
            return [received.split("\n")[0] for received in self._state.received if text in received]

    @property
    def takes(self) -> list[Call]:
        with self._changed:
            return list(self._state.takes)

    @property
    def pings(self) -> list[Call]:
        with self._changed:
            return list(self._state.pings)

    @property
    def violations(self) -> list[str]:
        with self._changed:
            return list(self._state.violations)

    async def _listen(self) -> int:
        app = web.Application(middlewares=[self._judge], client_max_size=4 * RESULT_LIMIT)
        base = f"/v2/{ENDPOINT}"
        app.router.add_get(f"{base}/job-take/{{worker}}", self._take)
        app.router.add_get(f"{base}/job-take-batch/{{worker}}", self._take)
        app.router.add_get(f"{base}/job-stop/{{worker}}", self._stop)
        app.router.add_get(f"{base}/ping/{{worker}}", self._ping)
        app.router.add_post(f"{base}/job-done/{{worker}}/{{job}}", self._post)
        app.router.add_post(f"{base}/job-stream/{{worker}}/{{job}}", self._post)
        app.router.add_get("/audio/{name}", self._recording)
        # A poll whose worker is gone must end: it would take a job that nobody does.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    @web.middleware
    async def _judge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keep every request to the platform and check who sends it."""
        if request.path.startswith("/audio/"):
            return await handler(request)
        body = await request.read()
        headers = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        what = f"{request.method} {request.path_qs}"
        with self._changed:
            self._state.received.append(f"{what}\n{headers}\n\n{body.decode(errors='replace')}")
            if request.headers.get("Authorization") != API_KEY:
                self._state.violations.append(f"{what}: no valid Authorization header")
            if request.match_info.get("worker") not in self._state.workers:
                self._state.violations.append(f"{what}: not the address of a known worker")
        return await handler(request)

    async def _take(self, request: web.Request) -> web.Response:
        """Hand out one job, or as a list as many as a batch request wants."""
        batch = "/job-take-batch/" in request.path
        count = int(request.query["batch_size"]) if batch else 1
        with self._changed:
            self._state.takes.append(Call(time.monotonic(), dict(request.query)))
            self._changed.notify_all()
        await self._hold(lambda: self._state.waiting)
        with self._changed:
            ids, self._state.waiting = self._state.waiting[:count], self._state.waiting[count:]
            jobs = [self._state.jobs[job_id] for job_id in ids]
            for job in jobs:
                job.taken_at = time.monotonic()
            self._changed.notify_all()
        answer = [{"id": job.id, "input": job.input} for job in jobs]
        return web.json_response(answer if batch else answer[0]) if jobs else web.Response(status=204)

    async def _stop(self, _: web.Request) -> web.Response:
        await self._hold(lambda: self._state.stops)
        with self._changed:
            ids, self._state.stops = self._state.stops, []
            for job_id in ids:
                self._state.jobs[job_id].stopped_at = time.monotonic()
            self._changed.notify_all()
        return web.json_response({"jobsToStop": ids}) if ids else web.Response(status=204)

    async def _hold(self, ready: Callable[[], list[str]]) -> None:
        """The long poll: return when there is something to say, or after `hold_s`."""
        end = time.monotonic() + self._hold_s
        while time.monotonic() < end:
            with self._changed:
                if ready():
                    return
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _ping(self, request: web.Request) -> web.Response:
        with self._changed:
            self._state.pings.append(Call(time.monotonic(), dict(request.query)))
            self._changed.notify_all()
        return web.Response()

    async def _post(self, request: web.Request) -> web.Response:
        streamed = "/job-stream/" in request.path
        return web.Response(status=self._receive(request.match_info["job"], await request.read(), streamed))

    def _receive(self, job_id: str, raw: bytes, streamed: bool) -> int:
        """Judge and record one post; gives the status to answer."""
        with self._changed:
            body, job = self._parsed(job_id, raw), self._state.jobs.get(job_id)
            if job is None:
                self._state.violations.append(f"{job_id}: a post for a job that was never submitted")
                return 400
            if body is None:
                job.lost = True
                self._changed.notify_all()
                return 400
            progress, order = body.get("status") == "IN_PROGRESS", len(self._state.posts)
            if job.taken_at is None or job.done_at is not None:
                self._state.violations.append(f"{job_id}: a post before it was taken or after its result: {body}")
            status = 200 if progress or streamed else self._verdict(raw)
            post = Post(job_id, body, raw, order, time.monotonic(), status, streamed)
            self._state.posts.append(post)
            if post.is_final:
                job.done_at, job.lost = (post.at if status == 200 else None), status == 400
            self._changed.notify_all()
            return status

    def _verdict(self, raw: bytes) -> int:
        """How a final post is answered: as the test has ordered, else by its size."""
        if self._state.refusals:
            return self._state.refusals.pop(0)
        return 200 if len(raw) <= RESULT_LIMIT else 400

    def _parsed(self, job_id: str, raw: bytes) -> dict[str, Any] | None:
        """The body as strict JSON: UTF-8, no NaN, no half of a surrogate pair, an object of known names."""
        try:
            body = json.loads(raw.decode(), parse_constant=_no_constant)
            json.dumps(body, ensure_ascii=False).encode()
        except ValueError as error:
            self._state.violations.append(f"{job_id}: the body is no strict JSON: {error}")
            return None
        if not isinstance(body, dict):
            self._state.violations.append(f"{job_id}: the body is no object")
            return None
        if unknown := set(body) - {"output", "error", "status", "stopPod"}:
            self._state.violations.append(f"{job_id}: unknown names in the body: {sorted(unknown)}")
        return body

    async def _recording(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        with self._changed:
            recording = self._state.recordings.get(name)
            if recording is None:
                return web.Response(status=404)
            recording.requested += 1
            self._changed.notify_all()
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        response = web.StreamResponse(status=recording.status, headers={"Content-Type": kind})
        response.content_length = len(recording.content)
        await response.prepare(request)
        step = CHUNK_BYTES if recording.delay_s_per_chunk else max(len(recording.content), 1)
        for start in range(0, len(recording.content), step):
            await response.write(recording.content[start : start + step])
            await asyncio.sleep(recording.delay_s_per_chunk)
        return response

    def _find(self, job_id: str, where: Callable[[Post], bool]) -> Post | None:
        return next((post for post in self._state.posts if post.job_id == job_id and where(post)), None)

    def _wait(self, look: Callable[[], Any], timeout: float, what: str) -> Any:
        """The first thing that `look` sees; fails telling what happened instead."""
        with self._changed:
            if found := self._changed.wait_for(look, timeout):
                return found
            seen = [(post.answered, str(post.body)[:300]) for post in self._state.posts if post.job_id == what]
            raise AssertionError(f"{what}: not seen within {timeout} s; its posts: {seen}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
