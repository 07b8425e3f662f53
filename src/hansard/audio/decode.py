"""Any container or codec, video files too, to `Audio`: PyAV's own libraries, no ffmpeg program.

FFmpeg is given an open file, a list of containers and an empty list of protocols: whatever a file says, nothing
else is opened, neither on the network nor on the disk.

Not covered: cuts in streams that declare no length (raw AAC, MPEG-TS, Ogg) cannot be noticed; lost frames of a raw
stream without timestamps (MP3, ADTS) shift what follows; Matroska's own encryption is met as damage.
"""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from hansard import errors
from hansard.transcript import SAMPLE_RATE, Audio, Report

if TYPE_CHECKING:
    from av import AudioFrame, AudioLayout, AudioResampler, AudioStream, Packet
    from av.container import InputContainer

# FFmpeg's names of what is read: every one holds its sound in itself. Playlists and scripts are not among them.
CONTAINERS = (
    "3g2,3gp,aa,aac,ac3,ac4,act,adx,aea,aiff,amr,amrnb,amrwb,ape,asf,asf_o,au,avi,caf,dsf,dss,dts,dtshd,dv,eac3,flac,"
    "flv,g722,gsm,gxf,iff,ircam,live_flv,loas,m4a,matroska,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nsv,nut,"
    "ogg,oma,qcp,qoa,rm,shn,sln,sox,spdif,tak,truehd,tta,voc,vqf,w64,wav,webm,wtv,wv,xwma"
)
# Those without a length of their own: FFmpeg guesses it from the bit rate or the last timestamp.
GUESSED_LENGTH = "aac,ac3,ac4,amr,amrnb,amrwb,dts,dtshd,eac3,g722,gsm,loas,mlp,mpeg,mpegts,truehd"
ASF = bytes.fromhex("3026b2758e66cf11")
MAGIC = (b"RIFF", b"RF64", b"OggS", b"fLaC", b"FORM", b"caff", b"\x1aE\xdf\xa3", b"ID3", b"FLV", ASF)
DRM_TAGS = {"enca", "drms", "aavd"}  # MP4 sample entries: common encryption, FairPlay, Audible
# ASF objects of protected files, in hexadecimal: content encryption, extended and advanced content encryption.
DRM_GUIDS = "fbb3112223bdd211b4b700a0c955fc6e 14e68a292226174cb935dae07ee9289c 338505438169e6499b74ad12cb86d58c"
GAP = 0.1  # seconds of missing timestamps that are filled with silence
SAME = 32  # of 32768: copies differ by less everywhere (AAC by 17); no voice is that quiet
OPEN_END = 0x7FFF0000  # a WAV data size from here on means "not known when the header was written"
MOST_CHANNELS = 8  # kept apart: each costs its own disk space and its own transcription
REPORT_EVERY = 64  # packets
MOST_FAILURES = 20  # reads in a row that fail before the rest is given up


def decode(path: Path, folder: Path, report: Report, *, separate: bool = False, max_hours: float = 12) -> Audio:
    """The sound of a recording as int16 at 16 kHz, shape (1, samples), or (channels, samples) with `separate`.

    The samples lie in an unnamed file in `folder`, mapped read-only: it vanishes with the array, or with the
    process. Raises AudioError or a child of it, and whatever `report` raises.
    """
    from av import FFmpegError

    with _File(path) as file, tempfile.TemporaryFile(dir=folder) as raw:
        _refuse_hopeless(file)
        promised = _riff_seconds(file)
        try:
            with _open(file) as container:
                stream, warnings = _choose(container)
                if separate and stream.codec_context.channels > MOST_CHANNELS:
                    raise errors.AudioError(f"channels: separate takes a recording of at most {MOST_CHANNELS} channels")
                declared = _declared_seconds(container, stream, max_hours)
                samples = _Samples(raw, separate, max_hours, declared)
                lost, reached = _pour(container, stream, samples, report)
        except (FFmpegError, ValueError) as error:
            raise errors.AudioError("the recording is damaged and cannot be decoded") from error
        if lost:
            warnings += (f"damaged packets that had to be left out: {lost}",)
        end, length = samples.position if lost else reached, promised or declared or 0
        if length - end > 0.5 + 0.002 * length:
            span = f"{_clock(end)} of {_clock(length)} could be decoded"
            warnings += (f"the recording is damaged or cut short: {span}",)
        return samples.finish(warnings, lost > 0)


