"""NVIDIA's Canary through NeMo: the one file that knows its types, names and quirks.

Sound comes in as arrays, text with the times of its sentences and words goes out. A .nemo archive holds two models:
Canary itself, which writes the text, and a CTC model that finds where in the sound each word of that text is.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import tarfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hansard.errors import EngineMissingError, ModelError
from hansard.settings import Settings
from hansard.transcribers.loading import device_and_dtype, loading
from hansard.transcript import SAMPLE_RATE, Float32
from hansard.vendors import gpu_lost, no_room, quiet
from hansard.workspace import Workspace

log = logging.getLogger(__name__)

LONGEST_S = 30.0  # of sound at once: NeMo cuts at 30 to 40 s for this model, which has heard nothing longer
SHORTEST_S = 1.0  # NeMo puts silence on both sides of what is shorter, and its times count from there
TIMING = "timestamps_asr_model"  # NeMo's name of the model of word times, and of its files
MODEL = "EncDecMultiTaskModel"  # NeMo's class of a Canary
PROMPTS = "canary2"  # the format of prompts of canary-1b-v2, canary-1b-flash and canary-180m-flash
SPECIAL = re.compile(r"<\|[^|<>]*\|>|<pad>")  # tokens that are no text, as that for silence, and that NeMo leaves in


@dataclass(frozen=True, slots=True)
class Pair:
    """The language that is spoken and the one to write."""

    source: str
    target: str

    @property
    def translates(self) -> bool:
        return self.source != self.target


@dataclass(frozen=True, slots=True)
class Part:
    """A sentence or a word of a text, in seconds from the start of its sound; a word has no words."""

    text: str
    start: float
    end: float
    words: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """The text of a sound; `sentences` make up all of it, or are none where it could not be timed."""

    text: str
    sentences: tuple[Part, ...] = ()

    @property
    def ended(self) -> bool:
        """Always, as far as can be told: NeMo does not say, but a text without end has too many letters."""
        return True


def installed() -> None:
    """Raises EngineMissingError where NeMo is absent."""
    if importlib.util.find_spec("nemo") is None:
        raise EngineMissingError(
            "Canary needs NeMo, which is not installed: run builder/venv builder/requirements-canary.txt, "
            "or install that file with uv pip install --no-deps -r"
        )


def load(folder: Path, name: str, settings: Settings) -> CanaryWeights:
    """The weights in a folder, on the device and in the arithmetic of the settings; `name` is what errors call them.

    Raises ModelError for a folder that holds no Canary, SettingsError for an impossible device or arithmetic,
    OutOfMemoryError.
    """
    installed()
    archive = archive_in(folder, name)
    import_nemo()
    with loading(name):
        return CanaryWeights(_read(archive, name, settings))


class CanaryWeights:
    """A Canary on its device, and beside it the model that times its words, where the archive has one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._decoding = model.cfg.decoding  # the archive's own
        self._beam_size: int | None = None

    @property
    def times(self) -> bool:
        """Can it tell when a word was said?"""
        return self._model.timestamps_asr_model is not None

    def knows(self, language: str) -> bool:
        """Does its vocabulary have this language?"""
        tokenizer = self._model.tokenizer
        alone = [name for name in getattr(tokenizer, "tokenizers_dict", ()) if name != "spl_tokens"]
        if len(alone) > 1:  # before v2: a tokenizer for each language
            return language in alone
        return f"<|{language}|>" in tokenizer.vocab

    def write(self, sounds: Sequence[Float32], pair: Pair, beam_size: int | None = None) -> list[Written]:
        """The text of each sound of shape (samples,), all written side by side; by default the archive's own way.

        The words of a translation have no times: only its sentences are said somewhere.
        """
        padded = [np.pad(sound, (0, max(0, round(SHORTEST_S * SAMPLE_RATE) - len(sound)))) for sound in sounds]
        with quiet():
            self._search(beam_size)
            texts = [_plain(text) for text in self._texts(padded, pair)]
            said = [index for index, text in enumerate(texts) if text]
            timed = self._timed([padded[index] for index in said], [texts[index] for index in said])
        sentences = dict(zip(said, timed, strict=True))
        return [Written(text, _kept(sentences.get(n, ()), pair)) for n, text in enumerate(texts)]

    def close(self) -> None:
        """Let the weights go, also where something still holds this object."""
        self._model = None

    def _search(self, beam_size: int | None) -> None:
        """Decode with so many hypotheses from now on; None: as the archive has it."""
        if beam_size != self._beam_size:
            own = self._decoding
            beam = {**own.get("beam", {}), "beam_size": beam_size}
            self._model.change_decoding_strategy(
                own if beam_size is None else {**own, "strategy": "beam", "beam": beam}
            )
            self._beam_size = beam_size

    @property
    def _beam(self) -> int:
        """How many hypotheses are kept."""
        own = self._model.cfg.decoding
        return int(own.get("beam", {}).get("beam_size", 1)) if own.get("strategy") == "beam" else 1

    def _texts(self, sounds: Sequence[Float32], pair: Pair) -> list[str]:
        from nemo.collections.asr.models.aed_multitask_models import MultiTaskTranscriptionConfig

        manner = MultiTaskTranscriptionConfig(
            batch_size=1 if self._beam > 1 else len(sounds),  # NeMo's beams of a batch read each other's sound
            return_hypotheses=True,
            num_workers=0,  # others would be forked, and other threads run in this process
            verbose=False,
            enable_chunking=False,  # the sounds are pieces already
            prompt={"source_lang": pair.source, "target_lang": pair.target, "pnc": "yes", "timestamp": "no"},
        )
        return [str(found.text) for found in self._model.transcribe(list(sounds), override_config=manner)]

    def _timed(self, sounds: Sequence[Float32], texts: Sequence[str]) -> list[tuple[Part, ...]]:
        """The sentences of each text with their words; none where they cannot be found in the sound."""
        if not self.times or not sounds:
            return [()] * len(sounds)
        try:
            return self._aligned(sounds, texts)
        except Exception as error:  # one word that NeMo's aligner cannot spell fails the whole batch
            if no_room(error) or gpu_lost(error):
                raise
            if len(sounds) == 1:
                log.warning("words could not be timed: %s", type(error).__name__)
                return [()]
        half = len(sounds) // 2
        return self._timed(sounds[:half], texts[:half]) + self._timed(sounds[half:], texts[half:])

    def _aligned(self, sounds: Sequence[Float32], texts: Sequence[str]) -> list[tuple[Part, ...]]:
        from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis
        from nemo.collections.asr.parts.utils.timestamp_utils import get_forced_aligned_timestamps_with_external_model

        found = get_forced_aligned_timestamps_with_external_model(
            audio=list(sounds),
            external_ctc_model=self._model.timestamps_asr_model,
            main_model_predictions=[Hypothesis(score=0.0, y_sequence=[], text=text) for text in texts],
            batch_size=len(sounds),
            viterbi_device=self._model.device,
            timestamp_type=["word", "segment"],
            verbose=False,
        )
        return [_sentences(text, one.timestamp) for text, one in zip(texts, found, strict=True)]


