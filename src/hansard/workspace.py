"""Where a job's files live while it runs: one private root per process, one folder per job, gone afterwards.

A process that is killed cannot tidy up, so the next one does: a root belongs to whoever holds the lock inside it,
and a root whose lock can be taken is nobody's.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansard.errors import SettingsError
from hansard.settings import Settings

log = logging.getLogger(__name__)

_PREFIX = "hansard-"
_ROOT_NAME = re.compile(_PREFIX + r"[a-z0-9_]{8}")  # what mkdtemp makes of the prefix
_LOCK_NAME = "lock"
_MOST_TRIES = 20  # at a root of our own: more failures than that are not other processes starting


class Workspace:
    """The folders of this process's jobs; open one per process and close it at the end.

    Opening removes what dead processes left in WORK_DIR. Raises SettingsError when WORK_DIR cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            settings.work_dir.mkdir(parents=True, exist_ok=True)
            _sweep(settings.work_dir)
            self._root, self._lock = _new_root(settings.work_dir)
        except OSError as error:
            raise SettingsError(f"WORK_DIR cannot be used: {error.strerror}") from None
        self._open = True
        os.register_at_fork(after_in_child=self._forget)

    @property
    def root(self) -> Path:
        return self._root

    @contextmanager
    def job(self, job_id: str) -> Iterator[Path]:
        """A fresh, private folder for one job, removed on the way out whatever happened inside.

        `job_id` comes from outside: only its harmless characters show in the folder's name.
        """
        harmless = re.sub(r"[^A-Za-z0-9]+", "-", job_id)[:40]
        folder = Path(tempfile.mkdtemp(prefix=f"job-{harmless}-", dir=self._root))
        try:
            yield folder
        finally:
            _remove(folder)

    def _forget(self) -> None:
        """In a forked process: the lock is not its own, and must not outlive the process whose it is."""
        if self._open:
            self._open = False
            os.close(self._lock)

    def close(self) -> None:
        """Remove the root and everything in it; closing twice is fine."""
        if self._open:
            self._open = False
            _remove_root(self._root, self._lock)


def living_roots(work_dir: Path) -> tuple[Path, ...]:
    """The roots of processes of this user that live; changes nothing. Raises OSError."""
    return tuple(
        Path(entry.path)
        for entry in list(os.scandir(work_dir))
        if _ours(entry) and is_held(Path(entry.path, _LOCK_NAME))
    )


def is_held(lock: Path) -> bool:
    """Does another process hold a lock file? Asked with a shared lock, so that two who ask do not see each other."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _new_root(work_dir: Path) -> tuple[Path, int]:
    """A new root and the descriptor that holds its lock.

    Until the lock is held, a process that starts at the same moment may sweep the root away; then make another.
    """
    for _ in range(_MOST_TRIES):
        root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=work_dir))
        lock = _take(root, os.O_CREAT | os.O_EXCL)
        if lock is not None:
            return root, lock
        _remove(root)
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _take(root: Path, flags: int = 0) -> int | None:
    """The descriptor of the root's lock, held; None when another process has it or the root is gone."""
    path = root / _LOCK_NAME
    try:
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A lock can be won on a file that its sweeper has just removed: it then guards nothing.
        held = os.fstat(lock)
        if stat.S_ISREG(held.st_mode) and os.path.samestat(held, path.lstat()):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _sweep(work_dir: Path) -> None:
    """Remove the roots of processes that are no more."""
    for entry in list(os.scandir(work_dir)):
        if not _ours(entry):
            continue
        root = Path(entry.path)
        lock = _take(root)
        if lock is not None:
            log.info("removing the folder that a dead process left: %s", entry.name)
            _remove_root(root, lock)
        elif not (root / _LOCK_NAME).exists():
            _remove_unfinished(root)


def _ours(entry: os.DirEntry[str]) -> bool:
    """Whether an entry has the name, kind, owner and mode of a root: anything else is not touched."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return (
        _ROOT_NAME.fullmatch(entry.name) is not None
        and stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and stat.S_IMODE(status.st_mode) == 0o700
    )


def _remove_unfinished(root: Path) -> None:
    """Remove a root whose process died before it made its lock; rmdir spares one that holds anything."""
    try:
        root.rmdir()
    except OSError:
        log.debug("leaving %s alone", root.name)


def _remove_root(root: Path, lock: int) -> None:
    """Remove a root whose lock we hold, the lock last: cut short, the rest can still be told for what it is."""
    try:
        for child in list(root.iterdir()):
            if child.name != _LOCK_NAME:
                _remove(child)
        (root / _LOCK_NAME).unlink()
        root.rmdir()
    except OSError as error:
        log.warning("%s could not be removed: %s", root.name, error.strerror)
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; never follows a link."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        log.warning("a job's folder could not be removed; the next start tries again")
