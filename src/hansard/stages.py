"""Runs the stages of a job: each is timed and reports under its own name, and the failure of one stops the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hansard.errors import CancelledError
from hansard.transcript import Report

StageReport = Callable[[str, float], None]
"""`report(stage, fraction)`; raises CancelledError when the job should stop."""

T = TypeVar("T")
U = TypeVar("U")


class Stages:
    """The stages of one job."""

    def __init__(self, report: StageReport) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._error: BaseException | None = None  # the first one; what follows is only the others' stopping
        self.timings: dict[str, float] = {}

    def tell(self, stage: str, fraction: float) -> None:
        """Report how far a stage is. Raises CancelledError where another one has failed, and what the report raises."""
        if self._error is not None:
            raise CancelledError("another stage failed")
        self._report(stage, fraction)

    def run(self, stage: str, work: Callable[[Report], T]) -> T:
        """One stage; its report carries its name."""

        def report(fraction: float) -> None:
            self.tell(stage, fraction)

        begin = time.perf_counter()
        try:
            report(0.0)
            done = work(report)
            report(1.0)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            raise
        finally:
            self.timings[stage] = round(time.perf_counter() - begin, 3)
        return done

    def together(self, first: Callable[[], T], second: Callable[[], U]) -> tuple[T, U]:
        """Two stages at the same time; when one fails the other stops at its next report. Raises the first error."""
        with ThreadPoolExecutor(2, thread_name_prefix="stage") as pool:
            one, two = pool.submit(first), pool.submit(second)
        if self._error is not None:
            raise self._error
        return one.result(), two.result()
