"""What the server itself costs: memory under many uploads at once, and time per request, without any engine.

Run: .venv/bin/python tests/bench/server.py [--uploads 200] [--mb 20] [--requests 300]

The real server in a process of its own, whose jobs are done at once by the tests' runner. The uploads differ from one
another and arrive together; memory is the resident size of the server's process, sampled twenty times a second. The
last line is one JSON for machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests", "tests/server"))
KEY = "key-of-the-bench"
SMALL = 100_000  # bytes of the recording whose requests are timed
PIECE = 1 << 16

SERVER = """
import functools, sys
from fake_runner import FakeRunner
from hansard.server import __main__ as command
command.create_app = functools.partial(command.create_app, runner=FakeRunner())
sys.argv = ["server"]
sys.exit(command.main())
"""


class Server:
    """The server's process, and the highest resident size that was seen of it."""

    def __init__(self, folder: Path) -> None:
        told = {"STATE_DIR": folder, "WORK_DIR": folder, "HOST_PORT": 0, "API_KEYS": KEY, "MAX_QUEUE": 100_000}
        env = {**os.environ, "PYTHONPATH": PATH, "HOST_BIND_ADDRESS": "127.0.0.1"}
        env |= {name: str(value) for name, value in told.items()}
        self._process = subprocess.Popen([sys.executable, "-c", SERVER], env=env, stderr=subprocess.PIPE, text=True)
        self.url = self._address()
        self.highest = 0
        self._over = threading.Event()
        for work in (self._drain, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def memory(self) -> int:
        """Its resident size now, in bytes."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self._process.terminate()
        self._process.wait(30)

    def _address(self) -> str:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "listening on " in line:
                return line.split("listening on ")[1].split()[0]
        raise SystemExit("the server did not start")

    def _drain(self) -> None:
        assert self._process.stderr is not None
        for _ in self._process.stderr:
            pass

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.highest = max(self.highest, self.memory())


def client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=600, trust_env=False)


async def form(number: int, size: int) -> AsyncIterator[bytes]:
    """A form with a recording of `size` bytes that no other number has."""
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF%09d' % number
    for _ in range(size // PIECE):
        yield bytes(PIECE)
    yield b"\r\n--b--\r\n"


async def upload(web: httpx.AsyncClient, number: int, size: int) -> int:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    return (await web.post("/v1/jobs", content=form(number, size), headers=kind)).status_code


async def many(server: Server, count: int, size: int) -> dict[str, Any]:
    """Uploads that arrive together."""
    async with client(server.url) as web:
        await upload(web, count, PIECE)  # what the first request loads is no cost of many
        before = server.highest = server.memory()
        begin = time.perf_counter()
        answers = await asyncio.gather(*(upload(web, number, size) for number in range(count)))
        seconds = time.perf_counter() - begin
    assert set(answers) == {202}, answers
    return {
        "uploads": count,
        "mb_each": size / 1e6,
        "seconds": round(seconds, 1),
        "memory_before_mb": round(before / 1e6),
        "memory_peak_mb": round(server.highest / 1e6),
    }


async def each(server: Server, count: int, path: str, **given: Any) -> dict[str, float]:
    """Requests one after the other: to the first byte of the answer and to its end, in milliseconds."""
    first, whole = [], []
    async with client(server.url) as web:
        for number in range(count + 20):
            content = {"file": ("a.wav", b"RIFF%09d" % number + bytes(SMALL))} if given else None
            begin = time.perf_counter()
            async with web.stream("POST" if given else "GET", path, files=content, data=given or None) as answer:
                assert answer.status_code == 200
                first.append(time.perf_counter() - begin)
                await answer.aread()
            whole.append(time.perf_counter() - begin)
    return {
        "first_byte_p50_ms": _milliseconds(first[20:], 50),
        "first_byte_p95_ms": _milliseconds(first[20:], 95),
        "whole_p50_ms": _milliseconds(whole[20:], 50),
        "whole_p95_ms": _milliseconds(whole[20:], 95),
    }


def _milliseconds(seconds: list[float], percentile: int) -> float:
    return round(1000 * statistics.quantiles(seconds, n=100)[percentile - 1], 2)


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """All figures, by name."""
    transcriptions = "/v1/audio/transcriptions"
    return {
        "healthz": await each(server, options.requests, "/healthz"),
        "json": await each(server, options.requests, transcriptions, model="whisper-1"),
        "stream": await each(server, options.requests, transcriptions, model="whisper-1", stream="true"),
        "many": await many(server, options.uploads, round(options.mb * 1e6)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the server without an engine.")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--mb", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            print(json.dumps(asyncio.run(measure(server, options))))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
