"""Weights laid out under MODELS_DIR, so that a worker finds them without a network: for builder/fetch_models.py.

Each hub repository becomes a plain folder under the last part of its name, with a manifest. It is compared with the
hashes that the hub states and seen through a worker's eyes in a folder beside, and only then put into place: what lies
there is always whole. The downloads are the hub's own cache, which resumes what broke off.

What somebody else laid there is used where it is whole, never written, never deleted: only a folder with a manifest,
and nothing in it but what that lists, is replaced.
"""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import requests
import urllib3

from hansard import manifest
from hansard.aligners import bundles
from hansard.errors import HubError, ModelError, ModelMissingError
from hansard.hub import DISK_ERRORS, File, Hub
from hansard.manifest import Manifest
from hansard.models import Models, kind_of
from hansard.settings import Settings
from hansard.transcribers import whisper
from hansard.transcribers.loading import loading
from hansard.transcript import Report
from hansard.vendors import no_room

DOWNLOADS = ".downloads"  # under MODELS_DIR
FETCHED = "fetched"
WHOLE = "already whole"
UNCOMPARED = "whole, not compared with the hub"

TRIES = 2  # at a file whose content is not what the hub states
MODELS_PLACE = "--models-dir"  # sets MODELS_DIR, as sentences name it
GIVE = "set HF_TOKEN, or give the build --secret id=hf_token,env=HF_TOKEN"
MTIME = 315_532_800  # 1980-01-01: one time for all, so that the same files make the same layer of an image

