"""A job of the server: what was asked for, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hansard.errors import HansardError, from_code
from hansard.request import Request

State = Literal["queued", "running", "completed", "failed", "cancelled"]

UPLOADED = "upload"  # what a request says of sound that lies in a file of ours

FINAL: frozenset[State] = frozenset({"completed", "failed", "cancelled"})

PREPARING = frozenset({"load", "fetch", "decode"})  # stages whose time says nothing of the others
GUESS_PERCENT = 5.0  # done, before which the time that is left is not guessed


@dataclass(frozen=True, slots=True)
class Submission:
    """What an endpoint asks the core for.

    `recording` is a file that came with the request, in a folder of its own under the core's `uploads`; it is the
    core's from then on, and gone with the job's work. Without it `request.audio` is a source. `samples` are the files
    of those known voices whose sound came in the request itself, None for the others. `digest` says what is the same
    job of one owner: of the sound and the options; empty where nothing is shared. `awaited` is work that is of no use
    when nobody waits for it any more. `limit_s` is how long it may be worked on.
    """

    request: Request
    recording: Path | None = None
    owner: str = ""
    digest: str = ""
    idempotency_key: str | None = None
    awaited: bool = False
    webhook: str | None = None
    webhook_shape: Literal["hansard", "runpod"] = "hansard"
    metadata: dict[str, object] = field(default_factory=dict)
    limit_s: float | None = None
    samples: tuple[Path | None, ...] = ()

    def may_share(self, other: Submission) -> bool:
        """Would one job do for both, of the same digest? Not where others are told, or it ends for other reasons."""
        mine, theirs = (
            (one.awaited, one.webhook, one.webhook_shape, one.metadata, one.limit_s) for one in (self, other)
        )
        return mine == theirs


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is now; times are seconds since 1970, percents 0 to 100, the error a code and its sentence.

    `runs` counts how often its work was begun: more than once where the server was stopped in between.
    """

    id: str
    submission: Submission
    state: State
    created: float
    started: float | None = None
    finished: float | None = None
    stage: str | None = None
    stage_percent: float = 0.0
    percent: float = 0.0
    error: tuple[str, str] | None = None
    runs: int = 0

    @property
    def is_final(self) -> bool:
        """Has it ended, in whatever way?"""
        return self.state in FINAL

    def eta_s(self, now: float) -> float | None:
        """Seconds to the end, from the time that the done part took; None while that would be a guess."""
        if self.state != "running" or self.started is None or self.stage in PREPARING or self.percent < GUESS_PERCENT:
            return None
        return max(0.0, (now - self.started) * (100 - self.percent) / self.percent)

    def failure(self) -> HansardError:
        """Why there is no result. Only for a failed or cancelled job."""
        return from_code(*(self.error or ("internal", "the job has no result")))