class _File(io.FileIO):
    """A file that answers an impossible seek with a negative number, as FFmpeg does; PyAV would print a traceback."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError:
            return -errno.EINVAL


def _refuse_hopeless(file: IO[bytes]) -> None:
    """Refuse what its first bytes give away: nothing at all, text, a protected ASF file."""
    head = file.read(512)
    if not head:
        raise errors.EmptyAudioError("the file is empty: it has zero bytes")
    if _is_text(head):
        raise errors.NotAudioError("the file is text (a web page, a playlist or a document), not a recording")
    if head.startswith(ASF):
        header = (head + file.read(1 << 20))[: int.from_bytes(head[16:24], "little")]
        if any(bytes.fromhex(guid) in header for guid in DRM_GUIDS.split()):
            raise errors.EncryptedError("the recording is protected by DRM (Windows Media): send an unprotected copy")


def _is_text(head: bytes) -> bool:
    # An incremental decoder forgives a character that the 512 bytes cut in two.
    text = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(head)
    return "\ufffd" not in text and all(character.isprintable() or character.isspace() for character in text)


def _riff_seconds(file: IO[bytes]) -> float | None:
    """The length that a PCM WAV header promises, where it does; FFmpeg itself cuts it down to what is there."""
    file.seek(0)
    start, rate = file.read(12), 0
    for _ in range(100 if start.startswith(b"RIFF") and start.endswith(b"WAVE") else 0):
        name, size = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        if name == b"data":
            return size / rate if rate and 0 < size < OPEN_END else None
        body = file.read(min(size, 16))
        if name == b"fmt " and len(body) == 16:
            tag, _, _, rate = struct.unpack("<HHII", body[:12])  # the rate in bytes a second
            rate *= tag in {1, 3, 6, 7, 0xFFFE}  # PCM, float, A-law, µ-law, extensible
        file.seek(size - len(body) + size % 2, os.SEEK_CUR)
    return None


def _open(file: IO[bytes]) -> InputContainer:
    """The file as a container; FFmpeg may read these very bytes and open nothing else."""
    import av

    logging.getLogger("libav").setLevel(logging.CRITICAL)  # a damaged file fills the log; our warning sums it up
    only_this = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
    file.seek(0)
    try:
        container: InputContainer = av.open(file, "r", container_options=only_this, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        file.seek(0)
        head = file.read(12)
        if head.startswith(MAGIC) or head[4:8] in {b"ftyp", b"moov", b"mdat"}:
            raise errors.AudioError("the recording is damaged or cut short: its header or index is missing") from error
        raise errors.NotAudioError("the file is not a recording in any format known here") from error
    return container


def _choose(container: InputContainer) -> tuple[AudioStream, tuple[str, ...]]:
    """The audio stream marked as default, else the first, and a warning where there were several."""
    from av.stream import Disposition

    if not (streams := container.streams.audio):
        kind = "video" if container.streams.video else "container"
        raise errors.NoAudioStreamError(f"the file holds no audio stream: it is a {kind} without sound")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise errors.AudioError(f"the audio codec {_codec_name(container, stream)} cannot be decoded here")
    if _is_protected(stream):
        raise errors.EncryptedError("the recording is protected by DRM: send an unprotected copy")
    several = f"the file holds {len(streams)} audio streams: only number {streams.index(stream) + 1} was used"
    return stream, (several,) if len(streams) > 1 else ()


def _is_protected(stream: AudioStream) -> bool:
    try:
        return stream.codec_context.codec_tag in DRM_TAGS
    except UnicodeDecodeError:  # PyAV takes every tag for ASCII
        return False


def _codec_name(container: InputContainer, stream: AudioStream) -> str:
    """What FFmpeg calls a codec for which it has no decoder; only its log knows."""
    from av import logging as av_logging

    level = av_logging.get_level()
    av_logging.set_level(av_logging.INFO)
    log: str = container.dumps_format()  # type: ignore[attr-defined]
    av_logging.set_level(level)
    return log.partition(f"#0:{stream.index}")[2].partition("Audio: ")[2].partition(",")[0] or "of this file"


def _declared_seconds(container: InputContainer, stream: AudioStream, max_hours: float) -> float | None:
    """The length the file itself declares, None where FFmpeg only guesses it; raises TooLongError."""
    name, seconds = container.format.name, (container.duration or 0) / 1e6
    guessed = name in GUESSED_LENGTH.split(",") or (
        name == "mp3" and not stream.start_time
    )  # only an Info header gives a start
    if guessed or seconds <= 0:
        return None
    if max_hours * 3600 + 1 < seconds <= container.size:  # no codec has under one byte a second: more is nonsense
        raise errors.TooLongError(f"the recording is {_clock(seconds)} long; at most {max_hours:g} hours are accepted")
    return seconds


def _pour(container: InputContainer, stream: AudioStream, samples: _Samples, report: Report) -> tuple[int, float]:
    """Decode everything into `samples`; how many packets were lost, and the time in seconds the file goes up to."""
    start = (container.start_time or 0) / 1e6  # of the earliest stream: sound may begin after the picture
    length, size = (container.duration or 0) / 1e6, container.size
    lost, reached, place = 0, 0.0, 0
    for number, (packet, frames) in enumerate(_read(container, stream)):
        if packet is not None:
            place = packet.pos or place
            end = (packet.pts or 0) + (packet.duration or 0)
            reached = max(reached, float(end * packet.time_base) - start)
        if number % REPORT_EVERY == 0:  # by time, or by bytes where the length is not known
            report(min(max(reached / length if length > 0 else place / size, 0.0), 1.0))
        lost += frames is None
        for frame in frames or ():
            samples.add(frame, start)
    samples.flush()
    report(1.0)
    return lost, reached


def _read(container: InputContainer, stream: AudioStream) -> Iterator[tuple[Packet | None, list[AudioFrame] | None]]:
    """Every packet in the file's order, with its sound where it belongs to `stream`; None is what is damaged."""
    import av

    def decoded(packet: Packet | None) -> list[AudioFrame] | None:
        try:
            return list(stream.decode(packet))
        except (av.FFmpegError, ValueError):
            return None

    failures = 0
    while failures < MOST_FAILURES:
        try:
            for packet in container.demux():
                failures = 0
                if packet.size:  # an empty one, legal in mid-file, would tell the decoder that the end has come
                    yield packet, decoded(packet) if packet.stream_index == stream.index else []
            break
        except (av.FFmpegError, ValueError, IndexError):  # IndexError: PyAV and streams that appear in the middle
            failures += 1
            if failures == 1:
                yield None, None
    yield None, decoded(None)  # what the decoder still holds


