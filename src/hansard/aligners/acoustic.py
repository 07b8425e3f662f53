"""A CTC model of one language: found, loaded through WhisperX, and run on batches of sound.

All that is particular to a vendor ends here: the two kinds of model (transformers and torchaudio), their vocabularies
with blank and word separator, normalisation, and the memory of a GPU.
"""

from __future__ import annotations

import logging
import math
import unicodedata
from typing import Any

from hansard.aligners import bundles
from hansard.aligners.table import aligner_of
from hansard.errors import ModelError, OutOfMemoryError
from hansard.models import Models
from hansard.transcript import Float32
from hansard.vendors import gpu_lost, no_room, quiet

log = logging.getLogger(__name__)

STRIDE = 320  # samples per frame: every wav2vec2, HuBERT and WavLM model has this stack of convolutions
FIELD = 400  # samples that one frame looks at, and the least that a model takes

WILDCARD = -1  # stands for a character that the model has no output for


class Vocabulary:
    """The characters that a model knows, by the column of its output."""

    def __init__(self, dictionary: dict[str, int]) -> None:
        # As in whisperx.alignment: transformers' blank is its padding token, torchaudio's is column 0.
        self.blank = next((dictionary[pad] for pad in ("[pad]", "<pad>") if pad in dictionary), 0)
        self.separator = next((dictionary[mark] for mark in ("|", " ") if mark in dictionary), None)
        apart = (self.blank, self.separator)
        self._columns = {text: column for text, column in dictionary.items() if len(text) == 1 and column not in apart}

    def columns(self, word: str) -> list[int]:
        """The columns of a word's characters.

        A character unknown to the model is taken apart (é is e to a model without é), else it is a WILDCARD if it is
        a letter, a digit or a symbol, else, being silent, nothing.
        """
        return [column for character in unicodedata.normalize("NFC", word).lower() for column in self._one(character)]

    def _one(self, character: str) -> list[int]:
        if character in self._columns:
            return [self._columns[character]]
        parts = unicodedata.normalize("NFKD", character).casefold()
        known = [self._columns[part] for part in parts if part in self._columns]
        silent = unicodedata.category(character)[0] not in "LNS"
        return known or ([] if silent else [WILDCARD])


class Acoustic:
    """The model of one language, in memory.

    Raises UnsupportedError for a language that has none, ModelError where it cannot be had.
    """

    def __init__(self, language: str, models: Models) -> None:
        from transformers import Wav2Vec2FeatureExtractor
        from whisperx.alignment import load_align_model

        name = aligner_of(language, models.settings)
        folder, weights = name, None
        if bundles.is_bundle(name):
            weights = str(bundles.folder(name, language, models))
        else:
            folder = str(models.get(name))
        device = "cuda" if models.settings.on_gpu else "cpu"
        with quiet():
            try:
                self._model, found = load_align_model(language, device, folder, model_dir=weights)
                self._normalize = bool(
                    # torchaudio's own normalisation is over a whole batch; each row being normal, it changes nothing
                    getattr(self._model, "normalize_waveform", False)
                    if weights
                    else Wav2Vec2FeatureExtractor.from_pretrained(folder).do_normalize
                )
            except Exception as error:  # each kind of broken file has an exception of its own
                if no_room(error) or gpu_lost(error):
                    raise
                cause = type(error.__context__ or error).__name__  # WhisperX raises a ValueError for whatever it is
                log.warning("the aligner of language %s cannot be loaded: %s", language, cause)
                bundles.forget(name, models)
                raise ModelError(
                    f"the aligner of language {language} is not a wav2vec2 CTC model that can be loaded; "
                    "fetch it again, or name another with ALIGN_MODELS"
                ) from None
        self.vocabulary = Vocabulary(found["dictionary"])
        self._device = device
        self._half = device == "cuda"

    def __call__(self, sound: Float32) -> Any:
        """Log-probabilities of sound of shape (batch, samples), as a tensor of shape (batch, frames, columns).

        Raises OutOfMemoryError.
        """
        try:
            return self._log_probabilities(sound)
        except RuntimeError as error:
            if not no_room(error):
                raise
        raise OutOfMemoryError("there is not enough memory to align words; use a machine with more of it")

    def best_character(self, output: Any) -> Any:
        """The log-probability of the likeliest character in each frame, shape (batch, frames)."""
        apart = [column for column in (self.vocabulary.blank, self.vocabulary.separator) if column is not None]
        output = output.clone()
        output[..., apart] = -math.inf
        return output.amax(dim=-1)

    def _log_probabilities(self, sound: Float32) -> Any:
        import torch

        batch = torch.from_numpy(sound).to(self._device)
        if self._normalize:
            batch = torch.nn.functional.layer_norm(batch, batch.shape[1:], eps=1e-7)
        logits = self._logits(batch)
        if self._half and not torch.isfinite(logits).all():
            self._half = False  # a model that float16 cannot hold
            logits = self._logits(batch)
        return torch.log_softmax(logits, dim=-1)

    def _logits(self, batch: Any) -> Any:
        import torch

        with torch.inference_mode(), torch.autocast(self._device, torch.float16, enabled=self._half):
            output = self._model(batch)
        return (output[0] if isinstance(output, tuple) else output.logits).float()
