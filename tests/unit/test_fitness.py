"""What makes a machine unfit, one thing at a time, and that a fit one is called fit."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansard import manifest
from hansard.engine import fitness
from hansard.engine.fitness import problems
from hansard.hub import File
from hansard.manifest import Manifest
from hansard.settings import Settings
from places import ROOT, TINY

WHISPER = TINY / "whisper-tiny-synthetic-ct2"
COMMUNITY = "pyannote/speaker-diarization-community-1"
LONGEST = 256 - len("UnfitError: unfit: ")  # characters that the platform shows
NOBODY = "http://127.0.0.1:1"  # who asks this hub fails


def settings(tmp_path: Path, **given: Any) -> Settings:
    """A machine without models and without a GPU, whose hub does not answer."""
    (tmp_path / "work").mkdir(exist_ok=True)
    folders = {"work_dir": "work", "models_dir": "models", "cached_models_dir": "cached", "hf_home": "home"}
    base: dict[str, Any] = {name: tmp_path / folder for name, folder in folders.items()}
    base |= {"device": "cpu", "hf_endpoint": NOBODY, "default_model": "sphinx", "diarization_model": "embedded"}
    return Settings(**(base | given))


def placed(tmp_path: Path, repository: str, *names: str) -> Path:
    """A folder of the image that holds every file its manifest names."""
    folder = tmp_path / "models" / repository.rpartition("/")[2]
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("pipeline: {}")
    if not names:
        shutil.copytree(WHISPER, folder, dirs_exist_ok=True)
    files = tuple(File(path.name, "0" * 40, path.stat().st_size) for path in sorted(folder.iterdir()))
    manifest.write(folder, Manifest(repository, "0" * 40, files))
    return folder


def only(found: tuple[str, ...]) -> str:
    """The one problem there is, short enough to be shown."""
    (sentence,) = found
    assert len(sentence) <= LONGEST
    return sentence


# The default models


@pytest.mark.parametrize("model", ["sphinx", "voxtral-mini-latest", "voxtral-small-latest", "voxtral-mini-2099"])
def test_a_model_without_weights_is_fit(tmp_path: Path, model: str) -> None:
    assert problems(settings(tmp_path, default_model=model, hf_hub_offline=True)) == ()


def test_models_that_are_whole_are_fit(tmp_path: Path) -> None:
    placed(tmp_path, "Systran/faster-whisper-large-v3")
    placed(tmp_path, COMMUNITY, "config.yaml", "pytorch_model.bin")
    given = {"default_model": "large-v3", "diarization_model": COMMUNITY, "diarization_required": True}
    assert problems(settings(tmp_path, hf_hub_offline=True, **given)) == ()


def test_models_that_may_be_fetched_are_fit_and_the_hub_is_not_asked(tmp_path: Path) -> None:
    given = {"default_model": "large-v3", "diarization_model": COMMUNITY, "diarization_required": True}
    assert problems(settings(tmp_path, **given)) == ()


@pytest.mark.parametrize(
    ("model", "named"), [("large-v3", "Systran/faster-whisper-large-v3"), ("owner/own", "owner/own")]
)
def test_a_transcriber_that_cannot_be_had_is_named(tmp_path: Path, model: str, named: str) -> None:
    found = only(problems(settings(tmp_path, default_model=model, hf_hub_offline=True)))
    assert found.startswith(f"model {named} is not on this machine")
    assert "HF_HUB_OFFLINE" in found


def cut_short(folder: Path) -> None:
    os.truncate(folder / "model.bin", 1000)


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def without_both(folder: Path) -> None:
    cut_short(folder)
    without_tokenizer(folder)


def without_a_manifest_to_read(folder: Path) -> None:
    (folder / manifest.FILE).write_text("{")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_short, "model.bin missing or of another size"),
        (without_tokenizer, "tokenizer.json missing or of another size"),
        (without_both, "model.bin and 1 more missing or of another size"),
        (without_a_manifest_to_read, f"{manifest.FILE} missing or of another size"),
    ],
)
@pytest.mark.parametrize("offline", [True, False])
def test_a_damaged_transcriber_is_named(
    tmp_path: Path, damage: Callable[[Path], None], says: str, offline: bool
) -> None:
    damage(placed(tmp_path, "owner/own"))
    found = only(problems(settings(tmp_path, default_model="own", hf_hub_offline=offline)))
    assert f"model own is damaged: {says}" in found
    assert str(tmp_path) not in found


def test_a_folder_named_by_its_path_is_told_by_its_name(tmp_path: Path) -> None:
    folder = placed(tmp_path, "owner/own")
    cut_short(folder)
    found = only(problems(settings(tmp_path, default_model=str(folder))))
    assert "model own is damaged" in found
    assert str(tmp_path) not in found


def test_a_diarizer_that_cannot_be_had_counts_only_where_it_is_required(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"diarization_model": COMMUNITY, "hf_hub_offline": True}
    assert problems(settings(tmp_path, **given)) == ()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "speakers" in warning
    assert COMMUNITY in warning
    found = only(problems(settings(tmp_path, diarization_required=True, **given)))
    assert found.startswith(f"model {COMMUNITY} is not on this machine")


def test_every_repository_of_a_diarizer_counts(tmp_path: Path) -> None:
    placed(tmp_path, "pyannote/speaker-diarization-3.1", "config.yaml")
    placed(tmp_path, "pyannote/segmentation-3.0", "pytorch_model.bin")
    given = {"diarization_model": "pyannote/speaker-diarization-3.1", "hf_hub_offline": True}
    found = only(problems(settings(tmp_path, diarization_required=True, **given)))
    assert found.startswith("model pyannote/wespeaker-voxceleb-resnet34-LM is not on this machine")


@pytest.mark.parametrize("required", [True, False])
def test_a_damaged_diarizer_is_unfit_in_any_case(tmp_path: Path, required: bool) -> None:
    (placed(tmp_path, COMMUNITY, "config.yaml", "pytorch_model.bin", "plda.npz") / "plda.npz").unlink()
    given = {"diarization_model": COMMUNITY, "diarization_required": required}
    assert f"model {COMMUNITY} is damaged: plda.npz" in only(problems(settings(tmp_path, **given)))


# The work directory


def test_nothing_is_left_in_the_work_directory(tmp_path: Path) -> None:
    assert problems(settings(tmp_path)) == ()
    assert list((tmp_path / "work").iterdir()) == []


def test_a_work_directory_that_is_gone(tmp_path: Path) -> None:
    found = only(problems(settings(tmp_path, work_dir=tmp_path / "gone")))
    assert "WORK_DIR cannot be used (No such file or directory)" in found
    assert str(tmp_path) not in found


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda dir: os.fdopen(os.open("/dev/full", os.O_RDWR), "r+b", buffering=0)
    )
    assert f"({os.strerror(errno.ENOSPC)})" in only(problems(settings(tmp_path)))


def test_a_disk_that_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda dir: os.fdopen(os.open("/dev/null", os.O_RDWR), "r+b", buffering=0)
    )
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    assert "other bytes" in only(problems(settings(tmp_path)))


# The device


def test_without_a_gpu_torch_is_not_imported(tmp_path: Path) -> None:
    """Its import would hold up the first poll for seconds; also where a GPU is asked for that is not there."""
    code = (
        "import sys; from hansard.settings import Settings; from hansard.engine.fitness import problems;"
        "print(problems(Settings(device=sys.argv[1])), *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    for device in ("cpu", "cuda") if not Settings().on_gpu else ("cpu",):
        run = subprocess.run(
            [sys.executable, "-c", code, device],
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "WORK_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert "ctranslate2" in run.stdout.split()
        assert not {"torch", "transformers", "faster_whisper"} & set(run.stdout.split())
        assert ("CTranslate2 finds none; set DEVICE=cpu" in run.stdout) == (device == "cuda")


def test_ctranslate2_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    assert "CTranslate2, which Whisper runs on, cannot be imported" in only(problems(settings(tmp_path)))


@pytest.mark.parametrize("seen", [0, RuntimeError("CUDA failed with error CUDA driver version is insufficient")])
def test_a_gpu_that_ctranslate2_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int | Exception
) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", answering(seen))
    found = only(problems(settings(tmp_path, device="cuda")))
    assert "CTranslate2 finds none" in found
    assert "insufficient" not in found


def answering(what: Any) -> Callable[..., Any]:
    """A function that gives this, or raises it."""

    def answer(*_: object, **__: object) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    return answer


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real one, on a machine with a GPU of which everything is on the CPU."""
    import torch

    ones = torch.ones

    def on_the_cpu(*shape: int, device: str) -> Any:
        assert device == "cuda"
        return ones(*shape)

    monkeypatch.setattr(torch, "ones", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    return torch


def test_a_gpu_that_computes_is_fit(tmp_path: Path, torch: Any) -> None:
    assert problems(settings(tmp_path, device="cuda")) == ()


@pytest.mark.parametrize(
    ("name", "what", "says"),
    [
        ("ctypes.CDLL", OSError("libcublas.so.12: no such file"), "libcublas.so.12, which Whisper computes with"),
        ("torch.backends.cudnn.is_available", False, "cuDNN, which torch computes with"),
        ("torch.ones", RuntimeError("CUDA error: no kernel image is available"), "torch cannot compute on it"),
        ("torch.ones", AssertionError("Torch not compiled with CUDA enabled"), "torch cannot compute on it"),
        ("torch.ones", RuntimeError("CUDA out of memory. Tried to allocate"), "no memory left"),
        ("torch.nn.functional.conv1d", RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "cannot compute"),
        ("torch.cuda.synchronize", RuntimeError("CUDA error: an illegal memory access"), "torch cannot compute"),
    ],
)
def test_what_a_gpu_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: Any, name: str, what: Any, says: str
) -> None:
    monkeypatch.setattr(name, answering(what))
    found = only(problems(settings(tmp_path, device="cuda")))
    assert says in found
    assert str(what) not in found


