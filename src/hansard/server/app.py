"""The server's application: every door's routes over one job core. Read this first.

request ─▶ CORS ─▶ Requests (id, log, numbers, crashes) ─▶ a router ─▶ JobCore ─▶ Runner
                                                               └ errors ─▶ problems (OpenAI's shape)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from hansard import __version__
from hansard.server import health, metrics, native, problems
from hansard.server.access import Gate
from hansard.server.admin import routes as admin
from hansard.server.admin.stockroom import Stockroom
from hansard.server.apps import asr
from hansard.server.apps import routes as apps
from hansard.server.jobs import JobCore
from hansard.server.metrics import Metrics
from hansard.server.openai import routes as openai
from hansard.server.requests import Requests
from hansard.server.runners import Runner, choose
from hansard.server.runpod import routes as runpod_door
from hansard.server.uploads import Budget
from hansard.server.webhooks import Webhooks
from hansard.settings import Settings

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    metrics.router,
    openai.router,
    native.router,
    apps.router,
    asr.router,
    runpod_door.router,
    admin.router,
)

TAGS = [
    {"name": "openai", "description": "OpenAI's audio endpoints, and a diarization beside them"},
    {"name": "jobs", "description": "Jobs that are sent, followed and fetched; or told to a webhook"},
    {"name": "apps", "description": "Endpoints of apps that were written for other servers; they wait for the answer"},
    {"name": "asr", "description": "whisper-asr-webservice, as Speakr and Bazarr call it"},
    {"name": "runpod", "description": "RunPod's API: a caller of an endpoint changes its base URL only"},
    {"name": "admin", "description": "The state of the server and its models, for ADMIN_KEYS"},
    {"name": "operation", "description": "For load balancers, orchestrators and Prometheus"},
]

TOLD = ["x-request-id", "x-should-retry", "Retry-After", "Location"]  # headers that a web page's script may read


def create_app(settings: Settings, runner: Runner | None = None) -> FastAPI:
    """The application; its lifespan opens the job core. `runner` does the jobs, by default the one that settings name.

    Raises SettingsError; its lifespan raises what opening the core does.
    """
    does = runner or choose(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        core = JobCore(settings, does)
        app.state.metrics.watch(core)
        async with core, Webhooks(core, settings):
            app.state.core, app.state.stock = core, Stockroom(settings, does)
            try:
                yield
            finally:
                await app.state.stock.close()

    app = FastAPI(
        title="Hansard",
        version=__version__,
        description="Recordings to who said what.",
        openapi_tags=TAGS,
        servers=[{"url": url} for url in settings.advertised_hosts],
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.settings, app.state.runner = settings, does
    app.state.gate, app.state.metrics, app.state.budget = Gate(settings), Metrics(), Budget()
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router, responses=problems.RESPONSES)
    for path, endpoint in (("/healthz", health.healthz), ("/readyz", health.readyz)):  # for probes that want no body
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    _wrap(app, settings)
    return app


def _wrap(app: FastAPI, settings: Settings) -> None:
    """The layers around the routes; the last one added is the outermost, so that even a crash has its CORS headers."""
    app.add_middleware(Requests, metrics=app.state.metrics)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.allow_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=TOLD,
    )
