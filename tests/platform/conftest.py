"""The worker as it runs in its container: src/handler.py in a process of its own, against a platform on loopback."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from fake_platform import FakePlatform

ROOT = Path(__file__).parents[2]
HANDLER = ROOT / "src" / "handler.py"
INHERITED = ("PATH", "LANG", "LD_LIBRARY_PATH")  # nothing else: no proxy, token or cache of whoever runs the tests
WITHOUT_SPEAKERS = {"DIARIZATION_MODEL": "pyannote/speaker-diarization-community-1", "HF_HUB_OFFLINE": "true"}
STOP_S = 60  # an idle worker ends its polls and its engine within this time, however busy the machine
VANISH_S = 30  # the processes of a worker that has ended are gone within this time

StartWorker = Callable[..., "Worker"]


class Worker:
    """A worker process in a session of its own, its folders, and the platform that it works for."""

    def __init__(self, platform: FakePlatform, folder: Path, **env: str | None) -> None:
        """Start it; a variable given as None is left out of its environment."""
        self.platform = platform
        self.work_dir, home = folder / "work", folder / "home"
        self.log_file, self._output_file = folder / "container_log.txt", folder / "output.txt"
        self.work_dir.mkdir()
        home.mkdir()
        given = {name: os.environ[name] for name in INHERITED if name in os.environ}
        given |= platform.env("worker-1", home)
        given |= {"ALLOW_PRIVATE_URLS": "true", "WORK_DIR": str(self.work_dir), "LOG_FILE": str(self.log_file)}
        self.started_at = time.monotonic()
        with self._output_file.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-u", str(HANDLER)],
                cwd=folder,
                env={name: value for name, value in (given | env).items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def sigterm(self) -> None:
        """What the platform does to a worker that it no longer needs."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """The exit code, once the process has ended."""
        return self._process.wait(timeout)

    def output(self) -> str:
        """What the process wrote to stdout and stderr, as the platform's log shows it."""
        return self._output_file.read_text(errors="replace")

    def log(self) -> str:
        """The worker's own log file."""
        return self.log_file.read_text(errors="replace")

    def engine(self) -> psutil.Process:
        """The child that holds the models; the SDK's ping process and the resource tracker are other children."""
        (child,) = [p for p in psutil.Process(self.pid).children() if _is_engine(p)]
        return child

    def left_in_work_dir(self) -> list[Path]:
        """What lies in WORK_DIR beside the worker's own folder and, while it runs, its lock and its state in that."""
        running = self._process.poll() is None
        names = ("", "lock", "health", "health.part")
        own = {root / name for root in self.work_dir.iterdir() for name in names} if running else set()
        return [path for path in self.work_dir.rglob("*") if path not in own]

    def health(self) -> tuple[int, str]:
        """What the image's HEALTHCHECK finds out: the exit code, and what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "hansard.health"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "WORK_DIR": str(self.work_dir)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    def end(self) -> None:
        """Stop the worker as the platform would; fails where it does not stop or leaves a process behind."""
        if self._process.poll() is None:
            self.sigterm()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        stopped = self._process.poll() is not None
        survivors = self._survivors(VANISH_S) if stopped else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(STOP_S)
        assert stopped, f"the worker still ran {STOP_S} s after SIGTERM:\n{self.output()[-2000:]}"
        assert not survivors, f"the worker left processes behind: {survivors}"
        assert not self._survivors(VANISH_S), "a process of the worker's group outlives SIGKILL"

    def _survivors(self, patience_s: float) -> list[str]:
        """Processes of the worker's session that still live after a while."""
        end = time.monotonic() + patience_s
        while alive := [p for p in psutil.process_iter() if p.pid != self.pid and _in_session(p, self.pid)]:
            if time.monotonic() > end:
                return [str(process) for process in alive]
            time.sleep(0.05)
        return []


def _is_engine(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        return "multiprocessing.spawn" in command and "resource_tracker" not in command
    return False


def _in_session(process: psutil.Process, session: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def _worker(folder: Path, **env: str | None) -> Iterator[Worker]:
    """A platform of its own and a worker for it; afterwards nothing runs and the platform has no complaint."""
    with FakePlatform() as platform:
        worker = Worker(platform, folder, **env)
        try:
            yield worker
        finally:
            worker.end()
        assert platform.violations == []


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """The worker that the tests of a module share: for what leaves a worker as it was.

    It chooses its own log level, as a container does whose owner has not set one.
    """
    with _worker(tmp_path_factory.mktemp("shared"), RUNPOD_LOG_LEVEL=None) as running:
        yield running


@pytest.fixture
def platform(worker: Worker) -> FakePlatform:
    """The platform of the shared worker."""
    return worker.platform


@pytest.fixture
def start_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """Start a worker for one test alone: `start_worker(RESULT_LIMIT_MB="0.01")`; its platform is `.platform`.

    It tells no speakers apart unless told to: without pyannote.audio it starts in a third of the time.
    """
    with contextlib.ExitStack() as stack:
        yield lambda **env: stack.enter_context(_worker(tmp_path_factory.mktemp("own"), **(WITHOUT_SPEAKERS | env)))


@pytest.fixture(scope="session")
def clip() -> bytes:
    """Two voices, 18 seconds."""
    return (ROOT / "tests" / "data" / "meeting.ogg").read_bytes()


@pytest.fixture(scope="session")
def short(clip: bytes) -> bytes:
    """One sentence of it: for jobs that only have to be done."""
    return _repeated(clip, 0.2)


@pytest.fixture(scope="session")
def both_voices(clip: bytes) -> bytes:
    """A sentence of each voice."""
    return _repeated(clip, 0.45)


@pytest.fixture(scope="session")
def a_minute(clip: bytes) -> bytes:
    """The clip three times: an answer with something to pack."""
    return _repeated(clip, 3)


@pytest.fixture(scope="session")
def half_an_hour(clip: bytes) -> bytes:
    """The clip a hundred times: far more work than a test waits for, to be interrupted."""
    return _repeated(clip, 100)


def _repeated(clip: bytes, times: float) -> bytes:
    """The clip over and over, as FLAC; less than once is its beginning."""
    samples, rate = soundfile.read(io.BytesIO(clip), dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, np.resize(samples, round(times * len(samples))), rate, format="FLAC")
    return file.getvalue()