Following = Callable[[str, int | None], AbstractContextManager[Report]]
"""Follows the download of a name and a size in bytes, where that is known."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something to fetch, as it was asked for.

    `needs` names its repositories as far as what is here already tells them; `check` raises ModelError where a worker
    could not use them. `holds` are files of which the repository of this name must have one. A bundle is a
    file of torchaudio's.
    """

    name: str
    needs: Callable[[Models], Sequence[str]] = lambda _: ()
    check: Callable[[Models], object] = lambda _: None
    holds: frozenset[str] = frozenset()
    bundle: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A repository or a bundle that is in place: FETCHED, WHOLE or UNCOMPARED, where it is, its bytes and files."""

    name: str
    state: str
    folder: Path
    size: int
    files: int


class Store:
    """MODELS_DIR, filled with one wanted thing after the other.

    One at a time: whoever uses it holds the folder alone. `stage` is a folder to work in: where it is not in
    MODELS_DIR, that is only looked at. `downloads` keeps what was downloaded, by default in MODELS_DIR.
    """

    def __init__(self, settings: Settings, stage: Path, downloads: Path | None, following: Following) -> None:
        self._models_dir = settings.models_dir
        self._downloads = downloads or settings.models_dir / DOWNLOADS
        self._following = following
        self._places = f"{MODELS_PLACE} and --downloads" if downloads else MODELS_PLACE
        place = "--downloads" if downloads else MODELS_PLACE
        endpoint, token, offline = settings.hf_endpoint, settings.hf_token, settings.hf_hub_offline
        self._hub = Hub(endpoint, self._downloads, token, offline, place, GIVE)
        self._stage = stage
        self._eyes = _eyes(settings, self._stage)
        self._seen: dict[str, Row] = {}  # repositories that are whole, of this run

    def bring(self, wanted: Wanted) -> tuple[Row, ...]:
        """Put all of it into place, or nothing; what there is of it now, nothing where it has no weights to fetch.

        Raises ModelError, and whatever the listener to a download raises.
        """
        with storing(wanted.name, self._places), self._staging():
            if wanted.bundle:
                return (self._bring_bundle(wanted.name),)
            found: dict[str, Row] = {}
            while todo := [name for name in wanted.needs(self._eyes) if _is_new(name, found)]:
                found |= {name: self._into_stage(name, wanted) for name in todo}
            if found:
                wanted.check(self._eyes)
            for row in found.values():
                self._put_in_place(row.folder)
            self._seen |= {name: replace(row, state=row.state.replace(FETCHED, WHOLE)) for name, row in found.items()}
            return tuple(found.values())

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """An empty folder beside the models; gone afterwards, with the old folders that were swapped into it."""
        shutil.rmtree(self._stage, ignore_errors=True)  # of a run that was killed
        self._stage.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(self._stage, ignore_errors=True)

    def _into_stage(self, repository: str, wanted: Wanted) -> Row:
        """Fetch a repository, or link what is in place and whole."""
        last = repository.partition("/")[2]
        if last == bundles.FOLDER:
            raise ModelError(f"{repository} would lie in the folder of torchaudio's own aligners; name another model")
        staged, folder = self._stage / last, self._models_dir / last
        if os.path.lexists(staged):
            raise ModelError(f"{repository} and another repository would share the folder {last}; fetch one of them")
        if repository in self._seen:
            staged.symlink_to(folder)
            return self._seen[repository]
        state, stated = self._stated_or_whole(repository, wanted.holds if repository == wanted.name else frozenset())
        row = Row(repository, state, folder, sum(file.size for file in stated.files), len(stated.files))
        if state == UNCOMPARED or self._in_place(folder, stated):
            staged.symlink_to(folder)
            return row
        self._refuse_to_write(repository)
        with self._following(repository, row.size) as report:
            self._download(stated, staged, report)
        if self._eyes.find(repository) is None:
            raise ModelError(f"{repository} holds no weights that a worker can use; name another model")
        _check_files(repository, staged)
        _settle([*staged.rglob("*"), staged])
        return replace(row, state=FETCHED)

    def _refuse_to_write(self, name: str) -> None:
        if self._stage.parent != self._models_dir:
            raise ModelError(f"{name} is not whole in MODELS_DIR, which cannot be written; let it be writable")

    def _stated_or_whole(self, repository: str, holds: frozenset[str]) -> tuple[str, Manifest]:
        """The same as below and WHOLE; where the hub cannot be asked, UNCOMPARED and what is there and whole."""
        try:
            return WHOLE, self._stated(repository, holds)
        except HubError:
            folder = self._models_dir / repository.partition("/")[2]
            there = manifest.read(folder)
            if there is None or there.repository != repository or manifest.wrong(folder, there.files):
                raise
            return UNCOMPARED, there

    def _stated(self, repository: str, holds: frozenset[str] = frozenset()) -> Manifest:
        """What the hub says that a repository is. Raises ModelError."""
        revision, files = self._hub.files(repository)
        if holds and holds.isdisjoint(file.name for file in files):
            raise ModelMissingError(f"{repository} has neither {' nor '.join(sorted(holds))}; name another model")
        if any(name.is_absolute() or ".." in name.parts for name in (PurePosixPath(file.name) for file in files)):
            raise ModelError(f"{repository} has a file that would lie outside of its folder; name another model")
        return Manifest(repository, revision, tuple(sorted(files, key=lambda file: file.name)))

    def _in_place(self, folder: Path, stated: Manifest) -> bool:
        """Is a folder of MODELS_DIR whole? Raises ModelError where it is not and not ours to replace."""
        there, marked = manifest.read(folder), os.path.lexists(folder / manifest.FILE)
        if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
            return False
        if (there == stated or not marked) and not manifest.wrong(folder, stated.files):  # ours, or laid by hand
            return True
        ours = marked and (there is None or there.repository == stated.repository)
        if ours and not _unlisted(folder, (*stated.files, *(there.files if there else ()))):
            return False
        raise ModelError(
            f"the folder {folder.name} under MODELS_DIR is in the way: it holds something else than "
            f"{stated.repository}; move it away"
        )

    def _download(self, stated: Manifest, staged: Path, report: Report) -> None:
        """The files of a repository as the hub states them. Raises ModelError."""
        cache = self._downloads / f"models--{stated.repository.replace('/', '--')}"
        wrong: tuple[str, ...] = ()
        for _ in range(TRIES):
            _remove_overlong(cache / "blobs", stated.files)
            self._hub.download(stated.repository, report)
            snapshot = cache / "snapshots" / stated.revision
            _lay_out(snapshot, staged, stated.files)
            if not (wrong := manifest.wrong(staged, stated.files)):
                manifest.write(staged, stated)
                return
            shutil.rmtree(staged)
            _remove(snapshot, wrong)
            stated = self._stated(stated.repository)  # which may have a new revision by now
        raise ModelError(
            f"{stated.repository} was delivered with other content than the model hub states, in {', '.join(wrong)}; "
            "try again later, or check what lies between this machine and the hub"
        )

    def _put_in_place(self, folder: Path) -> None:
        """Swap what was fetched, if it was, with what is there."""
        staged = self._stage / folder.name
        if staged.is_symlink():
            return
        if os.path.lexists(folder):
            try:
                os.replace(folder, self._stage / f".old-{folder.name}")
            except OSError as error:
                if error.errno != errno.EXDEV or folder.is_symlink():  # only a folder of an overlay's lower layer
                    raise
                _remove_ours(folder)
        os.replace(staged, folder)

    def _bring_bundle(self, name: str) -> Row:
        """A file of torchaudio's. No hash is stated for it: the manifest remembers the one of what could be read."""
        file, folder = bundles.file_of(name), self._models_dir / bundles.FOLDER
        there = manifest.read(folder)
        known = {entry.name: entry for entry in there.files} if there else {}
        if self._bundle_in_place(name, known.get(file)):
            return Row(name, WHOLE, folder / file, (folder / file).stat().st_size, 1)
        self._refuse_to_write(name)
        with self._following(name, None) as report:
            shutil.copyfile(self._readable_bundle(name, report), self._stage / file)
        known[file] = File(file, manifest.sha256(self._stage / file), (self._stage / file).stat().st_size)
        ours = there is not None or not folder.exists()
        folder.mkdir(exist_ok=True)
        os.replace(self._stage / file, folder / file)
        manifest.write(folder, Manifest(bundles.FOLDER, "", tuple(known[name] for name in sorted(known))))
        _settle([folder / file, folder / manifest.FILE, *([folder] if ours else [])])
        return Row(name, FETCHED, folder / file, known[file].size, 1)

    def _bundle_in_place(self, name: str, known: File | None) -> bool:
        """Is a bundle's file whole, by its manifest or, if laid by hand, by reading it? Raises ModelError."""
        folder = self._models_dir / bundles.FOLDER
        if known:
            return not manifest.wrong(folder, [known])
        file = folder / bundles.file_of(name)
        if not os.path.lexists(file):
            return False
        try:
            _check_bundle(name, file)
        except ModelError:
            raise ModelError(
                f"the file {file.name} in the folder {folder.name} under MODELS_DIR is in the way: "
                f"it is no {name}; move it away"
            ) from None
        return True

    def _readable_bundle(self, name: str, report: Report) -> Path:
        """A bundle's file among the downloads. Raises ModelError, OSError, urllib3's HTTPError."""
        cached = self._downloads / bundles.FOLDER / bundles.file_of(name)
        cached.parent.mkdir(parents=True, exist_ok=True)
        for left in cached.parent.glob(f"{bundles.PREFIX}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        for _ in range(TRIES):
            if not cached.is_file():
                bundles.download(name, cached, report)
            with suppress(ModelError):
                _check_bundle(name, cached)
                return cached
            cached.unlink()
        raise ModelError(f"torchaudio's {name} was delivered damaged; try again later, or name another aligner")


def _is_new(name: str, found: Mapping[str, Row]) -> bool:
    """Is this another repository to fetch? The names in a pipeline's config.yaml may be anything."""
    return Models.is_repository(name) and name not in found


def _eyes(settings: Settings, folder: Path) -> Models:
    """A worker's, that sees one folder and no network."""
    nowhere = folder / ".nowhere"
    seen = {"models_dir": folder, "cached_models_dir": nowhere, "hf_home": nowhere, "hf_hub_offline": True}
    return Models(settings.model_copy(update={**seen, "compute_type": None}))  # which is another machine's


def _remove_overlong(blobs: Path, files: Sequence[File]) -> None:
    """Parts of downloads that are longer than the whole, which the client of the hub would never get right."""
    for file in files:
        part = blobs / f"{file.blob}.incomplete"
        if part.is_file() and part.stat().st_size > file.size:
            part.unlink()


def _remove(snapshot: Path, names: Sequence[str]) -> None:
    """Files of a hub's cache, and the blobs behind them."""
    for name in names:
        (snapshot / name).resolve().unlink(missing_ok=True)
        (snapshot / name).unlink(missing_ok=True)


def _lay_out(snapshot: Path, folder: Path, files: Sequence[File]) -> None:
    """Those files of a snapshot that are there, as plain files: without a copy where the file system allows it."""
    folder.mkdir()
    for file in files:
        source, target = (snapshot / file.name).resolve(), folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            try:
                os.link(source, target)
            except OSError:  # another disk, or one without hard links
                shutil.copyfile(source, target)


def _unlisted(folder: Path, files: Sequence[File]) -> bool:
    """Is there anything in a folder that is none of the files?"""
    known = {folder / manifest.FILE, *(folder / file.name for file in files)}
    return any(path not in known for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _remove_ours(folder: Path) -> None:
    """Remove a folder, the manifest last: a part of it that is left is still known for ours."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != manifest.FILE:
            path.unlink()
    (folder / manifest.FILE).unlink(missing_ok=True)
    folder.rmdir()


def _settle(paths: Iterable[Path]) -> None:
    """Let everybody read files and folders that were laid out here, and give them the one time."""
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (MTIME, MTIME))


def _check_files(repository: str, folder: Path) -> None:
    """Look into the files that tell cheaply whether they can be read. Raises ModelError."""
    import ctranslate2
    from safetensors import safe_open

    with loadable(repository):
        for path in folder.rglob("*.safetensors"):
            with safe_open(path, framework="np"):
                pass
        for path in folder.glob("*.nemo"):
            with tarfile.open(path) as archive:
                if "model_config.yaml" not in {PurePosixPath(name).name for name in archive.getnames()}:
                    raise ValueError("an archive of something else")
        if kind_of(folder) == whisper.KIND and not ctranslate2.contains_model(str(folder)):
            raise ValueError("no model of CTranslate2's")


def _check_bundle(name: str, file: Path) -> None:
    import torch

    with loadable(name):
        torch.load(file, weights_only=True, mmap=True, map_location="cpu")


@contextmanager
def loadable(name: str) -> Iterator[None]:
    """Turn whatever a vendor raises for files that are as their owner made them into ModelError.

    Raises OutOfMemoryError, and ModelError for a disk that fails, too.
    """
    with loading(name):
        try:
            yield
        except Exception as error:  # each kind of broken file has an exception of its own
            if no_room(error) or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
                raise
            raise ModelError(f"{name} holds files that cannot be loaded; name another model") from None


@contextmanager
def storing(what: str, places: str) -> Iterator[None]:
    """Tell of a download or a disk that fails in a sentence; `places` are what sets the folders. Raises ModelError."""
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError):  # the first are OSErrors
        raise HubError(f"{what} could not be downloaded; try again later") from None
    except OSError as error:
        reason = error.strerror or "the disk does not take it"
        raise ModelError(
            f"{what} could not be stored: {reason}; let {places} be on a disk that can be written and has room"
        ) from None
