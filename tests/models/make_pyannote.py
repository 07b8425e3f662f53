"""Make small pyannote pipelines with real code and the layouts of the published ones: no network, a few seconds.

    python tests/models/make_pyannote.py FOLDER

writes, under the names of the repositories that they stand for,

    pyannote/speaker-diarization-community-1   config.yaml, segmentation, embedding, plda beside it; VBx clustering
    pyannote/speaker-diarization-3.1           config.yaml naming the next two; agglomerative clustering
    pyannote/segmentation-3.0
    pyannote/wespeaker-voxceleb-resnet34-LM

so that FOLDER can be MODELS_DIR. Segmentation is the model inside the whisperx package (5 s chunks, three speakers, not
the powerset of the real ones). The embedding is pyannote's XVectorMFCC, its convolutions set to hand the MFCCs on and
its last layer to a linear discriminant analysis of their mean and deviation, fitted on the clips of tiny-synthetic
but `meeting_en_2voices`. It tells their eight synthetic voices apart, in recordings it has not seen, and no others.
"""

import importlib.util
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import soundfile
import yaml

CLIPS = Path(__file__).parent / "tiny-synthetic" / "clips"
FITTED = ("meeting_en_3voices", "meeting_en_fr", "meeting_fr", "meeting_ru")
RATE = 16_000
SIZE, HOP = 1.5, 0.5  # seconds, of the pieces of speech that are fitted
MFCCS = 40
DIMENSION = 7  # one less than there are voices
SHRINKAGE = 0.2  # added to the variance within voices, in units of each feature's variance
FLOOR = 0.01  # added to the variance within voices after length normalisation, where all of it is about 1
LIFT = 1_000.0  # above any MFCC's size in dB, so that a leaky rectifier passes all of them unbent

COMMUNITY = "pyannote/speaker-diarization-community-1"
CLASSIC = "pyannote/speaker-diarization-3.1"
SEGMENTATION = "pyannote/segmentation-3.0"
EMBEDDING = "pyannote/wespeaker-voxceleb-resnet34-LM"

VBX = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}  # of community-1
CENTROID = {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7045654963945799}  # of 3.1


def pieces() -> Iterator[tuple[str, np.ndarray]]:
    """Speech of one voice at a time, with the voice's name."""
    for clip in FITTED:
        sound, _ = soundfile.read(CLIPS / f"{clip}.flac", dtype="float32")
        for turn in json.loads((CLIPS / f"{clip}.json").read_text())["turns"]:
            for start in np.arange(turn["start"], max(turn["end"] - SIZE, turn["start"]) + 1e-6, HOP):
                end = min(start + SIZE, turn["end"])
                if end - start >= 0.5:
                    yield turn["voice"], sound[round(start * RATE) : round(end * RATE)]


