"""How likely somebody speaks at each moment: pyannote's model that rides in whisperx, or Silero's in faster-whisper.

A recording is read in blocks, so memory does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hansard.audio.speech import Activity
from hansard.batch import Batch
from hansard.transcript import SAMPLE_RATE, Audio, Float32, Report
from hansard.vendors import import_pyannote, packaged, quiet

BLOCK_S = 300.0


class VoiceActivity(Protocol):
    """Measures the probability of speech over a whole recording; `report` hears of each block."""

    def __call__(self, audio: Audio, report: Report) -> Activity: ...


def load_voice_activity(method: str, device: str) -> VoiceActivity:
    """The voice activity model `pyannote` or `silero`, the former on a torch device.

    Raises EngineMissingError where its package is not installed.
    """
    return Silero() if method == "silero" else PyanNet(device)


class Silero:
    """Silero VAD 6 through faster-whisper, always on the CPU: about 500 times faster than the recording plays."""

    FRAME = 512  # samples
    CONTEXT = 156  # frames, 5 s, heard before each block so that its beginning is judged like its middle

    def __call__(self, audio: Audio, report: Report) -> Activity:
        from faster_whisper.vad import get_vad_model

        model, parts = get_vad_model(), [np.zeros(0, np.float32)]
        total = -(-audio.samples.shape[1] // self.FRAME)
        size = int(BLOCK_S * SAMPLE_RATE) // self.FRAME
        for first in range(0, total, size):
            report(first / total)
            begin, end = max(0, first - self.CONTEXT), min(first + size, total)
            sound = _sound(audio, begin * self.FRAME, end * self.FRAME)
            parts.append(model(sound).reshape(-1)[first - begin :])
        report(1.0)
        return Activity(np.concatenate(parts), self.FRAME / SAMPLE_RATE)


class PyanNet:
    """The segmentation model of whisperx (pyannote, 3 speakers): speech is the likeliest of its outputs.

    Windows of 5 s as in training, every 1.25 s, averaged where they overlap. whisperX takes one every 0.5 s: 2.5 times
    the work for the same answer (tests compare the two). Every 2.5 s would miss twice as much of one of 14 recordings.
    Some silence is put before the recording, so that its first words are judged in more than one window: without
    it (as in whisperX) a first sentence was missed.
    """

    STEP = 270  # samples a frame, from the strides of the model's convolutions
    SEEN = 991  # samples that a frame is made from
    WINDOW = 293  # frames, 5 s
    EVERY = 74  # frames from one window to the next
    BATCH = 32

    def __init__(self, device: str) -> None:
        weights = packaged("whisperx", "assets/pytorch_model.bin")
        import_pyannote()
        with quiet():
            from pyannote.audio import Model

            self._model = Model.from_pretrained(weights).eval().to(device)
        self._device = device

    def __call__(self, audio: Audio, report: Report) -> Activity:
        frames = self.EVERY + audio.samples.shape[1] // self.STEP + 1
        windows = max(1, -(-(frames - self.WINDOW) // self.EVERY) + 1)
        summed = np.zeros((windows - 1) * self.EVERY + self.WINDOW, np.float32)
        count = np.zeros_like(summed)
        done = 0
        batch = Batch(self.BATCH)
        for some, found in batch.run(range(windows), lambda some: self._windows(audio, some)):
            for window, speech in zip(some, found, strict=True):
                here = slice(window * self.EVERY, window * self.EVERY + len(speech))
                summed[here] += speech
                count[here] += 1
            done += len(some)
            report(done / windows)
        mean: Float32 = np.divide(summed, count, dtype=np.float32)[self.EVERY : frames]
        warnings: tuple[str, ...] = ()
        if batch.size < batch.asked:
            warnings = (
                f"memory was short: speech was looked for in {batch.size} windows at a time, not {batch.asked}",
            )
        return Activity(mean, self.STEP / SAMPLE_RATE, (self.SEEN - self.STEP) / 2 / SAMPLE_RATE, warnings)

    def _windows(self, audio: Audio, windows: Sequence[int]) -> Sequence[Float32]:
        """Speech in windows that follow one another, each of shape (frames,)."""
        import torch

        length, every = self.SEEN + (self.WINDOW - 1) * self.STEP, self.EVERY * self.STEP
        sound = torch.from_numpy(_sound(audio, (windows[0] - 1) * every, (windows[-1] - 1) * every + length))
        with torch.inference_mode():
            found = self._model(sound.unfold(0, length, every)[:, None].to(self._device))
        return list(found.amax(dim=2).float().cpu().numpy())


def _sound(audio: Audio, first: int, last: int) -> Float32:
    """Samples of the first channel as float32, with silence before and behind the recording."""
    begin = max(0, first)
    sound = audio.mono(begin / SAMPLE_RATE, last / SAMPLE_RATE)
    return np.pad(sound, (begin - first, last - begin - len(sound)))
