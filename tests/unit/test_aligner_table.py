"""What the parent knows of aligners without an engine is what the engine knows."""

from __future__ import annotations

import os.path
from pathlib import Path

import pytest

from hansard.aligners import bundles
from hansard.aligners.table import aligners
from hansard.models import Models
from hansard.settings import Settings

PLACES = ("hub/torchaudio", "models/torchaudio")


def test_the_table_is_the_engines() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    from whisperx.alignment import DEFAULT_ALIGN_MODELS_HF, DEFAULT_ALIGN_MODELS_TORCH

    named = {"xx": "owner/own", "fr": "owner/french"}
    table = {**DEFAULT_ALIGN_MODELS_HF, **DEFAULT_ALIGN_MODELS_TORCH}
    assert aligners(Settings()) == table
    assert aligners(Settings(align_models=named)) == table | named
    files = {name: getattr(torchaudio.pipelines, name)._path for name in DEFAULT_ALIGN_MODELS_TORCH.values()}
    assert files == bundles.FILES


def test_what_lies_in_torchs_own_cache_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    for given in ({"TORCH_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}, {}):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        places = bundles._writable(Models(Settings(hf_home=Path("/c"))))
        assert [str(place) for place in places] == [
            "/c/torchaudio",
            os.path.expanduser(f"{torch.hub.get_dir()}/checkpoints"),
        ]


def test_a_file_is_found_wherever_it_lies_and_forgotten_where_it_was_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    models = Models(Settings(models_dir=tmp_path / "models", hf_home=tmp_path / "hub"))
    name, file = next(iter(bundles.FILES.items()))
    places = [tmp_path / "torch/hub/checkpoints" / file, *(tmp_path / part / file for part in PLACES)]
    assert bundles.find(name, models) is None
    for place in places:  # the best one last
        place.parent.mkdir(parents=True)
        place.touch()
        assert bundles.find(name, models) == place
    bundles.forget(name, models)
    assert [place.exists() for place in places] == [False, False, True]
