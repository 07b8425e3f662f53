"""What every endpoint's work goes through: submit, queue, run, result.

    submit ─▶ queued ─▶ running ─▶ completed
                 │          ├────▶ failed
                 └──────────┴────▶ cancelled

Jobs and results outlive the process (`store`); what was running when it ended is run again, once where it was killed.
A job that is asked for again while it is in flight, or before its answer was heard, by the same caller with the same
sound and options, is the same job. All methods belong to one event loop, save `result`; `report` of the runner may come
from any thread.

Not covered: several server processes on one STATE_DIR, which is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from hansard.errors import CancelledError, EngineError, HansardError, JobMissingError, QueueFullError, RequestError
from hansard.progress import Overall
from hansard.server.job import Job, State, Submission
from hansard.server.ledger import Ledger
from hansard.server.live import Live, ended, internal, limited, outcome, reporter, unbegun, unrepeatable
from hansard.server.recordings import Recordings
from hansard.server.runners import Runner
from hansard.server.store import Store
from hansard.settings import Settings
from hansard.shielded import to_the_end
from hansard.transcript import Transcript

log = logging.getLogger(__name__)

ABANDONED_S = 30.0  # that a job runs on when the last who waited for it is gone: a client that timed out comes again
SWEEP_S = 60.0  # between two looks for what has expired
UNHEARD_S = 300.0  # that an answer which nobody heard is kept for whoever asks the same again: what is old may be wrong

Jobs = list[Job]
Hook = Callable[[Job], None]


class JobCore:
    """The queue, its workers and the store behind them; use it as an async context manager.

    `uploads` is the folder in which an endpoint makes a job's own folder for a recording. Until it is entered nothing
    is opened and no folder made.
    """

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._runner = runner
        self.uploads = settings.state_dir / "uploads"
        self._recordings = Recordings(settings, self.uploads)
        self._live: dict[str, Live] = {}  # in the order of the queue; final ones whose end is still to be written
        self._wake = asyncio.Event()
        self._over: asyncio.Queue[str] = asyncio.Queue()  # jobs of which the runner is to leave nothing
        self._tasks: list[asyncio.Task[None]] = []
        self._hooks: list[Hook] = []

    async def __aenter__(self) -> JobCore:
        """Take up what the last process left, and begin to work. Raises SettingsError, and what the runner raises."""
        self._store = Store(self._settings.state_dir)
        self._ledger = Ledger(self._store)
        try:
            self._recover()
            await self._runner.start()
        except BaseException:
            self._store.close()
            raise
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._runner.at_once)]
        self._tasks += [asyncio.create_task(work()) for work in (self._sweep, self._tidy)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop working; what was queued or running stays in the store for the next process."""
        self._ledger.end()
        self._runner.release()
        for task in self._tasks:
            task.cancel()
        for live in self._live.values():
            live.keep()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._requeue()
            await self._runner.close()
        finally:
            self._store.close()

    def on_end(self, hook: Hook) -> None:
        """Have `hook` called with each job that ends, in its final state; it must not block. Its errors are logged."""
        self._hooks.append(hook)

    @property
    def waiting(self) -> int:
        """How many jobs are queued."""
        return sum(live.job.state == "queued" for live in self._live.values())

    @property
    def at_once(self) -> int:
        """How many jobs may be worked on side by side."""
        return self._runner.at_once

    @property
    def running(self) -> int:
        """How many jobs are being worked on."""
        return sum(live.job.state == "running" for live in self._live.values())

    async def submit(self, submission: Submission) -> Job:
        """Take a job, or give the one that is the same; whatever is raised, its recording is then gone.

        Raises QueueFullError, RequestError for an idempotency key that is another request's, RequestError or AudioError
        for sound inside the request that cannot be used, and what the runner says of a job that it cannot do.
        """
        taken = submission
        try:
            taken = await self._recordings.out_of_line(submission)
            if not (job := self._known(taken)):
                await self._runner.check(taken.request)
                job = self._known(taken) or self._add(taken)
        except BaseException:
            self._recordings.discard(taken)
            raise
        if job.submission is not taken:
            self._recordings.discard(taken)
        return job

    def get(self, job_id: str, owner: str = "") -> Job:
        """A job of this owner. Raises JobMissingError."""
        live = self._live.get(job_id)
        job = live.job if live else self._store.get(job_id)
        if job is None or job.submission.owner != owner:
            raise JobMissingError(f"there is no job {job_id[:64]!r}, or its result has expired; send it again")
        return job

    def list(self, owner: str = "", limit: int = 100, state: State | None = None) -> Jobs:
        """An owner's newest jobs, the newest first; with `state` only those in it."""
        stored = self._store.newest(owner, limit, state)
        return [self._live[job.id].job if job.id in self._live else job for job in stored]

    def counts(self, owner: str = "") -> dict[State, int]:
        """How many of an owner's jobs are in each state; states without any are left out."""
        return self._store.counts(owner)

    def undelivered(self) -> Jobs:
        """The jobs that have ended and whose webhook has not been told."""
        return self._store.undelivered()

    def delivered(self, job_id: str) -> None:
        """A job's webhook has been told, or given up."""
        self._store.delivered(job_id)

    def position(self, job_id: str) -> int | None:
        """How many queued jobs come before a queued one."""
        queued = [live.job.id for live in self._live.values() if live.job.state == "queued"]
        return queued.index(job_id) if job_id in queued else None

    def result(self, job_id: str, owner: str = "") -> Transcript:
        """What a completed job gave. Raises JobMissingError, and the job's own error if it failed.

        At once for the last few that ended; of an older one of many hours it takes a good part of a second, so call it
        in a thread there: it may be called from any.
        """
        job = self.get(job_id, owner)
        if job.state != "completed":
            raise job.failure()
        transcript = self._ledger.result(job_id)
        if transcript is None:
            raise JobMissingError(f"the result of job {job_id!r} has expired; send it again")
        return transcript

    async def changes(self, job_id: str, owner: str = "") -> AsyncIterator[Job]:
        """The job now, and again whenever it has changed; ends with its final state. Raises JobMissingError."""
        job, live = self.get(job_id, owner), self._live.get(job_id)
        while live is not None and not live.job.is_final:
            changed = live.changed
            yield live.job
            await changed.wait()
        yield live.job if live else job

    async def wait(self, job_id: str, owner: str = "") -> Job:
        """The job in its final state. Raises JobMissingError."""
        *_, last = [job async for job in self.changes(job_id, owner)]
        return last

    @contextmanager
    def awaiting(self, job_id: str) -> Iterator[None]:
        """Hold a job while its caller waits for it: awaited work that nobody holds is cancelled after a while."""
        live = self._live.get(job_id)
        if live is None:
            yield
            return
        live.hold()
        try:
            yield
        finally:
            live.holders -= 1
            self._leave(live)

    def heard(self, job_id: str) -> None:
        """The caller has the answer: the same request asked again is a new job."""
        self._store.forget_digest(job_id)

    async def cancel(self, job_id: str, owner: str = "") -> Job:
        """The job in its final state, stopped if it was not in one. Raises JobMissingError."""
        self.get(job_id, owner)
        if live := self._live.get(job_id):
            self._stop(live)
        return await self.wait(job_id, owner)

    async def delete(self, job_id: str, owner: str = "") -> None:
        """Stop a job and forget it and its result. Raises JobMissingError."""
        self.get(job_id, owner)
        self._store.forget(job_id)  # at once: the same request is a new job from now on
        await self.cancel(job_id, owner)
        self._ledger.forget(job_id)
        self._live.pop(job_id, None)

    def purge(self, owner: str = "") -> int:
        """Cancel an owner's queued jobs; how many there were."""
        queued = [live for live in self._live.values() if live.job.state == "queued"]
        mine = [live for live in queued if live.job.submission.owner == owner]
        for live in mine:
            self._stop(live)
        return len(mine)

    # Into the queue

    def _recover(self) -> None:
        """What the last process left: its queue, and what it was in the middle of."""
        left = self._store.unfinished()
        self._recordings.keep_only(job.submission for job in left)
        for job in left:
            self._live[job.id] = Live(job)  # and there it stays where its end cannot be written
            if problem := unrepeatable(job):
                self._end(job, "failed", EngineError(problem))
            else:
                self._store.requeue(waiting := unbegun(job))
                self._queue(waiting)

    def _requeue(self) -> None:
        """Have the next process begin anew what this one stopped in the middle of, however often that happens."""
        for job in [live.job for live in self._live.values() if live.job.state == "running"]:
            with suppress(HansardError):  # the store has logged it; the job stays as it is written
                self._store.requeue(replace(unbegun(job), runs=job.runs - 1))

    def _known(self, submission: Submission) -> Job | None:
        """The job that this submission is already: by its idempotency key, or by being the same work."""
        if submission.idempotency_key:
            known = self._store.by_key(submission.owner, submission.idempotency_key)
            if known and known.submission.digest != submission.digest:
                raise RequestError("this idempotency key was used for another request; take a new one")
            return known and self.get(known.id, submission.owner)
        known = self._store.by_digest(submission.owner, submission.digest) if submission.digest else None
        if known is None or not known.submission.may_share(submission):
            return None
        if known.finished is not None and time.time() - known.finished > UNHEARD_S:
            return None
        live = self._live.get(known.id)
        if live and live.stopping:
            return None
        if known.state == "failed":  # told once more to who was not there; then it may be tried again
            self.heard(known.id)
        return live.job if live else known

    def _add(self, submission: Submission) -> Job:
        if (waiting := self.waiting) >= self._settings.max_queue:
            raise QueueFullError(f"{waiting} jobs are waiting; try again later", retry_after_s=self._patience())
        job = Job(uuid.uuid4().hex, submission, "queued", time.time())
        self._store.add(job)
        self._queue(job)
        return job

    def _queue(self, job: Job) -> None:
        live = self._live[job.id] = Live(job)
        self._leave(live)  # nobody waits yet; who asked for it may be gone before
        self._wake.set()

    def _patience(self) -> int:
        """Seconds until a place in the queue may be free: what is left of the job in hand, between 5 and 60."""
        now = time.time()
        left = [eta for live in self._live.values() if (eta := live.job.eta_s(now)) is not None]
        return int(min(60.0, max(5.0, min(left, default=30.0))))

    # The work

    async def _work(self) -> None:
        while True:
            live = await self._next()
            live.task = asyncio.create_task(self._run(live))
            try:
                await asyncio.wait([live.task])
            except asyncio.CancelledError:  # the server ends: what is not done is left to the next one
                live.task.cancel()
                await asyncio.wait([live.task])
                if live.stopping or not live.task.cancelled():
                    await self._finish(live, live.task)
                raise
            await to_the_end(self._finish(live, live.task))

    async def _next(self) -> Live:
        """The job that waits longest, from now on running."""
        while True:
            for live in self._live.values():
                if live.job.state == "queued":
                    live.tell(replace(live.job, state="running", started=time.time(), runs=live.job.runs + 1))
                    return live
            self._wake.clear()
            await self._wake.wait()

    async def _run(self, live: Live) -> Transcript:
        """One job, from its plan to what it gives."""
        job, given = live.job, live.job.submission
        await self._ledger.begin(job)
        request = await asyncio.to_thread(self._recordings.in_line, given)
        async with limited(given.limit_s):
            plan = await self._runner.check(request)
            report = reporter(live, Overall(plan.stages))
            return await self._runner.run(job.id, request, given.recording, plan, report)

    async def _finish(self, live: Live, task: asyncio.Task[Transcript]) -> None:
        """Write what a job's work came to, and end it. What was done is past cancelling, and never thrown away.

        Raises EngineError where the server ends and the disk does not take it: the next one does the job anew.
        """
        state, error = outcome(live, task)
        if state == "completed":
            try:
                await self._ledger.complete(ended(live.job, state), task.result())
            except EngineError:
                raise
            except Exception as mistake:  # the worker has a queue to see to
                state, error = "failed", internal(live.job, mistake)
        self._end(live.job, state, error)

    def _stop(self, live: Live) -> None:
        """Cancel a job in whatever state it is, unless its work is done."""
        if live.job.is_final or live.stopping or (live.task and live.task.done()):
            return
        error = CancelledError("the job was cancelled")
        if live.task is None:
            self._end(live.job, "cancelled", error)
        else:
            live.stopping = True
            live.tell(replace(live.job, error=(error.code, error.sentence)))
            live.task.cancel()

    def _leave(self, live: Live) -> None:
        """Nobody may wait for a job any more: give them a while to come back, if the work is for them alone."""
        if live.holders == 0 and live.job.submission.awaited and not live.job.is_final:
            live.keep()
            live.abandoned = asyncio.get_running_loop().call_later(ABANDONED_S, self._stop, live)

    def _end(self, job: Job, state: State, error: HansardError | None = None) -> None:
        """Write a job's end, tell everybody, and remove its recording."""
        job = ended(job, state, error)
        live = self._live.get(job.id)
        if job.error:
            log.log(logging.INFO if state == "cancelled" else logging.WARNING, "job %s: %s: %s", job.id, *job.error)
        if self._ledger.end_of(job):
            self._live.pop(job.id, None)
        self._recordings.discard(job.submission)
        self._over.put_nowait(job.id)
        if live:
            live.keep()
            live.tell(job)
        for hook in self._hooks:
            try:
                hook(job)
            except Exception:
                log.exception("what follows the end of job %s failed", job.id)

    async def _tidy(self) -> None:
        """Have the runner let go what it may still hold of jobs that have ended, in whatever way."""
        while True:
            job_id = await self._over.get()
            try:
                await self._runner.forget(job_id)
            except Exception:
                log.exception("what is left of job %s could not be removed", job_id)

    async def _sweep(self) -> None:
        """Forget results that are old enough, and write what could not be written."""
        while True:
            try:
                for live in [live for live in self._live.values() if live.job.is_final]:
                    if self._ledger.end_of(live.job):
                        del self._live[live.job.id]
                before = time.time() - self._settings.result_ttl_hours * 3600
                await asyncio.to_thread(self._store.expire, before)
            except HansardError:
                pass  # the store has logged it
            except Exception:
                log.exception("looking for what has expired failed")
            await asyncio.sleep(SWEEP_S)
