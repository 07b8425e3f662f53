"""The real engine process with a pipeline that does what a job's prompt says, for tests of the host."""

import os
import signal
import time
from multiprocessing.connection import Connection

from hansard.engine import child
from hansard.engine.wire import Ready
from hansard.errors import AudioError
from hansard.pipeline import Job, Stock
from hansard.settings import Settings
from hansard.stages import StageReport
from hansard.transcript import Transcript


def main(connection: Connection, settings: Settings) -> None:
    """Life of the engine process, with nothing to load."""
    child.run = obey
    child.Engine.warm_up = lambda self: self.send(Ready())
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
