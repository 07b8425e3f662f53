"""The container log and the tail of it that a job returns, with secrets taken out.

Every line goes through one formatter, which removes secrets, to standard error, to the rotated log file, and to the
tail of the job it belongs to. The parent process owns it all; the engine process sends its records here.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler

from hansard.settings import Settings

log = logging.getLogger(__name__)

JOB_FIELD = "job"
"""The attribute of a log record that names its job, for records made outside the job's own context."""

_current: ContextVar[str | None] = ContextVar("job", default=None)

SHORTEST_SECRET = 8  # characters: what is shorter stands in every other word
MOST_IN_HAND = 10_000  # jobs whose secrets are known at once

# Each in a time that grows with the text alone, whoever wrote it: what follows the first sign of a secret is walked
# over once, whether it turns out to be one or not.
_PATTERNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\bhf_[A-Za-z0-9]{6,}"), "hf_***"),
    (
        re.compile(
            r"(?i)\b(bearer|token|authorization|api[_-]?key)(['\" =:]+)"
            r"(?:basic [^\s,;'\"]{4,}|(?:bearer )?[^\s,;'\"]{8,})"
        ),
        r"\1\2***",
    ),
    (re.compile(r"://[^\s/'\"]+@"), "://***@"),
    (
        re.compile(r"(?i)\b(https?://[^\s?#'\"<>]+)([?#][^\s'\"<>]*)?"),
        lambda url: url[1] + ("?***" if url[2] else ""),
    ),
)

_in_hand: OrderedDict[str, tuple[str, ...]] = OrderedDict()


def redact(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets, and without whatever looks like one: keys, tokens, the query of a URL."""
    for secret in sorted(set(secrets), key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, "***")
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def register(job_id: str, secrets: Iterable[str]) -> None:
    """Have the server take what a job brought out of its log and its answers, until `forget`.

    Values shorter than SHORTEST_SECRET are left out, or any caller could blacken the log; of more than MOST_IN_HAND
    jobs the oldest are forgotten.
    """
    if kept := tuple(secret for secret in secrets if len(secret) >= SHORTEST_SECRET):
        _in_hand[job_id] = kept
        while len(_in_hand) > MOST_IN_HAND:
            _in_hand.popitem(last=False)


def forget(job_id: str) -> None:
    """A job is over; twice is fine."""
    _in_hand.pop(job_id, None)


def secrets_in_hand() -> frozenset[str]:
    """The secrets of all jobs that were registered and not forgotten."""
    return frozenset(secret for secrets in list(_in_hand.values()) for secret in secrets)


@dataclass(eq=False)
class Tail:
    """The last lines of one running job, and what may not stand in any line while it runs."""

    job: str
    lines: deque[str]
    secrets: tuple[str, ...] = ()


class _Formatter(logging.Formatter):
    """Time, level, text; never a secret, neither one that looks like one nor one that a running job brought."""

    def __init__(self, log: JobLog) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._log = log

    def format(self, record: logging.LogRecord) -> str:
        of_jobs = (secret for tail in self._log.tails for secret in tail.secrets)
        return redact(super().format(record), [*self._log.secrets, *of_jobs])


class _TailHandler(logging.Handler):
    """Gives each line to the running job that it belongs to; two jobs of one id share what is logged under it."""

    def __init__(self, log: JobLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        job = getattr(record, JOB_FIELD, None) or _current.get()
        for tail in [tail for tail in self._log.tails if tail.job == job]:
            try:
                tail.lines.extend(self.format(record).splitlines())
            except Exception:  # as logging does: a bad message fails no job
                self.handleError(record)


class JobLog:
    """The log of this process; made once, when the process starts. `echo` writes it to standard error too."""

    def __init__(self, settings: Settings, *, echo: bool = True) -> None:
        self.tails: tuple[Tail, ...] = ()  # replaced, never changed: other threads read it
        self.secrets = settings.secrets()
        self._lines = settings.log_tail_lines
        self._handlers: list[logging.Handler] = [
            _TailHandler(self),
            *([logging.StreamHandler(sys.stderr)] if echo else []),
        ]
        problem = None
        try:
            limit = int(settings.log_file_mb * 1_000_000)
            file = RotatingFileHandler(settings.log_file, maxBytes=limit, backupCount=1, encoding="utf-8")
            self._handlers.append(file)
        except OSError as error:
            problem = error.strerror
        for handler in self._handlers:
            handler.setFormatter(_Formatter(self))
        root = logging.getLogger()
        root.handlers[:] = self._handlers
        root.setLevel(logging.INFO)
        if problem:
            log.warning("LOG_FILE cannot be written (%s): the log goes to standard error only", problem)

    def close(self) -> None:
        """Stop logging and close the file."""
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()

    @contextmanager
    def job(self, job_id: str) -> Iterator[Tail]:
        """Collect the lines of one job: what it yields grows while the job runs, up to LOG_TAIL_LINES lines.

        Secrets put into its `secrets` are taken out of every line until the end.
        """
        token = _current.set(job_id)
        tail = Tail(job_id, deque(maxlen=self._lines))
        self.tails = (*self.tails, tail)
        try:
            yield tail
        finally:
            _current.reset(token)
            self.tails = tuple(other for other in self.tails if other is not tail)
