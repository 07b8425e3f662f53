"""pyannote.audio as both diarizers call it: silent, sound in memory, its progress as our report, its answer as ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from hansard.errors import OutOfMemoryError
from hansard.request import Request
from hansard.transcript import SAMPLE_RATE, Audio, Diarization, Float32, Report, Turn
from hansard.vendors import quiet

Shares = Mapping[str, tuple[float, float]]
"""Of each step that pyannote counts, where in the whole work it begins and ends, 0 to 1."""


@contextmanager
def _tf32_kept() -> Iterator[None]:
    """Give the other models of this process their TF32 back: pyannote turns it off for all of them at each call.

    Source: pyannote/audio/utils/reproducibility.py and https://github.com/pyannote/pyannote-audio/issues/1370.
    """
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def in_memory(audio: Audio) -> dict[str, Any]:
    """A recording as pyannote takes it; never a path, which it would open again for every chunk."""
    import torch

    return {"waveform": torch.from_numpy(audio.mono())[None], "sample_rate": SAMPLE_RATE, "uri": "recording"}


@contextmanager
def undisturbed() -> Iterator[None]:
    """A call of a pipeline that leaves no trace in the process. Raises OutOfMemoryError for what memory lacks."""
    with quiet(), _tf32_kept():
        try:
            yield
        except MemoryError:
            raise OutOfMemoryError(
                "diarization needs more memory than this machine has; use a larger one or a shorter recording"
            ) from None


def diarize(pipeline: Any, audio: Audio, request: Request, hook: Callable[..., None]) -> Diarization:
    """Run a SpeakerDiarization pipeline; the counts of the request bound the number of speakers."""
    with undisturbed():
        found = pipeline(
            in_memory(audio),
            num_speakers=request.num_speakers,
            min_speakers=request.min_speakers,
            max_speakers=request.max_speakers,
            hook=hook,
        )
    names = _names_by_appearance(found.speaker_diarization)
    return Diarization(
        exclusive=_turns(found.exclusive_speaker_diarization, names),
        turns=_turns(found.speaker_diarization, names),
        warnings=_count_warning(request, len(names)),
        voices=_voices(found, names),
    )


def progress(report: Report, shares: Shares) -> Callable[..., None]:
    """pyannote's progress hook, as our report: never backwards, and at most the end of its step.

    Its counts exceed their totals, and a step that ran out of memory begins again. Of the steps without counts the last
    ends the work.
    """
    furthest = 0.0

    def hook(step: str, artifact: object = None, total: int = 0, completed: int = 0, **_: object) -> None:
        nonlocal furthest
        if total and step in shares:
            start, end = shares[step]
            furthest = max(furthest, start + (end - start) * min(1.0, float(completed / total)))
        elif step == "discrete_diarization":
            furthest = 1.0
        report(furthest)

    return hook


def _names_by_appearance(annotation: Any) -> dict[str, str]:
    """pyannote's labels, renamed SPEAKER_00, SPEAKER_01, ... in the order in which they first speak."""
    seen: dict[str, str] = {}
    for _, _, label in annotation.itertracks(yield_label=True):
        seen.setdefault(label, f"SPEAKER_{len(seen):02d}")
    return seen


def _turns(annotation: Any, names: Mapping[str, str]) -> tuple[Turn, ...]:
    tracks: Iterable[tuple[Any, object, str]] = annotation.itertracks(yield_label=True)
    return tuple(Turn(span.start, span.end, names[label]) for span, _, label in tracks if label in names)


def _voices(found: Any, names: Mapping[str, str]) -> dict[str, Float32]:
    """The centroid of each speaker; pyannote gives NaN or zeros for one who never spoke long enough alone."""
    labels = found.speaker_diarization.labels()  # the order of the rows, which is not that of appearance
    rows = zip(labels, np.asarray(found.speaker_embeddings, dtype=np.float32), strict=True)
    voices = {names[label]: row for label, row in rows if np.isfinite(row).all() and row.any()}
    return {name: voices[name] for name in sorted(voices)}


def _count_warning(request: Request, found: int) -> tuple[str, ...]:
    """Said when the voices heard do not satisfy the counts that the request gave."""
    fewest = request.num_speakers or request.min_speakers or 0
    most = request.num_speakers or request.max_speakers or found
    if fewest <= found <= most or found == 0:
        return ()
    return (f"{found} speaker{'s' if found > 1 else ''} could be told apart, which is not the number asked for",)
