"""Models kept warm between jobs: each is loaded once, whoever asks first, and let go when another needs the room.

Whoever owns the shelf may have them let go before: one by its name, or those that no job used for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

from hansard.errors import CancelledError, CrashedError, HansardError, OutOfMemoryError, from_code
from hansard.models import Models
from hansard.vendors import give_back_memory, gpu_lost, no_room, without_frames

log = logging.getLogger(__name__)

MOST = 8
"""Models held at once. On a GPU memory is the limit; on a machine without one the kernel would kill the process."""

MOST_FAILED = 32  # models that could not be had, remembered at once
WAIT_S = 0.5  # between two reports of one who waits for a model that another loads
TELL_S = 0.5  # between two calls of `changed` that tell of nothing but how far a download is


class Closable(Protocol):
    """What the shelf asks of a backend: existing means ready, `close` lets its model go."""

    def close(self) -> None: ...


B = TypeVar("B", bound=Closable)
Key = tuple[Any, str]  # a backend and its model


class Contents(NamedTuple):
    """What is held; what is being loaded, and how much of it is fetched while its weights are; what could not be had.

    An error stays until its model is asked for again, or let go.
    """

    held: tuple[Key, ...]
    coming: dict[Key, float | None]
    failed: dict[Key, HansardError]


class _Loading:
    """One model's turn to be loaded, and how much of it is downloaded, 0 to 1; `fetching` while it is."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self.fraction = 0.0
        self.fetching = False
        self.unwanted = False  # it goes as soon as it is there; the shelf's lock is held for this
        self._changed = changed
        self._told = 0.0

    def note(self, fraction: float) -> None:
        begins_or_ends = self.fetching != (fraction < 1.0)
        self.fraction, self.fetching = fraction, fraction < 1.0
        if begins_or_ends or time.monotonic() - self._told >= TELL_S:
            self._told = time.monotonic()
            self._changed()


class Shelf:
    """The backends of this process; safe to use from several threads.

    `changed` is called whenever a model begins to be loaded, is there, could not be had, or is gone.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._held: dict[Key, Any] = {}  # the one used longest ago comes first
        self._used: dict[Key, float] = {}  # of those held: when a job last had one, in seconds of the monotonic clock
        self._coming: set[Key] = set()  # those that are being loaded
        self._failed: dict[Key, HansardError] = {}
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

    def contents(self) -> Contents:
        """What there is, what comes, and what does not."""
        with self._lock:
            turns = {key: self._loading[key] for key in self._coming}
            coming = {key: turn.fraction if turn.fetching else None for key, turn in turns.items()}
            return Contents(tuple(self._held), coming, dict(self._failed))

    def get(self, backend: Callable[[str, Models], B], model: str, models: Models) -> B:
        """The one instance of a backend with this model, loaded now if it is not there.

        Whoever waits while another loads it is told how far its download is, and may stop by raising from there. When
        memory runs out, models that the job in hand has not asked for are let go, and it is tried once more. Raises
        what its constructor raises.
        """
        key = (backend, model)
        with self._lock:
            self._needed.add(key)
            loading = self._turn(key)
            loading.unwanted = False
        while not loading.lock.acquire(timeout=WAIT_S):
            models.report(loading.fraction)
        try:
            if key not in self._held:
                with self._announced(key, loading):
                    loaded = self._load(key, lambda: backend(model, models.also_telling(loading.note)))
                    with self._lock:
                        self._held[key] = loaded
                        self._used[key] = time.monotonic()
                self.make_room(MOST)
            held: B = self._handed_out(key, loading)
            return held
        finally:
            loading.lock.release()

    def _turn(self, key: Key) -> _Loading:
        """The one turn of a model; the lock is held."""
        return self._loading.setdefault(key, _Loading(self._changed))

    def _handed_out(self, key: Key, loading: _Loading) -> Any:
        """A model that is held, from now on the one used last; taken off again where it was to be let go meanwhile."""
        with self._lock:
            held = self._held[key] = self._held.pop(key)
            gone = self._taken([key] if loading.unwanted else [])
            loading.unwanted = False
        self._close_all(gone, "as was asked for")
        return held

    def joins(self, backend: Callable[[str, Models], Closable], model: str) -> bool:
        """Is this model just being loaded? Then it stays, even if it was to be let go, and `wait` tells its end."""
        key = (backend, model)
        with self._lock:
            if key not in self._coming:
                return False
            self._loading[key].unwanted = False
            return True

    def wait(self, backend: Callable[[str, Models], Closable], model: str) -> bool:
        """Return when a model is no longer being loaded: is it held? Raises the error for which it could not be had."""
        key = (backend, model)
        with self._lock:
            loading = self._turn(key)
        with loading.lock, self._lock:
            failed, held = self._failed.get(key), key in self._held
        if failed:
            raise why_not(failed)  # a copy: several may wait
        return held

    @contextmanager
    def _announced(self, key: Key, loading: _Loading) -> Iterator[None]:
        """While a model is being loaded; an error is kept, for those who did not ask for it."""
        loading.fraction, loading.fetching = 0.0, False
        with self._lock:
            self._coming.add(key)
            self._failed.pop(key, None)
        self._changed()
        failed: HansardError | None = None
        try:
            yield
        except CancelledError:  # somebody changed their mind: that says nothing of the model
            raise
        except Exception as error:
            failed = why_not(error)
            raise
        finally:
            with self._lock:
                self._coming.discard(key)
                if failed and not loading.unwanted:
                    self._failed[key] = failed
                    for oldest in list(self._failed)[:-MOST_FAILED]:  # callers name what they like
                        del self._failed[oldest]
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
        """Let go of one model; one that is being loaded goes as soon as it is there. No job may be using it.

        Waits for nothing: the caller may have jobs to do.
        """
        key = (backend, model)
        with self._lock:
            if key in self._coming:
                self._loading[key].unwanted = True
            gone = self._taken([key])
            forgotten = self._failed.pop(key, None)
        if not self._close_all(gone, "as was asked for") and forgotten:
            self._changed()

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


def why_not(error: Exception) -> HansardError:
    """Any error with which a model could not be loaded as one of the tree, without what it holds of the model."""
    if isinstance(error, HansardError):
        return from_code(error.code, error.sentence)
    if no_room(error):
        return OutOfMemoryError("there is not enough memory for this model; take a smaller one or a larger machine")
    if gpu_lost(error):
        return CrashedError("the GPU stopped answering; the engine is started again, load the model again")
    return HansardError("the model could not be loaded; the log has the details")
