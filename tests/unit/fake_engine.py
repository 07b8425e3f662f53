"""The real engine process with a pipeline that does what a job's prompt says, for tests of the host."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from hansard.engine import child
from hansard.engine.wire import Fitness, Ready
from hansard.errors import AudioError, ModelError
from hansard.models import Models
from hansard.pipeline import Job, Stock
from hansard.settings import Settings
from hansard.stages import StageReport
from hansard.transcript import Transcript

LATE = 3  # processes of `late_main` that die


def main(connection: Connection, settings: Settings) -> None:
    """Life of the engine process, with nothing to check and nothing to load."""
    _live(connection, settings, fit)


def unfit_main(connection: Connection, settings: Settings) -> None:
    """The same on a machine where two things are wrong."""
    _live(connection, settings, unfit)


def silent_main(connection: Connection, settings: Settings) -> None:
    """The same where the check never ends."""
    _live(connection, settings, lambda engine: None)


def stillborn_main(connection: Connection, settings: Settings) -> None:
    """A process that dies before it says anything."""
    os._exit(5)


def late_main(connection: Connection, settings: Settings) -> None:
    """One that dies before it says anything, until there are as many files in STATE_DIR as its predecessors left."""
    settings.state_dir.mkdir(exist_ok=True)
    if len(list(settings.state_dir.iterdir())) < LATE:
        (settings.state_dir / str(time.monotonic())).touch()
        os._exit(5)
    main(connection, settings)


def quick_main(connection: Connection, settings: Settings) -> None:
    """As `main`, with a sign of life every few hundredths of a second."""
    child.BEAT_S = 0.05
    main(connection, settings)


def fit(engine: child.Engine) -> None:
    """A warm-up."""
    engine.send(Fitness(()))
    engine.send(Ready())


def unfit(engine: child.Engine) -> None:
    """A warm-up that nothing is expected of."""
    engine.send(Fitness(("the first thing is wrong", "the second thing is wrong")))
    engine.send(Ready())


class Model:
    """A backend: `absent` cannot be had, `deadly` ends the process, `odd` raises what nobody foresaw."""

    def __init__(self, model: str, models: Models) -> None:
        if model == "absent":
            raise ModelError("this model cannot be had")
        if model == "deadly":
            os._exit(4)
        if model == "odd":
            raise ValueError("/a/path/of/the/machine")

    def close(self) -> None:
        """Nothing is held."""


def stocked_main(connection: Connection, settings: Settings) -> None:
    """As `main`, with a backend `fake` to load."""
    child._backends = lambda: {"fake": Model}
    child.IDLE_LOOK_S = 0.05
    main(connection, settings)


def _live(connection: Connection, settings: Settings, warm_up: Callable[[child.Engine], None]) -> None:
    child.run = obey
    child.Engine.warm_up = warm_up
    child.main(connection, settings)


def obey(job: Job, stock: Stock, report: StageReport) -> Transcript:
    """`work SECONDS`, `hang`, `die`, `exit`, `bug`, `gpu`, `memory`, `refuse`.

    The model says where this ran, or what `samples` there were.
    """
    order, _, argument = (job.request.prompt or "work 0").partition(" ")
    report("decode", 0.5)
    if order == "work":
        end = time.monotonic() + float(argument)
        while time.monotonic() < end:
            report("transcribe", 0.5)
            time.sleep(0.02)
    elif order == "hang":
        time.sleep(60)
    elif order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "exit":
        os._exit(3)
    elif order == "bug":
        raise ValueError("/a/path/of/the/machine")
    elif order == "gpu":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    elif order == "memory":
        raise MemoryError
    elif order == "refuse":
        raise AudioError("this recording cannot be used")
    told = str(os.getpid())
    if order == "samples":
        told = " ".join(f"{name}={path.stat().st_size}" for name, path in job.samples)
    return Transcript((), (), "en", None, 1.0, told, {"decode": 0.1})
