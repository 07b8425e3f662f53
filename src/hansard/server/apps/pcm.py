"""What is heard of the sound that comes to the addresses of whisper-asr-webservice.

Some callers send it without a header: 16-bit little-endian samples, mono at 16 kHz. It is given that of a WAV file, and
then it is a recording like any other. To tell its language, pieces of a long recording are enough; they make a WAV file
too. What is rewritten has a digest of its own: the same bytes with and without `encode` are different sounds.

All of it blocks; call it in a thread.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hansard.audio.decode import decode
from hansard.errors import EmptyAudioError
from hansard.server.uploads import Upload
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE, Report

WIDTH = 2  # bytes of a sample
PIECES = 6  # by which a language is told
PIECE_S = 30
BLOCK = 2**19  # samples copied at once

Samples = npt.NDArray[np.int16]


def with_header(upload: Upload) -> Upload:
    """An upload as a WAV file, in its place; what is one already stays as it is. Raises EmptyAudioError."""
    if _is_wav(upload.path):
        return upload
    samples = _samples(upload)
    return _rewritten(upload, "samples", samples, [(0, len(samples))])


def excerpt(upload: Upload, settings: Settings, report: Report, *, headerless: bool) -> Upload:
    """Some pieces of a long upload as a WAV file, in its place: enough to tell its language.

    A short one stays as it is, or is given its header. Raises AudioError or a child of it, and what `report` raises.
    """
    bare = headerless and not _is_wav(upload.path)
    samples = _samples(upload) if bare else _decoded(upload, settings, report)
    length, piece = len(samples), PIECE_S * SAMPLE_RATE
    if length <= PIECES * piece:
        return with_header(upload) if bare else upload
    step = (length - piece) // (PIECES - 1)
    kind = "pieces of samples" if bare else "pieces"
    return _rewritten(upload, kind, samples, [(number * step, piece) for number in range(PIECES)])


def _is_wav(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WAVE"


def _samples(upload: Upload) -> Samples:
    """The samples of an upload without a header; an odd last byte is none. Raises EmptyAudioError."""
    if upload.size < WIDTH:
        raise EmptyAudioError("the recording holds not even one sample; encode=false means 16-bit samples at 16 kHz")
    samples: Samples = np.memmap(upload.path, "<i2", mode="r", shape=(upload.size // WIDTH,))
    return samples


def _decoded(upload: Upload, settings: Settings, report: Report) -> Samples:
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    audio = decode(upload.path, settings.work_dir, report, max_hours=settings.max_audio_hours)
    samples: Samples = audio.samples[0]
    return samples


def _rewritten(upload: Upload, kind: str, samples: Samples, pieces: Sequence[tuple[int, int]]) -> Upload:
    """These pieces of the samples, each its first one and how many, as a WAV file that takes the upload's place."""
    path = upload.path.with_name("samples.wav")
    with path.open("wb") as target, wave.open(target, "wb") as wav:
        wav.setparams((1, WIDTH, SAMPLE_RATE, sum(length for _, length in pieces), "NONE", ""))
        for start, length in pieces:
            for first in range(start, start + length, BLOCK):
                block = samples[first : min(first + BLOCK, start + length)]
                wav.writeframesraw(block.astype("<i2", copy=False).tobytes())
    upload.path.unlink()
    return replace(upload, path=path, size=path.stat().st_size, sha256=f"{upload.sha256}:{kind}")
