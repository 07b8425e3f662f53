"""The sound of jobs that wait: of each in a folder of its own under STATE_DIR, gone when the job's work is."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hansard.audio.fetch import data_uri, fetch
from hansard.errors import EngineError, HansardError, SettingsError
from hansard.request import Request
from hansard.server.job import UPLOADED, Submission
from hansard.settings import Settings
from hansard.speakers.enrol import blamed


class Recordings:
    """The folder of them all."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder

    async def out_of_line(self, submission: Submission) -> Submission:
        """The same, with sound that stood in the request itself (data URIs, base64) moved to files.

        So that a queue of them costs neither memory nor a database of gigabytes. Raises RequestError, AudioError,
        EngineError where it cannot be stored.
        """
        request = submission.request
        moves = submission.recording is None and _is_inline(request.audio)
        if not moves and not any(_is_inline(sample.audio) for sample in request.speaker_samples):
            return submission
        own = submission.recording.parent if submission.recording else await asyncio.to_thread(self._new)
        try:
            recording = await self._stored(request.audio, own) if moves else submission.recording
            return await self._with_samples(replace(submission, recording=recording), own)
        except BaseException:
            if submission.recording is None:
                shutil.rmtree(own, ignore_errors=True)
            raise

    def in_line(self, submission: Submission) -> Request:
        """The request as it came, with the sound of known voices in it. Raises EngineError where that is gone."""
        if not submission.samples:
            return submission.request
        pairs = zip(submission.request.speaker_samples, submission.samples, strict=True)
        try:
            samples = [
                sample.model_copy(update={"audio": data_uri(path.read_bytes())}) if path else sample
                for sample, path in pairs
            ]
        except OSError:
            raise EngineError("the samples of known voices are gone from the server; send the job again") from None
        return submission.request.model_copy(update={"speaker_samples": samples})

    def discard(self, submission: Submission) -> None:
        """Remove the sound that came with a request, and the folder that was made for it."""
        if name := self._name(submission):
            _remove(self._folder / name)

    def keep_only(self, submissions: Iterable[Submission]) -> None:
        """Remove what belongs to none of these: a process that was killed had not made it into a job, or out of one.

        Raises SettingsError where the folder cannot be used.
        """
        kept = {self._name(given) for given in submissions}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                if path.name not in kept:
                    _remove(path)
        except OSError as error:
            raise SettingsError(
                f"uploads in STATE_DIR cannot be used ({error.strerror}); make it a folder that the server may write to"
            ) from None

    def _new(self) -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix="inline-", dir=self._folder))
        except OSError as error:
            raise EngineError(
                f"the sound could not be stored on the server: {error.strerror}; try again later"
            ) from None

    async def _stored(self, source: str, own: Path) -> Path:
        return await asyncio.to_thread(fetch, source, own, self._settings, lambda _: None)

    async def _with_samples(self, submission: Submission, own: Path) -> Submission:
        request, files = submission.request, list[Path | None]()
        for sample in request.speaker_samples:
            try:
                files.append(await self._stored(sample.audio or "", own) if _is_inline(sample.audio) else None)
            except HansardError as error:
                raise blamed(error, sample.name) from None
        told = [
            sample.model_copy(update={"audio": UPLOADED}) if file else sample
            for sample, file in zip(request.speaker_samples, files, strict=True)
        ]
        update: dict[str, object] = {"speaker_samples": told} if any(files) else {}
        if submission.recording is not None:
            update["audio"] = UPLOADED
        return replace(
            submission, request=request.model_copy(update=update), samples=tuple(files) if any(files) else ()
        )

    def _name(self, submission: Submission) -> str | None:
        """What in the folder belongs to a submission; nothing else is ever touched."""
        for path in (submission.recording, *submission.samples):
            if path is not None and path.is_relative_to(self._folder):
                return next(iter(path.relative_to(self._folder).parts), None)
        return None


def _is_inline(source: str | None) -> bool:
    """Is it sound itself: a data URI, or base64, which has no colon?"""
    start = (source or ":").lstrip()
    return start[:5].lower() == "data:" or ":" not in start


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
