"""Who does a job's work: one Protocol, and the engine of this machine.

`RunPodRunner` in `runpod_runner` is the other one: the workers of an endpoint. `choose` takes the one that the settings
name; callers of the server cannot tell them apart.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from hansard.engine.host import EngineHost
from hansard.plan import Plan, check, check_settings
from hansard.request import Request
from hansard.settings import Settings
from hansard.stages import StageReport
from hansard.transcript import Transcript


class Runner(Protocol):
    """Does jobs, `at_once` at a time. Raises the errors of the tree; cancelling the task of `run` stops the job."""

    at_once: int

    async def start(self) -> None:
        """Get ready. Raises SettingsError where no job could ever be done."""
        ...

    async def check(self, request: Request) -> Plan:
        """What the job will use; refuses what cannot be done before any work. Raises RequestError, ModelError."""
        ...

    async def run(
        self, job_id: str, request: Request, recording: Path | None, plan: Plan, report: StageReport
    ) -> Transcript:
        """One checked job; `recording` is its sound where it came as a file. `report` is called from any thread.

        Every stage that is reported is one of the plan's.
        """
        ...

    async def forget(self, job_id: str) -> None:
        """A job has ended: leave nothing of it, also where an earlier server began it and this one never ran it."""
        ...

    def release(self) -> None:
        """The server ends: jobs whose `run` is cancelled from now on are taken up by the next one."""
        ...

    async def close(self) -> None:
        """Let everything go; no job is running any more."""
        ...


def choose(settings: Settings) -> Runner:
    """The workers of RUNPOD_ENDPOINT_ID where it is set, else this machine's engine. Raises SettingsError."""
    if settings.runpod_endpoint_id is None:
        return LocalRunner(settings)
    from hansard.server.runpod.runner import RunPodRunner

    return RunPodRunner(settings)


class LocalRunner:
    """The engine process of this machine, one job at a time. Its work folder is there once it has started."""

    at_once = 1

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: EngineHost | None = None

    @property
    def engine(self) -> EngineHost:
        """The engine, from `start` on."""
        assert self._engine is not None, "the runner was not started"
        return self._engine

    async def start(self) -> None:
        await asyncio.to_thread(check_settings, self._settings)  # it may ask the disk
        self._engine = EngineHost(self._settings)
        if not self._settings.lazy_load_models:
            self._engine.start()

    async def check(self, request: Request) -> Plan:
        return await asyncio.to_thread(check, request, self._settings)  # it may ask the model hub

    async def run(
        self, job_id: str, request: Request, recording: Path | None, plan: Plan, report: StageReport
    ) -> Transcript:
        return await self.engine.transcribe(job_id, request, plan, report, recording)

    async def forget(self, job_id: str) -> None:
        """Nothing is left of a job that is not running."""

    def release(self) -> None:
        """An engine process that a stopped job takes with it is the last; the next server runs the jobs anew."""
        if self._engine is not None:
            self._engine.retire()

    async def close(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