class _Samples:
    """The growing file of 16 kHz samples, interleaved, with the resampler before it."""

    def __init__(self, raw: IO[bytes], separate: bool, max_hours: float, declared: float | None) -> None:
        self.position = 0.0  # seconds of the recording that were taken in
        self._raw, self._separate, self._max_hours = raw, separate, max_hours
        self._believed = declared + 1 if declared else max_hours * 3600  # timestamps beyond this are nonsense
        self._length = self._channels = 0  # of the file; no channels before the first frame
        self._layout: AudioLayout | str = "mono"  # of the file
        self._resampler: AudioResampler | None = None
        self._source: tuple[object, ...] = ()  # what the resampler was made for
        self._copies = True  # do all channels carry the same?

    def add(self, frame: AudioFrame, start: float) -> None:
        """Append a frame of any format; `start` is the recording's first timestamp in seconds."""
        from av import AudioResampler

        if not self._channels:
            self._layout, self._channels = (frame.layout, frame.layout.nb_channels) if self._separate else ("mono", 1)
        if frame.pts is not None and frame.time_base is not None:
            self._catch_up(float(frame.pts * frame.time_base) - start)
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or source != self._source:  # the stream may change in the middle
            self.flush()
            if not 1000 <= frame.sample_rate <= 3_000_000:  # it would keep the resampler busy for minutes
                raise errors.AudioError(f"the recording is damaged: {frame.sample_rate} samples a second are no sound")
            # Channels without names ("6 channels") FFmpeg would take for surround sound and mute a "subwoofer".
            unnamed = frame.layout.name.endswith("channels") and not self._separate
            layout = frame.layout if unnamed else self._layout
            self._resampler = AudioResampler("s16", layout, SAMPLE_RATE, SAMPLE_RATE)  # frames of one second
            self._source = source
        self.position += frame.samples / frame.sample_rate
        self._write(self._resampler.resample(frame))

    def flush(self) -> None:
        """Write what the resampler still holds; the next frame gets a new one."""
        if self._resampler is not None:
            self._write(self._resampler.resample(None))
        self._resampler = None

    def finish(self, warnings: tuple[str, ...], damaged: bool) -> Audio:
        """The file as `Audio`, of one channel where all are copies of each other."""
        if not self._length:
            empty = errors.EmptyAudioError("the recording is empty: it holds zero seconds of sound")
            raise errors.AudioError("the recording is damaged: nothing in it can be decoded") if damaged else empty
        self._raw.truncate(self._length * self._channels * 2)
        samples = np.memmap(self._raw, np.int16, mode="r", shape=(self._length, self._channels)).T
        if not self._separate or not self._copies:
            return Audio(samples, warnings)
        one = "channels were to be kept apart, but the recording has only one"
        same = f"all {self._channels} channels carry the same sound: only one was kept"
        return Audio(samples[:1], (*warnings, one if self._channels == 1 else same))

    def _catch_up(self, time: float) -> None:
        """Fill what is missing before `time`, in seconds, with silence, so that times stay the recording's own."""
        if time - self.position <= GAP or time > self._believed:
            return
        self.flush()
        missing = max(round(time * SAMPLE_RATE) - self._length, 0)
        self._raw.seek(missing * self._channels * 2, os.SEEK_CUR)  # a hole costs no disk and reads as zeros
        self._grow(missing)
        self.position = time

    def _write(self, frames: Iterable[AudioFrame]) -> None:
        for frame in frames:
            block = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            if block.shape[1] != self._channels:
                block = block.mean(axis=1, keepdims=True)
            if self._separate and self._copies:
                self._copies = bool(np.ptp(np.ascontiguousarray(block.T, np.int32), axis=0).max(initial=0) <= SAME)
            self._raw.write(block.astype(np.int16).tobytes())
            self._grow(len(block))

    def _grow(self, count: int) -> None:
        self._length += count
        if self._length > (self._max_hours * 3600 + 1) * SAMPLE_RATE:
            raise errors.TooLongError(f"the recording is longer than {self._max_hours:g} hours, the most accepted")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes:02}:{rest:02}"
