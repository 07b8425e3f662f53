"""Models kept warm between jobs: each is loaded once, whoever asks first, and let go when another needs the room."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from hansard.models import Models
from hansard.vendors import no_room

log = logging.getLogger(__name__)

MOST = 8
"""Models held at once. On a GPU memory is the limit; on a machine without one the kernel would kill the process."""


class Closable(Protocol):
    """What the shelf asks of a backend: existing means ready, `close` lets its model go."""

    def close(self) -> None: ...


B = TypeVar("B", bound=Closable)
Key = tuple[Any, str]  # a backend and its model


class Shelf:
    """The backends of this process; safe to use from several threads."""

    def __init__(self) -> None:
        self._held: dict[Key, Any] = {}  # the one used longest ago comes first
        self._loading: dict[Key, threading.Lock] = {}
        self._needed: set[Key] = set()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A new job: what the one before needed may go when room is needed."""
        with self._lock:
            self._needed.clear()

    def get(self, backend: Callable[[str, Models], B], model: str, models: Models) -> B:
        """The one instance of a backend with this model, loaded now if it is not there.

        When memory runs out while it loads, models that the job in hand has not asked for are let go, and it is tried
        once more. Raises what its constructor raises.
        """
        key = (backend, model)
        with self._lock:
            self._needed.add(key)
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            if key not in self._held:
                loaded = self._load(key, lambda: backend(model, models))
                with self._lock:
                    self._held[key] = loaded
                self._make_room(MOST)
            with self._lock:
                held: B = self._held[key]
                self._held[key] = self._held.pop(key)
            return held

    def _load(self, key: Key, load: Callable[[], B]) -> B:
        begin = time.perf_counter()
        try:
            loaded = load()
        except Exception as error:
            if not no_room(error) or not self._make_room(0):
                raise
            loaded = load()
        log.info("loaded %s in %.1f s", _name(key), time.perf_counter() - begin)
        return loaded

    def _make_room(self, most: int) -> bool:
        """Let go of what the job in hand does not need until `most` are held; was there any?"""
        with self._lock:
            idle = [key for key in self._held if key not in self._needed][: max(0, len(self._held) - most)]
            gone = {key: self._held.pop(key) for key in idle}
        for key, held in gone.items():
            log.info("letting %s go to make room", _name(key))
            _close(key, held)
        del gone
        gc.collect()
        return bool(idle)

    def close(self) -> None:
        """Close every backend."""
        with self._lock:
            held, self._held = self._held, {}
        for key, backend in held.items():
            _close(key, backend)


def _name(key: Key) -> str:
    return f"{key[0].__name__} {key[1]}"


def _close(key: Key, backend: Closable) -> None:
    try:
        backend.close()
    except Exception:  # the others must close all the same
        log.exception("%s did not close", _name(key))
