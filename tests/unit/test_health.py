"""What the image's HEALTHCHECK says of a worker: of its notes, and of real processes that live, die and hang."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hansard import health
from hansard.server.store import LOCK, Store
from hansard.settings import Settings
from hansard.workspace import Workspace
from places import ROOT

pytestmark = pytest.mark.timeout(120)

HOST = """
import sys, time
from pathlib import Path
import fake_engine
from hansard.engine import child
from hansard.engine.host import EngineHost
from hansard.settings import Settings
if __name__ == "__main__":
    child.main = getattr(fake_engine, sys.argv[2])
    EngineHost(Settings(work_dir=Path(sys.argv[1]))).start()
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a worker that lives, in the WORK_DIR tmp_path."""
    workspace = Workspace(Settings(work_dir=tmp_path))
    yield workspace.root
    workspace.close()


@pytest.mark.parametrize(
    ("state", "age_s", "says"),
    [
        ("ready", 0, None),
        ("ready", health.FRESH_S / 2, None),
        ("ready", health.FRESH_S + 30, "no sign of life of the engine for 90 s"),
        ("ready", -1000, "no sign of life"),  # noted by another machine, or before a restart of this one
        ("starting", 0, "still starting"),
        ("starting", health.FRESH_S + 30, "no sign of life"),
        ("down", 0, "is down"),
        ("down", health.FRESH_S + 30, "is down"),
    ],
)
def test_a_note_of_a_living_worker(root: Path, tmp_path: Path, state: str, age_s: float, says: str | None) -> None:
    (root / health.FILE).write_text(f"{state} {time.monotonic() - age_s}")
    found = health.problem(tmp_path)
    assert found is None if says is None else says in str(found)


def test_the_lock_is_the_servers() -> None:
    assert health.SERVER_LOCK == LOCK


@pytest.mark.parametrize("note", [None, "", "ready", "ready now"])
def test_without_a_note_that_can_be_read_the_engine_is_starting(root: Path, tmp_path: Path, note: str | None) -> None:
    if note is not None:
        (root / health.FILE).write_text(note)
    assert "still starting" in str(health.problem(tmp_path))


def test_what_is_written_is_what_is_read(root: Path, tmp_path: Path) -> None:
    states: tuple[health.State, ...] = ("down", "starting", "ready")
    found = []
    for state in states:
        health.write(root, state)
        found.append(health.problem(tmp_path))
    assert found == ["the engine is down; it is started again by itself", "the engine is still starting", None]
    assert {path.name for path in root.iterdir()} == {"lock", health.FILE}


def test_one_worker_that_is_well_is_enough(root: Path, tmp_path: Path) -> None:
    other = Workspace(Settings(work_dir=tmp_path))
    health.write(root, "down")
    health.write(other.root, "ready")
    assert health.problem(tmp_path) is None
    health.write(other.root, "starting")
    assert set(str(health.problem(tmp_path)).split("; ")) >= {"the engine is still starting", "the engine is down"}
    other.close()


def test_the_note_of_a_dead_worker_counts_for_nothing(tmp_path: Path) -> None:
    dead = tmp_path / "hansard-deadbeef"
    dead.mkdir(mode=0o700)
    (dead / "lock").touch()
    health.write(dead, "ready")
    assert health.problem(tmp_path) == "no worker of this user runs in WORK_DIR"
    assert {path.name for path in dead.iterdir()} == {"lock", health.FILE}  # it is looked at, not tidied up


def test_two_who_ask_do_not_take_each_other_for_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / "hansard-deadbeef"
    dead.mkdir(mode=0o700)
    (dead / "lock").touch()
    flock, answers = fcntl.flock, list[str | None]()

    def ask_in_between(lock: int, how: int) -> None:
        flock(lock, how)
        if not answers:
            answers.append("asked while the first one holds the lock")
            answers.append(health.problem(tmp_path))

    monkeypatch.setattr(fcntl, "flock", ask_in_between)
    answers.append(health.problem(tmp_path))
    assert answers[1:] == ["no worker of this user runs in WORK_DIR"] * 2


def test_a_work_dir_that_is_not_there_is_told_without_its_path(tmp_path: Path) -> None:
    found = str(health.problem(tmp_path / "nowhere"))
    assert found.startswith("WORK_DIR cannot be read")
    assert str(tmp_path) not in found


# The command


def command(work_dir: Path, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "WORK_DIR": str(work_dir)}
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hansard.health"],
        env=given | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_tells_by_its_exit_code_and_one_line(root: Path, tmp_path: Path) -> None:
    health.write(root, "ready")
    well = command(tmp_path)
    assert (well.returncode, well.stdout) == (0, "healthy: the engine is ready\n")
    health.write(root, "down")
    ill = command(tmp_path)
    assert (ill.returncode, ill.stdout) == (1, "unhealthy: the engine is down; it is started again by itself\n")


@pytest.mark.parametrize(
    ("note", "well"), [(None, True), ("starting", True), ("ready", True), ("down", False), ("unfit", False)]
)
def test_a_server_that_loads_its_models_with_the_first_job_is_well_before_it(
    root: Path, tmp_path: Path, note: health.State | None, well: bool
) -> None:
    if note:
        health.write(root, note)
    told = command(tmp_path, LAZY_LOAD_MODELS="true")
    assert (told.returncode == 0) is well, told.stdout
    (root / health.FILE).unlink(missing_ok=True)
    assert command(tmp_path).returncode == 1, "without the setting it should have begun"


def test_that_server_is_not_well_when_it_has_died(tmp_path: Path) -> None:
    assert health.verdict(Settings(work_dir=tmp_path, lazy_load_models=True)) == (False, health.NOBODY)


def test_a_server_whose_jobs_an_endpoint_does_is_known_by_its_state_dir(tmp_path: Path) -> None:
    """It has no engine, and so no folder in WORK_DIR."""
    (tmp_path / "work").mkdir()
    given = {"RUNPOD_ENDPOINT_ID": "abc", "STATE_DIR": str(tmp_path / "state")}
    for _ in range(2):
        dead = command(tmp_path / "work", **given)
        assert (dead.returncode, dead.stdout) == (1, "unhealthy: no server holds STATE_DIR\n")
        store = Store(tmp_path / "state")
        well = command(tmp_path / "work", **given)
        assert (well.returncode, well.stdout) == (0, "healthy: the server runs, a RunPod endpoint does its jobs\n")
        assert command(tmp_path / "work", STATE_DIR=given["STATE_DIR"]).returncode == 1
        store.close()


def test_a_worker_on_the_platform_is_judged_by_its_engine(root: Path, tmp_path: Path) -> None:
    """The platform gives its workers RUNPOD_ENDPOINT_ID, too."""
    settings = Settings(work_dir=tmp_path, state_dir=tmp_path / "state", runpod_endpoint_id="abc")
    store = Store(settings.state_dir)
    health.write(root, "down")
    assert health.verdict(settings) == (False, "the engine is down; it is started again by itself")
    health.write(root, "ready")
    assert health.verdict(settings) == (True, "the engine is ready")
    store.close()


def test_the_command_with_an_environment_that_cannot_be_used(tmp_path: Path) -> None:
    ill = command(tmp_path, MAX_AUDIO_MB="many")
    assert ill.returncode == 1
    assert ill.stdout.startswith("unhealthy: invalid_settings: ")
    assert "MAX_AUDIO_MB" in ill.stdout
    assert "Traceback" not in ill.stderr


def test_the_command_is_light(tmp_path: Path) -> None:
    """It is run four times a minute beside the work: settings and folders are all that it needs."""
    loaded = {line.rpartition("|")[2].strip() for line in command(tmp_path).stderr.splitlines()}
    assert "hansard.workspace" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {"numpy", "torch", "runpod", "requests", "multiprocessing"}


# Real processes


StartHost = Callable[[str], psutil.Process]


@pytest.fixture
def start_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartHost]:
    """A worker process that keeps an engine process of a kind of `fake_engine`, and does nothing else."""
    monkeypatch.setattr(health, "FRESH_S", 1.0)
    script, work = tmp_path / "host.py", tmp_path / "work"
    script.write_text(HOST)
    work.mkdir()
    started: list[subprocess.Popen[bytes]] = []

    def start(kind: str) -> psutil.Process:
        path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests", ROOT / "tests" / "unit")))
        own = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen([sys.executable, str(script), str(work), kind], env=own))
        return psutil.Process(started[0].pid)

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(30)


def engine_of(host: psutil.Process) -> psutil.Process:
    (found,) = [child for child in host.children() if "spawn_main" in " ".join(child.cmdline())]
    return found


def until_it_says(what: str | None, work_dir: Path) -> None:
    """Return once the verdict is this; the test's time limit is the only one."""
    while (found := health.problem(work_dir)) != what and not (what and what in str(found)):
        time.sleep(0.02)


@pytest.mark.parametrize("who", ["engine", "host"])
def test_a_process_that_hangs_is_found_out(who: str, start_host: StartHost, tmp_path: Path) -> None:
    host = start_host("quick_main")
    until_it_says(None, tmp_path / "work")
    hanging = host if who == "host" else engine_of(host)
    hanging.suspend()
    until_it_says("no sign of life", tmp_path / "work")
    hanging.resume()
    until_it_says(None, tmp_path / "work")


def test_an_engine_that_died_is_down_and_a_dead_worker_is_none(start_host: StartHost, tmp_path: Path) -> None:
    host = start_host("stillborn_main")
    until_it_says("is down", tmp_path / "work")
    host.kill()
    until_it_says("no worker", tmp_path / "work")


def test_an_engine_that_is_not_ready_is_starting(start_host: StartHost, tmp_path: Path) -> None:
    start_host("silent_main")
    until_it_says("still starting", tmp_path / "work")
