"""A Runner that does jobs from a script, and the transcript that it gives when nothing else is said."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path

from hansard.plan import Choice, Plan
from hansard.request import Request
from hansard.stages import StageReport
from hansard.transcript import Segment, Transcript, Turn, Word

PLAN = Plan(Choice("fake", "fake"), Choice("fake", "fake"))

TRANSCRIPT = Transcript(
    segments=(
        Segment(
            0.5,
            2.0,
            "good morning",
            (Word("good", 0.5, 1.0, 0.9, "SPEAKER_00"), Word("morning", 1.0, 2.0, 0.8, "SPEAKER_00")),
            "SPEAKER_00",
        ),
        Segment(2.5, 3.0, "hello", (Word("hello", 2.5, 3.0, 0.7, "SPEAKER_01"),), "SPEAKER_01"),
    ),
    turns=(Turn(0.5, 2.0, "SPEAKER_00"), Turn(2.5, 3.0, "SPEAKER_01")),
    language="en",
    language_probability=0.97,
    duration=3.5,
    model="fake",
    timings={"transcribe": 0.25},
    warnings=("this was made up",),
)


@dataclass
class Play:
    """What one job meets: progress, then a gate that somebody opens, then what it gives."""

    gives: Transcript | BaseException = TRANSCRIPT
    reports: tuple[tuple[str, float], ...] = ()
    gate: threading.Event | None = None


@dataclass
class Call:
    """What the runner was asked for; `content` is the recording as it was when the job began."""

    job_id: str
    request: Request
    recording: Path | None
    content: bytes | None


@dataclass
class FakeRunner:
    """Jobs take their play from `plays` in order, then `otherwise`; safe to script from another thread.

    `refuses` is what `check` raises, once for each call in order; None lets it pass. A job is checked when it is taken
    and again when its work begins.
    """

    at_once: int = 1
    plays: list[Play] = field(default_factory=list)
    otherwise: Play = field(default_factory=Play)
    refuses: list[BaseException | None] = field(default_factory=list)
    plan: Plan = PLAN
    calls: list[Call] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    started: int = 0
    released: int = 0
    forgotten: list[str] = field(default_factory=list)
    closed: int = 0

    def gated(
        self, gives: Transcript | BaseException = TRANSCRIPT, reports: tuple[tuple[str, float], ...] = ()
    ) -> threading.Event:
        """Have the next job wait; `set()` what this gives to let it go on."""
        gate = threading.Event()
        self.plays.append(Play(gives, reports, gate))
        return gate

    async def start(self) -> None:
        self.started += 1

    async def check(self, request: Request) -> Plan:
        error = self.refuses.pop(0) if self.refuses else None
        if error is not None:
            raise error
        return self.plan

    async def run(
        self, job_id: str, request: Request, recording: Path | None, plan: Plan, report: StageReport
    ) -> Transcript:
        play = self.plays.pop(0) if self.plays else self.otherwise
        self.calls.append(Call(job_id, request, recording, recording.read_bytes() if recording else None))
        try:
            for stage, fraction in play.reports:
                report(stage, fraction)
                await asyncio.sleep(0)
            while play.gate is not None and not play.gate.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.stopped.append(job_id)
            raise
        if isinstance(play.gives, BaseException):
            raise play.gives
        return play.gives

    async def forget(self, job_id: str) -> None:
        self.forgotten.append(job_id)

    def release(self) -> None:
        self.released += 1

    async def close(self) -> None:
        self.closed += 1
