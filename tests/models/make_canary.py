"""Make a small Canary with NeMo's real classes and write it as a real .nemo archive: no network, a few seconds.

    python tests/models/make_canary.py FOLDER

It is laid out like canary-1b-v2: one SentencePiece tokenizer for all languages, prompts of the format canary2, and
inside the archive a second, small CTC model that times the words. The weights are random but for one thing: the words
of its vocabulary are in ranks, and the position of a word in the text decides its rank, after the last comes the end.
Which word of a rank it writes depends on the sound. So every sound has a text of RANKS words that ends, and understands
nothing.
"""

from __future__ import annotations

import importlib.util
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hansard.settings import Settings
from hansard.transcribers.canary import LANGUAGES
from hansard.transcribers.canary_model import import_nemo
from hansard.vendors import quiet

NAME = "tiny-canary"
REASON = "NeMo is not installed: builder/check --canary runs this"

END = "<|endoftext|>"
SPECIAL = (
    *("<|nospeech|>", "<pad>", END, "<|startoftranscript|>", "<|pnc|>", "<|nopnc|>", "<|startofcontext|>"),
    *("<|itn|>", "<|noitn|>", "<|timestamp|>", "<|notimestamp|>", "<|diarize|>", "<|nodiarize|>"),
    *("<|emo:undefined|>", "<|emo:neutral|>"),
    *(f"<|{language}|>" for language in sorted(LANGUAGES)),
)
PROMPT = 10  # tokens before a text: a space and the slots of canary2
RANKED = (
    ("The", "A", "My", "One"),
    ("cat", "dog", "man", "fox"),
    ("ran.", "sat.", "won.", "hid."),
    ("We", "You", "They", "All"),
    ("had", "saw", "got", "ate"),
    ("tea.", "ice.", "jam.", "pie."),
)
RANKS, PER_RANK = len(RANKED), len(RANKED[0])
WORDS = tuple(f"▁{word}" for rank in RANKED for word in rank)

HIDDEN = 128
DECODER_LENGTH = 64  # tokens, prompt included
SHARPNESS, LOUDNESS = 100.0, 10.0  # of the attention to the sound


def preprocessor() -> dict[str, Any]:
    """Spectrograms as the real one makes them, with fewer bands."""
    return {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        **{"sample_rate": 16_000, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01},
        **{"window": "hann", "features": 32, "n_fft": 512, "log": True, "frame_splicing": 1, "dither": 0.0},
        "pad_to": 0,
    }


def encoder(width: int) -> dict[str, Any]:
    """A FastConformer of one layer, eight spectrogram columns to a frame."""
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        **{"feat_in": 32, "feat_out": -1, "n_layers": 1, "d_model": width, "subsampling": "dw_striding"},
        **{"subsampling_factor": 8, "subsampling_conv_channels": 16, "causal_downsampling": False},
        **{"ff_expansion_factor": 2, "self_attention_model": "rel_pos", "n_heads": 4, "conv_kernel_size": 9},
        **{"dropout": 0.0, "dropout_pre_encoder": 0.0, "dropout_emb": 0.0, "dropout_att": 0.0},
    }


def canary_config(tokenizer: Path) -> dict[str, Any]:
    """The configuration of the main model."""
    slots = {"decodercontext": "", "source_lang": "<|en|>", "target_lang": "<|en|>", "emotion": "<|emo:undefined|>"}
    slots |= {"pnc": "<|pnc|>", "itn": "<|noitn|>", "timestamp": "<|notimestamp|>", "diarize": "<|nodiarize|>"}
    layers = {"num_layers": 1, "inner_size": 64, "num_attention_heads": 4, "hidden_size": HIDDEN}
    dropouts = {"ffn_dropout": 0.0, "attn_score_dropout": 0.0, "attn_layer_dropout": 0.0, "embedding_dropout": 0.0}
    length = {"max_sequence_length": DECODER_LENGTH, "learn_positional_encodings": True}
    return {
        "target": "nemo.collections.asr.models.aed_multitask_models.EncDecMultiTaskModel",
        "sample_rate": 16_000,
        "prompt_format": "canary2",
        "restore_timestamps_model": False,  # while it is made: NeMo would look into the archive that was loaded last
        "prompt_defaults": [{"role": "user", "slots": slots}],
        "model_defaults": {"asr_enc_hidden": HIDDEN, "lm_enc_hidden": HIDDEN, "lm_dec_hidden": HIDDEN},
        "tokenizer": {
            **{"dir": str(tokenizer), "type": "bpe"},
            "custom_tokenizer": {"_target_": "nemo.collections.common.tokenizers.canary_tokenizer.CanaryBPETokenizer"},
        },
        "preprocessor": preprocessor(),
        "encoder": encoder(HIDDEN),
        "transf_decoder": {
            "_target_": "nemo.collections.asr.modules.transformer.get_nemo_transformer",
            **{"model_name": None, "pretrained": False, "encoder": False, "pre_ln_final_layer_norm": True},
            "config_dict": {**layers, **dropouts, **length, "hidden_act": "relu", "pre_ln": True},
        },
        "head": {
            "_target_": "nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier",
            **{"num_layers": 1, "activation": "relu", "log_softmax": True, "hidden_size": HIDDEN},
            **{"num_classes": None, "dropout": 0.0, "use_transformer_init": True},
        },
        "decoding": {
            "strategy": "beam",
            "beam": {"beam_size": 1, "len_pen": 0.0, "max_generation_delta": 50},
        },
        "loss": {
            "_target_": "nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
            **{"label_smoothing": 0.0, "pad_id": None},
        },
        "optim": {"name": "adamw"},
    }


