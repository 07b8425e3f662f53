"""The real engine process with a pipeline that does what a job's sound says, for tests of runners."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from multiprocessing.connection import Connection

from fake_runner import TRANSCRIPT

from hansard.engine import child
from hansard.engine.wire import Fitness, Ready
from hansard.errors import AudioError
from hansard.pipeline import Job, Stock
from hansard.settings import Settings
from hansard.stages import StageReport
from hansard.transcript import Transcript

ORDER = b"ORDER:"  # what stands behind the sound of a file, before what to do with it


def main(connection: Connection, settings: Settings) -> None:
    """Life of the engine process, with nothing to check and nothing to load."""
    child.run = obey
    child.Engine.warm_up = warm_up
    child.main(connection, settings)


def warm_up(engine: child.Engine) -> None:
    engine.send(Fitness(()))
    engine.send(Ready())


def obey(job: Job, stock: Stock, report: StageReport) -> Transcript:
    """`speak`, `refuse`, `bug`, `work SECONDS`; the model of a transcript is the hash of the sound."""
    sound = job.audio.read_bytes()
    order, _, argument = sound.partition(ORDER)[2].decode().partition(" ")
    report("decode", 1.0)
    report("transcribe", 0.5)
    if order == "refuse":
        raise AudioError("this recording cannot be used")
    if order == "bug":
        raise ValueError("/a/path/of/the/machine")
    end = time.monotonic() + (float(argument) if order == "work" else 0.0)
    while time.monotonic() < end:
        report("transcribe", 0.5)
        time.sleep(0.02)
    return replace(TRANSCRIPT, model=hashlib.sha256(sound).hexdigest())
