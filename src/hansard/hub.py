"""The model hub, spoken to through huggingface_hub: may this be read, and the download of what is used of it.

A download runs in a process of its own, because nothing else stops in mid-file: huggingface_hub 0.36 has a seam for
progress by files but none by bytes, none for cancelling, and its Xet transfer does not return before its end. So the
process writes, this one watches the files grow, and cancelling kills it; the next download resumes what it left.
`refs/main` is written last: until then no reader takes the snapshot for a whole one.

What the library reads from the environment by itself (a login of this machine, another endpoint) is always
overruled. Not covered: private repositories, datasets, revisions other than main.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import logging
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import SecretStr

from hansard.errors import HubError, ModelError, ModelMissingError, TermsError, TokenMissingError, TokenRefusedError
from hansard.orphan import leave_with
from hansard.transcript import Report

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # that the hub has for each answer
REMEMBER_S = 300.0  # that a yes of the hub is believed
LOOK_S = 0.2  # between two looks at the growing files
AT_ONCE = 4  # files
RESERVE = 1_000_000_000  # bytes of the disk that no download takes: recordings need room too

DISK_ERRORS = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOLCK, errno.ENAMETOOLONG, errno.EXDEV),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    )
)
"""What an OSError carries when it is about the disk; those about sockets are OSErrors too."""

UNUSED = (
    *("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.gguf", "*.tflite", "*.mlmodel", "*.arpa"),
    *("consolidated*.safetensors", "params.json"),  # Mistral's own format, beside the one that transformers reads
    *("onnx/*", "openvino/*", "coreml/*", "language_model/*", "runs/*", "checkpoint-*/*"),
    *(
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "*.md",
        ".gitattributes",
        "*.png",
        "*.jpg",
        "*.gif",
        "*.pdf",
    ),
)
"""Files that no engine here reads: other frameworks' weights, language models, leftovers of training, pages."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a repository: its name there, its name among the blobs, and its size in bytes."""

    name: str
    blob: str
    size: int


