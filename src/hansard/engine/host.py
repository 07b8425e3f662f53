"""The parent's side of the engine: light, never imports torch.

It checks and downloads, hands the job to the engine process, and passes on what that process reports. The engine
process is started before the first job, started again when it dies, after a pause that grows where it does not even get
ready, and killed when a cancelled job does not stop by itself: a native crash or a hang costs one job and never the
worker.

Not covered: several engine processes; a worker takes one job at a time and more workers are the platform's business.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hansard import health
from hansard.audio.fetch import fetch
from hansard.engine.orders import Orders
from hansard.engine.process import EngineProcess
from hansard.engine.wire import (
    Beat,
    Cancel,
    Done,
    Failed,
    Fitness,
    Load,
    LogLine,
    Progress,
    Ready,
    Settled,
    Spent,
    ToParent,
    Unload,
    Warm,
)
from hansard.errors import AudioError, CancelledError, CrashedError, EngineError, RequestError, UnfitError, from_code
from hansard.joblog import JOB_FIELD
from hansard.pipeline import Job
from hansard.plan import Choice, Plan
from hansard.request import Request
from hansard.settings import Settings
from hansard.shielded import to_the_end
from hansard.speakers.enrol import blamed
from hansard.stages import StageReport
from hansard.transcript import Transcript
from hansard.workspace import Workspace

log = logging.getLogger(__name__)

FITNESS_S = 240.0  # that it has to say whether it is fit: torch may come from a cold disk, which takes minutes
PAUSES_S = (1.0, 5.0, 30.0, 60.0)  # before an engine process follows one that did not get ready; then the last for ever
LET_GO_S = 2.0  # that a cancelled download has to notice; its folder goes away in any case


@dataclass
class _Pending:
    """A job that an engine process has and has not answered."""

    report: StageReport
    process: EngineProcess | None = None
    answer: Future[Transcript] = field(default_factory=Future)


class EngineHost:
    """Runs jobs in an engine process that it keeps alive."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workspace = Workspace(settings)
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.RLock()  # held for whatever looks at the process and acts on what it saw
        self._process: EngineProcess | None = None
        self._closing = False
        self._started = 0  # processes
        self._stillborn = 0  # processes one after the other that died before they were ready
        self._next_start: threading.Timer | None = None
        self._orders = Orders()
        self._on_change: Callable[[], None] = lambda: None

    def start(self) -> EngineProcess:
        """The engine process, started if none lives; it warms up while the caller goes on."""
        with self._lock:
            if self._closing:
                raise EngineError("the worker is being stopped; send the job again")
            if self._process is None:
                self._process = EngineProcess(self._settings, self._receive, self._died)
                self._started += 1
                self._tell_health("starting")
            return self._process

    async def fitness(self) -> None:
        """Return when the engine process has found this machine fit for its work.

        Raises UnfitError saying what is wrong and what to do, also where the process dies or does not answer.
        """
        answer = asyncio.wrap_future(self.start().fitness)
        try:
            problems = await asyncio.wait_for(answer, FITNESS_S)
        except TimeoutError:
            problems = (f"the engine process did not answer within {FITNESS_S:.0f} s; use another machine",)
        if problems:
            raise UnfitError("; ".join(problems))

    @property
    def unfit(self) -> bool:
        """Has the engine process that runs now found that this machine cannot do its work?"""
        process = self._process
        return process is not None and process.unfit

    @property
    def state(self) -> health.State:
        """How the engine process is: `down` where none runs, until its time has come or a job starts one."""
        process = self._process
        if process is None:
            return "down"
        return "unfit" if process.unfit else "ready" if process.ready else "starting"

    @property
    def waits(self) -> bool:
        """Has nobody needed the engine process so far? Then `down` is no trouble."""
        return self._started == 0

    @property
    def restarts(self) -> int:
        """How often another engine process had to be started."""
        return max(0, self._started - 1)

    @property
    def warm(self) -> Warm:
        """The models that the engine process holds or is loading; none where no process runs."""
        process = self._process
        return process.warm if process else Warm()

    def on_change(self, hook: Callable[[], None]) -> None:
        """Have `hook` called, from any thread, when `warm` or `state` may have changed; the last hook given counts."""
        self._on_change = hook

    async def load(self, choice: Choice) -> None:
        """Have the engine process load a model once it has done what came before; return when it is there.

        No job is disturbed: a running one is waited for, and the next one waits. Raises ModelError, EngineError.
        """
        await self._orders.give(self.start(), Load, choice)

    async def unload(self, choice: Choice) -> None:
        """The same for letting a model go; a process is not started for that. Raises EngineError."""
        if process := self._process:
            await self._orders.give(process, Unload, choice)

    def retire(self) -> None:
        """Start no other engine process from now on: the one that stops a job with its life is the last."""
        with self._lock:
            self._closing = True

    def close(self) -> None:
        """Let the engine process go and remove every job's folder."""
        self.retire()
        with self._lock:
            process, timer = self._process, self._next_start
        if timer is not None:
            timer.cancel()
        if process is not None:
            process.leave()
        self._workspace.close()

    async def transcribe(
        self, job_id: str, request: Request, plan: Plan, report: StageReport, recording: Path | None = None
    ) -> Transcript:
        """One checked job from its source to its transcript; its files are gone afterwards.

        A `recording` that came as a file is used in place of `request.audio` and stays the caller's. `report` is
        called from other threads. Raises AudioError, EngineError; cancelling the task stops the job in earnest: what
        does not stop by itself within CANCEL_GRACE_S is killed.
        """
        self.start()
        with self._workspace.job(job_id) as folder:
            begin = time.perf_counter()
            samples = await self._fetch_samples(request, plan, folder)
            audio = recording or await self._fetch(request.audio, folder, report)
            report("fetch", 1.0)  # also where there was nothing to fetch
            fetched = {"fetch": round(time.perf_counter() - begin, 3)}
            light = request.model_copy(update={"audio": audio.name, "speaker_samples": []})  # sound crosses as files
            job = Job(job_id, light, plan, audio, folder, samples)
            transcript = await self._run(job, report)
            return replace(transcript, timings=fetched | transcript.timings)

    async def _fetch_samples(self, request: Request, plan: Plan, folder: Path) -> tuple[tuple[str, Path], ...]:
        """The known voices of a job, before its recording: a bad one is told within seconds. Raises AudioError."""
        samples = []
        for number, sample in enumerate(request.speaker_samples if plan.diarizer else ()):
            try:
                own = folder / f"sample-{number}"
                own.mkdir()
                path = await self._fetch(sample.url or sample.audio or "", own, lambda stage, fraction: None)
            except (AudioError, RequestError) as error:
                raise blamed(error, sample.name) from None
            samples.append((sample.name, path))
        return tuple(samples)

    async def _fetch(self, source: str, folder: Path, report: StageReport) -> Path:
        cancelled = threading.Event()

        def fetched(fraction: float) -> None:
            if cancelled.is_set():
                raise CancelledError("the job was cancelled")
            report("fetch", fraction)

        task = asyncio.ensure_future(asyncio.to_thread(fetch, source, folder, self._settings, fetched))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait([task], timeout=LET_GO_S)
            raise

    async def _run(self, job: Job, report: StageReport) -> Transcript:
        if job.id in self._pending:
            raise EngineError(f"a job with the id {job.id} is running already; give each job its own id")
        pending = self._pending[job.id] = _Pending(report)
        answer = asyncio.wrap_future(pending.answer)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if nobody waits
        try:
            await self._hand_over(job, pending)
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await to_the_end(self._stop(job.id, pending.process, answer))
            raise
        finally:
            self._pending.pop(job.id, None)

    async def _hand_over(self, job: Job, pending: _Pending) -> None:
        """Give a job to the engine process; to a fresh one when that one is just dying."""
        for _ in range(2):
            pending.process = self.start()
            if pending.process.send(job):
                return
            await asyncio.to_thread(pending.process.wait)
        raise CrashedError("the engine process dies as soon as it starts; the worker's log says why")

    async def _stop(self, job_id: str, process: EngineProcess | None, answer: asyncio.Future[Transcript]) -> None:
        """Ask the engine to stop a job; kill it when it does not, and return when it is gone."""
        if process is None:
            return
        process.send(Cancel(job_id))
        await asyncio.wait([answer], timeout=self._settings.cancel_grace_s)
        if not answer.done():
            log.warning("job %s did not stop by itself: the engine process is started again", job_id)
            process.kill()
            await asyncio.to_thread(process.wait)

    def _receive(self, process: EngineProcess, message: ToParent) -> None:
        """Take one message of an engine process; called on its reading thread."""
        match message:
            case Spent():
                with self._lock:
                    if process is self._process:
                        self._process = None
                        log.error("the engine process lost its GPU: another one is started")
                        self._start_again()
            case Fitness(problems):
                for problem in problems:
                    log.error("unfit: %s", problem)
                process.fitness.set_result(problems)
                self._note(process)
            case Warm():
                process.warm = message
                self._on_change()
            case Settled():
                self._orders.settle(message)
            case Beat() | Ready():
                self._stillborn = 0 if process.ready else self._stillborn
                self._note(process)
            case LogLine(job, level, name, text):
                logging.getLogger(name).log(level, "%s", text, extra={JOB_FIELD: job})
            case Progress(job, stage, fraction) if pending := self._pending.get(job):
                pending.report(stage, fraction)
            case Done(job, transcript) if (pending := self._pending.get(job)) and not pending.answer.done():
                pending.answer.set_result(transcript)
            case Failed(job, code, sentence) if (pending := self._pending.get(job)) and not pending.answer.done():
                pending.answer.set_exception(from_code(code, sentence))

    def _died(self, process: EngineProcess) -> None:
        """An engine process is gone: start another one, then fail what it had.

        In this order, so that the job after the failed one meets a living engine. One that did not even get ready is
        followed after a pause, unless a job comes before. Called on the reading thread.
        """
        with self._lock:
            if process is self._process:
                self._process = None
                self._tell_health("down")
                if not self._closing:
                    log.error("the engine process died: %s", process.death)
                if process.ready:
                    self._start_again()
                else:
                    self._start_later()
        for pending in list(self._pending.values()):
            if pending.process is process and not pending.answer.done():
                pending.answer.set_exception(CrashedError(f"the engine process died in mid-job: {process.death}"))
        self._orders.fail(process, f"the engine process died: {process.end}; ask again, or take a smaller model")
        self._on_change()

    def _start_again(self) -> None:
        """Start an engine process now, or later where the machine does not let it; the lock is held."""
        if self._closing:
            return
        try:
            self.start()
        except OSError as error:
            log.error("the engine process could not be started: %s", error.strerror)  # noqa: TRY400 - it says it all
            self._start_later()

    def _start_later(self) -> None:
        """Start an engine process after a pause; the lock is held."""
        if self._closing:
            return
        if self._next_start is not None:  # a job was quicker, and its process has died, too
            self._next_start.cancel()
        pause = PAUSES_S[min(self._stillborn, len(PAUSES_S) - 1)]
        self._stillborn += 1
        log.warning("the engine process is started again in %.0f s", pause)
        self._next_start = threading.Timer(pause, self._start_in_time)
        self._next_start.daemon = True
        self._next_start.start()

    def _start_in_time(self) -> None:
        with self._lock:
            if self._process is None:
                self._start_again()

    def _note(self, process: EngineProcess) -> None:
        """Note how a process is that has just given a sign of life."""
        with self._lock:
            if process is self._process:
                self._tell_health(self.state)

    def _tell_health(self, state: health.State) -> None:
        """Note how the engine is, for `hansard.health`; the lock is held."""
        if not self._closing:
            with suppress(OSError):  # a full disk, told by the age of what was written before
                health.write(self._workspace.root, state)
