"""Time to the first answer, and peak memory for a long recording, of the worker as a whole.

Run: .venv/bin/python tests/bench/footprint.py [--hours 3]

Posts tests/data/meeting.ogg to a fresh worker, then the same meeting repeated to the length asked for. Memory is the
sum of the resident sizes of all the worker's processes, sampled twice a second; the decoded recording is mapped from
a file, so part of it is page cache that the kernel can take back. The last line is one JSON for machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from handler import Worker  # noqa: E402 - after src is on the path
from hansard.audio.decode import decode  # noqa: E402
from hansard.settings import Settings  # noqa: E402


class Peak(threading.Thread):
    """The highest resident size of this process and all below it, in bytes, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0
        self._done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.5):
            sizes = []
            for process in [me, *me.children(recursive=True)]:
                try:
                    sizes.append(process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            self.highest = max(self.highest, sum(sizes))

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.highest


def long_recording(hours: float, folder: Path) -> Path:
    """The test clip, repeated, as one FLAC file."""
    samples = np.array(decode(ROOT / "tests/data/meeting.ogg", folder, lambda _: None).samples[0])
    path = folder / "long.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, format="FLAC") as file:
        for _ in range(round(hours * 3600 * 16_000 / len(samples))):
            file.write(samples)
    return path


async def measure(hours: float, folder: Path) -> dict[str, Any]:
    """The figures, by name; seconds and MB."""
    begin = time.perf_counter()
    settings = Settings(work_dir=folder / "work", log_file=folder / "log.txt", audio_roots=(ROOT, folder))
    worker = Worker(settings, echo=False)
    fields = {"language": "en", "diarization": True, "align_output": True}

    async def ignore(state: dict[str, object]) -> None:
        """Nobody watches."""

    first = await worker.handle(
        {"id": "first", "input": {"audio": (ROOT / "tests/data/meeting.ogg").as_uri(), **fields}}, ignore
    )
    cold = time.perf_counter() - begin
    recording = long_recording(hours, folder)
    peak = Peak()
    peak.start()
    begin = time.perf_counter()
    result = await worker.handle({"id": "long", "input": {"audio": recording.as_uri(), **fields}}, ignore)
    seconds = time.perf_counter() - begin
    worker.close()
    return {
        "first_answer_s": round(cold, 1),
        "first_speakers": first.get("speakers"),
        "hours": round(result["duration"] / 3600, 2),
        "seconds": round(seconds),
        "real_time_factor": round(seconds / result["duration"], 3),
        "peak_mb": round(peak.stop() / 1e6),
        "segments": result.get("segments_count", len(result.get("segments", []))),
        "speakers": result.get("speakers"),
        "warnings": result["warnings"],
        "timings": result["timings"],
    }


def main() -> None:
    options = argparse.ArgumentParser(description="Measure cold start and the memory of a long recording.")
    options.add_argument("--hours", type=float, default=3.0)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(options.parse_args().hours, Path(folder)))))


if __name__ == "__main__":
    main()
