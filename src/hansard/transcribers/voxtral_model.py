"""Voxtral through transformers, its requests through mistral-common: the one file that knows their types and quirks.

Sound comes in as arrays, text goes out. The encoder hears blocks of 30 s and makes 375 tokens of each; a shorter sound
is padded with silence, so it costs as many. Requests are mistral-common's own, made once for each length and language
and without the sound: VoxtralProcessor writes every sound to a file and reads it again three times, in 16 bits.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hansard.errors import EngineMissingError, ModelError
from hansard.models import kind_of
from hansard.settings import Settings
from hansard.transcribers.loading import device_and_dtype, loading
from hansard.transcript import SAMPLE_RATE, Float32, Report

log = logging.getLogger(__name__)

BLOCK_S = 30.0
BLOCK_TOKENS = 375  # 12.5 a second
BLOCK = round(BLOCK_S * SAMPLE_RATE)  # samples
FRAMES = 3000  # columns of a block's spectrogram
MOST_S = 30 * 60.0  # of sound in one request: the model card's limit for transcription
CONTEXT = 32_768  # tokens: the model card's, its config.json holds the language model's 131072
ROOM = 24  # tokens for a text, whatever the length of its sound
ROOM_PER_S = 12  # and for each second; fast speech needs 5 (English, German) to 8 (Hindi, or digits one by one)

KIND = "VoxtralForConditionalGeneration"  # as kind_of names it
FILES = ("config.json", "preprocessor_config.json", "tekken.json")


@dataclass(frozen=True, slots=True)
class Manner:
    """How to transcribe: a language (None: whichever is heard), and how random; 0 takes the likeliest tokens."""

    language: str | None = None
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Written:
    """The text of one sound; `ended` is false where the model was cut off before it said that its text was whole."""

    text: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens that requests need: `around` the sound, in the `context` of one, and at `most` in all of one call."""

    around: int
    context: int
    most: int

    def request(self, seconds: float) -> int:
        """Tokens of one request: what stands around the sound, the sound, and room for its text."""
        return self.around + blocks(seconds) * BLOCK_TOKENS + room(seconds)

    def at_once(self, seconds: float) -> int:
        """How many requests fit into one call, padded to the longest, which holds so many seconds."""
        return self.most // self.request(seconds)

    @property
    def longest(self) -> float:
        """Seconds of sound, in whole blocks, that one request can hold; 0 if not even one block fits."""
        fit = (min(self.context, self.most) - self.around - ROOM) // (BLOCK_TOKENS + math.ceil(ROOM_PER_S * BLOCK_S))
        return min(MOST_S, BLOCK_S * max(0, fit))


