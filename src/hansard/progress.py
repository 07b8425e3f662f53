"""How far a job is, told to whoever waits: one number that never falls, through one channel that is drained.

A platform shows the last message it got, so a message that overtakes another, or that arrives after the result,
harms (runpod-python issue 250). The channel sends one at a time, in order, and closes before the result is returned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

log = logging.getLogger(__name__)

Send = Callable[[dict[str, object]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class State:
    """The stage in hand and how far it is, and how far the whole job is, in whole percent."""

    stage: str
    stage_percent: int
    percent: int


class Overall:
    """Adds stages that may run side by side up to one percentage that never falls."""

    def __init__(self, shares: dict[str, int]) -> None:
        self._shares = shares
        self._done = dict.fromkeys(shares, 0.0)

    def update(self, stage: str, fraction: float) -> State:
        """Note how far a stage is, 0 to 1."""
        self._done[stage] = max(self._done[stage], min(1.0, fraction))
        whole = sum(self._shares[name] * done for name, done in self._done.items()) / sum(self._shares.values())
        return State(stage, int(100 * self._done[stage]), int(100 * whole))


class Channel:
    """Sends the newest state, at most one every `interval` seconds; states in between are skipped.

    Use it as an async context manager: leaving it waits for the message under way, at most `drain` seconds, and
    sends nothing more. Nothing is sent either once the task that opened it is being cancelled: stopping a job takes
    seconds, and who stopped it wants no more of it. A failing `send` is logged and costs nothing else.
    """

    def __init__(self, send: Send, interval: float = 1.0, drain: float = 5.0) -> None:
        self._send = send
        self._interval = interval
        self._drain = drain
        self._newest: State | None = None
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def offer(self, state: State) -> None:
        """Say how far the job is; from any thread, never blocks."""
        self._loop.call_soon_threadsafe(self._note, state)

    def _note(self, state: State) -> None:
        self._newest = state
        self._wake.set()

    async def __aenter__(self) -> Channel:
        self._open = True
        self._owner = asyncio.current_task()
        self._task = asyncio.create_task(self._pump())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._open = False
        self._wake.set()
        _, late = await asyncio.wait([self._task], timeout=self._drain)
        for task in late:
            task.cancel()

    async def _pump(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._open:
                return
            if self._newest is not None and not (self._owner and self._owner.cancelling()):
                begin = time.monotonic()
                await self._deliver(self._newest)
                await self._pause(self._interval - (time.monotonic() - begin))

    async def _deliver(self, state: State) -> None:
        try:
            await self._send(asdict(state))
        except Exception as error:
            log.warning("progress could not be told: %s", type(error).__name__)

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the channel closes."""
        end = time.monotonic() + seconds
        while self._open and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05))
