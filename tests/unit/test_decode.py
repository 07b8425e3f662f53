"""`decode` against files made here with PyAV's own encoders: lengths, tones, levels and sentences, no snapshots."""

from __future__ import annotations

import http.server
import os
import struct
import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from hansard import errors
from hansard.audio import decode as module
from hansard.audio.decode import decode
from hansard.transcript import SAMPLE_RATE, Audio

SHARED = Path(__file__).parents[2].parent / "shared" / "audio"
Sound = npt.NDArray[np.float32]


def nothing(_: float) -> None:
    """A report that nobody reads."""


def tone(seconds: float, rate: int, *frequencies: float, level: float = 0.5) -> Sound:
    """One sine per channel, shape (channels, samples); a frequency of 0 is silence."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * f * time) for f in frequencies]).astype(np.float32)


def frames(sound: Sound, rate: int, layout: str, offset: float = 0) -> Iterator[av.AudioFrame]:
    for start in range(0, sound.shape[1], 1000):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 1000]), "fltp", layout)
        frame.rate, frame.pts, frame.time_base = rate, start + round(offset * rate), Fraction(1, rate)
        yield frame


def encode(path: Path, sound: Sound, rate: int, codec: str, *, layout: str = "", **options: str) -> Path:
    layout = layout or ("mono", "stereo")[len(sound) - 1]
    with av.open(path, "w", options=options) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        for frame in frames(sound, rate, layout):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def encode_video(path: Path, video: str, audio: str | None, seconds: float = 2, offset: float = 0) -> Path:
    """A small grey video, with a 440 Hz tone that begins `offset` seconds after the picture."""
    with av.open(path, "w") as out:
        picture = out.add_stream(video, rate=10, width=64, height=64, pix_fmt="yuv420p")
        sound = out.add_stream(audio, rate=48_000, layout="mono") if audio else None
        for number in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 5, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
        if sound is not None:
            for heard in frames(tone(seconds - offset, 48_000, 440), 48_000, "mono", offset):
                out.mux(sound.encode(heard))
            out.mux(sound.encode(None))
    return path


def wav(path: Path, data: bytes, *, channels: int = 1, rate: int = 16_000, bits: int = 16, tag: int = 1) -> Path:
    width = channels * bits // 8
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * width, width, bits)
    body = b"WAVE" + head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def peak(audio: Audio, channel: int = 0, start: float = 0.2, end: float | None = None) -> tuple[float, float]:
    """The strongest frequency in Hz of a stretch, and the amplitude of a sine as loud as the stretch."""
    part = audio.channel(channel).mono(start, audio.duration - 0.2 if end is None else end)
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
    return float(spectrum.argmax() * SAMPLE_RATE / len(part)), float(np.sqrt(2 * np.mean(part**2)))


def assert_tone(audio: Audio, frequency: float, level: float = 0.5, channel: int = 0) -> None:
    heard, loud = peak(audio, channel)
    assert heard == pytest.approx(frequency, abs=3)
    assert loud == pytest.approx(level, rel=0.1)


ENCODED = [
    ("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.mov", "alac"), ("a.aac", "aac"), ("a.opus", "libopus"),
    ("a.ogg", "libopus"), ("a.webm", "libopus"), ("a.mkv", "aac"), ("a.mka", "flac"), ("a.flac", "flac"),
    ("a.wma", "wmav2"), ("a.ac3", "ac3"), ("a.eac3", "eac3"), ("a.ts", "aac"), ("a.mpg", "mp2"), ("a.mp2", "mp2"),
    ("a.avi", "libmp3lame"), ("a.flv", "aac"), ("a.aiff", "pcm_s16be"), ("a.au", "pcm_mulaw"), ("a.caf", "alac"),
    ("a.w64", "pcm_s16le"), ("a.wv", "wavpack"), ("a.tta", "tta"), ("a.wav", "pcm_s24le"), ("b.wav", "pcm_f32le"),
    ("c.wav", "pcm_u8"), ("d.wav", "adpcm_ms"), ("e.wav", "pcm_alaw"), ("a.nut", "flac"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec"), ENCODED)
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str) -> None:
    rate = 44_100 if codec == "wmav2" else 48_000
    path = encode(tmp_path / name, tone(2, rate, 440, 440), rate, codec)
    audio = decode(path, tmp_path, nothing)
    assert audio.samples.dtype == np.int16
    assert audio.channels == 1
    assert audio.duration == pytest.approx(2, abs=0.13)  # encoders pad by up to some frames
    assert_tone(audio, 440)
    assert audio.warnings == ()


def test_decode_amr(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.amr", "w") as out:
        stream = out.add_stream("libopencore_amrnb", rate=8000, layout="mono")
        stream.bit_rate = 12_200
        for frame in frames(tone(2, 8000, 440), 8000, "mono"):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    audio = decode(tmp_path / "a.amr", tmp_path, nothing)
    assert audio.duration == pytest.approx(2, abs=0.1)
    assert peak(audio)[0] == pytest.approx(440, abs=5)


@pytest.mark.parametrize(
    ("name", "video", "sound"),
    [("a.mp4", "libx264", "aac"), ("b.mp4", "mpeg4", "libmp3lame"), ("a.webm", "libvpx", "libopus"),
     ("b.webm", "libvpx-vp9", "libopus"), ("a.mkv", "libx264", "flac"), ("a.avi", "mpeg4", "mp2")],
)  # fmt: skip
def test_video_files(tmp_path: Path, name: str, video: str, sound: str) -> None:
    audio = decode(encode_video(tmp_path / name, video, sound), tmp_path, nothing)
    assert audio.duration == pytest.approx(2, abs=0.13)
    assert_tone(audio, 440)
    assert audio.warnings == ()


def test_sound_that_begins_after_the_picture_keeps_its_times(tmp_path: Path) -> None:
    audio = decode(encode_video(tmp_path / "late.mkv", "libx264", "flac", offset=0.8), tmp_path, nothing, separate=True)
    assert audio.duration == pytest.approx(2, abs=0.05)
    assert np.abs(audio.mono(0, 0.79)).max() == 0
    assert peak(audio, start=0.81, end=1)[1] == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 48_000, 96_000])
def test_sample_rates(tmp_path: Path, rate: int) -> None:
    sound = tone(3, rate, 1000)
    audio = decode(encode(tmp_path / "a.wav", sound, rate, "pcm_s16le"), tmp_path, nothing)
    assert audio.samples.shape[1] == pytest.approx(3 * SAMPLE_RATE, abs=2)
    assert_tone(audio, 1000)
    expected = tone(3, SAMPLE_RATE, 1000)[0, 8000:16_000]  # neither late nor early: the same samples, nearly
    assert np.abs(audio.mono(0.5, 1.0) - expected).max() < 0.02


def test_samples_are_a_read_only_map_and_nothing_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    audio = decode(encode(tmp_path / "a.wav", tone(1, 16_000, 440), 16_000, "pcm_s16le"), folder, nothing)
    assert isinstance(audio.samples, np.memmap)
    assert not audio.samples.flags.writeable
    assert list(folder.iterdir()) == []


def test_separate_keeps_channels_apart_and_mix_joins_them(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.flac", tone(2, 44_100, 440, 880), 44_100, "flac")
    audio = decode(path, tmp_path, nothing, separate=True)
    assert audio.channels == 2
    assert_tone(audio, 440, channel=0)
    assert_tone(audio, 880, channel=1)
    assert audio.warnings == ()
    mixed = decode(path, tmp_path, nothing)
    assert mixed.channels == 1
    spectrum = np.abs(np.fft.rfft(mixed.mono(0, 1)))
    assert set(np.argsort(spectrum)[-2:]) == {440, 880}


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac"),
                                             ("a.opus", "libopus")])  # fmt: skip
def test_two_channels_of_the_same_sound_become_one(tmp_path: Path, name: str, codec: str) -> None:
    path = encode(tmp_path / name, tone(1, 48_000, 440, 440), 48_000, codec)
    audio = decode(path, tmp_path, nothing, separate=True)
    assert audio.samples.shape[0] == 1
    assert_tone(audio, 440)
    assert "same sound" in audio.warnings[0]
    assert decode(path, tmp_path, nothing).warnings == ()


def test_a_second_voice_that_comes_late_is_not_taken_for_a_copy(tmp_path: Path) -> None:
    sound = tone(3, 16_000, 440, 440)
    sound[1, 40_000:] *= 0.9
    audio = decode(encode(tmp_path / "a.wav", sound, 16_000, "pcm_s16le"), tmp_path, nothing, separate=True)
    assert audio.channels == 2


def test_mono_asked_to_be_separate_says_so(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", tone(1, 16_000, 440), 16_000, "pcm_s16le")
    audio = decode(path, tmp_path, nothing, separate=True)
    assert audio.channels == 1
    assert audio.warnings == ("channels were to be kept apart, but the recording has only one",)


def test_surround_sound_is_mixed_or_kept(tmp_path: Path) -> None:
    sound = tone(1, 48_000, 0, 0, 440, 0, 0, 0)  # the voice in the centre
    path = encode(tmp_path / "a.ac3", sound, 48_000, "ac3", layout="5.1(side)")
    assert peak(decode(path, tmp_path, nothing))[0] == pytest.approx(440, abs=3)
    apart = decode(path, tmp_path, nothing, separate=True)
    assert apart.channels == 6
    assert peak(apart, 2)[1] > 100 * peak(apart, 0)[1]


def test_more_channels_than_can_be_speakers_are_refused(tmp_path: Path) -> None:
    many = wav(tmp_path / "many.wav", bytes(2 * 9 * 1600), channels=9)
    with pytest.raises(errors.AudioError, match="at most 8 channels"):
        decode(many, tmp_path, nothing, separate=True)
    assert decode(many, tmp_path, nothing).channels == 1


@pytest.mark.parametrize("channels", [3, 4, 6, 8])
def test_no_microphone_of_many_is_taken_for_a_subwoofer(tmp_path: Path, channels: int) -> None:
    for speaking in range(channels):
        sound = np.zeros((16_000, channels), np.int16)
        sound[:, speaking] = tone(1, 16_000, 440)[0] * 32_767
        path = wav(tmp_path / "a.wav", sound.tobytes(), channels=channels)
        assert_tone(decode(path, tmp_path, nothing), 440, 0.5 / channels)


def test_the_default_one_of_several_audio_streams_is_used(tmp_path: Path) -> None:
    for default in (0, 1):
        path = tmp_path / f"{default}.mkv"
        with av.open(path, "w") as out:
            streams = [out.add_stream("flac", rate=16_000, layout="mono") for _ in range(2)]
            for index, stream in enumerate(streams):
                stream.disposition = int(index == default)
            for stream, frequency in zip(streams, (440, 880), strict=True):
                for frame in frames(tone(1, 16_000, frequency), 16_000, "mono"):
                    out.mux(stream.encode(frame))
                out.mux(stream.encode(None))
        audio = decode(path, tmp_path, nothing)
        assert_tone(audio, (440, 880)[default])
        assert audio.warnings == (f"the file holds 2 audio streams: only number {default + 1} was used",)


# What is damaged


@pytest.mark.parametrize(("name", "codec"), [("a.flac", "flac"), ("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"),
                                             ("a.mkv", "libopus"), ("a.webm", "libopus"), ("a.aiff", "pcm_s16be"),
                                             ("a.flv", "aac"), ("a.wv", "wavpack"), ("a.tta", "tta")])  # fmt: skip
def test_cut_short_gives_what_is_there_and_says_up_to_when(tmp_path: Path, name: str, codec: str) -> None:
    path = encode(tmp_path / name, tone(10, 48_000, 440), 48_000, codec)
    os.truncate(path, path.stat().st_size * 4 // 10)
    audio = decode(path, tmp_path, nothing)
    assert 2 < audio.duration < 5
    assert_tone(audio, 440)
    (said,) = [warning for warning in audio.warnings if "cut short" in warning]
    seconds = int(said.split("00:")[1][:2])
    assert abs(seconds - audio.duration) <= 1
    assert said == f"the recording is damaged or cut short: 00:0{seconds} of 00:10 could be decoded"


def test_a_cut_mp4_whose_index_comes_first(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", tone(10, 48_000, 440), 48_000, "aac", movflags="faststart")
    os.truncate(path, path.stat().st_size // 2)
    audio = decode(path, tmp_path, nothing)
    assert 3 < audio.duration < 6
    assert "of 00:10 could be decoded" in audio.warnings[-1]


def test_a_cut_mp4_whose_index_is_lost(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", tone(5, 48_000, 440), 48_000, "aac")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(errors.AudioError, match="damaged or cut short") as raised:
        decode(path, tmp_path, nothing)
    assert type(raised.value) is errors.AudioError


def test_a_video_longer_than_its_sound_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    with av.open(path, "w") as out:
        picture = out.add_stream("libvpx", rate=10, width=64, height=64, pix_fmt="yuv420p")
        sound = out.add_stream("libopus", rate=48_000, layout="mono")
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(picture.encode(frame))
        for heard in frames(tone(2, 48_000, 440), 48_000, "mono"):
            out.mux(sound.encode(heard))
        out.mux([*picture.encode(None), *sound.encode(None)])
    audio = decode(path, tmp_path, nothing)
    assert audio.duration == pytest.approx(2, abs=0.1)
    assert audio.warnings == ()


def rewrite(source: Path, target: Path, change: Callable[[int, av.Packet], av.Packet | None]) -> Path:
    """Copy packets from one file to another; `change(number, packet)` alters them or leaves them out with None."""
    with av.open(source) as old, av.open(target, "w") as new:
        stream = new.add_stream_from_template(old.streams.audio[0])
        for number, packet in enumerate(old.demux(audio=0)):
            if packet.size and (changed := change(number, packet)):
                changed.stream = stream
                new.mux(changed)
    return target


def test_bad_packets_in_the_middle_are_left_out_and_times_stay(tmp_path: Path) -> None:
    sound = np.concatenate([tone(2, 48_000, 440), tone(2, 48_000, 880)], axis=1)
    path = encode(tmp_path / "a.mka", sound, 48_000, "flac", frame_size="4608")

    def spoil(number: int, packet: av.Packet) -> av.Packet:
        if number not in (8, 9, 10):
            return packet
        bad = av.Packet(b"\x00" * 40)
        bad.pts, bad.dts, bad.time_base, bad.duration = packet.pts, packet.dts, packet.time_base, packet.duration
        return bad

    audio = decode(rewrite(path, tmp_path / "b.mka", spoil), tmp_path, nothing)
    assert audio.warnings == ("damaged packets that had to be left out: 3",)
    assert audio.duration == pytest.approx(4, abs=0.12)
    assert peak(audio, start=1.5, end=1.9)[0] == pytest.approx(440, abs=5)
    assert peak(audio, start=2.12, end=2.5)[0] == pytest.approx(880, abs=5)
    quiet = audio.mono(8 * 4608 / 48_000 + 0.02, 11 * 4608 / 48_000 - 0.02)
    assert np.abs(quiet).max() < 0.001


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    for name, codec in (("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.flac", "flac"), ("a.ogg", "libopus"),
                        ("a.webm", "libopus"), ("a.wv", "wavpack"), ("a.ts", "aac"), ("a.avi", "mp2")):  # fmt: skip
        whole = bytearray(encode(tmp_path / name, tone(2, 48_000, 440), 48_000, codec).read_bytes())
        for _ in range(8):
            broken = bytearray(whole)
            for place in random.integers(0, len(whole), 60):
                broken[place] = random.integers(256)
            (tmp_path / name).write_bytes(broken)
            try:
                audio = decode(tmp_path / name, tmp_path, nothing, max_hours=0.1)
            except errors.AudioError:
                continue  # a refusal is as good as sound; any other exception fails this test
            assert audio.samples.shape[1] > 0


def test_a_gap_in_the_timestamps_becomes_silence(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.webm", tone(4, 48_000, 440, 880), 48_000, "libopus")

    def lose(_: int, packet: av.Packet) -> av.Packet | None:
        return None if 1 <= float(packet.pts * packet.time_base) < 2 else packet

    audio = decode(rewrite(path, tmp_path / "b.webm", lose), tmp_path, nothing, separate=True)
    assert audio.duration == pytest.approx(4, abs=0.05)
    assert np.abs(audio.samples[:, round(1.05 * SAMPLE_RATE) : round(1.95 * SAMPLE_RATE)]).max() == 0
    assert peak(audio, 0, 2.1, 3.8)[0] == pytest.approx(440, abs=3)
    assert peak(audio, 1, 2.1, 3.8)[0] == pytest.approx(880, abs=3)


def test_absurd_timestamps_are_not_believed(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", tone(3, 48_000, 440), 48_000, "mp2")

    def leap(number: int, packet: av.Packet) -> av.Packet:
        if number == 20:
            packet.pts = packet.dts = packet.pts + 90_000 * 3600 * 20
        return packet if number <= 20 else shift(packet)

    def shift(packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = packet.pts + 90_000 * 3600 * 20
        return packet

    audio = decode(rewrite(path, tmp_path / "b.ts", leap), tmp_path, nothing)
    assert audio.duration == pytest.approx(3, abs=0.2)


def test_a_stream_that_changes_rate_and_channels_in_the_middle(tmp_path: Path) -> None:
    plain = {"write_xing": "0", "id3v2_version": "0"}
    one = encode(tmp_path / "1.mp3", tone(2, 44_100, 440, 440), 44_100, "libmp3lame", **plain)
    two = encode(tmp_path / "2.mp3", tone(2, 16_000, 880), 16_000, "libmp3lame", **plain)
    three = encode(tmp_path / "3.mp3", tone(2, 48_000, 660, 660), 48_000, "libmp3lame", **plain)
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(one.read_bytes() + two.read_bytes() + three.read_bytes())
    for separate in (False, True):
        audio = decode(joined, tmp_path, nothing, separate=separate)
        assert audio.duration == pytest.approx(6, abs=0.4)
        for start, frequency in ((0.5, 440), (2.6, 880), (4.8, 660)):
            heard, loud = peak(audio, start=start, end=start + 0.8)
            assert heard == pytest.approx(frequency, abs=5)
            assert 0.3 < loud < 0.55  # one channel spread over two is quieter in each


def test_a_header_written_before_the_length_was_known(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", (tone(2, 16_000, 440)[0] * 32_767).astype(np.int16).tobytes())
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0):
        content = bytearray(path.read_bytes())
        content[40:44] = struct.pack("<I", size)
        path.write_bytes(content)
        audio = decode(path, tmp_path, nothing)
        assert audio.duration == pytest.approx(2)
        assert audio.warnings == ()


# What is refused


def refused(path: Path, folder: Path, error: type[errors.HansardError], **options: float) -> str:
    """The sentence of a refusal; it holds no part of the path."""
    with pytest.raises(errors.HansardError) as raised:
        decode(path, folder, nothing, **options)  # type: ignore[arg-type]
    assert type(raised.value) is error
    assert str(folder) not in str(raised.value)
    assert path.name not in str(raised.value)
    return raised.value.sentence


NOT_AUDIO = {
    "text.mp3": b"This is no sound.\n" * 100,
    "long.wav": "Ünïcödé, cut in the middle of a letter ".encode() * 200,
    "page.mp4": b"\xef\xbb\xbf<!DOCTYPE html><html><body>404</body></html>",
    "list.m3u8": b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1/a.ts\n",
    "list.ffconcat": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "dash.mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "call.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    "data.json": b'{"audio": true}',
    "one.gsm": b"x",
    "picture.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00"
    + b"\0" * 99,
    "paper.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"\x00\x01" * 500,
    "zeros.mp3": b"\x00" * 5000,
    "utf16.wav": "no sound at all".encode("utf-16") * 50,
}


@pytest.mark.parametrize("name", NOT_AUDIO)
def test_what_is_no_recording_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(NOT_AUDIO[name])
    assert refused(tmp_path / name, tmp_path, errors.NotAudioError)


def test_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    assert "zero bytes" in refused(tmp_path / "a.wav", tmp_path, errors.EmptyAudioError)


def test_an_empty_packet_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.nut"
    with av.open(path, "w") as out:
        stream = out.add_stream("flac", rate=48_000, layout="mono")
        packets = [p for frame in frames(tone(2, 48_000, 440), 48_000, "mono") for p in stream.encode(frame)]
        *rest, empty = stream.encode(None)  # the encoder's last word is a new header and no sound
        assert empty.size == 0
        empty.pts = empty.dts = packets[5].pts - 1
        out.mux([*packets[:5], empty, *packets[5:], *rest])
    with av.open(path) as container:
        assert [packet.size for packet in container.demux()].index(0) == 5
    audio = decode(path, tmp_path, nothing)
    assert audio.duration == pytest.approx(2, abs=0.01)
    assert audio.warnings == ()


def test_zero_seconds_of_sound(tmp_path: Path) -> None:
    assert "zero seconds" in refused(wav(tmp_path / "a.wav", b""), tmp_path, errors.EmptyAudioError)


def test_a_video_without_sound(tmp_path: Path) -> None:
    for name, video in (("a.mp4", "libx264"), ("a.webm", "libvpx")):
        path = encode_video(tmp_path / name, video, None)
        assert "video without sound" in refused(path, tmp_path, errors.NoAudioStreamError)


@pytest.mark.parametrize("rate", [1, 2_000_000_000])
def test_an_absurd_sample_rate(tmp_path: Path, rate: int) -> None:
    path = wav(tmp_path / "a.wav", b"\x01\x02" * 8000, rate=rate, bits=8)
    assert f"{rate} samples a second" in refused(path, tmp_path, errors.AudioError)


def test_protected_mp4(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.m4a", tone(1, 48_000, 440), 48_000, "aac").read_bytes()
    for entry in (b"enca", b"drms", b"aavd"):
        (tmp_path / "p.m4a").write_bytes(whole.replace(b"mp4a", entry))
        assert "DRM" in refused(tmp_path / "p.m4a", tmp_path, errors.EncryptedError)


def test_protected_windows_media(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.wma", tone(1, 44_100, 440), 44_100, "wmav2").read_bytes()
    for guid in module.DRM_GUIDS.split():
        extra = bytes.fromhex(guid) + struct.pack("<Q", 40) + b"\0" * 16
        size, count = struct.unpack("<QI", whole[16:28])
        head = whole[:16] + struct.pack("<QI", size + len(extra), count + 1) + whole[28:30]
        (tmp_path / "p.wma").write_bytes(head + extra + whole[30:])
        assert "DRM" in refused(tmp_path / "p.wma", tmp_path, errors.EncryptedError)


def test_an_unknown_codec_is_named(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", b"\x01\x02" * 8000, tag=0x1234)
    before = av.logging.get_level()
    assert "0x1234" in refused(path, tmp_path, errors.AudioError)
    assert av.logging.get_level() == before


def test_a_stream_of_which_nothing_can_be_decoded(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mka", tone(1, 48_000, 440), 48_000, "flac")

    def spoil(_: int, packet: av.Packet) -> av.Packet:
        bad = av.Packet(b"\x00" * 40)
        bad.pts, bad.dts, bad.time_base = packet.pts, packet.dts, packet.time_base
        return bad

    assert "nothing in it" in refused(rewrite(path, tmp_path / "b.mka", spoil), tmp_path, errors.AudioError)


def test_too_long_by_its_header_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wav", tone(10, 16_000, 440), 16_000, "pcm_s16le")
    with pytest.raises(errors.TooLongError, match="00:10 long"):
        decode(path, tmp_path, lambda _: pytest.fail("decoding began"), max_hours=5 / 3600)
    assert decode(path, tmp_path, nothing, max_hours=10 / 3600).duration == 10


def test_too_long_by_its_content(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.aac", tone(10, 16_000, 440), 16_000, "aac")  # a stream that declares no length
    assert "longer than" in refused(path, tmp_path, errors.TooLongError, max_hours=5 / 3600)


def test_a_nonsense_length_in_the_header_is_not_believed(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.flac", tone(2, 16_000, 440), 16_000, "flac")
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # 36 bits of samples: 1193 hours
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    audio = decode(path, tmp_path, nothing)
    assert audio.duration == pytest.approx(2)
    assert "00:02 of 1193:" in audio.warnings[-1]


# What may not happen


class Server:
    """A loopback HTTP server that notes every request."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        noted = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                noted.append(self.path)
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def playlists(url: str, local: Path) -> dict[str, str]:
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n"
    return {
        "web.m3u8": f"{head}#EXTINF:10,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
        "key.m3u8": f'{head}#EXT-X-KEY:METHOD=AES-128,URI="{url}/key"\n#EXTINF:10,\n{local}\n#EXT-X-ENDLIST\n',
        "file.m3u8": f"{head}#EXTINF:10,\n{local}\n#EXT-X-ENDLIST\n",
        "file.ffconcat": f"ffconcat version 1.0\nfile {local.name}\n",
        "web.ffconcat": f"ffconcat version 1.0\nfile {url}/a.ts\n",
    }


