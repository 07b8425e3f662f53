"""The engine process: loads the models, runs one job after another, and leaves when its parent does.

Signals are the parent's business, so this process ignores SIGINT and SIGTERM: the job in hand is finished. Whatever a
native library prints goes to standard error, never between a door and its caller.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler

from hansard.aligners import ALIGNERS
from hansard.diarizers import DIARIZERS
from hansard.engine.fitness import problems
from hansard.engine.wire import (
    Beat,
    Cancel,
    Done,
    Failed,
    Fitness,
    Leave,
    Load,
    LogLine,
    Progress,
    Ready,
    Settled,
    Spent,
    ToChild,
    ToParent,
    Unload,
    Warm,
)
from hansard.errors import CancelledError, CrashedError, HansardError, OutOfMemoryError, RequestError
from hansard.joblog import JOB_FIELD
from hansard.models import Models
from hansard.orphan import leave_with
from hansard.pipeline import Job, Stock, run
from hansard.plan import Choice, default_diarizer, default_transcriber
from hansard.settings import Settings
from hansard.shelf import Closable, Key, Shelf, why_not
from hansard.stages import StageReport
from hansard.transcribers import TRANSCRIBERS
from hansard.transcript import Transcript
from hansard.vendors import give_back_memory, gpu_lost, no_room, without_frames

log = logging.getLogger(__name__)

GPU_LOST = 70  # exit code of a process whose GPU no longer answers it; the parent starts another
BEAT_S = 5.0  # seconds from one sign of life to the next
IDLE_LOOK_S = 5.0  # between two looks for models that no job uses, at most
RETRIES_S = (30.0, 60.0, 120.0, 300.0)  # from the failure of a default model to the next try; the last one for ever


def main(connection: Connection, settings: Settings) -> None:
    """Life of the engine process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    leave_with(os.getppid())
    engine = Engine(connection, settings)
    threading.Thread(target=engine.prepare, daemon=True).start()
    engine.serve()


Table = Mapping[str, Callable[[str, Models], Closable]]
Default = tuple[Table, Callable[[Models], Choice]]

DEFAULTS: tuple[Default, ...] = ((TRANSCRIBERS, default_transcriber), (DIARIZERS, default_diarizer))
"""Where to look for what jobs use that name nothing, and what that is."""


def _backends() -> dict[str, Callable[[str, Models], Closable]]:
    """Every backend by its name in its table; no two tables share one."""
    return {**TRANSCRIBERS, **DIARIZERS, **ALIGNERS}


