"""CTranslate2's Whisper, through faster-whisper: the one file that knows their types, names and quirks.

Sound comes in as arrays of at most 30 s; tokens, probabilities and times go out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hansard.errors import EngineMissingError, ModelError, SettingsError
from hansard.settings import Settings
from hansard.transcribers.loading import loading
from hansard.transcript import SAMPLE_RATE, UNSPACED, Float32

WINDOW_S = 30.0  # seconds that Whisper hears at once
FRAME_S = 0.01  # seconds between two columns of its spectrogram
TOKEN_S = 0.02  # seconds between two of its time tokens
MOST_TOKENS = 448  # of its text, prompt included
MOST_PROMPT = MOST_TOKENS // 2 - 1  # tokens of prompt and hot words together
TOKENS_PER_SECOND = 40  # more than speech in any script needs, Malayalam's 32 being the most known; loops end here
BEST_OF = 5  # samples drawn where decoding is random; the likeliest is kept

COMPUTE_TYPES = {"cuda": ("float16", "int8_float16", "int8", "float32"), "cpu": ("int8", "float32")}  # best first


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the model made of one sound: tokens, the mean log-probability of one, and the probability of silence.

    `ended` is false where it was cut off for the number of its tokens.
    """

    tokens: tuple[int, ...]
    logprob: float
    no_speech: float
    ended: bool


@dataclass(frozen=True, slots=True)
class Phrase:
    """Text tokens between two time tokens; seconds from the start of the sound."""

    start: float
    end: float
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manner:
    """How to decode: beam search at temperature 0, else the likeliest of several random samples."""

    beam_size: int
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """Sounds after Whisper's encoder: its states, a CTranslate2 StorageView, and the frames of sound in each."""

    states: Any
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timed:
    """When a word is said, in seconds from the start of the sound, and how sure the model was of it, 0 to 1."""

    start: float
    end: float
    chance: float


