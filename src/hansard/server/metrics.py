"""What Prometheus reads at /metrics: jobs, stages, sound, the queue, requests, errors, the engine, GPUs.

Counters begin anew with the process; the queue is what the core has. Labels come from closed sets: routes are
templates, not addresses, so callers cannot make series.
"""

from __future__ import annotations

import asyncio
from http import HTTPMethod
from typing import get_args

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from hansard.engine.host import EngineHost
from hansard.health import State
from hansard.server.access import caller
from hansard.server.context import Core
from hansard.server.gpus import Gpu, gpus
from hansard.server.job import Job
from hansard.server.jobs import JobCore
from hansard.server.runners import LocalRunner

router = APIRouter(tags=["operation"])

SECONDS = (0.005, 0.05, 0.5, 2.5, 10, 30, 60, 300, 900, 3600, 14400)  # bounds: from an answer to a night's recording
NOWHERE = "none"  # the route of an address that does not exist
METHODS = frozenset(method.value for method in HTTPMethod)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of when it began


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._sound = Counter("hansard_audio_seconds", "Seconds of sound in completed jobs", registry=registry)
        self._jobs = Counter("hansard_jobs", "Jobs that have ended, by how", ["state"], registry=registry)
        self._job_seconds = Histogram(
            "hansard_job_seconds",
            "Seconds from the start to the end of completed jobs",
            buckets=SECONDS,
            registry=registry,
        )
        self._waits = Histogram(
            "hansard_job_wait_seconds", "Seconds that jobs were queued", buckets=SECONDS, registry=registry
        )
        self._stages = Histogram(
            "hansard_stage_seconds", "Seconds of a stage of a job", ["stage"], buckets=SECONDS, registry=registry
        )
        self._queued = Gauge("hansard_jobs_queued", "Jobs that wait", registry=registry)
        self._running = Gauge("hansard_jobs_running", "Jobs that are worked on", registry=registry)
        self._errors = Counter("hansard_errors", "Errors told to callers, by code", ["code"], registry=registry)
        self._failures = Counter("hansard_job_errors", "Failed jobs, by code", ["code"], registry=registry)
        self._requests = Counter(
            "hansard_http_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "hansard_http_request_seconds",
            "Seconds from a request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._gpu_used = Gauge("hansard_gpu_memory_used_bytes", "Memory in use", ["gpu", "name"], registry=registry)
        self._gpu_total = Gauge("hansard_gpu_memory_bytes", "Memory of a GPU", ["gpu", "name"], registry=registry)
        self._gpu_busy = Gauge("hansard_gpu_busy_ratio", "Part of the time at work", ["gpu", "name"], registry=registry)
        self._engine_up = Gauge(
            "hansard_engine_up", "1 for the state that this machine's engine is in", ["state"], registry=registry
        )
        self._restarts = Counter(
            "hansard_engine_restarts", "Times that this machine's engine was started again", registry=registry
        )
        self._restarts_counted = 0

    def watch(self, core: JobCore) -> None:
        """Count the jobs of a core."""

        def ended(job: Job) -> None:
            self._ended(job, core)

        core.on_end(ended)

    def refused(self, code: str) -> None:
        """Count an error that was answered."""
        self._errors.labels(code).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def text(self, core: JobCore, gpus: tuple[Gpu, ...], engine: EngineHost | None) -> bytes:
        """Everything in Prometheus' own format; of an engine elsewhere nothing is known."""
        self._queued.set(core.waiting)
        self._running.set(core.running)
        self._see(gpus)
        if engine is not None:
            for state in get_args(State):
                self._engine_up.labels(state).set(state == engine.state)
            self._restarts.inc(engine.restarts - self._restarts_counted)
            self._restarts_counted = engine.restarts
        return generate_latest(self._registry)

    def _see(self, gpus: tuple[Gpu, ...]) -> None:
        """The GPUs that there are now: one that is gone is told no more."""
        for gauge in (self._gpu_used, self._gpu_total, self._gpu_busy):
            gauge.clear()
        for gpu in gpus:
            self._gpu_used.labels(str(gpu.index), gpu.name).set(gpu.memory_used)
            self._gpu_total.labels(str(gpu.index), gpu.name).set(gpu.memory_total)
            if gpu.busy_percent is not None:
                self._gpu_busy.labels(str(gpu.index), gpu.name).set(gpu.busy_percent / 100)

    def _ended(self, job: Job, core: JobCore) -> None:
        self._jobs.labels(job.state).inc()
        if job.state == "failed" and job.error:
            self._failures.labels(job.error[0]).inc()
        if job.started is not None:
            self._waits.observe(max(0.0, job.started - job.created))
        if job.state != "completed" or job.started is None or job.finished is None:
            return
        self._job_seconds.observe(max(0.0, job.finished - job.started))
        transcript = core.result(job.id, job.submission.owner)  # still in memory: the job has only just ended
        self._sound.inc(transcript.duration)
        for stage, seconds in transcript.timings.items():
            self._stages.labels(stage).observe(seconds)


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    dependencies=[Depends(caller)],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, core: Core) -> Response:
    """Jobs, stages, sound, the queue, requests, errors, the engine, GPUs; with API_KEYS Prometheus needs a key."""
    told: Metrics = request.app.state.metrics
    runner = request.app.state.runner
    seen = await asyncio.to_thread(gpus)
    engine = runner.engine if isinstance(runner, LocalRunner) else None
    return Response(told.text(core, seen, engine), media_type=CONTENT_TYPE_LATEST)
