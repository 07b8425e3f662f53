"""The config.yaml of a pyannote diarization pipeline, read without pyannote: which weights, which parameters.

Two layouts are known: that of speaker-diarization-community-1, whose weights lie beside it (`$model/segmentation`),
and that of speaker-diarization-3.1, which names other repositories. Loading never asks a hub: `Models` found them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansard.errors import ModelError
from hansard.models import Models

WEIGHTS = "pytorch_model.bin"
PLDA_FILES = ("xvec_transform.npz", "plda.npz")
BESIDE = "$model/"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a pipeline lie; `plda` is None where voices are clustered without one."""

    segmentation: Path
    embedding: Path
    plda: Path | None
    exclude_overlap: bool
    parameters: Mapping[str, Any]


def read(model: str, models: Models) -> Layout:
    """The layout of a pipeline by name or folder. Raises ModelError where it is none that can be run."""
    import yaml

    folder = models.get(model)
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        given = config["pipeline"]["params"]
        clustering = given["clustering"]
        named = {part: str(given[part]) for part in ("segmentation", "embedding")}
        parameters = dict(config["params"])
        exclude_overlap = bool(given.get("embedding_exclude_overlap", False))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise ModelError(f"{model} has no config.yaml of a pyannote speaker diarization pipeline") from None
    if clustering not in ("VBxClustering", "AgglomerativeClustering"):
        raise ModelError(f"{model} clusters speakers by {clustering}; only VBx and agglomerative clustering can be run")
    parts = {part: _part(name, folder, models) for part, name in named.items()}
    plda = _part(str(given.get("plda", f"{BESIDE}plda")), folder, models) if clustering == "VBxClustering" else None
    wanted = [(part, WEIGHTS) for part in parts] + [("plda", file) for file in PLDA_FILES if plda is not None]
    for part, file in wanted:
        if not ((parts | {"plda": plda or folder})[part] / file).is_file():
            raise ModelError(f"{model} lacks the file {file} of its {part}; fetch it again")
    return Layout(parts["segmentation"], parts["embedding"], plda, exclude_overlap, parameters)


def repositories(model: str, models: Models) -> tuple[str, ...]:
    """The other repositories that a pipeline on this machine takes parts from; none for one that is not here yet."""
    import yaml

    folder = models.find(model)
    try:
        given = yaml.safe_load((folder / "config.yaml").read_text())["pipeline"]["params"] if folder else {}
        parts = [str(given[part]) for part in ("segmentation", "embedding", "plda") if part in given]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return ()  # `read` will say what is wrong with it
    return tuple(part for part in parts if not part.startswith(BESIDE))


def _part(name: str, folder: Path, models: Models) -> Path:
    """The folder of a part: beside the config.yaml, or a repository of its own."""
    return folder / name.removeprefix(BESIDE) if name.startswith(BESIDE) else models.get(name)
