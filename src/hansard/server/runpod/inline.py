"""A recording inside a request to RunPod, which takes 10 MB and no file beside it.

As it came where it fits; else as FLAC of what the engine would hear, else as MP3, which costs no words (measured, see
`audio.encode`). What is longer than that lets through has to be sent as a URL, or needs a `bucket`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hansard.audio.decode import decode
from hansard.audio.encode import FLAC, MP3, Format, encode
from hansard.audio.fetch import data_uri
from hansard.errors import AudioError, TooLargeError, TooLongError
from hansard.settings import Settings
from hansard.transcript import Audio, Span

LIMIT = 10_000_000  # bytes that /run takes
SPARE = 20_000  # of them, for what lies around the input
FLAC_BYTES = 10_000  # a second of the barest speech; what is longer than this allows is not tried

Inline = tuple[str, tuple[str, ...]]
"""A data URI and the warnings that it costs."""


def fits(recording: Path, rest: int) -> bool:
    """Is a recording, as it is, small enough for a request whose other parts take `rest` bytes?"""
    return recording.stat().st_size <= _room(rest)


def inline(recording: Path, rest: int, settings: Settings, *, separate: bool) -> Inline:
    """A recording as a data URI for a request whose other parts take `rest` bytes; `separate` keeps its channels.

    Takes as long as decoding. Raises TooLargeError where it does not fit, AudioError where it cannot be read.
    """
    room = _room(rest)
    if fits(recording, rest):
        return data_uri(recording.read_bytes()), ()
    advice = "; give the recording as a URL instead"
    if separate:
        raise TooLargeError(f"the endpoint takes {room / 1e6:.1f} MB within a request{advice}")
    most_s = room * 8 / MP3.bit_rate
    too_long = TooLargeError(
        f"the endpoint takes {max(0.0, most_s) / 60:.0f} minutes of sound within a request{advice}"
    )
    if most_s < 1:
        raise too_long
    with tempfile.TemporaryDirectory(dir=settings.work_dir) as folder:
        try:
            audio = decode(recording, Path(folder), lambda _: None, max_hours=most_s / 3600)
        except TooLongError:
            raise too_long from None
        return _smaller(audio, room) or _refuse(too_long)


def _room(rest: int) -> int:
    return (LIMIT - SPARE - rest) // 4 * 3  # base64 makes four bytes of three


def _smaller(audio: Audio, room: int) -> Inline | None:
    tries: list[tuple[Format, Callable[[], bool]]] = [
        (FLAC, lambda: audio.duration * FLAC_BYTES <= room),
        (MP3, lambda: True),
    ]
    for format, worth in tries:
        if worth():
            content = encode(audio, Span(0.0, audio.duration), format)
            if len(content) <= room:
                told = f"the recording was sent to the endpoint as {format.container.upper()}, 16 kHz, to fit its limit"
                return data_uri(content, format.media_type), (*audio.warnings, told)
    return None


def _refuse(error: AudioError) -> Inline:
    raise error