def archive_in(folder: Path, name: str) -> Path:
    """The one archive in a folder; beside others, the one that is called like the folder's model. Raises ModelError."""
    archives = sorted(folder.glob("*.nemo"))
    called = [path for path in archives if path.stem == name.rpartition("/")[2]]
    if len(archives) == 1 or called:
        return (called or archives)[0]
    if not archives:
        raise ModelError(f"model {name} has no .nemo archive in its folder; fetch it again, or remove the folder")
    raise ModelError(f"model {name} has {len(archives)} .nemo archives and not one of its own name; leave one of them")


def import_nemo() -> None:
    """Import NeMo without its log, its telemetry and its hold on the warnings of the process.

    Raises EngineMissingError where it does not load.
    """
    logging.getLogger("nemo_logger").disabled = True  # it prints much, and keeps all of it in memory for ever
    for name in ("nv_one_logger", "hydra"):  # of telemetry that is off, and of functions that are no classes
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with quiet():
        try:
            import nemo.collections.asr  # noqa: F401 - for what its import does
            from nemo.utils import logging as nemo_log
        except ImportError:
            raise EngineMissingError(
                "NeMo is installed but does not load: run builder/venv builder/requirements-canary.txt again"
            ) from None
        nemo_log.captureWarnings(False)


def _read(archive: Path, name: str, settings: Settings) -> Any:
    """Read the models of an archive. Raises ModelError for one of another kind, and whatever NeMo raises.

    It is unpacked under WORK_DIR, so that what a process leaves behind that is killed meanwhile is cleared away.
    """
    device, dtype = device_and_dtype(settings, "Canary")
    with closing(Workspace(settings)) as workspace, workspace.job("canary") as unpacked:
        with tarfile.open(archive) as file:
            file.extractall(unpacked, filter="data")
        config = _restored(archive, unpacked, return_config=True)
        _check_config(config, name)
        config.restore_timestamps_model = False  # NeMo would put that one onto any GPU there is
        model = _restored(archive, unpacked, override_config_path=config).to(device, dtype).eval()
        timing = None
        if (unpacked / f"{TIMING}_config.yaml").exists():
            timing = _restored(archive, unpacked, part=f"{TIMING}_").to(device, dtype).eval()
    object.__setattr__(model, TIMING, timing)  # as NeMo does: it is no part of the model to torch
    return model


