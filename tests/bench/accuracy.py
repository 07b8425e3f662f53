"""Word error and diarization error of a profile on real recordings with references, as a table.

Run: .venv/bin/python tests/bench/accuracy.py [--clips FOLDER]     FOLDER holds manifest.json, recordings and RTTMs

Words are compared in lower case without punctuation (jiwer). Diarization error is pyannote.metrics', overlap scored,
once with the customary collar of 0.25 s on each side and once with none. The last line is one JSON for machines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from hansard.pipeline import Job, Stock, run  # noqa: E402 - after src is on the path
from hansard.plan import check  # noqa: E402
from hansard.request import parse  # noqa: E402
from hansard.settings import Settings  # noqa: E402
from hansard.transcript import Transcript, Turn  # noqa: E402

NORMAL = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.RemovePunctuation(),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)


@dataclass(frozen=True)
class Row:
    """One recording's figures; None where there is no reference."""

    name: str
    duration: float
    seconds: float
    words: int
    errors: int | None
    der_collar: float | None
    der: float | None
    speakers: tuple[int, int]


def main() -> None:
    options = argparse.ArgumentParser(description="Measure the default profile on recordings with references.")
    options.add_argument("--clips", type=Path, default=ROOT.parent / "shared" / "audio")
    clips = options.parse_args().clips
    manifest = json.loads((clips / "manifest.json").read_text())["clips"]
    stock = Stock(Settings())
    rows = [measure(clips, clip, stock) for clip in manifest if _measurable(clip)]
    stock.shelf.close()
    show(rows)


def _measurable(clip: dict[str, Any]) -> bool:
    """English clips of one channel with words or turns to compare with."""
    return clip["language"] == "en" and bool(clip.get("text") or clip["rttm"]) and "stereo" not in clip["id"]


def measure(clips: Path, clip: dict[str, Any], stock: Stock) -> Row:
    """Run the whole pipeline on one recording."""
    path = clips / clip["file"]
    request = parse({"audio": path.as_uri(), "language": "en", "diarization": clip["rttm"] is not None})
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(clip["id"], request, check(request, stock.settings), path, Path(folder))
        transcript = run(job, stock, lambda stage, fraction: None)
    seconds = time.perf_counter() - begin
    errors, words = word_errors(clip.get("text"), transcript)
    collar, strict, speakers = (None, None, (clip["num_speakers"], 0))
    if clip["rttm"]:
        collar, strict, speakers = diarization_errors(clips / clip["rttm"], transcript)
    return Row(clip["id"], transcript.duration, seconds, words, errors, collar, strict, speakers)


def word_errors(text: str | None, transcript: Transcript) -> tuple[int | None, int]:
    """Wrong words, and words said."""
    if not text:
        return None, 0
    heard = " ".join(segment.text for segment in transcript.segments)
    out = jiwer.process_words(text, heard, reference_transform=NORMAL, hypothesis_transform=NORMAL)
    return out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions


def diarization_errors(rttm: Path, transcript: Transcript) -> tuple[float, float, tuple[int, int]]:
    """Error with and without collar, and how many speakers there are and were found."""
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.database.util import load_rttm
    from pyannote.metrics.diarization import DiarizationErrorRate

    [truth] = load_rttm(str(rttm)).values()
    found = Annotation()
    for number, turn in enumerate[Turn](transcript.turns):
        found[Segment(turn.start, turn.end), number] = turn.speaker
    whole = Timeline([Segment(0, transcript.duration)])
    collar, strict = (DiarizationErrorRate(collar=c)(truth, found, uem=whole) for c in (0.5, 0.0))
    return float(collar), float(strict), (len(truth.labels()), len(found.labels()))


def show(rows: list[Row]) -> None:
    """The table for people, then one line of JSON."""
    table = Table(
        "recording", "seconds", "words", "WER %", "DER % (0.25 s)", "DER % (none)", "speakers", "found", "RTF"
    )
    for row in rows:
        wer = None if row.errors is None else row.errors / row.words
        found = str(row.speakers[1]) if row.der is not None else "-"
        table.add_row(
            row.name,
            f"{row.duration:.1f}",
            str(row.words or "-"),
            *map(_percent, (wer, row.der_collar, row.der)),
            str(row.speakers[0]),
            found,
            f"{row.seconds / row.duration:.2f}",
        )
    said = [row for row in rows if row.errors is not None]
    turned = [row for row in rows if row.der is not None]
    sums = {
        "wer": sum(row.errors or 0 for row in said) / sum(row.words for row in said),
        "der_collar": sum((row.der_collar or 0) * row.duration for row in turned) / sum(r.duration for r in turned),
        "der": sum((row.der or 0) * row.duration for row in turned) / sum(row.duration for row in turned),
        "rtf": sum(row.seconds for row in rows) / sum(row.duration for row in rows),
    }
    table.add_section()
    averages = [_percent(sums[name]) for name in ("wer", "der_collar", "der")]
    table.add_row("all (DER weighted by length)", "", "", *averages, "", "", f"{sums['rtf']:.2f}")
    Console(width=130).print(table)
    print(json.dumps(sums))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
