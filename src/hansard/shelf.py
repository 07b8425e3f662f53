"""Models kept warm between jobs: each backend class is constructed once, whoever asks first."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)


class Closable(Protocol):
    """What the shelf asks of a backend: existing means ready, `close` lets its model go."""

    def close(self) -> None: ...


B = TypeVar("B", bound=Closable)


class Shelf:
    """The backends of this process; safe to use from several threads."""

    def __init__(self) -> None:
        self._held: dict[type, Any] = {}
        self._loading: dict[type, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, backend: type[B]) -> B:
        """The one instance of a backend, loaded now if it is not there. Raises what its constructor raises."""
        with self._lock:
            loading = self._loading.setdefault(backend, threading.Lock())
        with loading:
            if backend not in self._held:
                begin = time.perf_counter()
                self._held[backend] = backend()
                log.info("loaded %s in %.1f s", backend.__name__, time.perf_counter() - begin)
            held: B = self._held[backend]
            return held

    def close(self) -> None:
        """Close every backend."""
        with self._lock:
            while self._held:
                backend, held = self._held.popitem()
                try:
                    held.close()
                except Exception:  # the others must close all the same
                    log.exception("%s did not close", backend.__name__)
