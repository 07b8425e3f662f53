"""Models kept warm between jobs: each is loaded once, whoever asks first, and let go when another needs the room.

Whoever owns the shelf may have them let go before: one by its name, or those that no job used for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from hansard.models import Models
from hansard.vendors import give_back_memory, no_room, without_frames

log = logging.getLogger(__name__)

MOST = 8
"""Models held at once. On a GPU memory is the limit; on a machine without one the kernel would kill the process."""


WAIT_S = 0.5  # between two reports of one who waits for a model that another loads


class Closable(Protocol):
    """What the shelf asks of a backend: existing means ready, `close` lets its model go."""

    def close(self) -> None: ...


B = TypeVar("B", bound=Closable)
Key = tuple[Any, str]  # a backend and its model


class _Loading:
    """One model's turn to be loaded, and how much of it is downloaded, 0 to 1."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fraction = 0.0

    def note(self, fraction: float) -> None:
        self.fraction = fraction


class Shelf:
    """The backends of this process; safe to use from several threads.

    `changed` is called whenever a model begins to be loaded, is there, could not be had, or is gone.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._held: dict[Key, Any] = {}  # the one used longest ago comes first
        self._used: dict[Key, float] = {}  # of those held: when a job last had one, in seconds of the monotonic clock
        self._coming: set[Key] = set()  # those that are being loaded
        self._loading: dict[Key, _Loading] = {}
        self._needed: set[Key] = set()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A new job: what the one before needed may go when room is needed."""
        with self._lock:
            self._needed.clear()

    def end(self) -> None:
        """The job is over: what it needed was in use until now."""
        with self._lock:
            self._used |= dict.fromkeys(self._needed & self._held.keys(), time.monotonic())

    def contents(self) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
        """What is held, and what is being loaded."""
        with self._lock:
            return tuple(self._held), tuple(self._coming)

    def get(self, backend: Callable[[str, Models], B], model: str, models: Models) -> B:
        """The one instance of a backend with this model, loaded now if it is not there.

        Whoever waits while another loads it is told how far its download is, and may stop by raising from there. When
        memory runs out, models that the job in hand has not asked for are let go, and it is tried once more. Raises
        what its constructor raises.
        """
        key = (backend, model)
        with self._lock:
            self._needed.add(key)
            loading = self._loading.setdefault(key, _Loading())
        while not loading.lock.acquire(timeout=WAIT_S):
            models.report(loading.fraction)
        try:
            if key not in self._held:
                with self._announced(key):
                    loaded = self._load(key, lambda: backend(model, models.also_telling(loading.note)))
                    with self._lock:
                        self._held[key] = loaded
                        self._used[key] = time.monotonic()
                self.make_room(MOST)
            with self._lock:
                held: B = self._held[key]
                self._held[key] = self._held.pop(key)
            return held
        finally:
            loading.lock.release()

    @contextmanager
    def _announced(self, key: Key) -> Iterator[None]:
        """While a model is being loaded."""
        with self._lock:
            self._coming.add(key)
        self._changed()
        try:
            yield
        finally:
            with self._lock:
                self._coming.discard(key)
            self._changed()

    def _load(self, key: Key, load: Callable[[], B]) -> B:
        begin = time.perf_counter()
        try:
            loaded = load()
        except Exception as error:
            if not no_room(error):
                raise
            full = without_frames(error)  # or it would hold what was loaded so far
        else:
            return self._loaded(key, loaded, begin)
        give_back_memory()  # what was loaded so far
        if not self.make_room():
            raise full
        return self._loaded(key, load(), begin)

    @staticmethod
    def _loaded(key: Key, loaded: B, begin: float) -> B:
        log.info("loaded %s in %.1f s", _name(key), time.perf_counter() - begin)
        return loaded

    def make_room(self, most: int = 0) -> bool:
        """Let go of what the job in hand has not asked for until `most` models are held; was there any?"""
        with self._lock:
            idle = [key for key in self._held if key not in self._needed][: max(0, len(self._held) - most)]
            gone = self._taken(idle)
        return self._close_all(gone, "to make room")

    def let_go(self, backend: Callable[[str, Models], Closable], model: str) -> None:
        """Let go of one model, if it is held; one that is being loaded is waited for. No job may be using it."""
        key = (backend, model)
        with self._lock:
            loading = self._loading.setdefault(key, _Loading())
        with loading.lock:
            with self._lock:
                gone = self._taken([key])
            self._close_all(gone, "as was asked for")

    def let_go_unused(self, seconds: float) -> None:
        """Let go of what no job has used for so long. No job may be running."""
        before = time.monotonic() - seconds
        with self._lock:
            gone = self._taken([key for key, used in self._used.items() if used <= before])
        self._close_all(gone, "since no job uses it")

    def _taken(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """Take models off the shelf; the lock is held."""
        gone = {key: self._held.pop(key) for key in keys if key in self._held}
        for key in gone:
            del self._used[key]
        return gone

    def _close_all(self, gone: dict[Key, Any], why: str) -> bool:
        """Close what was taken off the shelf, and empty the dict; was there any?"""
        if not gone:
            return False
        while gone:
            key, held = gone.popitem()
            log.info("letting %s go %s", _name(key), why)
            _close(key, held)
            del held
        give_back_memory()  # which takes a second where large libraries are loaded
        self._changed()
        return True

    def close(self) -> None:
        """Close every backend."""
        with self._lock:
            held = self._taken(list(self._held))
        for key, backend in held.items():
            _close(key, backend)


def _name(key: Key) -> str:
    return f"{key[0].__name__} {key[1]}"


def _close(key: Key, backend: Closable) -> None:
    try:
        backend.close()
    except Exception:  # the others must close all the same
        log.exception("%s did not close", _name(key))