class Engine:
    """One pipe, one shelf of models, one thing at a time: a job, or the loading or unloading of a model."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[Job | Load | Unload | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._newest: dict[Choice, str] = {}  # the id of the last order for each model: those before count no more
        self._looked = time.monotonic()  # for models that no job uses
        self._running: str | None = None
        self._telling = threading.Lock()
        self._stock = Stock(settings, Shelf(self._tell_warm))
        self._gpu_lost = False
        root = logging.getLogger()
        root.handlers[:] = [_ToParent(self)]
        root.setLevel(logging.INFO)
        threading.Thread(target=self._listen, daemon=True).start()
        self._sender = threading.Thread(target=self._deliver, daemon=True)
        self._sender.start()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, message: ToParent) -> None:
        """Hand a message to the parent; from any thread, and from anywhere a log line may be written."""
        self._outbox.put(bytes(ForkingPickler.dumps(message)))

    def _deliver(self) -> None:
        with suppress(OSError):  # the parent is gone
            while (message := self._outbox.get()) is not None:
                self._connection.send_bytes(message)

    def _tell_warm(self) -> None:
        """Say which models there are; one after the other, so that the newest is told last."""
        names = {backend: name for name, backend in _backends().items()}

        def choice(key: Key) -> Choice:
            return Choice(names[key[0]], key[1])

        with self._telling:
            held, coming, failed = self._stock.shelf.contents()
            fetched = {choice(key): part for key, part in coming.items() if part is not None}
            why = {choice(key): error.sentence for key, error in failed.items()}
            self.send(Warm(tuple(map(choice, held)), tuple(map(choice, coming)), fetched, why))

    def _beat(self) -> None:
        while True:
            self.send(Beat())
            time.sleep(BEAT_S)

    @property
    def running(self) -> str | None:
        """The id of the job in hand."""
        return self._running

    def prepare(self) -> None:
        """Warm up, and go on trying to have what could not be loaded; never returns."""
        self.warm_up()
        tries = 0
        while True:
            time.sleep(RETRIES_S[min(tries, len(RETRIES_S) - 1)])
            tries = tries + 1 if self.try_again() else 0

    def warm_up(self) -> None:
        """Tell whether this machine is fit, then load the default backends side by side, unless LAZY_LOAD_MODELS.

        A job that comes earlier waits only for those it needs.
        """
        self.send(Fitness(problems(self._stock.settings)))
        if not self._stock.settings.lazy_load_models:
            self._load_all(DEFAULTS)
        self.send(Ready())

    def try_again(self) -> bool:
        """Load the default backends that could not be had when they were last asked for; were there any?

        Where they are missing no job may come any more that would ask for them again.
        """
        failed, models = self._stock.shelf.contents().failed, Models(self._stock.settings)
        missing = []
        for table, default in DEFAULTS:
            with suppress(RequestError):  # its folder is gone
                chosen = default(models)
                missing += [(table, default)] if (table[chosen.backend], chosen.model) in failed else []
        if missing:
            self._load_all(missing)
        return bool(missing)

    def _load_all(self, defaults: Sequence[Default]) -> None:
        with ThreadPoolExecutor(len(defaults)) as pool:
            for future in [pool.submit(self._load, *default) for default in defaults]:
                if error := future.exception():
                    log.warning("a default model could not be loaded: %s", error, extra={JOB_FIELD: None})

    def _load(self, table: Table, default: Callable[[Models], Choice]) -> None:
        models = Models(self._stock.settings)
        chosen = default(models)
        self._stock.shelf.get(table[chosen.backend], chosen.model, models)

    def serve(self) -> None:
        """Do what the parent says until that is to leave, or the parent is gone."""
        while work := self._next():
            if isinstance(work, Job):
                self._running = work.id
            answer = self._run(work) if isinstance(work, Job) else self._obey(work)
            self._stock.shelf.end()
            if answer and not (isinstance(answer, Done) or self._gpu_lost):  # which would refuse to give anything back
                give_back_memory()  # the error's traceback holds the decoded recording, which is gigabytes of disk
            if self._gpu_lost:
                self.send(Spent())  # first, so that the job after this one goes to another process
            if answer:
                self.send(answer)
            self._running = None
            if self._gpu_lost:
                break
        if not self._gpu_lost:  # letting go of what lies on a GPU that does not answer may never end
            self._stock.shelf.close()
        self._outbox.put(None)
        self._sender.join()
        if self._gpu_lost:
            os._exit(GPU_LOST)

    def _next(self) -> Job | Load | Unload | None:
        """What to do next; before that, and while there is nothing, models that no job uses are let go."""
        every = min(self._stock.settings.model_idle_timeout, IDLE_LOOK_S)
        while True:
            if every and time.monotonic() - self._looked >= every:
                self._stock.shelf.let_go_unused(self._stock.settings.model_idle_timeout)
                self._looked = time.monotonic()
            with suppress(queue.Empty):
                return self._work.get(timeout=every or None)

    def _obey(self, order: Load | Unload) -> Settled | None:
        """Load or unload a model, as a job of its own: whatever others needed may go to make room.

        None where a model is being loaded by another thread already: one that waits for it beside the jobs will answer.
        """
        if self._newest.get(order.choice) != order.id:
            return Settled(order.id)
        shelf, backend, model = self._stock.shelf, _backends()[order.choice.backend], order.choice.model
        shelf.begin()
        if isinstance(order, Unload):
            return self._settled(order, lambda: shelf.let_go(backend, model))
        if not shelf.joins(backend, model):
            return self._settled(order, lambda: shelf.get(backend, model, Models(self._stock.settings)))

        def join() -> None:
            held: list[bool] = []
            answer = self._settled(order, lambda: held.append(shelf.wait(backend, model)))
            if held == [False]:  # whoever loaded it broke off, or it was let go
                self._work.put(order)
            else:
                self.send(answer)

        threading.Thread(target=join, daemon=True).start()
        return None

    def _settled(self, order: Load | Unload, do: Callable[[], object]) -> Settled:
        """Do what was ordered, and what to answer."""
        try:
            do()
        except Exception as error:
            self._gpu_lost |= gpu_lost(error)
            if not isinstance(error, HansardError):
                log.exception("a model could not be loaded")
            told = why_not(error)
            return Settled(order.id, told.code, told.sentence)
        return Settled(order.id)

    def _listen(self) -> None:
        try:
            while True:
                message: ToChild = self._connection.recv()
                match message:
                    case Job():
                        self._cancelled.discard(message.id)  # of an earlier job of this id
                        self._work.put(message)
                    case Load() | Unload():
                        self._newest[message.choice] = message.id
                        self._work.put(message)
                    case Cancel(job):
                        self._cancelled.add(job)
                        if job != self._running:  # still waiting: it stops at its first report, but is told now
                            self.send(Failed(job, CancelledError.code, "the job was cancelled"))
                    case Leave():
                        self._work.put(None)
        except Exception as end:  # the pipe's end, or bytes that make no message: either way it is over
            if not isinstance(end, EOFError | OSError):
                log.exception("the parent could not be understood")
            self._work.put(None)

    def _run(self, job: Job) -> Done | Failed:
        def report(stage: str, fraction: float) -> None:
            if job.id in self._cancelled:
                raise CancelledError("the job was cancelled")
            self.send(Progress(job.id, stage, fraction))

        try:
            return Done(job.id, self._run_with_room(job, report))
        except Exception as error:
            self._gpu_lost = gpu_lost(error)
            told = _as_ours(error, job.id)
            return Failed(job.id, told.code, told.sentence)

    def _run_with_room(self, job: Job, report: StageReport) -> Transcript:
        """Run a job; when memory runs out, let go of what earlier jobs left and run it once more."""
        try:
            return run(job, self._stock, report)
        except Exception as error:
            if not no_room(error):
                raise
            full = without_frames(error)  # or it would hold the first try's data
        if not self._stock.shelf.make_room():
            raise full
        log.warning("memory ran out: models of earlier jobs were let go, and the job begins anew")
        return run(job, self._stock, report)


def _as_ours(error: Exception, job_id: str) -> HansardError:
    """Any error as one of the tree; what is not a user's business goes to the log with its traceback."""
    if isinstance(error, HansardError):
        return error
    if no_room(error):
        log.error("out of memory", exc_info=error)
        return OutOfMemoryError("the machine ran out of memory; send a shorter recording or use a larger machine")
    log.error("the engine failed", exc_info=error)
    if gpu_lost(error):
        return CrashedError("the GPU stopped answering in mid-job; the engine is started again, send the job again")
    return HansardError(f"the engine failed on this job; the worker's log has the details under job {job_id}")


class _ToParent(logging.Handler):
    """Sends each record of this process to the parent, which owns the log file."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def emit(self, record: logging.LogRecord) -> None:
        job = getattr(record, JOB_FIELD, self._engine.running)
        try:
            self._engine.send(LogLine(job, record.levelno, record.name, self.format(record)))
        except Exception:  # as logging does: a bad message fails no job
            self.handleError(record)
