"""One model's way to this machine: how far, how fast, and how to stop it. What was fetched stays for the next try."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hansard.aligners import bundles
from hansard.errors import CancelledError
from hansard.models import Models
from hansard.server.admin.inventory import Entry, missing
from hansard.settings import Settings

WINDOW_S = 10.0  # over which the speed is measured


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a download is: bytes (None where nobody says how many there are), bytes and parts (0 to 1) a second."""

    size: int | None
    total: int | None
    fraction: float
    speed: float | None
    fraction_speed: float | None

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at this speed; None while it is not known."""
        return round((1 - self.fraction) / self.fraction_speed, 1) if self.fraction_speed else None


class Download:
    """What is missing of one model; `run` it in a thread, the rest may be called from any."""

    def __init__(self, entry: Entry, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._entry, self._settings, self._now = entry, settings, now
        self._stop = threading.Event()
        self._sizes: dict[str, int] = {}  # of the repositories; a bundle's is not told before
        self._done = 0.0  # of `_whole`
        self._looks: deque[tuple[float, float]] = deque()

    def ask(self) -> int:
        """How many bytes there are to fetch, which it asks the hub. Raises ModelError."""
        names = [name for name in missing(self._entry, self._settings) if name not in bundles.FILES]
        self._sizes = {name: Models(self._settings).size(name) for name in names}
        return sum(self._sizes.values())

    def run(self) -> None:
        """Fetch all of it. Raises ModelError, CancelledError."""
        before = 0.0
        while todo := missing(self._entry, self._settings):
            name = todo[0]
            share = float(self._sizes.get(name, 1))
            self._bring(name, self._reporting(before, share))
            before += share

    def cancel(self) -> None:
        """Stop at the next piece."""
        self._stop.set()

    @property
    def pace(self) -> Pace:
        total, looks = sum(self._sizes.values()), list(self._looks)
        fraction = min(1.0, self._done / (total or 1))
        (first, done), (last, _) = (looks[0], looks[-1]) if looks else ((0.0, 0.0), (0.0, 0.0))
        speed = (self._done - done) / (last - first) if last > first else None
        if not total:
            return Pace(None, None, fraction, None, speed)
        size = min(total, int(self._done))
        return Pace(size, total, fraction, speed, None if speed is None else speed / total)

    def _bring(self, name: str, report: Callable[[float], None]) -> None:
        report(0.0)
        models = Models(self._settings, report=report)
        if name in bundles.FILES:
            bundles.folder(name, self._entry.models[-1], models)
        else:
            models.get(name)

    def _reporting(self, before: float, share: float) -> Callable[[float], None]:
        def report(fraction: float) -> None:
            if self._stop.is_set():
                raise CancelledError("the download was cancelled")
            self._done = before + share * fraction
            # What an earlier try had fetched is no speed: looks begin with the first that tells of something.
            if fraction > 0:
                self._looks.append((self._now(), self._done))
                while self._looks[0][0] < self._looks[-1][0] - WINDOW_S:
                    self._looks.popleft()

        return report
