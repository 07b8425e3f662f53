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
    """How far a download is, in bytes and bytes a second; `total` is None where nobody says how many there are."""

    size: int
    total: int | None
    speed: float | None

    @property
    def fraction(self) -> float:
        return min(1.0, self.size / self.total) if self.total else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at this speed; None while it is not known, or nothing comes."""
        return round((self.total - self.size) / self.speed, 1) if self.total and self.speed else None


class Download:
    """What is missing of one model; `run` it in a thread, the rest may be called from any."""

    def __init__(self, entry: Entry, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._entry, self._settings, self._now = entry, settings, now
        self._stop = threading.Event()
        self._sizes: dict[str, int | None] = {}  # None: a bundle's, which is told when it begins to come
        self._done: dict[str, int] = {}
        self._looks: deque[tuple[float, int]] = deque()  # when how much was there

    def ask(self) -> int:
        """How many bytes there are to fetch, as far as the hub knows, which it asks. Raises ModelError."""
        for name in missing(self._entry, self._settings):
            self._sizes[name] = self._size(name)
        return sum(size or 0 for size in self._sizes.values())

    def run(self) -> None:
        """Fetch all of it. Raises ModelError, CancelledError."""
        while todo := missing(self._entry, self._settings):
            name = todo[0]
            self._refuse_to_go_on()
            if name not in self._sizes:  # one that a pipeline's config.yaml names
                self._sizes[name] = self._size(name)
            self._bring(name)

    def cancel(self) -> None:
        """Stop at the next piece."""
        self._stop.set()

    @property
    def pace(self) -> Pace:
        """As it is now: while nothing comes the speed falls."""
        sizes, size = list(self._sizes.values()), sum(self._done.copy().values())
        known = [one for one in sizes if one is not None]
        total = sum(known) if known and len(known) == len(sizes) else None
        return Pace(size if total is None else min(size, total), total, self._speed(size))

    def _speed(self, size: int) -> float | None:
        looks, now = list(self._looks), self._now()
        if not looks:
            return None
        since, before = next((look for look in reversed(looks) if look[0] <= now - WINDOW_S), looks[0])
        return (size - before) / (now - since) if now > since else None

    def _size(self, name: str) -> int | None:
        return None if name in bundles.FILES else Models(self._settings).size(name)

    def _bring(self, name: str) -> None:
        def report(fraction: float) -> None:
            self._refuse_to_go_on()
            if size := self._sizes[name]:
                self._note(name, int(size * fraction))

        def heard(received: int, total: int | None) -> None:
            self._refuse_to_go_on()
            self._sizes[name] = total
            self._note(name, received)

        if name in bundles.FILES:
            bundles.folder(
                name, self._entry.models[-1], Models(self._settings, report=lambda _: self._refuse_to_go_on()), heard
            )
        else:
            report(0.0)
            Models(self._settings, report=report).get(name)

    def _refuse_to_go_on(self) -> None:
        if self._stop.is_set():
            raise CancelledError("the download was cancelled")

    def _note(self, name: str, size: int) -> None:
        self._done[name] = max(size, self._done.get(name, 0))
        # What an earlier try had fetched is no speed: looks begin with the first that tells of something.
        if size > 0:
            self._looks.append((self._now(), sum(self._done.values())))
            while len(self._looks) > 1 and self._looks[1][0] <= self._looks[-1][0] - WINDOW_S:
                self._looks.popleft()
