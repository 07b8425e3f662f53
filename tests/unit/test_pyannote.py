"""The pyannote diarizer on small real pipelines, and its shortcuts against pyannote's own code."""

import importlib.util
import json
import runpy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Timeline
from pyannote.core import Segment as Span
from pyannote.metrics.diarization import DiarizationErrorRate

from hansard.diarizers import layout, vendor
from hansard.diarizers.pyannote import Pyannote
from hansard.errors import CancelledError, ModelError, OutOfMemoryError
from hansard.models import Models
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcript import Audio, Diarization
from places import CLIPS, ROOT

pytestmark = pytest.mark.timeout(180)

small = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "make_pyannote.py")))
COMMUNITY, CLASSIC = small.COMMUNITY, small.CLASSIC


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models under the published names."""
    folder = tmp_path_factory.mktemp("models")
    small.make(folder)
    return folder


def offline(root: Path) -> Models:
    """What finds models in that folder alone, and may not ask a hub."""
    return Models(
        Settings(
            models_dir=root, hf_home=root / "none", cached_models_dir=root / "none", hf_hub_offline=True, device="cpu"
        )
    )


@pytest.fixture(scope="module")
def diarizers(root: Path) -> dict[str, Pyannote]:
    return {name: Pyannote(name, offline(root)) for name in Pyannote.models}


@pytest.fixture
def community(diarizers: dict[str, Pyannote]) -> Pyannote:
    return diarizers[COMMUNITY]


def clip(name: str, seconds: float | None = None) -> tuple[Audio, Annotation]:
    """The beginning of a clip, and who speaks in it."""
    samples, rate = soundfile.read(CLIPS / f"{name}.flac", dtype="int16")
    samples = samples[: None if seconds is None else round(seconds * rate)]
    truth = Annotation()
    for number, turn in enumerate(json.loads((CLIPS / f"{name}.json").read_text())["turns"]):
        truth[Span(turn["start"], turn["end"]), number] = turn["voice"]
    return Audio(samples[None]), truth.crop(Span(0, len(samples) / rate))


def telephone(seconds: float) -> Audio:
    """Two real people with overlap: the beginning of the sample inside the pyannote.audio package."""
    [folder] = importlib.util.find_spec("pyannote.audio").submodule_search_locations
    samples, rate = soundfile.read(Path(folder) / "sample/sample.wav", dtype="int16")
    return Audio(samples[None, : round(seconds * rate)])


def asked(**counts: int) -> Request:
    return parse({"audio": "data:,", "diarization": True, **counts})


def ignore(_: float) -> None:
    """A report that nobody listens to."""


def error_rate(truth: Annotation, found: Diarization, duration: float) -> float:
    """Diarization error rate, overlap counted, with a collar of 0.25 s on each side."""
    heard = Annotation()
    for number, turn in enumerate(found.turns):
        heard[Span(turn.start, turn.end), number] = turn.speaker
    return float(DiarizationErrorRate(collar=0.5)(truth, heard, uem=Timeline([Span(0, duration)])))


# Who speaks when


@pytest.mark.parametrize("model", [COMMUNITY, CLASSIC])
@pytest.mark.parametrize(
    ("name", "seconds", "people"), [("meeting_en_2voices", None, 2), ("meeting_en_3voices", 45, 3)]
)
def test_tells_synthetic_voices_apart(
    diarizers: dict[str, Pyannote], model: str, name: str, seconds: float | None, people: int
) -> None:
    """Measured: at most 0.01 %. The first clip was not used to fit the embedding, its two voices were."""
    audio, truth = clip(name, seconds)
    found = diarizers[model].diarize(audio, asked(), ignore)
    assert error_rate(truth, found, audio.duration) <= 0.01
    assert sorted(found.voices) == [f"SPEAKER_{number:02d}" for number in range(people)]


def test_a_voice_lies_nearest_to_its_own_speaker(community: Pyannote) -> None:
    """Each enrolled from one turn of a recording, found in another recording."""
    audio, truth = clip("meeting_en_2voices", 25)
    found = community.diarize(audio, asked(), ignore)
    enrolled, whose = clip("meeting_en_3voices", 60)
    for span, _, voice in whose.itertracks(yield_label=True):
        if voice not in truth.labels() or span.duration < 2:
            continue
        known = community.embed(Audio(enrolled.samples[:, round(span.start * 16_000) : round(span.end * 16_000)]))
        [first] = [turn for turn in found.turns if turn.start < truth.label_timeline(voice)[0].middle < turn.end]
        likeness = {
            name: float(known @ other / np.linalg.norm(known) / np.linalg.norm(other))
            for name, other in found.voices.items()
        }
        assert max(likeness, key=likeness.get) == first.speaker
        assert likeness[first.speaker] >= Pyannote.same_voice
        assert min(likeness.values()) < Pyannote.same_voice


def test_more_speakers_than_voices_is_a_warning(community: Pyannote) -> None:
    """Stock VBx clustering raises here: it asks for more clusters than there are embeddings."""
    audio, _ = clip("meeting_en_2voices", 3)
    found = community.diarize(audio, asked(num_speakers=3), ignore)
    assert len({turn.speaker for turn in found.turns}) == 1
    assert any("not the number asked for" in warning for warning in found.warnings)


@pytest.mark.parametrize("seconds", [1 / 16_000, 0.02, 0.09, 0.1, 0.5])
def test_short_recordings_are_no_error(diarizers: dict[str, Pyannote], seconds: float) -> None:
    audio, _ = clip("meeting_en_2voices", 1)
    short = Audio(audio.samples[:, 8_000 : 8_000 + round(seconds * 16_000)])
    for diarizer in diarizers.values():
        assert len(diarizer.diarize(short, asked(min_speakers=2), ignore).turns) <= 1
        assert diarizer.embed(short) is None


def test_clustering_of_a_sample_finds_the_same_speakers(community: Pyannote, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansard.diarizers import bounded_pipeline

    monkeypatch.setattr(bounded_pipeline, "MAX_CLUSTERED", 15)
    audio, truth = clip("meeting_en_2voices", 25)
    assert error_rate(truth, community.diarize(audio, asked(), ignore), audio.duration) <= 0.01


def test_speakers_without_a_voice_are_left_out() -> None:
    """Rows are in the order of the labels, names in that of appearance; NaN and zeros stand for no voice."""
    heard = Annotation()
    for start, label in enumerate(["SPEAKER_02", "SPEAKER_00", "SPEAKER_01", "SPEAKER_03"]):
        heard[Span(start, start + 1)] = label
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [np.nan, 1.0]])
    found = SimpleNamespace(speaker_diarization=heard, speaker_embeddings=rows)
    voices = vendor._voices(found, vendor._names_by_appearance(heard))
    assert {name: voice.tolist() for name, voice in voices.items()} == {
        "SPEAKER_00": [3.0, 4.0],
        "SPEAKER_01": [1.0, 2.0],
    }


# One pass of the network


@pytest.fixture(scope="module")
def wespeaker(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline with pyannote's WeSpeakerResNet34, of coarse spectra so that it is quick, and random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from pyannote.audio.core.task import Problem, Resolution, Specifications
        from pyannote.audio.models.embedding import WeSpeakerResNet34

        torch.manual_seed(0)
        model = WeSpeakerResNet34(num_mel_bins=16, frame_shift=40).eval()
        model.specifications = Specifications(problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=5.0)
        folder = tmp_path_factory.mktemp("wespeaker")
        shutil.copytree(root, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / small.EMBEDDING)
        small.save(model, folder / small.EMBEDDING)
        return Pyannote(CLASSIC, offline(folder))._pipeline


@pytest.fixture(scope="module")
def masks(wespeaker: Any) -> tuple[dict[str, Any], Any]:
    """A recording, and who speaks where in each of its chunks."""
    from pyannote.audio.utils.signal import binarize

    file = vendor.in_memory(telephone(12))
    with vendor.quiet():
        found = binarize(wespeaker.get_segmentations(file), onset=0.5, initial_state=False)
    assert 0 < found.data.any(axis=(1, 2)).mean() < 1, "some chunks have speech, some none"
    assert (found.data.sum(axis=2) > 1).any(), "there is overlap"
    return file, found


@pytest.mark.parametrize("exclude_overlap", [True, False])
def test_embeddings_are_the_stock_pipelines(
    wespeaker: Any, masks: tuple[dict[str, Any], Any], exclude_overlap: bool
) -> None:
    from pyannote.audio.pipelines import SpeakerDiarization

    file, found = masks
    with vendor.quiet():
        theirs = SpeakerDiarization.get_embeddings(wespeaker, file, found, exclude_overlap)
        ours = wespeaker.get_embeddings(file, found, exclude_overlap)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert theirs[found.data.any(axis=1)].std(axis=0).mean() > 0.01, "they differ among themselves"


def test_the_network_runs_once_for_each_chunk_with_speech(wespeaker: Any, masks: tuple[dict[str, Any], Any]) -> None:
    file, found = masks
    seen: list[int] = []
    watch = wespeaker._embedding.model_.resnet.conv1.register_forward_pre_hook(
        lambda _, given: seen.append(len(given[0]))
    )
    with vendor.quiet():
        wespeaker.get_embeddings(file, found, True)
    watch.remove()
    assert sum(seen) == found.data.any(axis=(1, 2)).sum()


def test_a_network_of_one_mask_goes_the_stock_way(
    wespeaker: Any, masks: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, found = masks
    model = wespeaker._embedding.model_
    forward = model.forward

    def one_mask(waveforms: Any, weights: Any = None) -> Any:
        if weights is not None and weights.dim() != 2:
            raise ValueError("one mask only")
        return forward(waveforms, weights=weights)

    with vendor.quiet():
        ours = wespeaker.get_embeddings(file, found, True)
        monkeypatch.setattr(model, "forward", one_mask)
        monkeypatch.setattr(wespeaker, "_silent", wespeaker._without_speech())
        assert wespeaker._silent is None
        np.testing.assert_allclose(wespeaker.get_embeddings(file, found, True), ours, atol=1e-4)


@pytest.mark.parametrize("model", [COMMUNITY, CLASSIC])
def test_turns_are_the_stock_pipelines(diarizers: dict[str, Pyannote], root: Path, model: str) -> None:
    """pyannote loads the folder of community-1 by itself; of 3.1 it is given the parts, since it would ask the hub."""
    audio = telephone(15)
    with vendor.quiet():
        from pyannote.audio import Model, Pipeline
        from pyannote.audio.pipelines import SpeakerDiarization

        from hansard.diarizers.bounded_pipeline import NoPlda

        parts = layout.read(model, offline(root))
        if model == COMMUNITY:
            stock = Pipeline.from_pretrained(root / COMMUNITY)
        else:
            stock = SpeakerDiarization(
                segmentation=Model.from_pretrained(parts.segmentation),
                embedding=Model.from_pretrained(parts.embedding),
                embedding_exclude_overlap=True,
                plda=NoPlda(),
                clustering="AgglomerativeClustering",
            ).instantiate(dict(parts.parameters))
        theirs = stock(vendor.in_memory(audio))
        ours = diarizers[model]._pipeline(vendor.in_memory(audio))
    assert len(theirs.speaker_diarization.labels()) >= 2
    assert ours.speaker_diarization == theirs.speaker_diarization
    assert ours.exclusive_speaker_diarization == theirs.exclusive_speaker_diarization
    np.testing.assert_allclose(ours.speaker_embeddings, theirs.speaker_embeddings, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def powerset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose segmentation is of the published kind: 10 s chunks, powerset of three speakers; random weights."""
    folder = tmp_path_factory.mktemp("powerset")
    shutil.copytree(root / COMMUNITY, folder / "mine", ignore=shutil.ignore_patterns("segmentation"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from pyannote.audio.core.task import Problem, Resolution, Specifications
        from pyannote.audio.models.segmentation import PyanNet

        torch.manual_seed(1)
        model = PyanNet(lstm={"hidden_size": 16, "num_layers": 1}, linear={"hidden_size": 16, "num_layers": 1})
        model.specifications = Specifications(
            problem=Problem.MONO_LABEL_CLASSIFICATION,
            resolution=Resolution.FRAME,
            duration=10.0,
            classes=["speaker#1", "speaker#2", "speaker#3"],
            powerset_max_classes=2,
            permutation_invariant=True,
        )
        model.build()
        small.save(model, folder / "mine" / "segmentation")
    edit(folder / "mine", "    threshold: 0.5\n", "")
    return folder


def test_segmentation_by_powerset_works_alike(powerset: Path) -> None:
    audio, _ = clip("meeting_en_2voices", 15)
    diarizer = Pyannote("mine", offline(powerset))
    with vendor.quiet():
        from pyannote.audio import Pipeline

        theirs = Pipeline.from_pretrained(powerset / "mine")(vendor.in_memory(audio))
        ours = diarizer._pipeline(vendor.in_memory(audio))
    assert len(theirs.speaker_diarization) > 10
    assert ours.speaker_diarization == theirs.speaker_diarization
    assert ours.exclusive_speaker_diarization == theirs.exclusive_speaker_diarization
    assert diarizer.embed(audio) is not None


# Memory, progress, and what a call leaves behind


def short_of_memory(most: int) -> Callable[..., None]:
    """A hook before a network that has room for so many chunks; no GPU is at hand that could really be full."""
    import torch

    def before(_: object, given: tuple[Any, ...]) -> None:
        if len(given[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    return before


@pytest.mark.parametrize("network", ["_segmentation", "_embedding"])
def test_a_batch_that_does_not_fit_is_halved(community: Pyannote, network: str) -> None:
    audio, truth = clip("meeting_en_2voices", 12)
    part = getattr(community._pipeline, network)
    model = part.model if network == "_segmentation" else part.model_
    plenty = community.diarize(audio, asked(), ignore)
    seen: list[float] = []
    full = model.register_forward_pre_hook(short_of_memory(3))
    found = community.diarize(audio, asked(), seen.append)
    full.remove()
    assert found.turns == plenty.turns
    assert error_rate(truth, found, audio.duration) <= 0.01
    assert [warning for warning in found.warnings if "2 chunks at a time instead of 4" in warning]
    assert seen == sorted(seen)
    assert community.diarize(audio, asked(), ignore).warnings == ()


@pytest.mark.parametrize("network", ["_segmentation", "_embedding"])
def test_memory_for_less_than_one_chunk_is_a_clear_error(community: Pyannote, network: str) -> None:
    audio, _ = clip("meeting_en_2voices", 6)
    part = getattr(community._pipeline, network)
    full = (part.model if network == "_segmentation" else part.model_).register_forward_pre_hook(short_of_memory(0))
    with pytest.raises(OutOfMemoryError, match="larger GPU"):
        community.diarize(audio, asked(), ignore)
    full.remove()
    assert community.diarize(audio, asked(), ignore).turns


def test_another_failure_of_the_network_is_not_taken_for_memory(community: Pyannote) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    audio, _ = clip("meeting_en_2voices", 6)
    watch = community._pipeline._embedding.model_.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        community.diarize(audio, asked(), ignore)
    watch.remove()


def test_progress_goes_from_nothing_to_all(community: Pyannote) -> None:
    seen: list[float] = []
    community.diarize(clip("meeting_en_2voices", 12)[0], asked(), seen.append)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == 1
    assert len(set(seen)) >= 5


@pytest.mark.parametrize("after", [0.01, 0.5])
def test_stops_in_either_half(community: Pyannote, after: float) -> None:
    def stop(fraction: float) -> None:
        if fraction > after:
            raise CancelledError("enough")

    audio, _ = clip("meeting_en_2voices", 12)
    with pytest.raises(CancelledError):
        community.diarize(audio, asked(), stop)


def test_tf32_is_given_back(community: Pyannote, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyannote turns it off for the whole process when its pipeline says that it is on a GPU, as here it only says."""
    import torch

    audio, _ = clip("meeting_en_2voices", 6)
    monkeypatch.setattr(community._pipeline, "device", torch.device("cuda"))
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    during: list[bool] = []
    try:
        for flag in flags:
            flag.allow_tf32 = True
        community.diarize(audio, asked(), lambda _: during.extend(flag.allow_tf32 for flag in flags))
        assert during
        assert not any(during)
        assert all(flag.allow_tf32 for flag in flags)
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


# Folders


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "config.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """The folder of community-1 alone, as `mine`, to be spoilt."""
    shutil.copytree(root / COMMUNITY, tmp_path / "mine")
    return tmp_path / "mine"


def test_a_folder_is_a_model(copied: Path) -> None:
    audio, truth = clip("meeting_en_2voices", 12)
    found = Pyannote("mine", offline(copied.parent)).diarize(audio, asked(), ignore)
    assert error_rate(truth, found, audio.duration) <= 0.01


def test_a_folder_with_its_weights_beside_it_needs_no_plda(copied: Path) -> None:
    """3.1 in one folder: agglomerative clustering, `$model/` paths."""
    parts = {part: f"$model/{part}" for part in ("segmentation", "embedding")}
    (copied / "config.yaml").write_text(small.config("AgglomerativeClustering", parts, small.CENTROID))
    shutil.rmtree(copied / "plda")
    audio, truth = clip("meeting_en_2voices", 12)
    found = Pyannote("mine", offline(copied.parent)).diarize(audio, asked(), ignore)
    assert error_rate(truth, found, audio.duration) <= 0.01


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.yaml").write_text("pipeline: [1]"), "no config.yaml of a pyannote"),
        (lambda folder: (folder / "config.yaml").write_text("pipeline: {"), "no config.yaml of a pyannote"),
        (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml of a pyannote"),
        (lambda folder: edit(folder, "VBxClustering", "OracleClustering"), "OracleClustering"),
        (lambda folder: (folder / "plda" / "plda.npz").unlink(), "plda.npz of its plda"),
        (lambda folder: shutil.rmtree(folder / "embedding"), "pytorch_model.bin of its embedding"),
        (lambda folder: edit(folder, "$model/embedding", "nobody/nothing"), "nobody/nothing"),
        (lambda folder: (folder / "embedding" / "pytorch_model.bin").write_bytes(b"<html>"), "cannot be loaded"),
        (lambda folder: edit(folder, "    Fa: 0.07\n", ""), "cannot be loaded"),
    ],
)
def test_a_folder_that_cannot_be_used_says_what_it_lacks(
    copied: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(copied)
    with pytest.raises(ModelError, match=said.replace(".", r"\.")) as raised:
        Pyannote("mine", offline(copied.parent))
    assert str(copied.parent) not in str(raised.value)
