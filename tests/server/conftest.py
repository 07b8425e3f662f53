"""The server as its callers meet it: a real uvicorn on loopback, in front of a runner that plays a script."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fake_runner import FakeRunner

from hansard.server.jobs import JobCore
from hansard.server.protocol import Protocol
from hansard.settings import Settings

START_S = 60  # however busy the machine
STOP_S = 60


TRUST = ssl.create_default_context()  # made once: it reads the certificates of the whole world


class Quick(uvicorn.Server):
    """uvicorn's server, which notices that it should end within a hundredth of a second."""

    async def main_loop(self) -> None:
        while not self.should_exit:
            await self.on_tick(0)
            await asyncio.sleep(0.01)


class Server:
    """A running server: its address, its runner and its core, and a client that follows no proxy of the machine."""

    def __init__(self, settings: Settings, runner: FakeRunner) -> None:
        from hansard.server.app import create_app

        self.settings, self.runner = settings, runner
        self.app = create_app(settings, runner)
        config = uvicorn.Config(
            self.app, http=Protocol, lifespan="on", log_config=None, ws="none", timeout_graceful_shutdown=1
        )
        self._server = Quick(config)
        self._socket = socket.create_server(("127.0.0.1", settings.host_port), backlog=512)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=TRUST)

    @property
    def core(self) -> JobCore:
        """Its job core, to look at; it belongs to the server's event loop."""
        core: JobCore = self.app.state.core
        return core

    def start(self) -> Server:
        """Return when it answers."""
        self._thread.start()
        end = time.monotonic() + START_S
        while not self._server.started:
            assert self._thread.is_alive(), "the server ended as it started; the captured log says why"
            assert time.monotonic() < end
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """End it as SIGTERM would; stopping twice is fine."""
        self.http.close()
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()
        assert not self._thread.is_alive(), "the server did not stop"


Serve = Callable[..., Server]


@pytest.fixture
def runner() -> FakeRunner:
    """The runner of `server`, and of whatever `serve` starts without one of its own."""
    return FakeRunner()


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a server under test: `settings_of(api_keys=("key",))`; its folders are the test's own."""

    def make(**given: Any) -> Settings:
        folders = {"state_dir": tmp_path / "state", "work_dir": tmp_path / "work", "hf_home": tmp_path / "hub"}
        return Settings(**{"host_port": 0, "hf_hub_offline": True, **folders, **given})

    return make


@pytest.fixture
def serve(runner: FakeRunner, settings_of: Callable[..., Settings]) -> Iterator[Serve]:
    """Start a server: `serve(max_queue=1).http.get("/health")`; the fields of Settings by name, `runner` for another.

    Started twice in one test it finds the STATE_DIR of the first, which must be stopped by then.
    """
    with contextlib.ExitStack() as stack:

        def start(runner: FakeRunner = runner, **given: Any) -> Server:
            server = Server(settings_of(**given), runner)
            stack.callback(server.stop)
            return server.start()

        yield start


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server as it comes."""
    return serve()
