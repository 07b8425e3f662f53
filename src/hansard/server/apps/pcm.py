"""Sound without a header: 16-bit little-endian samples, mono at 16 kHz, as some callers of `/asr` send it.

It is given the header of a WAV file, and then it is a recording like any other. Blocks; call it in a thread.
"""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from hansard.errors import EmptyAudioError
from hansard.server.uploads import Upload
from hansard.transcript import SAMPLE_RATE

WIDTH = 2  # bytes of a sample
PIECES = 6  # by which a language is told
PIECE_S = 30
BLOCK = 2**20  # bytes copied at once


def with_header(upload: Upload) -> Upload:
    """An upload as a WAV file, in its place; what is one already stays as it is. Raises EmptyAudioError."""
    if _is_wav(upload.path):
        return upload
    return _rewritten(upload, [(0, _samples(upload))])


def excerpt(upload: Upload) -> Upload:
    """Some pieces of a long upload as a WAV file, in its place: enough to tell its language. Raises EmptyAudioError."""
    length, piece = _samples(upload), PIECE_S * SAMPLE_RATE
    if _is_wav(upload.path):
        return upload
    if length <= PIECES * piece:
        return with_header(upload)
    step = (length - piece) // (PIECES - 1)
    return replace(
        _rewritten(upload, [(number * step, piece) for number in range(PIECES)]), sha256=f"{upload.sha256}:6"
    )


def _is_wav(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WAVE"


def _samples(upload: Upload) -> int:
    if upload.size < WIDTH:
        raise EmptyAudioError("the recording holds not even one sample; encode=false means 16-bit samples at 16 kHz")
    return upload.size // WIDTH


def _rewritten(upload: Upload, pieces: list[tuple[int, int]]) -> Upload:
    """These pieces of an upload, each its first sample and how many, as a WAV file that takes its place."""
    path = upload.path.with_name("samples.wav")
    with upload.path.open("rb") as raw, path.open("wb") as target, wave.open(target, "wb") as wav:
        wav.setparams((1, WIDTH, SAMPLE_RATE, sum(length for _, length in pieces), "NONE", ""))
        for start, length in pieces:
            raw.seek(start * WIDTH)
            _copy(raw, wav, length * WIDTH)
    upload.path.unlink()
    return replace(upload, path=path, size=path.stat().st_size)


def _copy(raw: BinaryIO, wav: wave.Wave_write, left: int) -> None:
    while left and (block := raw.read(min(left, BLOCK))):
        wav.writeframesraw(block)
        left -= len(block)
