"""Runs one job the whole way in this process, from the check to the transcript."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hansard.pipeline import Job, Stock, run
from hansard.plan import check
from hansard.request import parse
from hansard.stages import StageReport
from hansard.transcript import Transcript


def run_job(
    stock: Stock, path: Path, fields: Mapping[str, Any], report: StageReport = lambda stage, fraction: None
) -> Transcript:
    """One recording, from the check to the transcript."""
    request = parse({"audio": path.as_uri(), **fields})
    plan = check(request, stock.settings)
    with tempfile.TemporaryDirectory() as folder:
        return run(Job("a", request, plan, path, Path(folder)), stock, report)
