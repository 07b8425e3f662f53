"""The models of this server: on the disk, on their way, in the engine's memory, and what went wrong with them last.

    look on the disk ─┐
    downloads ────────┼▶ ModelView ─▶ status, events
    engine's `warm` ──┘

Belongs to one event loop. What jobs load and download by themselves is seen as well, through the engine and the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Literal

from hansard.engine.host import EngineHost
from hansard.errors import CancelledError, HansardError, RequestError, UnsupportedError
from hansard.models import Models
from hansard.server.admin.downloads import Download
from hansard.server.admin.inventory import Entry, Found, entries, entry_named, look
from hansard.server.admin.machine import memory_total
from hansard.server.admin.views import DownloadView, ModelState, ModelView
from hansard.server.runners import LocalRunner, Runner
from hansard.settings import Settings

log = logging.getLogger(__name__)

AT_ONCE = 2  # downloads; each takes four files at a time
CANCEL_S = 5.0  # that a cancelled download has to stop before its caller is answered all the same

ELSEWHERE = (
    "the models of this server are held by the workers of its RunPod endpoint, which load what a job needs; "
    "choose them in the endpoint's own settings"
)


class Stockroom:
    """What an operator sees of the models and does with them; `close` it before the runner."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._engine: EngineHost | None = runner.engine if isinstance(runner, LocalRunner) else None
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download")
        self._downloads: dict[str, tuple[Download, asyncio.Future[None]]] = {}
        self._orders: dict[str, asyncio.Task[None]] = {}  # loads and unloads, by `load KEY` or `unload KEY`
        self._errors: dict[str, str] = {}
        self._known: dict[str, tuple[Entry, Found]] = {}
        self._asked: dict[str, Entry] = {}  # those that were to be fetched: no table may know them
        self._stale = True
        if self._engine:
            loop = asyncio.get_running_loop()
            self._engine.on_change(lambda: _call(loop, self._outdate))

    async def close(self) -> None:
        """Stop every download and forget what the engine was asked for."""
        for download, _ in self._downloads.values():
            download.cancel()
        for task in self._orders.values():
            task.cancel()
        if self._engine:
            self._engine.on_change(lambda: None)
        await asyncio.gather(*self._orders.values(), return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    @property
    def engine(self) -> EngineHost | None:
        """The engine of this machine, if that does the jobs."""
        return self._engine

    async def views(self, fresh: bool = False) -> list[ModelView]:
        """Every model; the disk is looked at where something may have changed there, or `fresh` says so."""
        if self._engine is None:
            return []
        if fresh or self._stale:
            self._stale = False
            self._known = await asyncio.to_thread(self._look)
        return [self._view(entry, found) for entry, found in self._known.values()]

    async def view(self, key: str) -> ModelView:
        """One model. Raises ModelMissingError, UnsupportedError."""
        return await self._view_of(await self._entry(key))

    async def download(self, key: str) -> ModelView:
        """Begin to fetch a model, unless it is here or on its way. Raises ModelError, UnsupportedError."""
        entry = await self._entry(key)
        if not entry.needs:
            raise RequestError(f"{entry.key} has nothing to download: it rides in a package, or is a service's")
        await self._begin_download(entry)
        return await self._view_of(entry)

    async def cancel(self, key: str) -> ModelView:
        """Stop a download; what it has fetched stays for the next one. Raises ModelMissingError, UnsupportedError."""
        entry = await self._entry(key)
        if entry.key in self._downloads:
            download, done = self._downloads[entry.key]
            download.cancel()
            await asyncio.wait([done], timeout=CANCEL_S)
        return await self._view_of(entry)

    async def load(self, key: str, devices: Sequence[str]) -> ModelView:
        """Begin to load a model, fetched before if it is not here. Raises ModelError, UnsupportedError."""
        entry = await self._entry(key)
        self._refuse_devices(devices)
        found = await asyncio.to_thread(look, entry, self._settings)
        self._refuse_size(entry, found.size)
        fetched = None if found.whole else await self._begin_download(entry)
        self._order(f"load {entry.key}", entry, partial(self._load, entry, fetched))
        return await self._view_of(entry)

    async def unload(self, key: str) -> ModelView:
        """Let a model go when no job uses it any more. Raises ModelMissingError, UnsupportedError."""
        entry = await self._entry(key)
        self._order(f"unload {entry.key}", entry, partial(self._unload, entry))
        return await self._view_of(entry)

    # What is asked for

    async def _entry(self, key: str) -> Entry:
        if self._engine is None:
            raise UnsupportedError(ELSEWHERE)
        return await asyncio.to_thread(entry_named, key, self._settings)

    def _refuse_devices(self, devices: Sequence[str]) -> None:
        own = {"cuda", "cuda:0"} if self._settings.on_gpu else {"cpu"}
        if len(set(devices)) > 1 or not own.issuperset(devices):
            raise UnsupportedError(f"the engine of this server has one device, {self.device}; leave out devices")

    def _refuse_size(self, entry: Entry, size: int) -> None:
        """Refuse what only a GPU could hold on a machine without one. Raises UnsupportedError."""
        memory = memory_total()
        if not self._settings.on_gpu and size > memory:
            raise UnsupportedError(
                f"{entry.key} needs a GPU here: its weights are {size / 1e9:.1f} GB and this machine has "
                f"{memory / 1e9:.1f} GB of memory; use a machine with a GPU, or a smaller model"
            )

    async def _begin_download(self, entry: Entry) -> asyncio.Future[None]:
        """The download of a model, begun now if it is not on its way. Raises ModelError, UnsupportedError."""
        if entry.key not in self._downloads:
            download = Download(entry, self._settings)
            self._refuse_size(entry, await asyncio.to_thread(download.ask))
        if entry.key not in self._downloads:  # another caller may have been quicker
            self._errors.pop(entry.key, None)
            self._asked[entry.key] = entry
            self._stale = True
            work = asyncio.get_running_loop().run_in_executor(self._pool, download.run)
            done = asyncio.ensure_future(self._guarded(entry, work))
            self._downloads[entry.key] = (download, done)
            done.add_done_callback(lambda _: self._forget_download(entry.key))
        return self._downloads[entry.key][1]

    def _forget_download(self, key: str) -> None:
        del self._downloads[key]
        self._outdate()

    def _order(self, name: str, entry: Entry, work: Callable[[], Awaitable[None]]) -> None:
        """Have something done in the background, once at a time."""
        if name not in self._orders:
            self._errors.pop(entry.key, None)
            task = self._orders[name] = asyncio.ensure_future(self._guarded(entry, work()))
            task.add_done_callback(lambda _: self._forget_order(name))

    def _forget_order(self, name: str) -> None:
        del self._orders[name]
        self._outdate()

    async def _load(self, entry: Entry, fetched: asyncio.Future[None] | None) -> None:
        assert self._engine is not None
        if fetched:
            await asyncio.wait([fetched])  # which has noted its own error
            if not (await asyncio.to_thread(look, entry, self._settings)).whole:
                return
        await self._engine.load(entry.choices[-1])

    async def _unload(self, entry: Entry) -> None:
        assert self._engine is not None
        for choice in entry.choices:
            await self._engine.unload(choice)

    async def _guarded(self, entry: Entry, work: Awaitable[None]) -> None:
        """Do it, and note why it failed if it does."""
        with suppress(CancelledError):
            try:
                await work
            except CancelledError:
                raise
            except HansardError as error:
                log.warning("model %s: %s", entry.key, error)
                self._errors[entry.key] = error.sentence
            except Exception:
                log.exception("model %s", entry.key)
                self._errors[entry.key] = "this is our mistake; the server's log has the details"

    # What is seen

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Where the engine of this machine loads models."""
        return "cuda" if self._settings.on_gpu else "cpu"

    def _outdate(self) -> None:
        self._stale = True

    def _look(self) -> dict[str, tuple[Entry, Found]]:
        found = {**self._asked, **entries(self._settings)}
        return {key: (entry, look(entry, self._settings)) for key, entry in found.items()}

    async def _view_of(self, entry: Entry) -> ModelView:
        return self._view(entry, await asyncio.to_thread(look, entry, self._settings))

    def _view(self, entry: Entry, found: Found) -> ModelView:
        state = self._state(entry, found)
        download = self._downloads.get(entry.key)
        total = download[0].pace.total if download else found.size if found.whole else None
        repository = entry.needs[0] if entry.needs and Models.is_repository(entry.needs[0]) else None
        return ModelView(
            key=entry.key,
            names=list(entry.names),
            kind=entry.kind,
            repository=repository,
            needs=[name for name in entry.needs if not name.startswith("/")],
            state=state,
            bytes=found.size,
            download=_download_view(download[0]) if download else None,
            last_error=self._errors.get(entry.key),
            devices=[self.device] if state == "ready" else [],
            needs_gpu=None if total is None else total > memory_total(),
        )

    def _state(self, entry: Entry, found: Found) -> ModelState:
        assert self._engine is not None
        warm = self._engine.warm
        if entry.key in self._downloads:
            return "downloading"
        if f"load {entry.key}" in self._orders or not set(entry.choices).isdisjoint(warm.loading):
            return "loading"
        if not set(entry.choices).isdisjoint(warm.ready):
            return "ready"
        if entry.key in self._errors:
            return "failed"
        return "cached" if found.whole else "missing"


def _call(loop: asyncio.AbstractEventLoop, hook: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(hook)


def _download_view(download: Download) -> DownloadView:
    pace = download.pace
    return DownloadView(
        bytes=pace.size,
        total=pace.total,
        percent=round(pace.fraction * 100, 1),
        speed=None if pace.speed is None or pace.total is None else round(pace.speed),
        eta_s=pace.eta_s,
    )
