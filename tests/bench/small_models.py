"""What the engines do with the small models of tests/models, as a table: words, their times, languages, silence.

Run: .venv/bin/python tests/bench/small_models.py

`start` and `end` are mean absolute errors in milliseconds over the words that were heard right; `whisperx` is the mean
difference of word starts from whisperx.align on the same text and model. Recordings and truth: tests/models.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from hansard.audio.decode import decode  # noqa: E402 - after src is on the path
from hansard.models import Models  # noqa: E402
from hansard.pipeline import Stock  # noqa: E402
from hansard.request import parse  # noqa: E402
from hansard.settings import Settings  # noqa: E402
from hansard.transcribers.whisper import Whisper  # noqa: E402
from hansard.transcript import Transcript, Word  # noqa: E402
from jobs import run_job  # noqa: E402
from places import CLIPS, TINY  # noqa: E402

ALIGNER = "wav2vec2-tiny-synthetic"
LANGUAGES = ("en", "fr", "ru")


@dataclass(frozen=True)
class Row:
    """One recording's figures; times in milliseconds, NaN where there is nothing to compare."""

    name: str
    words: int
    errors: int
    start: float
    end: float
    whisperx: float
    language: str
    seconds: float


def main() -> None:
    stock = Stock(
        Settings(
            models_dir=TINY,
            hf_hub_offline=True,
            device="cpu",
            default_model="whisper-tiny-synthetic-ct2",
            align_models=dict.fromkeys(LANGUAGES, ALIGNER),
        )
    )
    rows = [measure(path, stock) for path in sorted(CLIPS.glob("*.flac"))]
    stock.shelf.close()
    table = Table("recording", "words", "WER %", "start ms", "end ms", "whisperx ms", "language", "seconds")
    for row in rows:
        wer = f"{100 * row.errors / row.words:.1f}" if row.words else f"{row.errors} words"
        times = (f"{value:.1f}" for value in (row.start, row.end, row.whisperx))
        table.add_row(row.name, str(row.words), wer, *times, row.language, f"{row.seconds:.1f}")
    Console(width=110).print(table)
    spoken = [row for row in rows if row.words]
    words = sum(row.words for row in spoken)
    figures = {
        "wer": sum(row.errors for row in spoken) / words,
        "start_ms": sum(row.start * row.words for row in spoken) / words,
        "whisperx_ms": sum(row.whisperx * row.words for row in spoken) / words,
    }
    figures["times_faster_whisper"] = _against_faster_whisper()
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def measure(path: Path, stock: Stock) -> Row:
    """One recording, all the way with words; a mixed one with language multi."""
    turns = json.loads(path.with_suffix(".json").read_text())["turns"]
    mixed = len({turn["language"] for turn in turns}) > 1
    begin = time.perf_counter()
    heard = run_job(stock, path, {"align_output": True, **({"language": "multi"} if mixed else {})})
    seconds = time.perf_counter() - begin
    known = [word for turn in turns for word in turn["words"]]
    found = [word for segment in heard.segments for word in segment.words]
    pairs = _pairs([word["word"] for word in known], [word.text for word in found])
    starts = [abs(found[j].start - known[i]["start"]) for i, j in pairs]
    ends = [abs(found[j].end - known[i]["end"]) for i, j in pairs]
    texts = [" ".join(map(_plain, side)) for side in ([w["word"] for w in known], [w.text for w in found])]
    edits = jiwer.process_words(*texts) if known else None
    errors = edits.substitutions + edits.deletions + edits.insertions if edits else len(found)
    return Row(
        path.stem,
        len(known),
        errors,
        _milliseconds(starts),
        _milliseconds(ends),
        _milliseconds(_against_whisperx(path, heard)),
        _languages(turns, heard),
        seconds,
    )


def _languages(turns: list[dict[str, Any]], heard: Transcript) -> str:
    """How many segments have the language of the turn that they lie in."""
    if not turns:
        return "-"
    right = 0
    for segment in heard.segments:
        middle = (segment.start + segment.end) / 2
        turn = min(turns, key=lambda turn: abs((turn["start"] + turn["end"]) / 2 - middle))
        right += (segment.language or heard.language) == turn["language"]
    return f"{right}/{len(heard.segments)}"


def _against_whisperx(path: Path, heard: Transcript) -> list[float]:
    """Differences of word starts from whisperx.align, for the same segments and the same model."""
    import nltk
    import whisperx

    nltk.data.path.insert(0, str(TINY / "nltk_data"))
    differences: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sound = soundfile.read(path, dtype="float32")[0]
        for language in LANGUAGES:
            ours = [s for s in heard.segments if (s.language or heard.language) == language]
            if not ours:
                continue
            model, metadata = whisperx.load_align_model(language, "cpu", model_name=str(TINY / ALIGNER))
            given = [{"start": s.start, "end": s.end, "text": s.text} for s in ours]
            theirs = whisperx.align(given, model, metadata, sound, "cpu")["word_segments"]
            words: list[Word] = [word for segment in ours for word in segment.words]
            for i, j in _pairs([word["word"] for word in theirs], [word.text for word in words]):
                if "start" in theirs[i]:
                    differences.append(abs(theirs[i]["start"] - words[j].start))
    return differences


def _against_faster_whisper() -> float:
    """Our time over that of faster-whisper's own batched pipeline on the longest recording, both with Silero.

    The best of three runs each, in turn; ours tries again what its guard refuses.
    """
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    folder = TINY / "whisper-tiny-synthetic-ct2"
    with tempfile.TemporaryDirectory() as place:
        audio = decode(CLIPS / "meeting_en_3voices.flac", Path(place), lambda _: None)
    theirs = BatchedInferencePipeline(WhisperModel(str(folder), device="cpu", compute_type="int8"))
    ours = Whisper(folder.name, Models(Settings(models_dir=TINY, device="cpu", vad_method="silero")))
    request = parse({"audio": "data:,", "batch_size": 8})
    runs: tuple[Callable[[], object], ...] = (
        lambda: ours.transcribe(audio, request, lambda _: None),
        lambda: list(theirs.transcribe(audio.mono(), batch_size=8, without_timestamps=False)[0]),
    )
    times: list[list[float]] = [[], []]
    for _ in range(3):
        for run, taken in zip(runs, times, strict=True):
            begin = time.perf_counter()
            run()
            taken.append(time.perf_counter() - begin)
    return min(times[0]) / min(times[1])


def _pairs(known: list[str], found: list[str]) -> list[tuple[int, int]]:
    """Places of the words that are the same in both lists."""
    matcher = SequenceMatcher(None, [*map(_plain, known)], [*map(_plain, found)], autojunk=False)
    return [(b.a + at, b.b + at) for b in matcher.get_matching_blocks() for at in range(b.size)]


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word.lower())


def _milliseconds(values: list[float]) -> float:
    return 1000 * float(np.mean(values)) if values else float("nan")


if __name__ == "__main__":
    main()
