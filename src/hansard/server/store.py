"""Jobs and their results in SQLite, so that a restart loses none: one file in STATE_DIR, in WAL mode.

A token that came with a job is not written: it becomes stars. Calls are short (a result of ten hours takes a second)
and may come from any thread. One process holds a STATE_DIR at a time. What a power failure may cost is the last
moments: a transaction is handed to the operating system, not waited for on the disk.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hansard.errors import EngineError, SettingsError
from hansard.server.job import Job, State, Submission
from hansard.transcript import Transcript

log = logging.getLogger(__name__)

JOB: TypeAdapter[Job] = TypeAdapter(Job)
SUBMISSION: TypeAdapter[Submission] = TypeAdapter(Submission)
TRANSCRIPT: TypeAdapter[Transcript] = TypeAdapter(Transcript)

FILE = "jobs.sqlite3"
LOCK = "lock"
VERSION = 1  # of the tables

TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    finished REAL,
    idempotency_key TEXT,
    digest TEXT,
    untold INTEGER NOT NULL DEFAULT 0,
    submission BLOB NOT NULL,
    job BLOB NOT NULL,
    result BLOB
);
CREATE INDEX IF NOT EXISTS jobs_of_an_owner ON jobs (owner, created DESC);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state);
CREATE INDEX IF NOT EXISTS jobs_by_digest ON jobs (owner, digest) WHERE digest IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
"""

EXPIRE = "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE finished < ? LIMIT ?) RETURNING id"
AT_ONCE = 20  # jobs that are forgotten before others have their turn
BUSY_S = 0.5  # that a call waits for another program which has the database in hand

UNWRITABLE = "STATE_DIR cannot be used; free space on its disk, or name a folder that the server may write to"