@dataclass(frozen=True, slots=True)
class _Order:
    """What the process that downloads is to do."""

    repository: str
    revision: str
    files: tuple[str, ...]
    cache: Path
    endpoint: str
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a question or a download failed, as plain data: the hub's answer, or the disk's, or neither."""

    status: int | None = None
    gated: bool = False
    disk: int | None = None
    said: str = ""  # the kind of the error, for the log


_allowed: dict[tuple[str, str, str], float] = {}  # (endpoint, what was asked, hash of the token) → until when
_allowed_lock = threading.Lock()

_THEIRS = (OSError, ValueError, RuntimeError, LookupError, TypeError)  # the last two: a page that is no hub's answer


class Hub:
    """One model hub, as one job may use it; `cache` is written in the hub's own layout.

    `place` is what sets where the cache lies, `give` how a token is given: as sentences name them.
    """

    def __init__(
        self,
        endpoint: str,
        cache: Path,
        token: SecretStr | None = None,
        offline: bool = False,
        place: str = "HF_HOME",
        give: str = "pass huggingface_access_token or set HF_TOKEN",
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._cache = cache
        self._place, self._give = place, give
        self._token = token.get_secret_value().strip() if token else ""
        self._offline = offline

    def check(self, repository: str, holds: str | None = None) -> None:
        """Return when the files may be read and `holds` is one of them: by memory, or by one or two short questions.

        Raises ModelError.
        """
        self._refuse_to_ask(repository)
        key = (self._endpoint, f"{repository} {holds}", hashlib.sha256(self._token.encode()).hexdigest())
        with _allowed_lock:
            if _allowed.get(key, 0.0) > time.monotonic():
                return
        # The info of a gated repository is public; this question is about its files.
        with self._failing(repository):
            from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

            address = f"{self._endpoint}/api/models/{repository}/auth-check"
            headers = build_hf_headers(token=self._token or False)
            hf_raise_for_status(get_session().get(address, headers=headers, timeout=ANSWER_S))
        if holds and holds not in [file.name for file in self.files(repository)[1]]:
            raise ModelMissingError(f"{repository} is no model of the kind that is needed: it has no {holds}")
        _remember(key)

    def download(self, repository: str, report: Report) -> None:
        """Bring what is used of a repository into the cache; resumes what is there of it.

        Raises ModelError, and whatever `report` raises: then the download has stopped.
        """
        report(0.0)
        self.check(repository)
        revision, files = self.files(repository)
        folder = self._cache / f"models--{repository.replace('/', '--')}"
        log.info("downloading %s: %d files, %d MB", repository, len(files), sum(file.size for file in files) // 10**6)
        with self._failing(repository):
            self._refuse_too_large(repository, sum(file.size for file in files) - _present(folder, files))
        names = tuple(file.name for file in files)
        order = _Order(repository, revision, names, self._cache, self._endpoint, self._token or None)
        if failure := _watch(order, folder, files, report):
            raise self._error(repository, failure)
        with self._failing(repository):
            _write_ref(folder, revision)
        report(1.0)

    def _refuse_to_ask(self, repository: str) -> None:
        if self._offline:
            raise HubError(
                f"{repository} is not on this machine and HF_HUB_OFFLINE is set: "
                "set it to false, or put the model's folder under MODELS_DIR"
            )
        if not re.fullmatch(r"[!-~]*", self._token):  # no header can carry it
            raise TokenRefusedError("the token for the model hub has characters that no token has; copy it again")

    def files(self, repository: str) -> tuple[str, list[File]]:
        """The revision that main is now, and the files of it that are used. Raises ModelError."""
        self._refuse_to_ask(repository)
        with self._failing(repository):
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._endpoint, token=self._token or False)
            info = api.model_info(repository, timeout=ANSWER_S, files_metadata=True)
        files = [_file(sibling) for sibling in info.siblings or ()]
        return str(info.sha), _used(files)

    def _refuse_too_large(self, repository: str, missing: int) -> None:
        """Say before the download that the disk cannot hold it."""
        there = next(place for place in (self._cache, *self._cache.parents) if place.exists())
        free = shutil.disk_usage(there).free
        if missing > free - RESERVE:
            raise ModelError(
                f"{repository} needs {missing / 1e9:.1f} GB more and the disk of {self._place} has "
                f"{free / 1e9:.1f} GB left; point {self._place} to a larger disk or choose a smaller model"
            )

    @contextmanager
    def _failing(self, repository: str) -> Iterator[None]:
        """Let no error of the library or the disk out, but ours in its place."""
        try:
            yield
        except _THEIRS as error:
            raise self._error(repository, _failure(error)) from None

    def _error(self, repository: str, failure: _Failure) -> ModelError:
        """What a failure means, and what to do about it. The texts of libraries are not shown: they hold addresses."""
        log.warning("%s: %s, status %s", repository, failure.said, failure.status)
        if failure.disk is not None:
            return _disk_error(repository, failure.disk, self._place)
        if failure.status in (401, 403):
            return self._denied(repository, failure)
        where = _public(self._endpoint)
        if failure.status == 404:
            return ModelMissingError(f"there is no model {repository} on the model hub: check {where}/{repository}")
        return HubError(
            f"the model hub at {where} could not deliver {repository}: "
            "try again later, check HF_ENDPOINT, or put the model's folder under MODELS_DIR"
        )

    def _denied(self, repository: str, failure: _Failure) -> ModelError:
        """What 401 and 403 mean; without a token the hub says 401 of what does not exist, too."""
        where = _public(self._endpoint)
        page, give = f"{where}/{repository}", self._give
        if not self._token and failure.gated:
            return TokenMissingError(f"{repository} is gated: visit {page}, accept its terms, then {give}")
        if not self._token:
            return ModelMissingError(
                f"there is no model {repository} on the model hub, or it is private: check {page}; if private, {give}"
            )
        if failure.status == 401:
            return TokenRefusedError(
                f"the model hub does not accept the token: make a new one on {where}/settings/tokens, then {give}"
            )
        return TermsError(
            f"the token may not read {repository}: accept the terms on {page} with the account of this token, "
            "and allow the token to read gated repositories"
        )


def _remember(key: tuple[str, str, str]) -> None:
    now = time.monotonic()
    with _allowed_lock:
        for old in [known for known, until in _allowed.items() if until < now]:
            del _allowed[old]
        _allowed[key] = now + REMEMBER_S


def _disk_error(repository: str, number: int, place: str) -> ModelError:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(f"the disk is full, {repository} could not be stored; point {place} to a larger disk")
    return ModelError(
        f"{repository} could not be stored: {os.strerror(number)}; point {place} to a folder that can be written"
    )


def _public(endpoint: str) -> str:
    """An address without the credentials that may stand in it."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _failure(error: BaseException | None) -> _Failure:
    """What an error of the library comes from: the first in the chain of causes that can say."""
    said = type(error).__name__
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return _Failure(response.status_code, response.headers.get("X-Error-Code") == "GatedRepo", None, said)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return _Failure(None, False, error.errno, said)
        error = error.__cause__
    return _Failure(said=said)