def discriminant(features: np.ndarray, voices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and axes, shapes (features,) and (features, DIMENSION), along which voices differ most (Fisher's LDA)."""
    names = sorted(set(voices))
    centre = np.mean([features[voices == name].mean(axis=0) for name in names], axis=0)
    scale = features.std(axis=0) + 1e-9
    scaled = (features - centre) / scale
    within = np.mean([np.cov(scaled[voices == name].T, bias=True) for name in names], axis=0)
    between = np.cov(np.array([scaled[voices == name].mean(axis=0) for name in names]).T, bias=True)
    _, axes = scipy.linalg.eigh(between, within + SHRINKAGE * np.eye(len(within)))
    return centre, axes[:, ::-1][:, :DIMENSION] / scale[:, None]


def plda(embeddings: np.ndarray, voices: np.ndarray, folder: Path) -> None:
    """Write the two files of a PLDA: length normalisation only, then axes with unit variance within a voice."""
    folder.mkdir(parents=True)
    np.savez(
        folder / "xvec_transform.npz",
        mean1=np.zeros(DIMENSION),
        mean2=np.zeros(DIMENSION),
        lda=np.eye(DIMENSION),
    )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True) * np.sqrt(DIMENSION)
    names = sorted(set(voices))
    means = np.array([unit[voices == name].mean(axis=0) for name in names])
    within = np.mean([np.cov(unit[voices == name].T, bias=True) for name in names], axis=0)
    between = np.cov(means.T, bias=True)
    ratios, axes = scipy.linalg.eigh(between, within + FLOOR * np.eye(DIMENSION))
    np.savez(folder / "plda.npz", mu=means.mean(axis=0), tr=axes.T, psi=np.maximum(ratios, 1e-3))


def passing_on(model: Any) -> None:
    """Set the convolutions of an XVectorMFCC so that its pooling sees the MFCCs themselves."""
    import torch

    for layer in model.tdnns:
        if isinstance(layer, torch.nn.Conv1d):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            for mfcc in range(MFCCS):
                layer.weight.data[mfcc, mfcc, layer.kernel_size[0] // 2] = 1.0
                layer.bias.data[mfcc] = LIFT
        elif isinstance(layer, torch.nn.BatchNorm1d):
            layer.eps = 0.0
            layer.running_mean[:MFCCS] = LIFT


def statistics(model: Any, sound: np.ndarray) -> np.ndarray:
    """What the last layer of the model is given, without the channels that are always zero and the loudness."""
    import torch

    features = model.mfcc(torch.from_numpy(sound)[None, None]).squeeze(dim=1)
    for layer in model.tdnns:
        features = layer(features)
    return model.stats_pool(features)[0].numpy()[kept()]


def kept() -> np.ndarray:
    """Where the statistics of MFCC 1 to 39 stand among the 3000: mean, then deviation."""
    return np.concatenate([np.arange(1, MFCCS), 1500 + np.arange(1, MFCCS)])


def voice_model(plda_folder: Path) -> Any:
    """The fitted embedding model; its PLDA is written to the folder."""
    import torch
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import XVectorMFCC

    model = XVectorMFCC(mfcc={"melkwargs": {"hop_length": 800}}, dimension=DIMENSION).eval()
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=5.0, classes=None
    )
    with torch.inference_mode():
        passing_on(model)
        names, sounds = zip(*pieces(), strict=True)
        features = np.array([statistics(model, sound) for sound in sounds])
        centre, axes = discriminant(features, np.array(names))
        torch.nn.init.zeros_(model.embedding.weight)
        model.embedding.weight[:, kept()] = torch.from_numpy(axes.T.astype(np.float32))
        model.embedding.bias[:] = torch.from_numpy(-(centre @ axes).astype(np.float32))
    plda((features - centre) @ axes, np.array(names), plda_folder)
    return model


def save(model: Any, folder: Path) -> None:
    """Write a model as pyannote.audio's own checkpoint."""
    import torch

    checkpoint: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": 0,
    }
    model.on_save_checkpoint(checkpoint)
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / "pytorch_model.bin")


def config(clustering: str, parts: dict[str, str], parameters: dict[str, Any]) -> str:
    """A config.yaml as the published pipelines have it, with the threshold that this segmentation model needs."""
    given = {"clustering": clustering, "embedding_exclude_overlap": True, **parts}
    batches = {"segmentation_batch_size": 32, "embedding_batch_size": 32}
    return yaml.safe_dump(
        {
            "dependencies": {"pyannote.audio": "4.0.0"},
            "pipeline": {"name": "pyannote.audio.pipelines.SpeakerDiarization", "params": given | batches},
            "params": {"clustering": parameters, "segmentation": {"threshold": 0.5, "min_duration_off": 0.0}},
        }
    )


def make(root: Path) -> None:
    """Write the four folders under `root`."""
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    community, classic = root / COMMUNITY, root / CLASSIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyannote's own, about torchcodec and lightning
        model = voice_model(community / "plda")
        for folder in (community / "embedding", root / EMBEDDING):
            save(model, folder)
    [whisperx] = importlib.util.find_spec("whisperx").submodule_search_locations
    for folder in (community / "segmentation", root / SEGMENTATION):
        folder.mkdir(parents=True)
        shutil.copy(Path(whisperx) / "assets" / "pytorch_model.bin", folder)
    beside = {part: f"$model/{part}" for part in ("segmentation", "embedding", "plda")}
    (community / "config.yaml").write_text(config("VBxClustering", beside, VBX))
    classic.mkdir(parents=True)
    named = {"segmentation": SEGMENTATION, "embedding": EMBEDDING}
    (classic / "config.yaml").write_text(config("AgglomerativeClustering", named, CENTROID))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