class Store:
    """The jobs of one STATE_DIR.

    Raises SettingsError where that cannot be used, or another server uses it; every method raises EngineError where the
    disk does not do what it should.
    """

    def __init__(self, state_dir: Path) -> None:
        self._lock = threading.Lock()
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = _hold(state_dir / LOCK)
        except OSError:
            raise SettingsError(UNWRITABLE) from None
        try:
            self._db = _opened(state_dir / FILE)
        except BaseException:
            os.close(self._held)
            raise

    def close(self) -> None:
        """Let the file and the folder go, once no call is under way."""
        with self._lock:
            self._db.close()
            os.close(self._held)

    def add(self, job: Job) -> None:
        """Write a new job."""
        given = job.submission
        self._do(
            "INSERT INTO jobs (id, owner, state, created, idempotency_key, digest, submission, job) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(job.id, given.owner, job.state, job.created, given.idempotency_key, given.digest or None),
                *(SUBMISSION.dump_json(given, exclude_unset=True), _dumps(job)),
            ),
        )

    def update(self, job: Job) -> None:
        """Write how a job is now; what it was asked for does not change."""
        self._do(
            "UPDATE jobs SET state = ?, finished = ?, untold = ?, job = ? WHERE id = ?",
            (job.state, job.finished, _untold(job), _dumps(job), job.id),
        )

    def requeue(self, job: Job) -> None:
        """Write that a job waits again, unless it has ended meanwhile."""
        self._do(
            "UPDATE jobs SET state = ?, job = ? WHERE id = ? AND state = 'running'", (job.state, _dumps(job), job.id)
        )

    def undelivered(self) -> list[Job]:
        """The jobs that ended and whose webhook was not told."""
        return self._jobs("untold ORDER BY created", ())

    def delivered(self, job_id: str) -> None:
        """A job's webhook was told."""
        self._do("UPDATE jobs SET untold = 0 WHERE id = ?", (job_id,))

    def counts(self, owner: str) -> dict[State, int]:
        """How many of an owner's jobs are in each state."""
        return dict(self._do("SELECT state, COUNT(*) FROM jobs WHERE owner = ? GROUP BY state", (owner,)))

    def complete(self, job: Job, transcript: Transcript) -> None:
        """Write a job's end and what it gave, both or neither."""
        packed = gzip.compress(_text(TRANSCRIPT.dump_python(transcript)), compresslevel=1)
        self._do(
            "UPDATE jobs SET state = ?, finished = ?, untold = ?, job = ?, result = ? WHERE id = ?",
            (job.state, job.finished, _untold(job), _dumps(job), packed, job.id),
        )

    def result(self, job_id: str) -> Transcript | None:
        """What a job gave, if it is here."""
        rows = self._do("SELECT result FROM jobs WHERE id = ? AND result IS NOT NULL", (job_id,))
        return TRANSCRIPT.validate_json(gzip.decompress(rows[0][0])) if rows else None

    def get(self, job_id: str) -> Job | None:
        """A job as it was last written."""
        return self._one("id = ?", (job_id,))

    def by_key(self, owner: str, key: str) -> Job | None:
        """The job that an owner gave this idempotency key."""
        return self._one("owner = ? AND idempotency_key = ?", (owner, key))

    def by_digest(self, owner: str, digest: str) -> Job | None:
        """The newest job of an owner with this digest, unless that was forgotten."""
        return self._one("owner = ? AND digest = ? ORDER BY created DESC LIMIT 1", (owner, digest))

    def forget_digest(self, job_id: str) -> None:
        """Have `by_digest` find a job no more."""
        self._do("UPDATE jobs SET digest = NULL WHERE id = ?", (job_id,))

    def newest(self, owner: str, limit: int, state: State | None = None) -> list[Job]:
        """An owner's jobs, or those of them in a state, the newest first."""
        if state:
            return self._jobs("owner = ? AND state = ? ORDER BY created DESC LIMIT ?", (owner, state, limit))
        return self._jobs("owner = ? ORDER BY created DESC LIMIT ?", (owner, limit))

    def unfinished(self) -> list[Job]:
        """What was queued or running, the oldest first."""
        return self._jobs("state IN ('queued', 'running') ORDER BY created", ())

    def delete(self, job_id: str) -> None:
        """Forget a job and what it gave."""
        self._do("DELETE FROM jobs WHERE id = ?", (job_id,))

    def expire(self, before: float) -> int:
        """Forget the jobs that ended before a time (seconds since 1970); how many there were.

        A few at once, so that nobody waits long for the database, which is then as small as what is left in it.
        """
        gone = 0
        while found := self._do(EXPIRE, (before, AT_ONCE)):
            gone += len(found)
        if gone:
            self._do("PRAGMA incremental_vacuum", ())
        return gone

    def forget(self, job_id: str) -> None:
        """Have neither `by_key` nor `by_digest` find a job any more."""
        self._do("UPDATE jobs SET digest = NULL, idempotency_key = NULL WHERE id = ?", (job_id,))

    def _do(self, statement: str, values: Sequence[Any]) -> list[Any]:
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            log.error("the database in STATE_DIR: %s", error)  # noqa: TRY400 its traceback says nothing more
            raise EngineError(UNWRITABLE) from None

    def _one(self, which: str, values: Sequence[Any]) -> Job | None:
        return next(iter(self._jobs(which, values)), None)

    def _jobs(self, which: str, values: Sequence[Any]) -> list[Job]:
        rows = self._do(f"SELECT id, submission, job FROM jobs WHERE {which}", values)  # noqa: S608 ours alone
        return [job for row in rows if (job := self._read(*row)) is not None]

    def _read(self, job_id: str, submission: bytes, told: bytes) -> Job | None:
        """A row's job; one that this version cannot read is removed, since nothing could be done with it."""
        try:
            given = SUBMISSION.validate_json(submission)
            return JOB.validate_python({**json.loads(told), "submission": given})
        except ValueError:  # no JSON, or another shape of it
            log.warning("job %s was written by another version of the server and is removed", job_id)
            self.delete(job_id)
            return None


def _hold(path: Path) -> int:
    """The descriptor of a lock file, held. Raises SettingsError where another process has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SettingsError("another server uses this STATE_DIR; stop it, or name another folder") from None
    return lock


def _opened(path: Path) -> sqlite3.Connection:
    """The database, with its tables. Raises SettingsError."""
    try:
        db = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
    except sqlite3.Error:
        raise SettingsError(UNWRITABLE) from None
    try:
        _prepare(db)
    except SettingsError:
        db.close()
        raise
    except sqlite3.Error:
        db.close()
        raise SettingsError(UNWRITABLE) from None
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # heeded by a new file only
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    if db.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
        raise SettingsError("STATE_DIR belongs to another version of the server; name another folder")
    db.executescript(TABLES)
    db.execute(f"PRAGMA user_version={VERSION}")


def _dumps(job: Job) -> bytes:
    """A job as JSON, without what it was asked for."""
    return JOB.dump_json(job, exclude={"submission"})


def _text(value: object) -> bytes:
    """A value as JSON; pydantic's own has no word for NaN and fails over half a surrogate pair."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _untold(job: Job) -> bool:
    """Has the job ended with a webhook that is to be told of it?"""
    return job.is_final and job.submission.webhook is not None
