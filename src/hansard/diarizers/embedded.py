"""The embedded diarizer: pyannote's SpeakerDiarization pipeline on weights that ride in other packages.

Speech and overlap come from the segmentation model inside whisperx, voices from the encoder inside resemblyzer, so
it works on any machine without a model hub. A floor, not a rival of community-1; figures are in tests/bench.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hansard.errors import EngineMissingError
from hansard.request import Request
from hansard.transcript import SAMPLE_RATE, Audio, Diarization, Report, Turn

STAGE_SHARES = {"segmentation": (0.0, 0.67), "embeddings": (0.67, 0.95)}  # of the time, on half an hour of sound


class Embedded:
    """Speaker diarization without a GPU; a recording without speech gives no turns."""

    def __init__(self) -> None:
        segmentation = _packaged("whisperx", "assets/pytorch_model.bin")
        encoder = _packaged("resemblyzer", "pretrained.pt")
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # read when pyannote is imported: nothing is sent anywhere
        with _quiet():
            from hansard.diarizers.embedded_pipeline import EmbeddedPipeline

            logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its import had set its own level
            self._pipeline = EmbeddedPipeline(segmentation, encoder)

    def diarize(self, audio: Audio, request: Request, report: Report) -> Diarization:
        """Turns of one channel; the counts of the request bound the number of speakers."""
        import torch

        file = {"waveform": torch.from_numpy(audio.mono())[None], "sample_rate": SAMPLE_RATE, "uri": "recording"}
        with _quiet():
            found = self._pipeline(
                file,
                num_speakers=request.num_speakers,
                min_speakers=request.min_speakers,
                max_speakers=request.max_speakers,
                hook=_hook(report),
            )
        names = _names_by_appearance(found.speaker_diarization)
        turns = _turns(found.speaker_diarization, names)
        return Diarization(
            exclusive=_turns(found.exclusive_speaker_diarization, names),
            turns=turns,
            warnings=_count_warning(request, len(names)),
        )

    def close(self) -> None:
        del self._pipeline


def _packaged(package: str, file: str) -> Path:
    """A file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise EngineMissingError(
        f"diarizer embedded needs {package}: install requirements.txt and builder/requirements-embedded.txt"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep vendor warnings about checkpoints, codecs and short chunks out of the log: none concerns the caller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _hook(report: Report) -> Any:
    """pyannote's progress hook, as our report; steps without counts are instantaneous."""

    def hook(step: str, artifact: object, total: int = 0, completed: int = 0, **_: object) -> None:
        if total and step in STAGE_SHARES:
            start, end = STAGE_SHARES[step]
            report(start + (end - start) * min(1.0, completed / total))

    return hook


def _names_by_appearance(annotation: Any) -> dict[str, str]:
    """pyannote's labels, renamed SPEAKER_00, SPEAKER_01, ... in the order in which they first speak."""
    seen: dict[str, str] = {}
    for _, _, label in annotation.itertracks(yield_label=True):
        seen.setdefault(label, f"SPEAKER_{len(seen):02d}")
    return seen


def _turns(annotation: Any, names: dict[str, str]) -> tuple[Turn, ...]:
    tracks: Iterable[tuple[Any, object, str]] = annotation.itertracks(yield_label=True)
    return tuple(Turn(span.start, span.end, names[label]) for span, _, label in tracks if label in names)


def _count_warning(request: Request, found: int) -> tuple[str, ...]:
    """Said when the voices heard do not satisfy the counts that the request gave."""
    fewest = request.num_speakers or request.min_speakers or 0
    most = request.num_speakers or request.max_speakers or found
    if fewest <= found <= most or found == 0:
        return ()
    return (f"{found} speakers could be told apart, which is not the number asked for",)
