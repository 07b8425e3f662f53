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
from dataclasses import dataclass
from typing import Literal

from hansard.engine.host import EngineHost
from hansard.errors import CancelledError, HansardError, RequestError, UnsupportedError
from hansard.models import Models
from hansard.plan import Choice, fits_without_gpu, refuse_too_large
from hansard.request import Request
from hansard.server.admin.downloads import Download
from hansard.server.admin.inventory import Entry, Found, entries, entry_named, look
from hansard.server.admin.views import DownloadView, ModelState, ModelView
from hansard.server.runners import LocalRunner, Runner
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks at whether the engine is still fetching a model
AT_ONCE = 2  # downloads; each takes four files at a time
ANY_JOB = Request(audio="https://localhost/any", language="en")  # some models take none without a language

Wish = Literal["load", "unload"]

ELSEWHERE = (
    "the models of this server are held by the workers of its RunPod endpoint, which load what a job needs; "
    "choose them in the endpoint's own settings"
)


@dataclass(frozen=True, slots=True)
class _Order:
    """What is wished of a model last; `task` brings it about."""

    wish: Wish
    task: asyncio.Task[None]


class Stockroom:
    """What an operator sees of the models and does with them; `close` it before the runner."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._engine: EngineHost | None = runner.engine if isinstance(runner, LocalRunner) else None
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download")
        self._downloads: dict[str, tuple[Download, asyncio.Task[None]]] = {}
        self._leaving: dict[str, asyncio.Future[None]] = {}  # cancelled downloads whose threads have not noticed it yet
        self._orders: dict[str, _Order] = {}
        self._errors: dict[str, tuple[Entry, str]] = {}  # of what was asked for here
        self._excused: set[Choice] = set()  # models whose failure in the engine was before the last order here
        self._totals: dict[str, int] = {}  # bytes of downloads, as the hub told
        self._known: dict[str, tuple[Entry, Found]] = {}
        self._asked: dict[str, Entry] = {}  # those that were to be fetched: no table may know them
        self._stale = True
        if self._engine:
            loop = asyncio.get_running_loop()
            self._engine.on_change(lambda: _call(loop, self._changed))

    async def close(self) -> None:
        """Stop every download and forget what the engine was asked for."""
        if self._engine:
            self._engine.on_change(lambda: None)
        tasks = [order.task for order in self._orders.values()] + [task for _, task in self._downloads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
        """Stop a download, and the load that waits for it; what it has fetched stays for the next one.

        It is off at once, though its thread may take a while to notice. Raises ModelMissingError, UnsupportedError.
        """
        entry = await self._entry(key)
        if under_way := self._downloads.pop(entry.key, None):
            under_way[1].cancel()
            if (order := self._orders.get(entry.key)) and order.wish == "load":
                self._drop_order(entry.key)
            self._stale = True
        return await self._view_of(entry)

    async def load(self, key: str, devices: Sequence[str]) -> ModelView:
        """Begin to load a model, fetched before if it is not here. Raises ModelError, UnsupportedError."""
        entry = await self._entry(key)
        self._refuse_devices(devices)
        await asyncio.to_thread(self._refuse_unusable, entry)
        found = await asyncio.to_thread(look, entry, self._settings)
        refuse_too_large(entry.choices[-1], found.size, self._settings)
        fetched = None if found.whole or self._engine_brings(entry) else await self._begin_download(entry)
        self._order("load", entry, lambda: self._load(entry, fetched))
        return await self._view_of(entry)

    async def unload(self, key: str) -> ModelView:
        """Let a model go when no job uses it any more. Raises ModelMissingError, UnsupportedError."""
        entry = await self._entry(key)
        self._order("unload", entry, lambda: self._unload(entry))
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

    def _refuse_unusable(self, entry: Entry) -> None:
        """Refuse what its backend cannot load, before it is fetched: for want of a package, or by the settings.

        May ask the hub. Raises ModelError, EngineError, UnsupportedError.
        """
        if entry.kind == "transcriber":
            TRANSCRIBERS[entry.backend].check(entry.choices[-1].model, ANY_JOB, Models(self._settings))

    def _engine_brings(self, entry: Entry) -> bool:
        """Is the engine just loading a model, and fetching it before if need be?"""
        assert self._engine is not None
        return not set(entry.choices).isdisjoint(self._engine.warm.loading)

    async def _begin_download(self, entry: Entry) -> asyncio.Task[None]:
        """The download of a model, begun now if it is not on its way. Raises ModelError, UnsupportedError."""
        if entry.key not in self._downloads:
            download = Download(entry, self._settings)
            size = await asyncio.to_thread(download.ask)
            refuse_too_large(entry.choices[-1], size, self._settings)
        if entry.key not in self._downloads:  # another caller may have been quicker
            self._begin(entry)
            self._totals[entry.key] = size
            self._asked[entry.key] = entry
            task = asyncio.ensure_future(self._guarded(entry, self._fetch(entry, download)))
            self._downloads[entry.key] = (download, task)
            task.add_done_callback(lambda done: self._forget_download(entry.key, done))
        return self._downloads[entry.key][1]

    async def _fetch(self, entry: Entry, download: Download) -> None:
        """Run a download in a thread, after whoever has the model's files in hand: a cancelled download, or the engine.

        The engine may break off, with the job that it fetches a model for; else nothing is left to do then.
        """
        key = entry.key
        while key in self._leaving:
            await asyncio.wait([self._leaving[key]])
        while self._engine_brings(entry):
            await asyncio.sleep(LOOK_S)
        running = self._pool.submit(download.run)
        over = asyncio.wrap_future(running)
        over.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if nobody waits
        try:
            await asyncio.shield(over)
        except asyncio.CancelledError:
            download.cancel()
            if not running.cancel() and not over.done():
                self._leaving[key] = over
                over.add_done_callback(lambda _: self._leaving.pop(key))
            raise

    def _forget_download(self, key: str, task: asyncio.Task[None]) -> None:
        if key in self._downloads and self._downloads[key][1] is task:
            del self._downloads[key]
        self._stale = True

    def _order(self, wish: Wish, entry: Entry, work: Callable[[], Awaitable[None]]) -> None:
        """Have something done in the background; it takes the place of what else was wished of the model."""
        if entry.key in self._orders and self._orders[entry.key].wish == wish:
            return
        self._drop_order(entry.key)
        self._begin(entry)
        task = asyncio.ensure_future(self._guarded(entry, work()))
        self._orders[entry.key] = _Order(wish, task)
        task.add_done_callback(lambda done: self._forget_order(entry.key, done))

    def _drop_order(self, key: str) -> None:
        if order := self._orders.pop(key, None):
            order.task.cancel()

    def _forget_order(self, key: str, task: asyncio.Task[None]) -> None:
        if key in self._orders and self._orders[key].task is task:
            del self._orders[key]
        self._stale = True

    def _begin(self, entry: Entry) -> None:
        """What went wrong before counts no more."""
        assert self._engine is not None
        self._stale = True
        self._errors.pop(entry.key, None)
        self._excused |= set(entry.choices) & set(self._engine.warm.failed)

    async def _load(self, entry: Entry, fetched: asyncio.Task[None] | None) -> None:
        assert self._engine is not None
        if fetched:
            await asyncio.wait([fetched])  # which has noted its own error
            if not (await asyncio.to_thread(look, entry, self._settings)).whole:
                return
        await self._engine.load(entry.choices[-1])

    async def _unload(self, entry: Entry) -> None:
        """All its names at once: the engine may take a while over the first, and something else be wished meanwhile."""
        assert self._engine is not None
        await asyncio.gather(*(self._engine.unload(choice) for choice in entry.choices))

    async def _guarded(self, entry: Entry, work: Awaitable[None]) -> None:
        """Do it, and note why it failed if it does."""
        with suppress(CancelledError):
            try:
                await work
            except CancelledError:
                raise
            except HansardError as error:
                log.warning("model %s: %s", entry.key, error)
                self._errors[entry.key] = (entry, error.sentence)
            except Exception:
                log.exception("model %s", entry.key)
                self._errors[entry.key] = (entry, "this is our mistake; the server's log has the details")

    # What is seen

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Where the engine of this machine loads models."""
        return "cuda" if self._settings.on_gpu else "cpu"

    def _changed(self) -> None:
        """The engine holds other models than before: what is there has no error any more."""
        assert self._engine is not None
        self._stale = True
        ready = set(self._engine.warm.ready)
        self._errors = {key: error for key, error in self._errors.items() if ready.isdisjoint(error[0].choices)}
        self._excused &= set(self._engine.warm.failed)

    def _look(self) -> dict[str, tuple[Entry, Found]]:
        found = {**self._asked, **entries(self._settings)}
        return {key: (entry, look(entry, self._settings)) for key, entry in found.items()}

    async def _view_of(self, entry: Entry) -> ModelView:
        return self._view(entry, await asyncio.to_thread(look, entry, self._settings))

    def _view(self, entry: Entry, found: Found) -> ModelView:
        state, error = self._state(entry, found)
        fetching = self._download_view(entry) if state == "downloading" else None
        total = fetching.total if fetching else found.size if found.whole else None
        repository = entry.needs[0] if entry.needs and Models.is_repository(entry.needs[0]) else None
        return ModelView(
            key=entry.key,
            names=list(entry.names),
            kind=entry.kind,
            repository=repository,
            needs=[name for name in entry.needs if not name.startswith("/")],
            state=state,
            bytes=found.size,
            download=fetching,
            last_error=error,
            devices=[self.device] if state == "ready" else [],
            needs_gpu=None if total is None else not fits_without_gpu(entry.choices[-1], total, self._settings),
        )

    def _state(self, entry: Entry, found: Found) -> tuple[ModelState, str | None]:
        """How a model is, and what went wrong where that is what it is."""
        assert self._engine is not None
        if moving := self._moving(entry):
            return moving, None
        warm = self._engine.warm
        if not set(entry.choices).isdisjoint(warm.ready):
            return "ready", None
        told = self._errors.get(entry.key, (entry, None))[1]
        failed = [warm.failed[name] for name in entry.choices if name in warm.failed.keys() - self._excused]
        if error := told or next(iter(failed), None):
            return "failed", error
        return "cached" if found.whole else "missing", None

    def _moving(self, entry: Entry) -> ModelState | None:
        """Is a model on its way? The engine comes first: what was asked for here waits for it."""
        assert self._engine is not None
        warm, names, order = self._engine.warm, set(entry.choices), self._orders.get(entry.key)
        if not names.isdisjoint(warm.fetched):
            return "downloading"
        if not names.isdisjoint(warm.loading):
            return "loading"
        if entry.key in self._downloads:
            return "downloading"
        return "loading" if order and order.wish == "load" else None

    def _download_view(self, entry: Entry) -> DownloadView:
        """The engine's own download, of which only the part is known, or the one that was asked for here."""
        assert self._engine is not None
        fetched = self._engine.warm.fetched
        for part in (fetched[name] for name in entry.choices if name in fetched):
            total = self._totals.get(entry.key) or None
            size = None if total is None else int(total * part)
            return DownloadView(bytes=size, total=total, percent=round(part * 100, 1), speed=None, eta_s=None)
        pace = self._downloads[entry.key][0].pace
        return DownloadView(
            bytes=pace.size,
            total=pace.total,
            percent=round(pace.fraction * 100, 1),
            speed=None if pace.speed is None else round(pace.speed),
            eta_s=pace.eta_s,
        )


def _call(loop: asyncio.AbstractEventLoop, hook: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(hook)
