"""Is the process alive, and can it take work? For load balancers and orchestrators; neither needs a key."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from hansard.engine.host import EngineHost
from hansard.errors import RequestError
from hansard.health import State
from hansard.models import Models, shown
from hansard.plan import default_diarizer, default_transcriber
from hansard.server.context import Core, Given
from hansard.server.runners import LocalRunner, Runner
from hansard.settings import Settings

router = APIRouter(tags=["operation"])


class Alive(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether a job sent now would be taken and worked on; `problem` says why not."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ready": True, "problem": None, "queued": 0, "running": 1}]}
    )

    ready: bool
    problem: str | None = Field(None, examples=["the engine is still starting"])
    queued: int
    running: int


STATES: dict[State, str | None] = {
    "ready": None,
    "starting": "the engine is still starting",
    "unfit": "this machine cannot do the work; the log says why",
    "down": "the engine is down; it is started again by itself",
}

NOT_READY: dict[str, Any] = {"ready": False, "problem": STATES["starting"], "queued": 0, "running": 0}


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Alive:
    """The process lives: restart it when this does not answer."""
    return Alive()


@router.get(
    "/readyz",
    summary="Can a job be sent here now?",
    responses={
        503: {
            "model": Readiness,
            "description": "Send work elsewhere for now",
            "content": {"application/json": {"example": NOT_READY}},
        }
    },
)
async def readyz(request: Request, response: Response, core: Core, settings: Given) -> Readiness:
    """The engine is ready and the queue has room: send work here; 503 where it does not."""
    problem = await _engine_problem(request.app.state.runner, settings)
    if problem is None and core.waiting >= settings.max_queue:
        problem = "the queue is full"
    if problem:
        response.status_code = 503
    return Readiness(ready=problem is None, problem=problem, queued=core.waiting, running=core.running)


async def _engine_problem(runner: Runner, settings: Settings) -> str | None:
    """What keeps this machine's engine from working; an endpoint elsewhere is always asked to."""
    problem = STATES[state_of(runner, settings)]
    if problem or not isinstance(runner, LocalRunner) or not runner.engine.warm.failed:
        return problem
    return await asyncio.to_thread(_missing_default, runner.engine, settings)


def state_of(runner: Runner, settings: Settings) -> State:
    """How the engine is; ready where nobody needed it so far, and where it is an endpoint elsewhere."""
    if not isinstance(runner, LocalRunner):
        return "ready"
    state = runner.engine.state
    return "ready" if state == "down" and runner.engine.waits and settings.lazy_load_models else state


def _missing_default(engine: EngineHost, settings: Settings) -> str | None:
    """Why jobs that name no model would fail: the engine tries again by itself. Reads the disk."""
    models, failed = Models(settings), engine.warm.failed
    try:
        defaults = [default_transcriber(models), *([default_diarizer(models)] if settings.diarization_required else [])]
    except RequestError as error:  # its folder is gone
        return error.sentence
    missing = (choice for choice in defaults if choice in failed)
    return next((f"the default model {shown(one.model)} cannot be loaded: {failed[one]}" for one in missing), None)
