"""Samples of known voices to embeddings, each decoded and heard once, by the diarizer's own embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hansard.audio.decode import decode
from hansard.diarizers import Diarizer
from hansard.errors import AudioError, EmptyAudioError, HansardError
from hansard.speakers.identify import Enrolments
from hansard.transcript import Float32, Report

LONGEST_H = 0.5  # a sample is a minute of speech, not a meeting


def enrol(
    samples: Sequence[tuple[str, Path]], diarizer: Diarizer, model: str, known: Enrolments, report: Report
) -> list[tuple[str, Float32]]:
    """Each sample's name and voice, shape (dimension,), in order; `report` may raise to stop between two.

    Raises AudioError naming the sample that is no recording, or in which too little is said.
    """

    def voice(sample: Path) -> Float32:
        audio = decode(sample, sample.parent, lambda _: report(0.0), max_hours=LONGEST_H)
        found = diarizer.embed(audio)
        if found is None:
            raise EmptyAudioError("too little is said in it; send some seconds of one person speaking")
        return found

    voices = []
    for name, sample in samples:
        try:
            voices.append((name, known.get(sample, model, lambda sample=sample: voice(sample))))  # type: ignore[misc]
        except AudioError as error:
            raise blamed(error, name) from None
    return voices


def blamed(error: HansardError, name: str) -> HansardError:
    """The same error, naming the sample at fault."""
    return type(error)(f"speaker sample {name!r}: {error.sentence}")