def _restored(archive: Path, unpacked: Path, part: str = "", **options: Any) -> Any:
    """One of the models of an unpacked archive, on the CPU in float32, or its configuration.

    On a GPU NeMo would build it in float32 and read a second copy beside it: three times what stays.
    """
    from nemo.collections.asr.models import ASRModel
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    connector = SaveRestoreConnector()
    connector.model_extracted_dir = str(unpacked)
    if part:
        connector.model_config_yaml, connector.model_weights_ckpt = f"{part}config.yaml", f"{part}weights.ckpt"
    return ASRModel.restore_from(str(archive), map_location="cpu", save_restore_connector=connector, **options)


def _check_config(config: Any, name: str) -> None:
    """Raises ModelError for a model of another kind."""
    if not str(config.get("target", "")).endswith(MODEL):
        raise ModelError(f"model {name} is no Canary: its archive holds another kind of model; take canary-1b-v2")
    if config.get("prompt_format") != PROMPTS or config.get("sample_rate") != SAMPLE_RATE:
        raise ModelError(f"model {name} is a Canary with other prompts or another sample rate; take canary-1b-v2")


def _plain(text: str) -> str:
    return " ".join(SPECIAL.sub(" ", text).split())


def _sentences(text: str, times: dict[str, list[dict[str, Any]]]) -> tuple[Part, ...]:
    """What NeMo tells of a text: its sentences, each with its share of the words; none unless all of it was timed."""
    parts = [Part(one["word"], one["start"], one["end"]) for one in times["word"]]
    sentences = [Part(one["segment"], one["start"], one["end"]) for one in times["segment"]]
    spoken = [part.text for part in parts]
    if spoken != text.split() or [word for one in sentences for word in one.text.split()] != spoken:
        return ()
    rest = iter(parts)
    return tuple(replace(one, words=tuple(next(rest) for _ in one.text.split())) for one in sentences)


def _kept(sentences: tuple[Part, ...], pair: Pair) -> tuple[Part, ...]:
    """The sentences, of a translation without words."""
    return tuple(replace(one, words=()) for one in sentences) if pair.translates else sentences