@pytest.mark.parametrize("guards", ["all", "no text check", "protocols only"])
@pytest.mark.parametrize("name", playlists("", Path()))
def test_playlists_reach_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, name: str, guards: str
) -> None:
    """Three fences, each of which holds without the others: text is refused, so are playlists, so is opening."""
    local = encode(tmp_path / "secret.ts", tone(1, 48_000, 440), 48_000, "aac")
    (tmp_path / name).write_text(playlists(server.url, local)[name])
    if guards != "all":
        monkeypatch.setattr(module, "_is_text", lambda _: False)
    if guards == "protocols only":
        monkeypatch.setattr(module, "CONTAINERS", module.CONTAINERS + ",hls,concat")
    with pytest.raises(errors.NotAudioError):  # had it read the local file, there would be sound
        decode(tmp_path / name, tmp_path, nothing)
    assert server.requests == []


def test_the_playlists_would_reach_out_if_they_were_let(tmp_path: Path, server: Server) -> None:
    """Proof that the test above can fail: the same files, opened without the fences."""
    local = encode(tmp_path / "secret.ts", tone(1, 48_000, 440), 48_000, "aac")
    for name, text in playlists(server.url, local).items():
        (tmp_path / name).write_text(text)
    with (tmp_path / "web.m3u8").open("rb") as file, pytest.raises(av.FFmpegError):
        av.open(file)
    assert server.requests == ["/a.ts"]
    for name in ("file.m3u8", "file.ffconcat"):
        with av.open(tmp_path / name, options={"safe": "0"}) as container:
            assert container.streams.audio


