"""How often speakers get the right name, on real recordings with speaker turns, as a table.

Run: .venv/bin/python tests/bench/voices.py [--clips FOLDER]     FOLDER holds manifest.json, recordings and RTTMs

Of each recording with several speakers the first half gives the samples (each speaker's own speech, without overlap),
the second half is diarized and named. `right`, `wrong` and `unnamed` are shares of the time in which exactly one
enrolled person speaks. `strangers` is the share that gets a name when the samples are of the other recordings' people.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from hansard.audio.decode import decode  # noqa: E402 - after src is on the path
from hansard.diarizers import DIARIZERS  # noqa: E402
from hansard.models import Models  # noqa: E402
from hansard.plan import default_diarizer  # noqa: E402
from hansard.request import Request, parse  # noqa: E402
from hansard.settings import Settings  # noqa: E402
from hansard.speakers.identify import identify  # noqa: E402
from hansard.transcript import SAMPLE_RATE, Audio, Float32, Turn  # noqa: E402

STEP = 0.01  # seconds between the points of time that are compared
LEAST_SAMPLE_S = 2.0

Samples = list[tuple[str, Float32]]


@dataclass(frozen=True)
class Clip:
    """A recording cut in two, with who speaks alone at each step of the second half (None: nobody or several)."""

    name: str
    second: Audio
    samples: Samples
    people: frozenset[str]
    alone: list[str | None]


def main() -> None:
    options = argparse.ArgumentParser(description="Measure naming of speakers on recordings with speaker turns.")
    options.add_argument("--clips", type=Path, default=ROOT.parent / "shared" / "audio")
    folder = options.parse_args().clips
    models = Models(Settings())
    chosen = default_diarizer(models)
    diarizer = DIARIZERS[chosen.backend](chosen.model, models)
    manifest = json.loads((folder / "manifest.json").read_text())["clips"]
    clips = [read(folder, clip, diarizer) for clip in manifest if clip["rttm"] and clip["num_speakers"] > 1]
    clips = [clip for clip in clips if clip.samples]
    table = Table("recording", "enrolled", "right %", "wrong %", "unnamed %", "strangers %")
    sums = np.zeros(4)
    request = parse({"audio": "data:,", "diarization": True})
    for clip in clips:
        others = [sample for other in clips for sample in other.samples if not _knows(clip, other, sample[0])]
        right, wrong, strangers = judge(clip, others, diarizer, request)
        sums += [right, wrong, strangers, 1.0]
        cells = (right, wrong, 1 - right - wrong, strangers)
        table.add_row(clip.name, str(len(clip.samples)), *(f"{100 * cell:.1f}" for cell in cells))
    Console(width=110).print(table)
    means = dict(zip(("right", "wrong", "strangers"), sums[:3] / sums[3], strict=True))
    means["threshold"] = diarizer.same_voice
    print(json.dumps({"clips": len(clips), **{name: round(float(mean), 4) for name, mean in means.items()}}))


def _knows(clip: Clip, other: Clip, speaker: str) -> bool:
    """Does a speaker of another recording speak in this one too? Names hold within a corpus, such as `en_ami`."""
    return other is clip or (clip.name[:6] == other.name[:6] and speaker in clip.people)


def read(folder: Path, entry: dict[str, Any], diarizer: Any) -> Clip:
    """One recording of the manifest, its first half as samples."""
    from pyannote.database.util import load_rttm

    with tempfile.TemporaryDirectory() as place:
        audio = decode(folder / entry["file"], Path(place), lambda _: None)
        samples = np.array(audio.samples)
    [truth] = load_rttm(str(folder / entry["rttm"])).values()
    turns = [Turn(span.start, span.end, label) for span, _, label in truth.itertracks(yield_label=True)]
    alone = _alone(turns, samples.shape[1] / SAMPLE_RATE)
    half = len(alone) // 2
    enrolled = []
    for speaker in truth.labels():
        steps = [at for at in range(half) if alone[at] == speaker]
        if len(steps) * STEP >= LEAST_SAMPLE_S:
            size = round(STEP * SAMPLE_RATE)
            own = np.concatenate([samples[:, at * size : (at + 1) * size] for at in steps], axis=1)
            if (voice := _embed(own, diarizer)) is not None:
                enrolled.append((speaker, voice))
    return Clip(
        entry["id"],
        Audio(samples[:, half * round(STEP * SAMPLE_RATE) :]),
        enrolled,
        frozenset(truth.labels()),
        alone[half:],
    )


def _embed(samples: Any, diarizer: Any) -> Float32 | None:
    """The voice of a sample that went through a file, as a caller's does."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "sample.flac"
        soundfile.write(path, samples[0], SAMPLE_RATE)
        voice: Float32 | None = diarizer.embed(decode(path, Path(place), lambda _: None))
        return voice


def _alone(turns: list[Turn], duration: float) -> list[str | None]:
    steps: list[set[str]] = [set() for _ in range(int(duration / STEP))]
    for turn in turns:
        for at in range(max(0, round(turn.start / STEP)), min(len(steps), round(turn.end / STEP))):
            steps[at].add(turn.speaker)
    return [next(iter(step)) if len(step) == 1 else None for step in steps]


def judge(clip: Clip, strangers: Samples, diarizer: Any, request: Request) -> tuple[float, float, float]:
    """Shares of the time that got the right name, a wrong one, and a stranger's."""
    speech = diarizer.diarize(clip.second, request, lambda _: None)
    heard = _alone(list(speech.exclusive), clip.second.duration)
    known = {name for name, _ in clip.samples}
    asked = [at for at, speaker in enumerate(clip.alone[: len(heard)]) if speaker in known]

    def names(samples: Samples) -> list[str | None]:
        matches = identify(speech.voices, samples, diarizer.same_voice)
        return [match.name if (match := matches.get(heard[at] or "")) else None for at in asked]

    given = list(zip(names(clip.samples), [clip.alone[at] for at in asked], strict=True))
    total = max(1, len(asked))
    right = sum(name == speaker for name, speaker in given) / total
    wrong = sum(name is not None and name != speaker for name, speaker in given) / total
    return right, wrong, sum(name is not None for name in names(strangers)) / total


if __name__ == "__main__":
    main()
