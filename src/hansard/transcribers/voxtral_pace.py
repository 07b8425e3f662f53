"""When a job's calls go out to a service: pauses after failures, one for all threads where it has too much to do."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_PAUSE_S = 1.0  # doubled from failure to failure
LONGEST_PAUSE_S = 30.0
LONGEST_JITTER_S = 1.0  # more, so that threads which wait for the same moment do not all come in it
FIRST_PATIENCE_S = 60.0  # with one that has let none through so far
PATIENCE_S = 300.0  # a service that let a call of the job through so lately only has to be waited for
TAKEN_S = 3.0  # a call that is under way so long was let through: refusals come at once


class PassingError(Exception):
    """A try that failed and may go well in a moment; `after` is the pause in seconds that the service asked for.

    `busy` where the service says that it has too much to do (429); `counts` where it is one of the call's few tries.
    """

    def __init__(self, what: str, after: float = 0.0, *, busy: bool = False) -> None:
        super().__init__(what)
        self.after, self.busy, self.counts = after, busy, True


class Pace:
    """What the calls of a job know of each other: while the service has too much to do, none goes out.

    All times are seconds of one clock, which the caller reads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: list[float] = []  # of the calls that wait for their answer
        self._answered: float | None = None
        self._first_refused: float | None = None
        self._refused = -math.inf  # the first of the last refusals, all of which are to calls from before it
        self._refusals = 0  # such bunches since the last answer
        self._until = -math.inf

    def left(self, now: float) -> float:
        """Seconds for which no call may go out."""
        with self._lock:
            return max(0.0, self._until - now)

    @contextmanager
    def under_way(self, begun: float) -> Iterator[None]:
        """A call, from its first byte to its last."""
        with self._lock:
            self._begun.append(begun)
        try:
            yield
        finally:
            with self._lock:
                self._begun.remove(begun)

    def answered(self, now: float) -> None:
        """A call of the job had its answer."""
        with self._lock:
            self._answered, self._refusals = now, 0

    def refused(self, begun: float, now: float, asked: float) -> bool:
        """Keep all calls back, as long as the service asked for or longer from time to time; does this try count?

        It does not while the service takes other calls of the job.
        """
        with self._lock:
            pause = asked
            if begun >= self._refused:
                self._refused, self._refusals = now, self._refusals + 1
                pause = max(asked, backoff(self._refusals))
            self._until = max(self._until, now + pause)
            taken = any(now - other > TAKEN_S for other in self._begun)
            if self._answered is not None:
                return not taken and now - self._answered > PATIENCE_S
            self._first_refused = now if self._first_refused is None else self._first_refused
            return not taken and now - self._first_refused > FIRST_PATIENCE_S


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures, one or more."""
    return min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE_S)


def jitter() -> float:
    """Some more seconds."""
    return random.uniform(0.0, LONGEST_JITTER_S)  # noqa: S311 - no secret