@pytest.mark.parametrize("name", ["ones", "conv1d"])
def test_a_gpu_that_computes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: Any, name: str) -> None:
    where = torch.nn.functional if name == "conv1d" else torch
    real = getattr(where, name)

    def slightly_wrong(*given: Any, **more: Any) -> Any:
        made = real(*given, **more)
        made.view(-1)[-1] += 1
        return made

    monkeypatch.setattr(where, name, slightly_wrong)
    assert "wrong results" in only(problems(settings(tmp_path, device="cuda")))


@pytest.mark.gpu
def test_a_real_gpu_is_fit(tmp_path: Path) -> None:
    if not Settings().on_gpu:
        pytest.skip("there is no GPU")
    assert problems(settings(tmp_path, device="cuda")) == ()


# All together


def test_what_matters_most_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    given = {"default_model": "large-v3", "hf_hub_offline": True, "work_dir": tmp_path / "gone"}
    device, model, work = problems(settings(tmp_path, **given))
    assert device.startswith("CTranslate2")
    assert model.startswith("model Systran/")
    assert work.startswith("WORK_DIR")


def test_a_check_that_fails_in_an_unknown_way_is_a_problem_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitness, "default_transcriber", answering(ValueError("/a/path/of/the/machine")))
    models, work = problems(settings(tmp_path, work_dir=tmp_path / "gone"))
    assert models == "the default models could not be checked; the worker's log says why"
    assert "WORK_DIR" in work
    assert "/a/path/of/the/machine" in caplog.text
