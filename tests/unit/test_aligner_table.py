"""What the parent knows of aligners without an engine is what the engine knows."""

from __future__ import annotations

import os.path

import pytest

from hansard.aligners import bundles
from hansard.aligners.table import aligners
from hansard.settings import Settings


def test_the_table_is_the_engines() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    from whisperx.alignment import DEFAULT_ALIGN_MODELS_HF, DEFAULT_ALIGN_MODELS_TORCH

    named = {"xx": "owner/own", "fr": "owner/french"}
    table = {**DEFAULT_ALIGN_MODELS_HF, **DEFAULT_ALIGN_MODELS_TORCH}
    assert aligners(Settings()) == table
    assert aligners(Settings(align_models=named)) == table | named
    files = {name: getattr(torchaudio.pipelines, name)._path for name in DEFAULT_ALIGN_MODELS_TORCH.values()}
    assert files == bundles.FILES


def test_the_cache_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    for given in ({"TORCH_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}, {}):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert str(bundles._cache()) == os.path.expanduser(f"{torch.hub.get_dir()}/checkpoints")
