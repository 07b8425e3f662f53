"""What the parent has asked an engine process to do with a model, and its answers."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from hansard.engine.wire import Load, Settled, ToChild, Unload
from hansard.errors import CrashedError, from_code
from hansard.plan import Choice


class Sends(Protocol):
    """An engine process, as far as orders are concerned; False when it is gone."""

    def send(self, message: ToChild) -> bool: ...


class Orders:
    """The orders that are not answered; safe to use from several threads."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Sends, Future[None]]] = {}
        self._lock = threading.Lock()

    async def give(self, process: Sends, kind: Callable[[str, Choice], Load | Unload], choice: Choice) -> None:
        """Return when it is done. Raises what it failed with; CrashedError where the process died over it."""
        order, future = kind(uuid.uuid4().hex, choice), Future[None]()
        with self._lock:
            self._waiting[order.id] = (process, future)
        answer = asyncio.wrap_future(future)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if nobody waits
        try:
            if not process.send(order):
                raise CrashedError("the engine process is just being started again; ask again in a moment")
            await asyncio.shield(answer)
        finally:
            with self._lock:
                self._waiting.pop(order.id, None)

    def settle(self, answer: Settled) -> None:
        """An engine process has answered."""
        with self._lock:
            _, future = self._waiting.pop(answer.id, (None, None))
        if future is None:
            return
        if answer.code is None:
            future.set_result(None)
        else:
            future.set_exception(from_code(answer.code, answer.sentence))

    def fail(self, process: Sends, sentence: str) -> None:
        """An engine process is gone, and so is what it was to do."""
        with self._lock:
            lost = [order for order, (asked, _) in self._waiting.items() if asked is process]
            futures = [self._waiting.pop(order)[1] for order in lost]
        for future in futures:
            future.set_exception(CrashedError(sentence))
