"""Models kept warm between jobs: each is loaded once, whoever asks first, and let go when another needs the room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
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
    """The backends of this process; safe to use from several threads."""

    def __init__(self) -> None:
        self._held: dict[Key, Any] = {}  # the one used longest ago comes first
        self._loading: dict[Key, _Loading] = {}
        self._needed: set[Key] = set()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A new job: what the one before needed may go when room is needed."""
        with self._lock:
            self._needed.clear()

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
                loaded = self._load(key, lambda: backend(model, models.also_telling(loading.note)))
                with self._lock:
                    self._held[key] = loaded
                self.make_room(MOST)
            with self._lock:
                held: B = self._held[key]
                self._held[key] = self._held.pop(key)
            return held
        finally:
            loading.lock.release()

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
            gone = {key: self._held.pop(key) for key in idle}
        while gone:
            key, held = gone.popitem()
            log.info("letting %s go to make room", _name(key))
            _close(key, held)
            del held
        if idle:
            give_back_memory()  # which takes a second where large libraries are loaded
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
