"""One answer to "where are the weights": the first of these places that holds a whole model.

    explicit folder ─▶ baked into the image ─▶ the platform's cache ─▶ the hub's cache ─▶ download

A job may name a folder directly under MODELS_DIR (`tiny`) or a hub repository (`owner/name`), nothing else; an
absolute path counts only where the operator wrote it into the settings. A folder of the image is known by the last
part of a repository's name, whoever owns that. Links in these places are followed, wherever they lead: who can lay one
there builds the image or owns the volume, and a job names places but creates none.

The two caches are only read here, without a lock or a ref. Not covered: revisions other than the one that
`refs/main` names, and single shards missing from a model of many.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from hansard.errors import ModelError, ModelMissingError
from hansard.hub import File, Hub
from hansard.settings import Settings
from hansard.transcript import Report

WEIGHTS = frozenset({".bin", ".safetensors", ".pt", ".ckpt", ".nemo"})

REMEMBERED = 1000  # repositories whose size is known because the hub told it

_FOLDER = re.compile(r"[^\W_][\w.+@ -]{0,127}")  # one component, never hidden, never `..`
_REPOSITORY = re.compile(r"(?!.*(--|\.\.))([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?<![.-])", re.ASCII)


def _silent(_: float) -> None: ...


_sizes: dict[tuple[str, str], int] = {}  # of repositories that the hub was asked about, by its address and their name


class _Asked(Hub):
    """A hub of which it is remembered how large repositories are, once it has told."""

    def files(self, repository: str) -> tuple[str, list[File]]:
        revision, files = super().files(repository)
        while len(_sizes) >= REMEMBERED:
            _sizes.pop(next(iter(_sizes)), None)
        _sizes[self._endpoint, repository] = sum(file.size for file in files)
        return revision, files


class Models:
    """Finds and fetches the weights of one job."""

    def __init__(self, settings: Settings, token: SecretStr | None = None, report: Report = _silent) -> None:
        self.settings = settings
        self.report = report
        self._token = token or settings.hf_token

    def also_telling(self, listener: Report) -> Models:
        """The same, with one more who hears how far a download is."""

        def both(fraction: float) -> None:
            listener(fraction)
            self.report(fraction)

        return Models(self.settings, self._token, both)

    @staticmethod
    def is_repository(name: str) -> bool:
        """May this be the name of a hub repository, `owner/name`?"""
        return _REPOSITORY.fullmatch(name) is not None

    @property
    def has_token(self) -> bool:
        """Was a token for gated models given, by the job or by the operator?"""
        return bool(self._token)

    def find(self, name: str) -> Path | None:
        """The folder of a model that is whole and on this machine, or None; asks no network, writes nothing."""
        return next((folder for folder in self._places(name) if folder is not None and _is_whole(folder)), None)

    def kind(self, name: str) -> str | None:
        """What a model on this machine is, as `kind_of` tells; None for one that is not here or of no known kind."""
        folder = self.find(name)
        return kind_of(folder) if folder else None

    def names(self, kind: str | None = None) -> list[str]:
        """The models under MODELS_DIR, of one kind or of any, as a job may name them."""
        try:
            folders = sorted(os.listdir(self.settings.models_dir))
        except OSError:
            return []
        names = [re.sub(r"^models--(.+)--(.+)$", r"\1/\2", folder) for folder in folders]
        found = {name: self.kind(name) for name in names}
        return [name for name in names if found[name] is not None and kind in (None, found[name])]

    def get(self, name: str) -> Path:
        """The folder of a model, downloaded if it is not here. Raises ModelError, and whatever `report` raises."""
        if folder := self.find(name):
            return folder
        self._hub_for(name).download(name, self.report)
        if folder := self.find(name):
            return folder
        raise ModelError(f"{name} was downloaded, but holds no weights that this worker can use; name another model")

    def check(self, name: str, holds: str | None = None) -> Path | None:
        """Return when `get` would work: no download, at most two short questions to the hub. Raises ModelError.

        What is returned is the folder of a model on this machine, None where `get` would download it.

        `holds` is a file that a repository must have to be of use; what is on this machine is taken as it is.
        """
        folder = self.find(name)
        if folder is None:
            self._hub_for(name).check(name, holds)
        return folder

    def size(self, name: str) -> int:
        """Bytes of the files that `get` brings for a model that is not here, by one question to the hub.

        Raises ModelError.
        """
        return sum(file.size for file in self._hub_for(name).files(name)[1])

    def known_size(self, name: str) -> int | None:
        """Bytes of a model that is on this machine, or that the hub has told of before; asks nobody."""
        if folder := self.find(name):
            return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return _sizes.get((self.settings.hf_endpoint.rstrip("/"), name))

    def _places(self, name: str) -> Iterator[Path | None]:
        """Where a model of this name would lie, best first."""
        settings = self.settings
        if name in self._folders_of_the_operator():
            yield Path(name)
        elif _FOLDER.fullmatch(name):
            yield settings.models_dir / name
        elif match := _REPOSITORY.fullmatch(name):
            owner, repository = match[2], match[3]
            cached = f"models--{owner}--{repository}"
            yield settings.models_dir / owner / repository
            yield settings.models_dir / repository
            yield _snapshot(settings.models_dir / cached)
            yield _snapshot(settings.cached_models_dir / cached)
            yield _snapshot(settings.hf_home / "hub" / cached, finished=True)

    def _folders_of_the_operator(self) -> set[str]:
        """The absolute paths among the models that the settings name."""
        settings = self.settings
        named = {settings.default_model, settings.diarization_model, *settings.align_models.values()}
        return {name for name in named if name and Path(name).is_absolute()}

    def _hub_for(self, name: str) -> Hub:
        """The hub, to be asked for a model that is not here.

        Raises ModelMissingError where the name is no hub's, or the hub may not be asked: no second try changes either.
        """
        if name in self._folders_of_the_operator():
            raise ModelMissingError(
                "a folder named by DEFAULT_MODEL, DIARIZATION_MODEL or ALIGN_MODELS holds no whole model; correct it"
            )
        if not _REPOSITORY.fullmatch(name):
            known = ", ".join(self.names()) or "none so far"
            raise ModelMissingError(
                f"there is no model {name[:100]!r}: a model is a folder under MODELS_DIR ({known}) "
                "or a repository of the model hub, owner/name"
            )
        settings = self.settings
        if settings.hf_hub_offline:
            raise ModelMissingError(
                f"{name} is not on this machine and HF_HUB_OFFLINE is set: "
                "set it to false, or put the model's folder under MODELS_DIR"
            )
        return _Asked(settings.hf_endpoint, settings.hf_home / "hub", self._token)


def shown(model: str) -> str:
    """A model's name as people may see it: of a folder that the settings name by its path, the last part."""
    return Path(model).name if Path(model).is_absolute() else model


