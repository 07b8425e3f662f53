"""Fill a folder with the weights that a worker is to find without a network: an image's, or a network volume's.

    builder/fetch_models.py large-v3 pyannote/speaker-diarization-community-1 --languages en ru --models-dir /models

A second run downloads nothing, one after an interrupted one goes on with what was downloaded, what is damaged is
replaced. The token for gated models is that of BuildKit's secret hf_token, else HF_TOKEN.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from pydantic import SecretStr
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from hansard import plan  # noqa: E402 - after src is on the path
from hansard.aligners import bundles  # noqa: E402
from hansard.aligners.table import aligner_of  # noqa: E402
from hansard.diarizers import DIARIZERS, layout  # noqa: E402
from hansard.diarizers.pyannote import Pyannote  # noqa: E402
from hansard.errors import (  # noqa: E402
    EngineMissingError,
    HansardError,
    ModelError,
    RequestError,
    SettingsError,
    TokenMissingError,
)
from hansard.models import Models, shown  # noqa: E402
from hansard.request import Request  # noqa: E402
from hansard.settings import Settings, load  # noqa: E402
from hansard.store import DOWNLOADS, MODELS_PLACE, MTIME, Row, Store, Wanted, loadable, storing  # noqa: E402
from hansard.transcribers import TRANSCRIBERS, Transcriber, whisper  # noqa: E402
from hansard.transcribers.loading import repository_of  # noqa: E402
from hansard.transcript import Report  # noqa: E402

SECRET = Path("/run/secrets/hf_token")  # where BuildKit mounts it
LOCK, STAGE = ".lock", ".stage"  # in the folder to fill, while it is filled
WIDEST = 1000  # columns, of the summary
PIPELINE = "config.yaml"  # that a repository of a pyannote pipeline must have
ANY_JOB = Request(audio="https://localhost/any", language="en")  # canary-1b-v2 takes none without a language


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is in place, but for gated models without a token; 1 something is not; 130 interrupted."""
    logging.getLogger("hansard").addHandler(logging.NullHandler())  # the sentences of errors are told here
    options = _options(arguments)
    try:
        problems = _run(options)
    except KeyboardInterrupt:
        print("interrupted; the next run goes on with what was downloaded", file=sys.stderr)
        return 130
    except HansardError as error:
        problems = [error.sentence]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="builder/fetch_models.py", description="Fetch the weights that a worker is to find without a network."
    )
    default = "none: the default ones, or with --languages none"
    parser.add_argument("names", nargs="*", type=_given, metavar="NAME", help=f"a transcriber or diarizer; {default}")
    parser.add_argument(
        "--languages", nargs="+", type=_given, default=[], metavar="LANG", help="languages whose aligners are fetched"
    )
    parser.add_argument("--models-dir", type=_folder, metavar="DIR", help="the folder to fill; default: MODELS_DIR")
    parser.add_argument(
        "--downloads", type=_folder, metavar="DIR", help="a folder that keeps downloads; default: one that is removed"
    )
    parser.add_argument(
        "--require-all", action="store_true", help="fail where a gated model lacks a token, rather than skip it"
    )
    return parser.parse_args(arguments)


def _given(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name something, or leave it out")
    return text


def _folder(text: str) -> Path:
    try:
        return Path(_given(text)).expanduser().absolute()
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            "the home folder that ~ stands for is not known; write the whole path"
        ) from None


