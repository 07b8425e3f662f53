"""What the core writes of its jobs, however long the disk takes to take it, and the last results in memory."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from hansard.errors import EngineError, HansardError
from hansard.server.job import Job
from hansard.server.store import Store
from hansard.transcript import Transcript

log = logging.getLogger(__name__)

KEPT = 4  # results that are still in memory when those who wait for them ask
LONGEST_PAUSE_S = 30.0  # between two tries to write what the disk did not take


class Ledger:
    """The writing side of a store. Belongs to one event loop, save `result`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ending = asyncio.Event()
        self._latest: OrderedDict[str, Transcript] = OrderedDict()

    def end(self) -> None:
        """Wait for the disk no longer: the server ends."""
        self._ending.set()

    async def begin(self, job: Job) -> None:
        """Write that a job's work begins. Raises EngineError when the server ends before the disk took it."""
        await self._written(self._store.update, job)

    async def complete(self, job: Job, transcript: Transcript) -> None:
        """Write a job's end and what it gave. Raises EngineError when the server ends before the disk took it."""
        await self._written(self._store.complete, job, transcript)
        self._latest[job.id] = transcript
        while len(self._latest) > KEPT:
            self._latest.popitem(last=False)

    def end_of(self, job: Job) -> bool:
        """Write a job's end; False where the disk does not take it."""
        try:
            self._store.update(job)
            # Who does not wait on the connection knows the job by its id, and asks by that.
            if job.state == "cancelled" or not job.submission.awaited:
                self._store.forget_digest(job.id)
        except HansardError:
            return False
        except Exception:  # whatever it is, the worker that met it has a queue to see to
            log.exception("the end of job %s could not be written", job.id)
            return False
        return True

    def result(self, job_id: str) -> Transcript | None:
        """What a job gave, if it is here."""
        return self._latest.get(job_id) or self._store.result(job_id)

    def forget(self, job_id: str) -> None:
        """Forget a job and what it gave."""
        self._store.delete(job_id)
        self._latest.pop(job_id, None)

    async def _written(self, write: Callable[..., None], *what: object) -> None:
        """Have the store write, as often as it takes: meanwhile its worker begins nothing else."""
        tries = AsyncRetrying(
            wait=wait_exponential(max=LONGEST_PAUSE_S),
            retry=retry_if_exception_type(EngineError),
            stop=lambda _: self._ending.is_set(),
            sleep=self._sleep,
            reraise=True,
        )
        await tries(asyncio.to_thread, write, *what)

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until the server ends."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)