def ctc_config(tokenizer: Path) -> dict[str, Any]:
    """The configuration of the model that times the words."""
    return {
        "target": "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE",
        "sample_rate": 16_000,
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": preprocessor(),
        "encoder": encoder(32),
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            **{"feat_in": 32, "num_classes": -1, "vocabulary": []},
        },
        "decoding": {"strategy": "greedy"},
        "optim": {"name": "adamw"},
    }


def tokenizer(folder: Path, special: tuple[str, ...]) -> Path:
    """A SentencePiece tokenizer in a folder: WORDS, and these special tokens."""
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

    folder.mkdir()
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(words) for words in zip(*RANKED, strict=True)))
    symbols = [*special, *WORDS]
    create_spt_model(
        str(text), len(symbols) + 40, -1, False, "bpe", output_dir=str(folder), user_defined_symbols=symbols
    )
    return folder


def rank_words(model: Any) -> None:
    """Make the decoder write one word of each rank, in the order of the ranks, and then the end.

    The first RANKS + 1 dimensions hold the rank of what comes next, which the position decides, and no layer writes
    into them; what attention to the sound writes into the others chooses within a rank. The classifier's weights are
    the embeddings of the tokens.
    """
    import torch

    decoder = model.transf_decoder
    tokens, positions = decoder.embedding.token_embedding.weight, decoder.embedding.position_embedding.weight
    [layer] = decoder.decoder.layers
    for part in (layer.first_sub_layer.out_projection, layer.second_sub_layer.out_projection):
        part.weight[: RANKS + 1] = 0.0
    layer.third_sub_layer.dense_out.weight[: RANKS + 1] = 0.0
    end, *words = (model.tokenizer.token_to_id(token) for token in (END, *WORDS))
    tokens[:, : RANKS + 1] = 0.0
    positions.zero_()
    for rank in range(RANKS + 1):
        tokens[words[rank * PER_RANK : (rank + 1) * PER_RANK] or [end], rank] = 1.0
        positions[PROMPT - 1 + rank :, : RANKS + 1] = 0.0
        positions[PROMPT - 1 + rank :, rank] = 50.0
    noise = torch.randn(1, 10 * 16_000)
    _, _, states, _ = model.eval().forward(input_signal=noise, input_signal_length=torch.tensor([noise.shape[1]]))
    listening = layer.second_sub_layer
    listening.key_net.weight.mul_(SHARPNESS)
    listening.value_net.weight.mul_(LOUDNESS)
    listening.value_net.bias.copy_(-listening.value_net.weight @ states[0].mean(dim=0))  # what all sounds share


def pack(canary: Path, ctc: Path | None, archive: Path) -> None:
    """One archive of two, laid out as NVIDIA does: the second model's files beside the first's, under other names."""
    names = {"model_config.yaml": "timestamps_asr_model_config.yaml"}
    names |= {"model_weights.ckpt": "timestamps_asr_model_weights.ckpt"}
    with tarfile.open(archive, "w") as packed, tempfile.TemporaryDirectory() as scratch:
        for number, part in enumerate(path for path in (canary, ctc) if path):
            folder = Path(scratch) / str(number)
            with tarfile.open(part) as saved:
                saved.extractall(folder, filter="data")
            for file in sorted(folder.iterdir()):
                packed.add(file, names.get(file.name, file.name) if part == ctc else file.name)


def make(folder: Path, timed: bool = True) -> Path:
    """Write the archive into a folder, which is returned; without `timed`, no model of word times is in it."""
    import_nemo()
    import torch
    from nemo.collections.asr.models import EncDecCTCModelBPE, EncDecMultiTaskModel
    from nemo.collections.asr.models.aed_multitask_models import OmegaConf

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        torch.manual_seed(0)
        parts = Path(scratch)
        canary = EncDecMultiTaskModel(OmegaConf.create(canary_config(tokenizer(parts / "spoken", SPECIAL))))
        rank_words(canary)
        canary.cfg.restore_timestamps_model = True
        canary.save_to(str(parts / "canary.nemo"))
        ctc = EncDecCTCModelBPE(OmegaConf.create(ctc_config(tokenizer(parts / "plain", ()))))
        ctc.save_to(str(parts / "ctc.nemo"))
        pack(parts / "canary.nemo", parts / "ctc.nemo" if timed else None, folder / f"{NAME}.nemo")
    return folder


@contextmanager
def worker(folder: Path) -> Iterator[Settings]:
    """A worker without a GPU and without the model hub that has the model NAME; skips the test without NeMo."""
    if importlib.util.find_spec("nemo") is None:
        pytest.skip(REASON)
    make(folder / NAME)
    yield Settings(models_dir=folder, hf_hub_offline=True, device="cpu", vad_method="silero")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