def _run(options: argparse.Namespace) -> list[str]:
    """Fetch everything; the problems, as sentences. Raises HansardError where nothing can be begun."""
    settings = _settings(options.models_dir)
    plan.check_settings(settings)
    names = options.names
    if not names and not options.languages:  # a worker's, whatever machine fills the folder
        names = [settings.default_model or plan.GPU_TRANSCRIBER, settings.diarization_model or plan.GPU_DIARIZER]
    todo = [_wanted(name, settings) for name in dict.fromkeys(names)]
    todo += [_aligner(language, settings) for language in dict.fromkeys(options.languages)]
    told = Told()
    with storing("the models", MODELS_PLACE), _alone(settings.models_dir, told) as stage:
        store = Store(settings, stage, options.downloads, told.following)
        problems = [problem for wanted in todo if (problem := _bring(wanted, store, told, options.require_all))]
        if not options.downloads and not problems:
            shutil.rmtree(settings.models_dir / DOWNLOADS, ignore_errors=True)
    told.summary()
    if not problems:  # again: by now it shows of what kind they are
        plan.check_settings(settings)
    return problems


def _bring(wanted: Wanted, store: Store, told: Told, required: bool) -> str | None:
    """Bring one thing, and tell what became of it; what kept it from coming, unless that may be passed over."""
    try:
        told.found(wanted.name, store.bring(wanted))
    except TokenMissingError as error:
        told.state(wanted.name, "skipped")
        told.loud(f"{wanted.name} IS NOT FETCHED: it is gated, and there is no token.", error.sentence)
        return error.sentence if required else None
    except HansardError as error:
        told.state(wanted.name, "failed")
        return f"{wanted.name}: {error.sentence}"
    return None


def _settings(models_dir: Path | None) -> Settings:
    """The environment, the folder to fill, and the token of the secret where there is one. Raises SettingsError."""
    settings = load()
    try:
        secret = SECRET.read_text(errors="replace").strip()
    except FileNotFoundError:
        secret = ""
    except OSError:
        raise SettingsError("the secret hf_token cannot be read: mount it so that this user may read it") from None
    given: dict[str, object] = {"hf_token": SecretStr(secret)} if secret else {}
    if models_dir:
        given["models_dir"] = models_dir
    return settings.model_copy(update=given)


# What is wanted


def _wanted(name: str, settings: Settings) -> Wanted:
    """A transcriber or diarizer, by a name that a job or a setting may give it. Raises RequestError."""
    for transcriber in TRANSCRIBERS.values():
        if name in transcriber.models:
            repositories = partial(_known, transcriber.models[name])
            return Wanted(name, repositories, partial(_check_transcriber, transcriber, name))
    for diarizer in DIARIZERS.values():
        if name in diarizer.models:
            return Wanted(name, partial(diarizer.needs, name), partial(layout.read, name))
    if Models.is_repository(name):
        holds = frozenset({whisper.FILE, PIPELINE})
        return Wanted(name, partial(Pyannote.needs, name), partial(_check_repository, name), holds)
    try:  # a service's model, or a folder that the operator has made
        plan.default_transcriber(Models(settings.model_copy(update={"default_model": name})))
    except RequestError as error:
        if Models(settings.model_copy(update={"diarization_model": name})).kind(name) != "pyannote":
            known = ", ".join(name for backend in DIARIZERS.values() for name in backend.models)
            raise RequestError(f"{error.sentence}; known diarizers: {known}") from None
    return Wanted(shown(name))


def _aligner(language: str, settings: Settings) -> Wanted:
    """The aligner of a language. Raises UnsupportedError for a language without one, ModelError for a wrong folder."""
    name = aligner_of(language, settings)
    if bundles.is_bundle(name):
        return Wanted(name, bundle=True)
    if Models.is_repository(name):
        return Wanted(name, partial(_known, (name,)), partial(_check_aligner, name))
    Models(settings).check(name)
    return Wanted(shown(name))


def _known(repositories: Sequence[str], _: Models) -> Sequence[str]:
    return repositories


def _check_transcriber(transcriber: type[Transcriber], name: str, models: Models) -> None:
    if transcriber is whisper.Whisper and models.kind(repository_of(name, transcriber.models)) != whisper.KIND:
        raise ModelError(f"{name} is no Whisper for CTranslate2, whatever the model hub calls it; name another model")
    with suppress(EngineMissingError):  # a volume may be filled on a machine without its worker's engine
        transcriber.check(name, ANY_JOB, models)