def kind_of(folder: Path) -> str | None:
    """What a folder holds, judged by its files alone.

    `whisper` for CTranslate2's, `pyannote` for a pipeline, `nemo` for an archive of NeMo's; else the class that
    transformers would load it with, such as `Wav2Vec2ForCTC`.
    """
    config = _json(folder / "config.json")
    if (folder / "model.bin").is_file() and config is not None:
        return "whisper"
    if re.search(r"(?m)^pipeline:", _text(folder / "config.yaml")):
        return "pyannote"
    if any(folder.glob("*.nemo")):
        return "nemo"
    architectures = config.get("architectures") if config else None
    return str(architectures[0]) if isinstance(architectures, list) and architectures else None


def _snapshot(repository: Path, finished: bool = False) -> Path | None:
    """The files of a repository in a hub cache (`refs/main`, `snapshots/<revision>`), whole or not.

    A cache that was copied may lack its ref; its only snapshot is meant. Not where a download must have `finished`:
    ours writes the ref last.
    """
    snapshots = repository / "snapshots"
    revision = _text(repository / "refs" / "main").strip()
    if revision:
        return snapshots / revision if _FOLDER.fullmatch(revision) else None
    try:
        only = [] if finished else os.listdir(snapshots)
    except OSError:
        return None
    return snapshots / only[0] if len(only) == 1 else None


def _is_whole(folder: Path) -> bool:
    """Has a folder weights, and can every file in it be read? A link to a blob that is not there is one that cannot."""
    try:
        files = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else []
        readable = all(os.access(path, os.R_OK) for path in files)
        weights = any(path.suffix in WEIGHTS and path.stat().st_size > 0 for path in files) if readable else False
        return weights or (readable and kind_of(folder) == "pyannote")  # 3.1 has its weights in other repositories
    except (OSError, ValueError):  # a name that no disk could hold
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _json(path: Path) -> dict[str, object] | None:
    try:
        content = json.loads(_text(path))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