class WhisperWeights:
    """One loaded Whisper, `name` being what errors call it: a folder of the hub's cache has a name nobody knows.

    Raises ModelError for a folder that holds none, SettingsError for an impossible device.
    """

    def __init__(self, folder: Path, name: str, settings: Settings) -> None:
        if importlib.util.find_spec("faster_whisper") is None:
            raise EngineMissingError("Whisper needs faster-whisper: install requirements.txt")
        from faster_whisper import WhisperModel
        from faster_whisper.feature_extractor import FeatureExtractor
        from faster_whisper.transcribe import get_suppressed_tokens

        device = "cuda" if settings.on_gpu else "cpu"
        compute_type = _compute_type(device, settings.compute_type)
        if device == "cuda":
            import torch  # noqa: F401 - CTranslate2 looks for libcublas only when it decodes, and torch brings it
        files = ("model.bin", "config.json", "tokenizer.json")
        if missing := [file for file in files if not (folder / file).is_file()]:  # faster-whisper would ask the hub
            raise ModelError(f"model {name} is no Whisper for CTranslate2: it has no {', no '.join(missing)}")
        with loading(name):
            self._whisper = WhisperModel(str(folder), device=device, compute_type=compute_type)
        self._tokenizers: dict[tuple[str, str], Any] = {}
        self._model = self._whisper.model
        self._spectrogram = FeatureExtractor(feature_size=self._model.n_mels)  # 80, or 128 from large-v3 on
        self.multilingual: bool = self._model.is_multilingual
        self._suppressed = list(get_suppressed_tokens(self._tokenizer("en", "transcribe"), [-1]))
        self._eot: int = self._tokenizer("en", "transcribe").eot
        self._first_time: int = self._tokenizer("en", "transcribe").timestamp_begin

    def knows(self, language: str) -> bool:
        """Does this model understand a language, given as a code such as `en`?"""
        known = language in self._whisper.supported_languages
        return known and (not self.multilingual or self._token(f"<|{language}|>") is not None)

    def prompt(self, language: str, task: str, context: Sequence[int] = ()) -> list[int]:
        """The tokens that decoding begins with, `context` being what `context` gave."""
        tokenizer = self._tokenizer(language, task)
        return [*([tokenizer.sot_prev, *context] if context else []), *tokenizer.sot_sequence]

    def context(self, prompt: str | None, hotwords: str | None) -> tuple[list[int], bool]:
        """Hot words and prompt as tokens that stand before the text, and whether some had to be left out.

        Of hot words the first are kept, at most half of what there is room for; of the prompt the last.
        """
        hot, text = (
            [*self._encode(" " + words.strip())] if words and words.strip() else [] for words in (hotwords, prompt)
        )
        most_hot = MOST_PROMPT if not text else max(MOST_PROMPT // 2, MOST_PROMPT - len(text))
        kept = hot[:most_hot]
        room = MOST_PROMPT - len(kept)
        return [*kept, *text[max(0, len(text) - room) :]], len(kept) < len(hot) or room < len(text)

    def encode(self, sounds: Sequence[Float32]) -> Encoded:
        """Sounds of at most 30 s as the decoder and the aligner take them; they stay on the device."""
        from ctranslate2 import StorageView

        window = round(WINDOW_S * SAMPLE_RATE)
        # padded with silence before the spectrogram, as in training; faster-whisper pads it with zeros afterwards
        mels = [
            self._spectrogram(np.pad(sound[:window], (0, window - len(sound[:window]))), padding=0) for sound in sounds
        ]
        features = StorageView.from_array(np.ascontiguousarray(np.stack(mels), dtype=np.float32))
        # two, since the encoder makes one state of them, and there is nothing to align in none
        frames = [max(2, min(len(sound), window) // self._spectrogram.hop_length) for sound in sounds]
        return Encoded(self._model.encode(features), tuple(frames))

    def languages(self, sounds: Encoded) -> list[dict[str, float]]:
        """The probability of each language in each sound."""
        found = self._model.detect_language(sounds.states)
        return [{token[2:-2]: chance for token, chance in chances} for chances in found]

    def decode(self, sounds: Encoded, prompts: Sequence[list[int]], manner: Manner) -> list[Decoded]:
        """Text and time tokens of each sound; prompts are all of one length.

        CTranslate2 stops after half of `max_length`, or where prompt and text reach it (src/models/whisper.cc), as
        Whisper itself does: at most 224 tokens, whatever is said.
        """
        room = round(20 + TOKENS_PER_SECOND * max(sounds.frames) * FRAME_S)
        most = min(MOST_TOKENS, max(len(prompts[0]) + room, 2 * room))
        limit = min(most // 2, most - len(prompts[0]) + 1)  # the last of the prompt counts as the first of the text
        way: dict[str, Any] = {"beam_size": manner.beam_size, "patience": 1}
        if manner.temperature > 0:
            way = {
                "beam_size": 1,
                "num_hypotheses": BEST_OF,
                "sampling_topk": 0,
                "sampling_temperature": manner.temperature,
            }
        results = self._model.generate(
            sounds.states,
            list(prompts),
            max_length=most,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=self._suppressed,
            **way,
        )
        return [_decoded(result, limit) for result in results]

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without the spaces at its ends."""
        return str(self._whisper.hf_tokenizer.decode([token for token in tokens if token < self._eot])).strip()

    def phrases(self, tokens: Sequence[int], duration: float) -> list[Phrase]:
        """What stands between time tokens; text that no time token ends lasts as long as the sound."""
        found: list[Phrase] = []
        start, text = 0.0, []
        for token in tokens:
            if token < self._eot:
                text.append(token)
            elif token >= self._first_time:
                time = min((token - self._first_time) * TOKEN_S, duration)
                if text:
                    found.append(Phrase(start, time, tuple(text)))
                start, text = time, []
        if text:
            found.append(Phrase(start, duration, tuple(text)))
        return found

    def words(self, text: str, language: str) -> list[tuple[str, list[int]]]:
        """The words of a text and the tokens of each; where a language has no spaces, the tokens' own characters."""
        if language in UNSPACED:
            pieces, tokens = self._tokenizer(language, "transcribe").split_tokens_on_unicode(self._encode(text))
            return list(zip(pieces, tokens, strict=True))
        return [(word, self._encode(" " + word)) for word in text.split()]

    def align(self, sounds: Encoded, texts: Sequence[list[list[int]]], language: str) -> list[list[Timed]]:
        """When each word of each text is said, by cross-attention and time warping; texts are lists of words.

        A text for which the model has no times gets an empty list.
        """
        results = self._model.align(
            sounds.states,
            self._tokenizer(language, "transcribe").sot_sequence,
            [[token for word in text for token in word] for text in texts],
            list(sounds.frames),
        )
        return [_timed(result, text) for result, text in zip(results, texts, strict=True)]

    def close(self) -> None:
        """Let the weights go, also where something still holds this object."""
        self._model.unload_model()

    def _tokenizer(self, language: str, task: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        if (language, task) not in self._tokenizers:
            tokenizer = Tokenizer(self._whisper.hf_tokenizer, self.multilingual, task, language)
            self._tokenizers[language, task] = tokenizer
        return self._tokenizers[language, task]

    def _encode(self, text: str) -> list[int]:
        return list(self._whisper.hf_tokenizer.encode(text, add_special_tokens=False).ids)

    def _token(self, name: str) -> int | None:
        token: int | None = self._whisper.hf_tokenizer.token_to_id(name)
        return token


def _decoded(result: Any, limit: int) -> Decoded:
    """The likeliest hypothesis; CTranslate2's score is the sum of log-probabilities over the tokens without the end.

    The end is not among the tokens, but counts towards their `limit`: as many as that were cut off.
    """
    score, tokens = max(zip(result.scores, result.sequences_ids, strict=True), key=lambda pair: pair[0])
    logprob = score * len(tokens) / (len(tokens) + 1)
    return Decoded(tuple(tokens), logprob, result.no_speech_prob, len(tokens) < limit)


def _timed(result: Any, words: Sequence[list[int]]) -> list[Timed]:
    """Each word from its first token's first frame to the next word's."""
    if not words or not result.alignments:
        return []
    tokens, frames = np.array(result.alignments).T
    starts = frames[np.diff(tokens, prepend=-1) > 0] * TOKEN_S
    edges = np.cumsum([0, *map(len, words)])
    chances = result.text_token_probs
    return [
        Timed(float(starts[a]), float(starts[min(b, len(starts) - 1)]), float(np.clip(np.mean(chances[a:b]), 0, 1)))
        for a, b in pairwise(edges.tolist())
    ]


def _compute_type(device: str, wanted: str | None) -> str:
    """The arithmetic to use: what the settings want, else the best that the device has."""
    from ctranslate2 import get_supported_compute_types

    try:
        supported = get_supported_compute_types(device)
    except (RuntimeError, ValueError):
        raise SettingsError(
            "models are to run on a GPU and none can be used; set DEVICE=cpu, or mend the driver"
        ) from None
    if wanted is None:
        return next(kind for kind in COMPUTE_TYPES[device] if kind in supported)
    if wanted not in supported:
        have = ", ".join(sorted(supported))
        raise SettingsError(f"COMPUTE_TYPE is {wanted}, which this machine's {device} has not; it has: {have}")
    return wanted
