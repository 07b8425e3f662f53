"""Door 3: the command line. Runs the RunPod handler on one recording, shows progress, prints the transcript."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from handler import Worker  # noqa: E402 - after src is on the path
from hansard import render  # noqa: E402
from hansard.envelope import unpack  # noqa: E402
from hansard.errors import HansardError  # noqa: E402
from hansard.settings import Settings, load  # noqa: E402

PROFILES = {path.stem: path for path in sorted((ROOT / "builder/profiles").glob("*.env"))}


def main() -> int:
    """Exit status: 0 a transcript was printed, 1 the job failed, 130 it was interrupted."""
    options = _options()
    job = _job(options.audio)
    try:
        result = asyncio.run(_run(job, _settings(options)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except HansardError as error:
        result = {"error": str(error)}
    if options.json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
    elif "error" in result:
        print(result["error"], file=sys.stderr)
    else:
        _print(result)
    return 1 if "error" in result else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="builder/demo", description="Print who said what in a recording.")
    parser.add_argument("audio", nargs="?", help="a path or an http(s) URL; without it, test_input.json is run")
    parser.add_argument("--json", action="store_true", help="print only the result object")
    parser.add_argument("--profile", choices=PROFILES, default="embedded", help="which engines to use")
    return parser.parse_args()


def _job(audio: str | None) -> dict[str, Any]:
    """The job a caller would post: test_input.json, or the same questions about another recording."""
    job: dict[str, Any] = {"id": "demo", **json.loads((ROOT / "test_input.json").read_text())}
    if audio is not None:
        job["input"]["audio"] = audio if "://" in audio else Path(audio).absolute().as_uri()
    return job


def _settings(options: argparse.Namespace) -> Settings:
    """The environment, the profile where that says nothing, and a log that is not left in the current folder."""
    settings = load(PROFILES[options.profile])
    given: dict[str, object] = {}
    if "log_file" not in settings.model_fields_set:
        given["log_file"] = Path(tempfile.gettempdir()) / f"hansard-demo-{os.getuid()}.log"
    if options.audio and "://" not in options.audio:
        given["audio_roots"] = (Path(options.audio).resolve().parent,)
    return settings.model_copy(update=given)


async def _run(job: dict[str, Any], settings: Settings) -> dict[str, Any]:
    worker = Worker(settings, echo=False)
    columns = TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("start", total=100)

            async def show(state: dict[str, Any]) -> None:
                bar.update(task, description=state["stage"], completed=state["percent"])

            result = unpack(await worker.handle(job, show))
            bar.update(task, description="done" if "error" not in result else "failed", completed=100)
            return result
    finally:
        worker.close()


def _print(result: dict[str, Any]) -> None:
    for line in render.lines(result["segments"]):
        print(line)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
