"""What a process may use, by the files of control groups; and the models that this leaves no room for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

import hansard.hub
from hansard import allowance, plan
from hansard.allowance import Memory, cpus, memory
from hansard.errors import UnsupportedError
from hansard.models import Models
from hansard.plan import Choice, check, fits_without_gpu, in_memory, refuse_too_large
from hansard.request import parse
from hansard.settings import Settings
from hub import Hub
from places import TINY

MB, GB = 10**6, 10**9
WHISPER = "Systran/faster-whisper-tiny"
FOLDER = TINY / "whisper-tiny-synthetic-ct2"
SIZE = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tree of control groups; there are none so far."""
    monkeypatch.setattr(allowance, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(allowance, "OF_PROCESS", tmp_path / "cgroup")
    return tmp_path / "groups"


def lay(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_limits_it_is_the_machines(groups: Path) -> None:
    assert memory().total == psutil.virtual_memory().total
    assert cpus() == len(os.sched_getaffinity(0))


def test_the_narrowest_limit_around_counts(groups: Path) -> None:
    groups.with_name("cgroup").write_text("0::/outer/inner\n")
    lay(groups / "outer/inner", memory__max="max", memory__current=1, cpu__max="max 100000")
    lay(
        groups / "outer",
        **{"memory__max": 500 * MB, "memory__current": 200 * MB, "memory__stat": f"anon 5\ninactive_file {50 * MB}"},
        cpu__max="50000 100000",
    )
    lay(groups, memory__max=900 * MB, memory__current=100 * MB)
    assert memory() == Memory(500 * MB, 350 * MB)
    assert cpus() == 1


def test_a_container_sees_its_own_group_as_the_tree(groups: Path) -> None:
    groups.with_name("cgroup").write_text("0::/../../system.slice/docker-1.scope\n")
    lay(groups, memory__max=300 * MB, memory__current=400 * MB)
    assert memory() == Memory(300 * MB, 0)


def test_limits_of_version_1_count_likewise(groups: Path) -> None:
    groups.with_name("cgroup").write_text("4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n")
    usage = {"memory__usage_in_bytes": 100 * MB, "memory__stat": f"total_inactive_file {10 * MB}"}
    lay(groups / "memory/docker/1", memory__limit_in_bytes=400 * MB, **usage)
    lay(groups / "memory", memory__limit_in_bytes=9223372036854771712, **usage)
    lay(groups / "cpu", **{"cpu__cfs_quota_us": -1, "cpu__cfs_period_us": 100000})
    assert memory() == Memory(400 * MB, 310 * MB)
    assert cpus() == len(os.sched_getaffinity(0))
    lay(groups / "cpu/docker/1", **{"cpu__cfs_quota_us": 20000, "cpu__cfs_period_us": 100000})
    assert cpus() == 1


# Models for which there is no room


@pytest.mark.parametrize(
    ("backend", "compute_type", "times"),
    [
        ("voxtral", None, 2),
        ("voxtral", "bfloat16", 1),
        ("canary", None, 2),
        ("whisper", None, 0.5),
        ("whisper", "int8_float32", 0.5),
        ("whisper", "float32", 2),
        ("pyannote", None, 1),
        ("ctc", "float16", 1),
    ],
)
def test_what_files_become_in_memory(backend: str, compute_type: Any, times: float) -> None:
    assert in_memory(backend, 1000, Settings(compute_type=compute_type)) == 1000 * times


def test_a_model_that_only_a_gpu_could_hold_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "memory", lambda: Memory(16 * GB, GB))
    voxtral, whisper = Choice("voxtral", "voxtral-mini-3b-2507"), Choice("whisper", "large-v3")
    with pytest.raises(UnsupportedError, match=r"needs a GPU here: its weights take 18\.8 GB .* 16\.0 GB may be used"):
        refuse_too_large(voxtral, int(9.4 * GB), Settings(device="cpu"))
    assert not fits_without_gpu(voxtral, int(9.4 * GB), Settings(device="cpu"))
    refuse_too_large(voxtral, int(9.4 * GB), Settings(device="cuda"))
    refuse_too_large(voxtral, None, Settings(device="cpu"))
    refuse_too_large(whisper, 20 * GB, Settings(device="cpu"))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Settings of a machine that has no model and no GPU, and little memory."""
    monkeypatch.setattr(hansard.hub, "_allowed", {})
    monkeypatch.setattr("hansard.models._sizes", {})
    monkeypatch.setattr(plan, "memory", lambda: Memory(SIZE // 2 - 1000, 1000))
    places = {"models_dir": tmp_path / "models", "cached_models_dir": tmp_path / "volume", "hf_home": tmp_path / "hub"}
    return {**places, "device": "cpu", "diarization_model": "embedded"}


def test_a_job_is_refused_at_the_door_by_what_the_hub_told_it_anyway(given: dict[str, Any]) -> None:
    with Hub({WHISPER: FOLDER}) as hub:
        settings = Settings(hf_endpoint=hub.url, hf_hub_offline=False, **given)
        for _ in range(3):
            with pytest.raises(UnsupportedError, match="model tiny needs a GPU here"):
                check(parse({"audio": "data:,", "model": "tiny"}), settings)
        assert [asked.path.rsplit("/", 1)[1] for asked in hub.log] == ["auth-check", "faster-whisper-tiny"]
        check(parse({"audio": "data:,", "model": "tiny"}), settings.model_copy(update={"device": "cuda"}))


def test_of_what_is_on_this_machine_nobody_is_asked(given: dict[str, Any]) -> None:
    given["models_dir"].mkdir()
    (given["models_dir"] / "own").symlink_to(FOLDER)
    settings = Settings(hf_endpoint="http://127.0.0.1:1", hf_hub_offline=False, **given)
    assert Models(settings).known_size("own") == SIZE
    with pytest.raises(UnsupportedError, match="model own needs a GPU here"):
        check(parse({"audio": "data:,", "model": "own"}), settings)


def test_how_much_is_remembered_is_bounded(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansard.models.REMEMBERED", 1)
    with Hub({WHISPER: FOLDER, "owner/other": FOLDER}) as hub:
        models = Models(Settings(hf_endpoint=f"{hub.url}/", hf_hub_offline=False, **given))
        models.check(WHISPER, holds="model.bin")
        assert models.known_size(WHISPER) == SIZE
        models.check("owner/other", holds="model.bin")
        assert (models.known_size(WHISPER), models.known_size("owner/other")) == (None, SIZE)