def _check_repository(name: str, models: Models) -> None:
    """The same for a repository that no table knows. Raises ModelError."""
    if models.kind(name) == whisper.KIND:
        whisper.Whisper.check(name, ANY_JOB, models)
    else:
        layout.read(name, models)


def _check_aligner(name: str, models: Models) -> None:
    from transformers import Wav2Vec2Processor

    with loadable(name):
        Wav2Vec2Processor.from_pretrained(str(models.get(name)), local_files_only=True)  # type: ignore[no-untyped-call]


@contextmanager
def _alone(folder: Path, told: Told) -> Iterator[Path]:
    """Hold the folder to fill, after whoever fills it now; where to work: beside it where it cannot be written.

    Raises OSError.
    """
    if not folder.is_dir():
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            folder.chmod(0o755)
    try:
        lock = _locked(folder / LOCK, told)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        told.say("this folder cannot be written; what is in it is only looked at")
        with tempfile.TemporaryDirectory() as beside:
            yield Path(beside) / STAGE
        return
    with lock:
        try:
            yield folder / STAGE
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(PermissionError):  # somebody else's folder
                os.utime(folder, (MTIME, MTIME))


def _locked(path: Path, told: Told) -> IO[str]:
    """A file that no other run holds. Raises OSError."""
    while True:
        lock = path.open("w")
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                told.say("another run fills this folder; waiting for its end")
                fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):  # the run before took its lock away with it
                if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                    return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


class Told:
    """What is going on, on stderr: bars on a terminal, else lines that suit a log. At the end a table, on stdout."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._rows: dict[str, tuple[str, ...]] = {}

    def say(self, text: str) -> None:
        self._console.print(text)

    def loud(self, *lines: str) -> None:
        """Lines that nobody overlooks in a long log."""
        bar = "!" * 100
        self.say("\n".join([bar, *(f"!!! {line}" for line in lines), bar]))

    def found(self, name: str, rows: Sequence[Row]) -> None:
        """What is in place of a thing."""
        for row in rows:
            self._rows.setdefault(row.name, (row.state, decimal(row.size), str(row.files), str(row.folder)))
            self.say(f"{row.name}: {row.state}")
        if not rows:
            self.state(name, "needs nothing from the model hub")

    def state(self, name: str, state: str) -> None:
        """What became of a thing of which there is nothing."""
        self._rows[name] = (state,)
        self.say(f"{name}: {state}")

    @contextmanager
    def following(self, name: str, size: int | None) -> Iterator[Report]:
        """Follow a download of `size` bytes."""
        began = time.monotonic()
        self.say(f"{name}: fetching{f' {decimal(size)}' if size else ''}")
        if sys.stderr.isatty():  # rich takes FORCE_COLOR, which logs have, too, for a terminal
            columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
            with Progress(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(name, total=1.0)
                yield lambda fraction: bars.update(task, completed=fraction)
        else:
            yield self._tenths(name)
        self.say(f"{name}: downloaded and checked in {time.monotonic() - began:.0f} s")

    def _tenths(self, name: str) -> Report:
        """Tells of every tenth once."""
        told = 0

        def report(fraction: float) -> None:
            nonlocal told
            if told < int(fraction * 10) < 10:
                told = int(fraction * 10)
                self.say(f"{name}: {told * 10} %")

        return report

    def summary(self) -> None:
        table = Table(box=None, header_style="")
        for heading in ("model", "state", "size", "files", "folder"):
            table.add_column(heading, no_wrap=True, justify="right" if heading in ("size", "files") else "left")
        for name, cells in self._rows.items():
            table.add_row(name, *cells)
        Console(width=WIDEST, highlight=False, markup=False).print(table)  # a narrower one would cut paths off


if __name__ == "__main__":
    sys.exit(main())