def test_every_container_of_the_list_exists_and_none_is_a_script() -> None:
    known = {part for name in av.formats_available for part in name.split(",")}
    listed = set(module.CONTAINERS.split(","))
    assert listed <= known
    assert not listed & {"hls", "dash", "concat", "sdp", "rtsp", "image2", "imf", "lavfi", "tty", "mpjpeg", "sbg"}
    assert listed >= set(module.GUESSED_LENGTH.split(","))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_impossible_seek_is_answered_as_ffmpeg_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = encode(tmp_path / "a.mov", tone(1, 48_000, 440), 48_000, "alac")
    content = path.read_bytes()
    place = content.index(b"stco") + 12
    path.write_bytes(content[:place] + b"\xff\xff\xff\xf0" + content[place + 4 :])  # sound beyond the end
    with pytest.raises(errors.AudioError):
        decode(path, tmp_path, nothing)
    with module._File(path) as file:
        assert file.seek(-5) < 0
        assert file.seek(2**62) < 0
        assert file.seek(5) == 5
    assert capfd.readouterr().err == ""


def test_cancelling_in_the_middle_passes_through_and_closes_everything(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp3", tone(60, 16_000, 440), 16_000, "libmp3lame")
    told: list[float] = []

    def cancel(fraction: float) -> None:
        told.append(fraction)
        if fraction > 0.3:
            raise errors.CancelledError("no longer wanted")

    before = descriptors()
    with pytest.raises(errors.CancelledError, match="no longer wanted"):
        decode(path, tmp_path, cancel)
    assert descriptors() == before
    assert 0.3 < told[-1] < 0.5
    for bad in (NOT_AUDIO["text.mp3"], NOT_AUDIO["zeros.mp3"], path.read_bytes()[:100]):
        (tmp_path / "bad.mp3").write_bytes(bad)
        with pytest.raises(errors.AudioError):
            decode(tmp_path / "bad.mp3", tmp_path, nothing)
    assert descriptors() == before


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.aac", "aac"), ("a.mkv", "libopus")])
def test_progress_rises_from_0_to_1(tmp_path: Path, name: str, codec: str) -> None:
    told: list[float] = []
    decode(encode(tmp_path / name, tone(30, 48_000, 440), 48_000, codec), tmp_path, told.append)
    assert told == sorted(told)
    assert told[0] == pytest.approx(0, abs=0.05)
    assert told[-1] == 1
    assert len(told) > 10
    assert told[len(told) // 2] == pytest.approx(0.5, abs=0.1)


def test_importing_loads_neither_av_nor_torch() -> None:
    code = "import sys, hansard.audio.decode; sys.exit(bool({'av', 'torch'} & set(sys.modules)))"
    source = Path(module.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source)}, check=False).returncode == 0


