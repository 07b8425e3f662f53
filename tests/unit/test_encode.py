"""Stretches of a recording as files: what comes back is what went in, wherever it is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from hansard.audio.encode import FLAC, MP3, Format, encode
from hansard.errors import EngineError
from hansard.transcript import SAMPLE_RATE, Audio, Span
from places import CLIPS

Int16 = npt.NDArray[np.int16]
Decoder = Callable[[bytes], Int16]

MP3_SLACK = 48  # samples behind the end of a file, 3 ms

BOTH = pytest.mark.parametrize("format", [FLAC, MP3], ids=lambda format: format.container)


@pytest.fixture(scope="module")
def audio() -> Audio:
    samples, _ = soundfile.read(CLIPS / "meeting_en_2voices.flac", dtype="int16")
    return Audio(samples[None])


def by_ffmpeg(file: bytes) -> Int16:
    with av.open(io.BytesIO(file)) as container:
        assert container.streams.audio[0].rate == SAMPLE_RATE
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        frames = [ready for frame in container.decode(audio=0) for ready in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in [*frames, *resampler.resample(None)]])


def by_libsndfile(file: bytes) -> Int16:
    samples, rate = soundfile.read(io.BytesIO(file), dtype="int16")
    assert rate == SAMPLE_RATE
    return samples


def shift(one: Int16, other: Int16) -> int:
    """By how many samples the second lags behind the first, at the peak of their correlation."""
    size = 1 << (2 * len(one)).bit_length()
    spectra = [np.fft.rfft(samples.astype(np.float64), size) for samples in (one, other)]
    peak = int(np.fft.irfft(spectra[1] * np.conj(spectra[0]), size).argmax())
    return peak if peak < size // 2 else peak - size


@BOTH
@pytest.mark.parametrize("decoder", [by_ffmpeg, by_libsndfile])
def test_nothing_is_lost_or_shifted(audio: Audio, format: Format, decoder: Decoder) -> None:
    span = Span(3.0, 18.5)
    sent = audio.samples[0, 3 * SAMPLE_RATE : round(18.5 * SAMPLE_RATE)]
    heard = decoder(encode(audio, span, format))
    assert len(sent) <= len(heard) <= len(sent) + (0 if format is FLAC else MP3_SLACK)
    assert shift(sent, heard[: len(sent)]) == 0


@pytest.mark.parametrize("decoder", [by_ffmpeg, by_libsndfile])
def test_flac_loses_not_a_bit(audio: Audio, decoder: Decoder) -> None:
    assert np.array_equal(decoder(encode(audio, Span(0, 5), FLAC)), audio.samples[0, : 5 * SAMPLE_RATE])


def test_files_are_smaller_than_the_sound(audio: Audio) -> None:
    raw = 30 * SAMPLE_RATE * 2
    assert len(encode(audio, Span(0, 30), FLAC)) < raw / 1.5
    assert len(encode(audio, Span(0, 30), MP3)) < raw / 3.9


@BOTH
@pytest.mark.parametrize("seconds", [1 / SAMPLE_RATE, 0.015, 0.1, 0.2881])
def test_the_shortest_of_stretches_is_a_file_too(audio: Audio, format: Format, seconds: float) -> None:
    more = len(by_ffmpeg(encode(audio, Span(1.0, 1.0 + seconds), format))) - round(seconds * SAMPLE_RATE)
    assert 0 <= more <= (0 if format is FLAC else MP3_SLACK)


@BOTH
def test_only_the_first_channel_is_in_it(audio: Audio, format: Format) -> None:
    other = Audio(np.vstack([audio.samples, audio.samples[:, ::-1]]))
    assert encode(other, Span(2, 4), format) == encode(audio, Span(2, 4), format)


@BOTH
def test_the_same_sound_is_the_same_file_on_any_thread(audio: Audio, format: Format) -> None:
    alone = [encode(audio, Span(at, at + 3), format) for at in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda at: encode(audio, Span(at, at + 3), format), range(4))) == alone


def test_the_name_tells_the_kind() -> None:
    assert (FLAC.file_name, MP3.file_name) == ("speech.flac", "speech.mp3")


@pytest.mark.parametrize("broken", [{"codec": "no_such_codec"}, {"container": "no_such_container"}])
def test_a_format_that_cannot_be_written_is_a_clear_error(audio: Audio, broken: dict[str, str]) -> None:
    with pytest.raises(EngineError, match=r"install the av of requirements\.txt"):
        encode(audio, Span(0, 1), replace(FLAC, **broken))
