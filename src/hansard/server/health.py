"""Is the process alive, and can it take work? For load balancers and orchestrators; neither needs a key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from hansard.health import State
from hansard.server.context import Core, Given
from hansard.server.runners import LocalRunner, Runner
from hansard.settings import Settings

router = APIRouter(tags=["operation"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether a job sent now would be taken and worked on; `problem` says why not."""

    ready: bool
    problem: str | None = None
    queued: int
    running: int


STATES: dict[State, str | None] = {
    "ready": None,
    "starting": "the engine is still starting",
    "unfit": "this machine cannot do the work; the log says why",
    "down": "the engine is down; the next job starts it again",
}


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Alive:
    """The process lives: restart it when this does not answer."""
    return Alive()


@router.get(
    "/readyz",
    summary="Can a job be sent here now?",
    responses={503: {"model": Readiness, "description": "Send work elsewhere for now"}},
)
async def readyz(request: Request, response: Response, core: Core, settings: Given) -> Readiness:
    """The engine is ready and the queue has room: send work here; 503 where it does not."""
    problem = _engine_problem(request.app.state.runner, settings)
    if problem is None and core.waiting >= settings.max_queue:
        problem = "the queue is full"
    if problem:
        response.status_code = 503
    return Readiness(ready=problem is None, problem=problem, queued=core.waiting, running=core.running)


def _engine_problem(runner: Runner, settings: Settings) -> str | None:
    """What keeps this machine's engine from working; an endpoint elsewhere is always asked to."""
    if not isinstance(runner, LocalRunner) or (settings.lazy_load_models and runner.engine.state == "down"):
        return None
    return STATES[runner.engine.state]
