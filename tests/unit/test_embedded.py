"""The embedded diarizer's own parts, against the originals they stand for."""

import importlib.util
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from hansard.audio.decode import decode
from hansard.models import Models
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE, Audio
from places import SHARED

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def parts():
    """The module that loads torch, imported only here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hansard.diarizers import embedded_pipeline
    return embedded_pipeline


@pytest.fixture(scope="module")
def diarizer(parts):
    from hansard.diarizers.embedded import Embedded

    return Embedded("embedded", Models(Settings(device="cpu")))


def test_voices_are_resemblyzers_own(parts, meeting: Path, tmp_path: Path) -> None:
    """The same windows through the original encoder, with its librosa features, give the same voices."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a name that SciPy has deprecated
        from resemblyzer import VoiceEncoder
        from resemblyzer.audio import wav_to_mel_spectrogram
    sound = decode(meeting, tmp_path, lambda _: None).mono(0, 8)
    original = VoiceEncoder("cpu", verbose=False)
    mels = wav_to_mel_spectrogram(sound)
    starts = range(0, len(mels) - parts.VOICE_FRAMES, parts.VOICE_STEP)
    with torch.inference_mode():
        theirs = original(torch.stack([torch.from_numpy(mels[s : s + parts.VOICE_FRAMES].copy()) for s in starts]))
        padded = torch.nn.functional.pad(torch.from_numpy(sound), (parts.FFT // 2, parts.FFT // 2))
        weights = Path(importlib.util.find_spec("resemblyzer").origin).parent / "pretrained.pt"
        ours = parts.VoiceEncoder(weights).eval()(padded)[: len(theirs)]
    similarity = (ours * theirs).sum(dim=1)
    assert len(similarity) > 20
    assert float(similarity.min()) > 0.999


def test_voices_do_not_depend_on_the_blocks_they_are_made_in(
    parts, diarizer, meeting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    pipeline = diarizer._pipeline
    sound = torch.from_numpy(decode(meeting, tmp_path, lambda _: None).mono())
    whole = np.concatenate(list(pipeline._voices(sound, None)))
    monkeypatch.setattr(parts, "BLOCK_WINDOWS", 7)
    pieces = np.concatenate(list(pipeline._voices(sound, None)))
    np.testing.assert_allclose(pieces, whole, atol=1e-4)
    assert len(whole) == (len(sound) // parts.HOP - parts.VOICE_FRAMES) // parts.VOICE_STEP + 1


def test_pooling_takes_each_speaker_from_where_he_talks(parts) -> None:
    """Windows 0-9 hold voice A, 10-20 voice B; the masks say who talks in which half of the chunk."""
    voices = np.zeros((21, 256), dtype=np.float32)
    voices[:10, 0] = 1
    voices[10:, 1] = 1
    mask = np.zeros((293, 3), dtype=np.float32)
    mask[:120, 0] = 1
    mask[160:, 1] = 1
    pooled = parts.pool(voices, mask, 0)
    assert pooled[0, 0] > 0.9
    assert pooled[1, 1] > 0.9
    assert np.isnan(pooled[2]).all()


def test_overlap_is_left_out_where_enough_is_left(parts) -> None:
    mask = np.ones((100, 2), dtype=np.float32)
    mask[:50, 1] = 0
    alone = parts._talking_alone(mask)
    assert alone[:50, 0].all()
    assert not alone[50:, 0].any()
    assert alone[50:, 1].all()  # the second never talks alone, so all of it counts


def test_clustering_sees_a_bounded_sample(parts, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyannote.core import SlidingWindow, SlidingWindowFeature

    from hansard.diarizers import bounded_pipeline

    monkeypatch.setattr(bounded_pipeline, "MAX_CLUSTERED", 50)
    masks = SlidingWindowFeature(np.ones((400, 10, 1)), SlidingWindow(start=0, duration=5, step=0.5))
    clustering = bounded_pipeline.BoundedAgglomerative("cosine")
    voices, chunks, speakers = clustering.filter_embeddings(np.ones((400, 1, 256)), segmentations=masks)
    assert len(voices) == len(chunks) == len(speakers) == 50
    assert chunks[-1] > 380


def test_nothing_is_told_to_anybody(diarizer) -> None:
    """pyannote.audio counts its users unless it is told not to before it is imported."""
    from pyannote.audio.telemetry.metrics import is_metrics_enabled

    assert not is_metrics_enabled()


def test_one_person_is_known_again(diarizer, tmp_path: Path) -> None:
    """The threshold `same_voice` on real clips of one person each: first half against second half."""
    folder = SHARED / "audio"
    if not folder.is_dir():
        pytest.skip("the shared recordings are not here")
    clips = [clip for clip in json.loads((folder / "manifest.json").read_text())["clips"] if clip["num_speakers"] == 1]
    halves = []
    for clip in clips:
        samples = decode(folder / clip["file"], tmp_path, lambda _: None).samples
        if samples.shape[1] > 5 * SAMPLE_RATE:
            voices = [diarizer.embed(Audio(half)) for half in np.array_split(samples, 2, axis=1)]
            if all(voice is not None for voice in voices):
                halves.append(voices)
    assert len(halves) >= 8
    same = [first @ second for first, second in halves]
    different = [one @ other for left, right in itertools.combinations(halves, 2) for one in left for other in right]
    assert np.mean(np.array(same) >= diarizer.same_voice) == 1
    assert np.mean(np.array(different) >= diarizer.same_voice) <= 0.02
