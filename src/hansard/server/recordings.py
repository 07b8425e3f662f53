"""The recordings of jobs that wait: each in a folder of its own under STATE_DIR, gone when the job's work is."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hansard.audio.fetch import fetch
from hansard.server.job import Submission
from hansard.settings import Settings

INLINE = re.compile(r"\s*(data:|[^:]*$)", re.IGNORECASE)  # a data URI, or base64, which has no colon
IN_A_FILE = "upload"  # what `request.audio` says of sound that came with the request


class Recordings:
    """The folder of them all."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder

    async def out_of_line(self, submission: Submission) -> Submission:
        """The same, with sound that stood in the request itself (a data URI, base64) moved to a file.

        So that a queue of them costs neither memory nor a database of gigabytes. Raises RequestError, AudioError.
        """
        source = submission.request.audio
        if submission.recording is not None or not INLINE.match(source):
            return submission
        own = Path(tempfile.mkdtemp(prefix="inline-", dir=self._folder))
        try:
            path = await asyncio.to_thread(fetch, source, own, self._settings, lambda _: None)
        except BaseException:
            shutil.rmtree(own, ignore_errors=True)
            raise
        return replace(submission, request=submission.request.model_copy(update={"audio": IN_A_FILE}), recording=path)

    def discard(self, submission: Submission) -> None:
        """Remove the recording that came with a request, and the folder that was made for it."""
        if name := self._name(submission):
            _remove(self._folder / name)

    def keep_only(self, submissions: Iterable[Submission]) -> None:
        """Remove what belongs to none of these: a process that was killed had not made it into a job, or out of one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = {self._name(given) for given in submissions}
        for path in self._folder.iterdir():
            if path.name not in kept:
                _remove(path)

    def _name(self, submission: Submission) -> str | None:
        """What in the folder belongs to a submission; nothing else is ever touched."""
        recording = submission.recording
        if recording is None or not recording.is_relative_to(self._folder):
            return None
        return next(iter(recording.relative_to(self._folder).parts), None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
