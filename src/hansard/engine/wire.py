"""What crosses between the parent and the engine process, pickled over one pipe in each direction.

Parent to child: `Job`, `Cancel`, `Load`, `Unload`, `Leave`; the pipe's end means "leave" too. Child to parent: the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hansard.pipeline import Job
from hansard.plan import Choice
from hansard.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller no longer wants this job."""

    job: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model, after the jobs that came before, unless a newer order says otherwise; `Settled` answers."""

    id: str
    choice: Choice


@dataclass(frozen=True, slots=True)
class Unload:
    """Let a model go, after the jobs that came before, unless a newer order says otherwise; `Settled` answers.

    One that is just being loaded goes once it is there; the answer does not wait for that.
    """

    id: str
    choice: Choice


@dataclass(frozen=True, slots=True)
class Leave:
    """Let the models go and end."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """What keeps this machine from doing its work, a sentence each; sent once, before anything is loaded."""

    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Beat:
    """The engine process lives; sent every few seconds."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The default models are loaded, or could not be: `Warm` says why."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage of a job is, 0 to 1."""

    job: str
    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log record of the engine process; `job` is the one that was running, if any."""

    job: str | None
    level: int
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """A finished job."""

    job: str
    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that failed: an error of the tree, as plain text."""

    job: str
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A `Load` or `Unload` is done, or not to be done any more, or failed: then with an error, as plain text."""

    id: str
    code: str | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Warm:
    """The models that this process holds, and those that it is loading; sent whenever that has changed.

    `fetched` tells how much of a model has come, 0 to 1, while its weights are being downloaded; `failed` why one could
    not be had when it was last asked for.
    """

    ready: tuple[Choice, ...] = ()
    loading: tuple[Choice, ...] = ()
    fetched: Mapping[Choice, float] = field(default_factory=dict)
    failed: Mapping[Choice, str] = field(default_factory=dict)


ToChild = Job | Cancel | Load | Unload | Leave


@dataclass(frozen=True, slots=True)
class Spent:
    """This process takes no further job, since its GPU does not answer it any more; it ends when it has said so."""


ToParent = Fitness | Beat | Ready | Spent | Progress | LogLine | Done | Failed | Settled | Warm