def _file(sibling: RepoSibling) -> File:
    """A file as listed by the hub; large ones are stored under the hash of their content."""
    blob = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    return File(sibling.rfilename, str(blob), sibling.size or 0)


def _used(files: list[File]) -> list[File]:
    """Without what no engine reads: weights that a folder has in a better form, too.

    Safetensors are taken before pickles, and an archive of NeMo's, which holds all it needs, before both.
    """
    archived = {PurePosixPath(file.name).parent for file in files if file.name.endswith(".nemo")}
    safe = {PurePosixPath(file.name).parent for file in files if file.name.endswith(".safetensors")}

    def used(name: str) -> bool:
        path = PurePosixPath(name)
        if path.parent in archived and path.suffix in (".safetensors", ".bin"):
            return False
        if fnmatch.fnmatch(path.name, "pytorch_model*.bin*"):
            return path.parent not in safe
        return not any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path.name, pattern) for pattern in UNUSED)

    return [file for file in files if used(file.name)]


def _present(folder: Path, files: list[File]) -> int:
    """Bytes of these files on the disk so far; a file that grows carries a suffix."""
    return sum(min(file.size, _size(folder / "blobs" / file.blob)) for file in files)


def _size(blob: Path) -> int:
    for path in (blob, blob.with_name(f"{blob.name}.incomplete")):
        try:
            return path.stat().st_size
        except OSError:
            continue
    return 0


def _watch(order: _Order, folder: Path, files: list[File], report: Report) -> _Failure | None:
    """Run the process that downloads, and tell how far it is; it is gone afterwards, however this ends."""
    spawn = multiprocessing.get_context("spawn")
    connection, theirs = spawn.Pipe()
    process = spawn.Process(target=_fetch, args=(theirs, order), name="download")
    total = max(1, sum(file.size for file in files))
    done = 0.0
    process.start()
    theirs.close()
    try:
        while not connection.poll(LOOK_S):
            done = max(done, min(0.99, _present(folder, files) / total))
            report(done)
        failure: _Failure | None = connection.recv()
    except EOFError:
        return _Failure(said="the process died")
    finally:
        process.kill()
        process.join()
        process.close()
        connection.close()
    return failure


def _fetch(connection: Connection, order: _Order) -> None:
    """Life of the process that downloads: every file, then one answer. Leaves when its parent is gone."""
    leave_with(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    warnings.simplefilter("ignore")
    try:
        _fetch_files(order)
        connection.send(None)
    except Exception as error:
        connection.send(_failure(error))
    os._exit(0)  # the other files' threads have nothing left to do


def _fetch_files(order: _Order) -> None:
    """Bring the files into the cache. Raises what the library raises, at the first file that fails."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars, tqdm  # type: ignore[attr-defined]
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.CRITICAL)  # what it logs holds signed addresses
    disable_progress_bars()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind

    def bring(name: str) -> None:
        hf_hub_download(
            order.repository,
            name,
            revision=order.revision,
            cache_dir=order.cache,
            endpoint=order.endpoint,
            token=order.token or False,
            etag_timeout=ANSWER_S,
        )

    pool = ThreadPoolExecutor(AT_ONCE)
    for future in [pool.submit(bring, name) for name in order.files]:
        future.result()


def _write_ref(folder: Path, revision: str) -> None:
    """Say that this revision is here and whole: at once or not at all."""
    ref = folder / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(dir=ref.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(revision)
    Path(path).chmod(0o644)
    os.replace(path, ref)