def blocks(seconds: float) -> int:
    """The blocks of 30 s that a sound of this length is padded to; at least one."""
    return max(1, -(-round(seconds * SAMPLE_RATE) // BLOCK))


def room(seconds: float) -> int:
    """The most tokens that the text of a sound of this length may have, its end included."""
    return ROOM + math.ceil(ROOM_PER_S * seconds)


def installed() -> None:
    """Raises EngineMissingError where a package that Voxtral needs is absent."""
    if missing := [
        name for name in ("transformers", "mistral_common", "accelerate") if importlib.util.find_spec(name) is None
    ]:
        raise EngineMissingError(f"Voxtral needs {', '.join(missing).replace('_', '-')}: install requirements.txt")


def check_folder(folder: Path, name: str) -> None:
    """Raises ModelError for a folder that holds no Voxtral in the form that transformers reads."""
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ModelError(f"model {name} is no Voxtral for transformers: it has no {', no '.join(missing)}")
    if kind_of(folder) != KIND:  # or transformers would make up one of the full size
        raise ModelError(f"model {name} is no Voxtral for transformers: its config.json is of another kind")


def load(folder: Path, name: str, settings: Settings) -> VoxtralWeights:
    """The weights in a folder, on the device and in the arithmetic of the settings; `name` is what errors call them.

    Raises ModelError for a folder that holds no Voxtral, SettingsError for an impossible device or arithmetic,
    OutOfMemoryError.
    """
    installed()
    check_folder(folder, name)
    device, dtype = device_and_dtype(settings, "Voxtral")
    with loading(name):
        weights = _read(folder, dtype, device, settings.voxtral_max_tokens)
        longest = weights.budget(None).longest
    if longest < BLOCK_S:
        raise ModelError(f"model {name} has too small a context for {BLOCK_S:g} s of sound; take another")
    return weights


class VoxtralWeights:
    """A VoxtralForConditionalGeneration on its device, mistral-common's tokenizer and a WhisperFeatureExtractor."""

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, most_tokens: int) -> None:
        from transformers import GenerationConfig

        self._model, self._extractor = model.eval(), extractor
        self._tokenizer = tokenizer
        self._text = tokenizer.instruct_tokenizer.tokenizer
        # in the place of the folder's own, which would fill in whatever a call leaves at its default
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            bos_token_id=self._text.bos_id, eos_token_id=self._text.eos_id, pad_token_id=self._text.pad_id
        )
        self._most = most_tokens
        self._requests: dict[tuple[int, str | None], list[int]] = {}

    def budget(self, language: str | None) -> Budget:
        """What requests for text in a language need, and what there is."""
        context = min(CONTEXT, self._model.config.text_config.max_position_embeddings)
        return Budget(len(self.request(1, language)) - BLOCK_TOKENS, context, self._most)

    def request(self, length: int, language: str | None) -> list[int]:
        """The tokens of a transcription request, the sound being `length` blocks."""
        from mistral_common.protocol.transcription.request import TranscriptionRequest
        from mistral_common.tokens.tokenizers.audio import Audio

        if (length, language) not in self._requests:
            silence = Audio(np.zeros(length * BLOCK, np.float32), SAMPLE_RATE, "wav").to_base64("wav")
            asked = TranscriptionRequest(audio=silence, language=language)
            self._requests[length, language] = list(self._tokenizer.encode_transcription(asked).tokens)
        return self._requests[length, language]

    def features(self, sound: Float32) -> Any:
        """The spectrogram of a sound of shape (samples,), as a tensor of shape (blocks, mels, FRAMES)."""
        import torch

        silence = blocks(len(sound) / SAMPLE_RATE) * BLOCK - len(sound)
        made = self._extractor(
            np.pad(sound, (0, silence)),
            sampling_rate=SAMPLE_RATE,
            truncation=False,
            padding=True,
            device=str(self._model.device),
        )["input_features"]
        return torch.from_numpy(np.asarray(made)).reshape(self._extractor.feature_size, -1, FRAMES).transpose(0, 1)

    def texts(self, sounds: Sequence[Float32], manner: Manner, report: Report) -> list[Written]:
        """The text of each sound, all written side by side; `report` hears after each token how far this call may be.

        A text depends on its own sound alone, also where tokens are drawn at random: each call draws the same.
        """
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        lengths = [len(sound) / SAMPLE_RATE for sound in sounds]
        rooms = [room(length) for length in lengths]
        asked = [self.request(blocks(length), manner.language) for length in lengths]
        drawn = [_drawing(manner.temperature, self._model.device)] if manner.temperature > 0 else []
        with torch.inference_mode():
            ids, mask = _padded(asked, self._text.pad_id)
            written = self._model.generate(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                input_features=torch.cat([self.features(sound) for sound in sounds]).to(
                    self._model.device, self._model.dtype
                ),
                max_new_tokens=max(rooms),
                logits_processor=LogitsProcessorList(drawn),
                stopping_criteria=StoppingCriteriaList([_watching(ids.shape[1], rooms, report)]),
            )[:, ids.shape[1] :].tolist()
        return [self._written(tokens) for tokens in written]

    def close(self) -> None:
        """Let the weights go, also where something still holds this object."""
        self._model = None

    def _written(self, tokens: list[int]) -> Written:
        ended = self._text.eos_id in tokens
        text = self._text.decode(tokens[: tokens.index(self._text.eos_id)] if ended else tokens)
        return Written(text.strip(), ended)


def _read(folder: Path, dtype: Any, device: str, most_tokens: int) -> VoxtralWeights:
    """Read the parts of a Voxtral. Raises whatever its files make the vendors raise."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from transformers import VoxtralForConditionalGeneration, WhisperFeatureExtractor

    tokenizer = MistralTokenizer.from_file(folder / "tekken.json")
    extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    model, report = VoxtralForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, device_map=device
    )
    if report["missing_keys"] or report["mismatched_keys"]:  # which transformers makes up at random
        raise ValueError("weights are missing")
    if extractor.feature_size != model.config.audio_config.num_mel_bins:
        raise ValueError("the spectrogram is another model's")
    return VoxtralWeights(model, tokenizer, extractor, most_tokens)


def _padded(requests: Sequence[list[int]], pad: int) -> tuple[Any, Any]:
    """Requests padded on the left, and 1 where they are not padding, 0 where they are; shape (requests, tokens)."""
    import torch

    longest = max(map(len, requests))
    ids = torch.full((len(requests), longest), pad)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(requests):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    return ids, mask


def _watching(begin: int, rooms: Sequence[int], report: Report) -> Callable[..., Any]:
    """A stopping criterion: each text ends where its room does, and `report`, which may raise, hears of each token."""
    import torch

    def watch(ids: Any, _scores: Any, **_: Any) -> Any:
        step = ids.shape[1] - begin
        report(step / max(rooms))
        return torch.tensor([step >= most for most in rooms], device=ids.device)

    return watch


def _drawing(temperature: float, device: Any) -> Callable[[Any, Any], Any]:
    """A processor of logits that turns taking the likeliest token into drawing one, as Gumbel noise does.

    The noise comes from a generator of its own and is the same for all texts: torch's own is everybody's, and
    transformers' sampling would give a text that depends on its neighbours and on what ran before.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)

    def draw(_ids: Any, scores: Any) -> Any:
        noise = torch.empty(scores.shape[-1], device=scores.device).exponential_(generator=generator)
        return scores.float() / temperature - noise.clamp_min(1e-20).log()

    return draw
