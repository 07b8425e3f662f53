"""Jobs' folders vanish, a dead process's root vanishes, and nothing else does."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hansard.errors import SettingsError
from hansard.settings import Settings
from hansard.workspace import Workspace

OPEN_AND_SLEEP = """
import sys, time
from pathlib import Path
from hansard.settings import Settings
from hansard.workspace import Workspace
workspace = Workspace(Settings(work_dir=Path(sys.argv[1])))
with workspace.job("victim") as folder:
    (folder / "audio").write_bytes(b"secret")
    print(workspace.root.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(work_dir=tmp_path / "work")


@pytest.fixture
def workspace(settings):
    opened = Workspace(settings)
    yield opened
    opened.close()


def living_process(work_dir: Path) -> tuple[subprocess.Popen[str], Path]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OPEN_AND_SLEEP, str(work_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    return process, work_dir / process.stdout.readline().strip()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


def test_a_job_has_a_fresh_private_folder_that_is_gone_afterwards(workspace):
    with workspace.job("a") as one, workspace.job("a") as two:
        assert one != two
        assert list(one.iterdir()) == []
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
        (one / "deep").mkdir()
        (one / "deep" / "file").write_text("x")
    assert not one.exists()
    assert not two.exists()


def test_the_folder_goes_when_the_job_fails_and_links_in_it_are_not_followed(workspace, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")

    def fail_in_a_job() -> None:
        with workspace.job("a") as folder:
            (folder / "link").symlink_to(outside)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_in_a_job()
    assert [child.name for child in workspace.root.iterdir()] == ["lock"]
    assert (outside / "kept").exists()


@pytest.mark.parametrize("job_id", ["../../etc", "/etc/passwd", "", "a\0b", "é" * 400, "x" * 400, "..", "a\nb", "lock"])
def test_no_job_id_leaves_the_root(workspace, job_id):
    with workspace.job(job_id) as folder:
        assert folder.parent == workspace.root
        assert folder.is_dir()
        assert folder.name.isascii()
        assert folder.name.isprintable()


def test_the_root_is_private_and_close_removes_it(settings):
    workspace = Workspace(settings)
    assert stat.S_IMODE(workspace.root.stat().st_mode) == 0o700
    with workspace.job("a"):
        workspace.close()
    assert list(settings.work_dir.iterdir()) == []
    workspace.close()


def test_a_killed_process_is_tidied_up_after_and_a_living_one_is_spared(settings):
    process, root = living_process(settings.work_dir)
    try:
        Workspace(settings).close()
        assert list(root.glob("job-*/audio")), "a living process lost its files"
    finally:
        kill(process)
    assert root.exists()
    Workspace(settings).close()
    assert not root.exists()


def test_two_workspaces_of_one_process_spare_each_other(workspace, settings):
    Workspace(settings).close()
    with workspace.job("a") as folder:
        assert folder.exists()


def test_what_is_not_ours_is_not_touched(settings, tmp_path):
    work = settings.work_dir
    work.mkdir()
    elsewhere = tmp_path / "hansard-elsewher"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "lock").touch()
    (work / "hansard-symlink1").symlink_to(elsewhere)
    (work / "hansard-aplainfi").touch(mode=0o700)
    for name, mode in (("hansard-openmode", 0o755), ("hansard-longername", 0o700), ("other-12345678", 0o700)):
        (work / name).mkdir()
        (work / name).chmod(mode)
        (work / name / "lock").touch()
    (work / "hansard-withdata").mkdir(mode=0o700)
    (work / "hansard-withdata" / "data").touch()
    (work / "hansard-linklock").mkdir(mode=0o700)
    (work / "hansard-linklock" / "lock").symlink_to(elsewhere / "lock")
    before = sorted(tmp_path.rglob("*"))
    Workspace(settings).close()
    assert sorted(tmp_path.rglob("*")) == before


def test_half_made_and_half_removed_roots_go(settings):
    work = settings.work_dir
    work.mkdir()
    (work / "hansard-00000000").mkdir(mode=0o700)
    (work / "hansard-11111111").mkdir(mode=0o700)
    (work / "hansard-11111111" / "lock").touch()
    Workspace(settings).close()
    assert list(work.iterdir()) == []


def test_what_another_user_left_is_not_touched(settings, monkeypatch):
    left = settings.work_dir / "hansard-00000000"
    left.mkdir(parents=True, mode=0o700)
    (left / "lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
        Workspace(settings).close()
    assert left.exists()
    Workspace(settings).close()
    assert not left.exists()


def test_a_root_swept_before_its_lock_was_held_is_made_again(settings, monkeypatch):
    real, swept = fcntl.flock, []

    def flock(descriptor, operation):
        if not swept:
            swept.extend(settings.work_dir.iterdir())
            (swept[0] / "lock").unlink()
            swept[0].rmdir()
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    workspace = Workspace(settings)
    assert workspace.root.is_dir()
    assert workspace.root not in swept
    workspace.close()


def _open_many(work_dir, barrier, failures):
    settings = Settings(work_dir=work_dir)
    for _ in range(25):
        barrier.wait(10)
        workspace = Workspace(settings)
        try:
            with workspace.job("race") as folder:
                (folder / "file").write_text("x")
                barrier.wait(10)
                if not (folder / "file").exists():
                    failures.put("a living root was swept")
        except OSError as error:
            failures.put(repr(error))
            barrier.abort()
        workspace.close()


def test_processes_that_start_at_once_do_not_sweep_each_other(settings):
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(3), context.SimpleQueue()
    processes = [context.Process(target=_open_many, args=(settings.work_dir, barrier, failures)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(settings.work_dir.iterdir()) == []


def test_a_file_system_without_locks_is_told_of(settings, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SettingsError, match="No locks available"):
        Workspace(settings)
    assert list(settings.work_dir.iterdir()) == []


def test_an_unusable_work_dir_is_named_without_its_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="WORK_DIR") as caught:
        Workspace(Settings(work_dir=tmp_path / "file" / "below"))
    assert str(tmp_path) not in str(caught.value)
