"""Door 1: RunPod. Turns a job into a Request, hands it to the engine, turns the Transcript into JSON.

python src/handler.py             take jobs from RunPod, or run test_input.json where there is no platform
python src/handler.py --schema    print the JSON Schema of a job's input
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from typing import Any, NoReturn

from hansard import envelope, progress, render
from hansard.engine.host import EngineHost
from hansard.errors import HansardError
from hansard.joblog import JobLog, Tail
from hansard.plan import check, check_settings
from hansard.request import json_schema, parse
from hansard.settings import Settings, load

log = logging.getLogger("hansard.handler")

LONGEST_ERROR = 2_000  # characters


class Worker:
    """One engine and one log behind RunPod's handler function."""

    def __init__(self, settings: Settings, *, echo: bool = True) -> None:
        check_settings(settings)
        self._settings = settings
        self._log = JobLog(settings, echo=echo)
        self._engine = EngineHost(settings)
        self._engine.start()

    def close(self) -> None:
        """Let the engine go, and end the log."""
        self._engine.close()
        self._log.close()

    async def fitness(self) -> None:
        """Return when this worker is fit to take jobs.

        Raises UnfitError, and then has closed: the SDK ends the process at once, without a chance to tidy up.
        """
        try:
            await self._engine.fitness()
        except HansardError as error:
            log.critical("this worker takes no jobs and leaves: %s", error)
            await asyncio.to_thread(self.close)
            raise

    async def handle(self, job: dict[str, Any], send: progress.Send | None = None) -> dict[str, Any]:
        """Answer one job: the result, or `{"error": "code: sentence"}`; only cancellation is raised.

        `send` takes progress; without it progress goes to the platform.
        """
        job_id = str(job.get("id", "local"))
        with self._log.job(job_id) as tail:
            try:
                return await self._answer(job_id, job.get("input"), send or _to_platform(job), tail)
            except HansardError as error:
                told = _told(error)
                log.warning("failed: %s", told)
                # A machine that was fit when it started may have lost its GPU: the platform then takes another one.
                return {"error": told} | ({"refresh_worker": True} if self._engine.unfit else {})
            except asyncio.CancelledError:
                log.info("cancelled")
                raise
            except Exception:
                log.exception("failed")
                return {"error": f"internal: this is our mistake; the worker's log has the details under job {job_id}"}

    async def _answer(self, job_id: str, payload: object, send: progress.Send, tail: Tail) -> dict[str, Any]:
        request = parse(payload)
        tail.secrets = request.secrets()
        plan = await asyncio.to_thread(check, request, self._settings)  # it may ask the model hub
        log.info("started: model %s, diarizer %s", plan.model, plan.diarizer.model if plan.diarizer else "none")
        overall = progress.Overall(plan.stages)
        async with progress.Channel(send) as channel:
            transcript = await self._engine.transcribe(
                job_id, request, plan, lambda stage, done: channel.offer(overall.update(stage, done))
            )
        result = render.to_result(transcript, words=request.align_output, task=request.task)
        result |= {name: render.FORMATS[name](transcript) for name in request.output_formats}
        log.info("finished: %.1f s of sound, %d segments", transcript.duration, len(transcript.segments))
        if request.debug:
            for stage, seconds in transcript.timings.items():
                log.info("stage %s took %.3f s", stage, seconds)
        return envelope.fit({**result, "logs": list(tail.lines)}, int(self._settings.result_limit_mb * 1_000_000))


def _told(error: HansardError) -> str:
    """An error as the platform takes it: it may repeat what the caller sent, of any size and in any encoding."""
    text = str(error).encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + "…"


def _to_platform(job: dict[str, Any]) -> progress.Send:
    """Progress as RunPod's own client posts it, but awaited, so that posts keep their order."""

    async def send(state: dict[str, object]) -> None:
        if _on_the_platform():  # the SDK's local modes have nobody to tell
            from runpod.http_client import AsyncClientSession
            from runpod.serverless.modules.rp_http import send_result

            async with AsyncClientSession() as session:
                await send_result(session, {"status": "IN_PROGRESS", "output": state}, job)

    return send


def _on_the_platform() -> bool:
    """Is there somebody to ask for jobs? Else the SDK runs in one of its local modes."""
    return "RUNPOD_WEBHOOK_GET_JOB" in os.environ


def main() -> None:
    """Start the engine, then RunPod's loop, which polls for the first job while the models load."""
    if "--schema" in sys.argv[1:]:
        print(json.dumps(json_schema(), indent=2))
        return
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # its default, DEBUG, prints every result
    for check_of_the_sdk in ("RUNPOD_SKIP_GPU_CHECK", "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS"):
        os.environ.setdefault(check_of_the_sdk, "true")  # they would load torch and open the GPU in this process
    # Until the SDK has its own handler, which is after the fitness check: PID 1 of a container would ignore the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        worker = Worker(load())
    except HansardError as error:
        _leave(error)
    try:
        import runpod  # after the engine has started: it takes a second or two to import

        runpod.serverless.register_fitness_check(worker.fitness)  # asked only where there is a platform
        runpod.serverless.start({"handler": worker.handle})
    finally:
        worker.close()


def _leave(error: HansardError) -> NoReturn:
    """End a process that cannot even begin; the platform is told the reason the way it is told an unfit worker's."""
    print(error, file=sys.stderr)
    if _on_the_platform():
        import runpod

        async def settings() -> None:
            raise error

        runpod.serverless.register_fitness_check(settings)
        runpod.serverless.start({"handler": settings})  # ends the process with exit code 1
    sys.exit(1)


if __name__ == "__main__":
    main()
