"""Make a small Voxtral with transformers' real classes and mistral-common's real tokenizer: no network, a second.

    python tests/models/make_voxtral.py FOLDER

Its weights are random but for one thing: the words of its vocabulary are in ranks, and after a word of one rank comes
one of the next, after the last the end. Which word of a rank it writes depends on the sound. So every sound has a text
of RANKS words that ends, and understands nothing.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hansard.settings import Settings

NAME = "tiny-voxtral"

# in the order of the real tekken.json; what is left out has no name there either, or none that is needed here
SPECIAL = {
    **{0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]"},
    **{7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]"},
    **{13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]"},
    **{18: "[/SYSTEM_PROMPT]", 19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]"},
    **{32: "[ARGS]", 33: "[CALL_ID]", 34: "[TRANSCRIBE]"},
}
SPECIALS = 40
END, TRANSCRIBE = 2, 34
AUDIO = 24

WORDS = (  # RANKS times as many as there are in a rank
    *("a", "the", "my", "our", "this", "that", "one", "no"),
    *("old", "new", "red", "big", "sad", "dry", "odd", "wet"),
    *("cat", "dog", "man", "fox", "cow", "bee", "hen", "owl"),
    *("saw", "had", "got", "ate", "hid", "met", "led", "won"),
    *("tea", "ice", "oil", "rye", "ham", "jam", "pie", "egg"),
)
RANKS = 5
PER_RANK = len(WORDS) // RANKS
VOCABULARY = SPECIALS + 256 + len(WORDS)
FIRST_WORD = SPECIALS + 256

HIDDEN = 64
ENCODER = 16  # its width; four frames of it are one token


def tokenizer() -> dict[str, Any]:
    """A tekken.json: bytes and words, and the special tokens and audio settings of the real one."""
    pieces = [bytes([byte]) for byte in range(256)] + [f" {word}".encode() for word in WORDS]
    return {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": VOCABULARY,
            "default_num_special_tokens": SPECIALS,
            "version": "v13",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": SPECIAL.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(SPECIALS)
        ],
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }


def config() -> Any:
    """The shape: one layer of the encoder, two of the language model, 160,000 parameters."""
    from transformers import VoxtralConfig

    return VoxtralConfig(
        audio_config={
            "vocab_size": VOCABULARY,
            "hidden_size": ENCODER,
            "intermediate_size": 4 * ENCODER,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_mel_bins": 128,
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": False,
        },
        audio_token_id=AUDIO,
        architectures=["VoxtralForConditionalGeneration"],
    )


def model(seed: int = 0, ends: bool = True) -> Any:
    """The model; without `ends` the first rank follows the last, and no text has an end."""
    import torch
    from transformers import VoxtralForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = VoxtralForConditionalGeneration(config()).eval()
        with torch.no_grad():
            for weights in made.parameters():
                if weights.dim() > 1:
                    weights.normal_(0.0, 1.5 / weights[0].numel() ** 0.5)
            chained(made.language_model, ends)
    return made


def chained(language_model: Any, ends: bool) -> None:
    """Make words of a rank follow those of the rank before.

    The first RANKS + 1 dimensions hold the rank of the word before, and no layer writes into them; what the layers
    write into the others, attention to the sound above all, chooses within a rank.
    """
    words = range(FIRST_WORD, VOCABULARY)
    rank_of = {TRANSCRIBE: 0, **{word: 1 + (word - FIRST_WORD) // PER_RANK for word in words}}
    embedding, head = language_model.model.embed_tokens.weight, language_model.lm_head.weight
    embedding[:, : RANKS + 1] = 0.0
    head[:, : RANKS + 1] = 0.0
    for layer in language_model.model.layers:
        layer.self_attn.o_proj.weight[: RANKS + 1] = 0.0
        layer.mlp.down_proj.weight[: RANKS + 1] = 0.0
    for token, rank in rank_of.items():
        embedding[token, rank] = 8.0
        if rank > 0:
            head[token, rank - 1] = 100.0
    for token in [END] if ends else range(FIRST_WORD, FIRST_WORD + PER_RANK):
        head[token, RANKS] = 100.0


def make(folder: Path, seed: int = 0, ends: bool = True) -> Path:
    """Write the model, its tokenizer and its feature extractor into a folder, which is returned."""
    from transformers import WhisperFeatureExtractor

    folder.mkdir(parents=True)
    model(seed, ends).save_pretrained(folder)
    (folder / "tekken.json").write_text(json.dumps(tokenizer()))
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    return folder


@contextmanager
def worker(folder: Path) -> Iterator[Settings]:
    """A worker without a GPU and without the model hub that has the model NAME."""
    make(folder / NAME)
    yield Settings(models_dir=folder, hf_hub_offline=True, device="cpu", vad_method="silero")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