# Real speech


@pytest.mark.parametrize("name", ["en_jfk.flac", "de_leopard.flac", "en_falcon_3spk.flac"])
def test_real_speech(tmp_path: Path, name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not on this machine")
    with av.open(path) as container:
        seconds = (container.duration or 0) / 1e6
    audio = decode(path, tmp_path, nothing)
    assert audio.duration == pytest.approx(seconds, abs=0.001)
    assert 0.005 < np.sqrt(np.mean(audio.mono() ** 2)) < 0.5
    assert audio.warnings == ()


def test_real_telephone_channels(tmp_path: Path) -> None:
    path = SHARED / "en_stereo_lr.wav"
    if not path.exists():
        pytest.skip("en_stereo_lr.wav is not on this machine")
    audio = decode(path, tmp_path, nothing, separate=True)
    with wave.open(str(path)) as plain:
        assert plain.getnchannels() == 2
        seconds = plain.getnframes() / plain.getframerate()
        both = np.frombuffer(plain.readframes(plain.getnframes()), np.int16).reshape(-1, 2)
        rate = plain.getframerate()
    assert audio.channels == 2
    assert audio.duration == pytest.approx(seconds, abs=0.001)
    assert audio.warnings == ()
    for channel in (0, 1):
        second = [np.mean(np.abs(part)) for part in np.array_split(both[:, channel].astype(float), int(seconds))]
        heard = [np.mean(np.abs(part)) for part in np.array_split(audio.samples[channel].astype(float), int(seconds))]
        assert rate >= SAMPLE_RATE or rate == 8000
        assert np.corrcoef(second, heard)[0, 1] > 0.98


# Memory

MEMORY = """
import re, resource, sys
from pathlib import Path
import av, numpy
from hansard.audio.decode import decode
def used():  # MiB; the kernel lets a child inherit its parent's ru_maxrss, so the peak of this very program counts too
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = used()
audio = decode(Path(sys.argv[1]), Path(sys.argv[2]), lambda _: None)
after = used()
print(audio.duration / 3600, before[0], after[0] - before[0], after[1] - before[1])
"""


def test_an_hour_needs_less_memory_than_half_its_samples(tmp_path: Path) -> None:
    """What is needed does not grow with the length: it was 5 MiB for one minute, one hour and ten hours alike."""
    plain = {"write_xing": "0", "id3v2_version": "0"}
    minute = encode(tmp_path / "1.mp3", tone(60, 8000, 440), 8000, "libmp3lame", **plain).read_bytes()
    (tmp_path / "a.mp3").write_bytes(minute * 60)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.mp3"), str(tmp_path)]
    source = Path(module.__file__).parents[2]
    answer = subprocess.run(command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=True)
    hours, before, growth, resources = map(float, answer.stdout.split())
    print(f"{hours:.2f} h: {growth:.0f} MiB above the {before:.0f} MiB of the interpreter")
    assert hours == pytest.approx(1, abs=0.01)
    assert before > 10
    assert max(growth, resources) < 50
