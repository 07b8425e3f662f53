"""What `embedded` builds on pyannote.audio; importing this loads torch, so only that class does it.

Voices are embedded once for the whole recording, over a sliding window, and pooled per speaker and chunk (the stock
pipeline embeds every second of sound ten times over).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from pyannote.audio import Model

from hansard.diarizers.bounded_pipeline import Array, BoundedPipeline
from hansard.transcript import SAMPLE_RATE

# Resemblyzer's own figures (resemblyzer/hparams.py): 25 ms windows every 10 ms, 40 mel bands, 1.6 s a voice window.
FFT = 400
HOP = 160
MELS = 40
VOICE_FRAMES = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP

# Chosen on the clips of tests/bench: steps of 0.1-0.25 s, powers 2-8 and thresholds 0.4-0.6 were tried.
VOICE_STEP = 25  # frames between voice windows
PURITY = 4  # a window counts by the share of it in which the speaker talks, to this power
LEAST_FRAMES = 20  # of speech a speaker must have in a chunk to be embedded
LEAST_ALONE = 0.08  # share of a chunk from which speech without overlap is used alone
PARAMETERS = {
    "segmentation": {"threshold": 0.5, "min_duration_off": 0.0},
    "clustering": {"method": "centroid", "threshold": 0.5, "min_cluster_size": 12},
}
LOUDNESS = 1e-3  # mean power, -30 dBFS, at which the encoder was trained
BLOCK_WINDOWS = 256
CHUNK_FRAMES = 5 * FRAMES_PER_SECOND  # what the segmentation model hears at once
BATCH = 32

Hook = Callable[..., None]


class VoiceEncoder(Model):  # type: ignore[misc]
    """Resemblyzer's speaker encoder (GE2E, three LSTM layers), as a pyannote model.

    Weights and architecture: resemblyzer/voice_encoder.py, Apache-2.0. Tests compare it with the original.
    """

    dimension = 256

    def __init__(self, weights: Path) -> None:
        super().__init__(sample_rate=SAMPLE_RATE, num_channels=1)
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=FFT, hop_length=HOP, n_mels=MELS, center=False, norm="slaney", mel_scale="slaney"
        )
        self.lstm = torch.nn.LSTM(MELS, self.dimension, num_layers=3, batch_first=True)
        self.linear = torch.nn.Linear(self.dimension, self.dimension)
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        ours = {key: value for key, value in state.items() if key.startswith(("lstm.", "linear."))}
        self.load_state_dict(ours, strict=False)  # the mel filters are computed, not stored

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Voices of sound of shape (samples,): one unit vector for each window, shape (windows, 256)."""
        mels = self.mel(waveform).T.unfold(0, VOICE_FRAMES, VOICE_STEP).transpose(1, 2)
        _, (hidden, _) = self.lstm(mels.contiguous())
        return torch.nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class EmbeddedPipeline(BoundedPipeline):
    """pyannote's diarization pipeline with local weights: segmentation of whisperx, voices of resemblyzer."""

    def __init__(self, segmentation: Path, encoder: Path) -> None:
        super().__init__(
            segmentation=Model.from_pretrained(segmentation),
            embedding=VoiceEncoder(encoder),
            plda=None,
            segmentation_batch_size=BATCH,
        )
        self.instantiate(PARAMETERS)

    def get_embeddings(
        self, file: dict[str, Any], binary_segmentations: Any, exclude_overlap: bool = False, hook: Hook | None = None
    ) -> Array:
        """One voice for each chunk and local speaker, shape (chunks, speakers, 256); NaN where there is too little.

        `exclude_overlap` is always done, where enough speech is left.
        """
        voices = np.concatenate([*self._voices(file["waveform"][0], hook)])
        masks = np.nan_to_num(binary_segmentations.data).astype(np.float32)
        found = np.full((len(masks), masks.shape[2], VoiceEncoder.dimension), np.nan, dtype=np.float32)
        for chunk, mask in enumerate(masks):
            first = round(binary_segmentations.sliding_window[chunk].start * FRAMES_PER_SECOND)
            found[chunk] = pool(voices, _talking_alone(mask), first)
        return found

    def voice_of(self, file: dict[str, Any], speech: npt.NDArray[np.bool_], step: float) -> Array:
        """The mean voice, shape (256,), of unit length."""
        voices = np.concatenate([*self._voices(file["waveform"][0], None)])
        length = round(len(speech) * step * FRAMES_PER_SECOND)
        voice: Array = pool(voices, speech[:, None].astype(np.float32), 0, length)[0]
        return voice

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _voices(self, waveform: torch.Tensor, hook: Hook | None) -> Iterator[Array]:
        """Voice windows of the whole recording, in blocks; window w starts at frame w * VOICE_STEP."""
        total = max(1, (len(waveform) // HOP - VOICE_FRAMES) // VOICE_STEP + 1)
        power = torch.linalg.vector_norm(waveform).square() / len(waveform)
        gain = (LOUDNESS / power.clamp_min(1e-10)).sqrt()
        for first in range(0, total, BLOCK_WINDOWS):
            last = min(first + BLOCK_WINDOWS, total) - 1
            start = first * VOICE_STEP * HOP - FFT // 2  # frames are centred, as librosa's are
            stop = (last * VOICE_STEP + VOICE_FRAMES - 1) * HOP + FFT // 2
            sound = waveform[max(0, start) : stop] * gain
            missing = stop - start - len(sound)
            before = min(missing, max(0, -start))
            yield self._embedding.model_(torch.nn.functional.pad(sound, (before, missing - before))).numpy()
            if hook is not None:
                hook("embeddings", None, total=total, completed=last + 1)


def _talking_alone(mask: Array) -> Array:
    """Who talks in each frame, without the frames where two do, unless too little would be left.

    Shape (frames, speakers), in and out.
    """
    alone = mask * (mask.sum(axis=1, keepdims=True) < 2)
    enough = alone.sum(axis=0) > LEAST_ALONE * len(mask)
    chosen: Array = np.where(enough, alone, mask)
    return chosen


def pool(voices: Array, mask: Array, first: int, length: int = CHUNK_FRAMES) -> Array:
    """The mean voice of each speaker of a chunk, shape (speakers, 256), of unit length or NaN.

    `mask` is (frames, speakers) at the segmentation's own rate for the chunk of `length` frames that begins at frame
    `first`; every window of `voices` counts by the share of it that lies in the speaker's speech, to the power PURITY.
    """
    at = np.minimum(np.arange(length) * len(mask) // length, len(mask) - 1)
    spoken = np.concatenate([np.zeros((1, mask.shape[1])), np.cumsum(mask[at], axis=0)])
    begin = max(0, -(-(first - VOICE_FRAMES) // VOICE_STEP))
    windows = np.arange(begin, min(len(voices), (first + length) // VOICE_STEP + 1))
    starts = windows * VOICE_STEP - first
    covered = spoken[np.clip(starts + VOICE_FRAMES, 0, length)] - spoken[np.clip(starts, 0, length)]
    summed = ((covered / VOICE_FRAMES) ** PURITY).T @ voices[windows]
    norms = np.linalg.norm(summed, axis=1, keepdims=True)
    usable = (spoken[-1] >= LEAST_FRAMES)[:, None] & (norms > 0)
    pooled: Array = np.where(usable, summed / np.where(norms > 0, norms, 1), np.nan).astype(np.float32)
    return pooled
