"""For operators: what this server is and does, and its models: fetch, load, let go.

Only for ADMIN_KEYS; without any, for this machine's own callers of a server that needs no keys and is not open to
others (`access`). Downloading, loading and unloading are begun and answered at once (202); the model's state and the
event stream tell the rest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from sse_starlette import EventSourceResponse

from hansard import __version__
from hansard.server.access import admin
from hansard.server.admin.machine import machine, versions
from hansard.server.admin.stockroom import Stockroom
from hansard.server.admin.views import (
    QUEUE,
    AdminStatus,
    EndpointView,
    EngineView,
    LoadOrder,
    ModelView,
    QueueView,
)
from hansard.server.answer_models import stream
from hansard.server.context import Core, Given
from hansard.server.jobs import JobCore
from hansard.server.waiting import stream_of
from hansard.settings import Settings

router = APIRouter(prefix="/api/admin", tags=["admin"], dependencies=[Depends(admin)])

LOOK_S = 1.0  # between two looks for changes
METHODS = ("get", "post", "put", "patch", "delete")


def stock_of(request: Request) -> Stockroom:
    """The models of the server that a request came to."""
    stock: Stockroom = request.app.state.stock
    return stock


Stock = Annotated[Stockroom, Depends(stock_of)]
Key = Annotated[
    str,
    Path(
        description="a model's key in the status, or any of its names",
        examples=["large-v3", "pyannote/speaker-diarization-community-1", "aligner:en"],
    ),
]

CHANGED = {"event": "queue", "data": QueueView(**QUEUE).model_dump_json()}
EVENTS = {kind: {**told, "example": CHANGED} for kind, told in stream("models", "model", "queue").items()}


@router.get("/status", summary="All of the server at once")
async def status(request: Request, core: Core, settings: Given, stock: Stock) -> AdminStatus:
    """The server now: models, engine, queue, machine, versions, endpoints."""
    return AdminStatus(
        version=__version__,
        engine=_engine(stock),
        queue=_queue(core),
        models=await stock.views(fresh=True),
        machine=await asyncio.to_thread(machine, settings),
        versions=await asyncio.to_thread(versions),
        endpoints=_endpoints(request, settings),
    )


@router.post("/models/{key:path}/download", status_code=202, summary="Fetch a model")
async def download(key: Key, stock: Stock) -> ModelView:
    """Begin to fetch a model's weights; one that is on its way is joined."""
    return await stock.download(key)


@router.delete("/models/{key:path}/download", summary="Stop fetching a model")
async def cancel(key: Key, stock: Stock) -> ModelView:
    """Stop fetching a model, at once; what is here of it stays, and the next download goes on from there."""
    return await stock.cancel(key)


@router.post("/models/{key:path}/load", status_code=202, summary="Load a model")
async def load(key: Key, stock: Stock, order: LoadOrder | None = None) -> ModelView:
    """Begin to load a model into the engine's memory, fetched before if need be.

    It waits for the job in hand, and the next job waits for it. Of several orders for one model the last one counts.
    """
    return await stock.load(key, order.devices if order else [])


@router.post("/models/{key:path}/unload", status_code=202, summary="Let a model go")
async def unload(key: Key, stock: Stock) -> ModelView:
    """Let a model go, after the job in hand; one that is being loaded goes once it is there, one that was to be loaded
    is not. A job that needs it loads it again.
    """
    return await stock.unload(key)


@router.get("/models/{key:path}", summary="Look at a model")
async def model(key: Key, stock: Stock) -> ModelView:
    """One model, as in the status."""
    return await stock.view(key)


@router.get(
    "/events",
    summary="Follow the server",
    response_class=EventSourceResponse,
    responses={200: {"content": EVENTS}},
)
async def events(core: Core, stock: Stock) -> EventSourceResponse:
    """Server-sent events without end: `models` and `queue` as they are now, then `model` and `queue` when changed.

    The data of `models` is a list, of `model` one of them, as in the status.
    """
    return stream_of(_events(core, stock))


async def _events(core: JobCore, stock: Stockroom) -> AsyncIterator[dict[str, str]]:
    told = await stock.views()
    queue = _queue(core)
    yield {"event": "models", "data": json.dumps([view.model_dump() for view in told])}
    yield {"event": "queue", "data": queue.model_dump_json()}
    while True:
        await asyncio.sleep(LOOK_S)
        before = {view.key: view for view in told}
        told = await stock.views()
        for view in told:
            if view != before.get(view.key):
                yield {"event": "model", "data": view.model_dump_json()}
        if (now := _queue(core)) != queue:
            queue = now
            yield {"event": "queue", "data": queue.model_dump_json()}


def _engine(stock: Stockroom) -> EngineView:
    if stock.engine is None:
        return EngineView(runner="elsewhere", state=None, device=None)
    return EngineView(runner="local", state=stock.engine.state, device=stock.device)


def _queue(core: JobCore) -> QueueView:
    return QueueView(queued=core.waiting, running=core.running)


def _endpoints(request: Request, settings: Settings) -> list[EndpointView]:
    """What OpenAPI tells, at ADVERTISED_HOSTS, or where this request came to."""
    bases = [url.rstrip("/") for url in settings.advertised_hosts or (str(request.base_url),)]
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    return [
        EndpointView(
            method=method.upper(), path=path, summary=item[method].get("summary", ""), urls=[b + path for b in bases]
        )
        for path, item in paths.items()
        for method in METHODS
        if method in item
    ]
