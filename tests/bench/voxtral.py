"""Memory and speed of Voxtral's weights: random ones of the shape of Voxtral-Mini-3B-2507, on whatever device there is.

Run: .venv/bin/python tests/bench/voxtral.py [--batch 1 8 32] [--layers 30]

Random weights say nothing, so every piece of 30 s is given as many tokens as a fast speaker needs (4 a second). The
texts are those of the product's own loop, VoxtralWeights.texts. `--layers` takes fewer layers of the language model
where memory is short. The last line is one JSON for machines.
"""

from __future__ import annotations

import argparse
import base64
import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from hansard.settings import Settings  # noqa: E402 - after src is on the path
from hansard.transcribers import voxtral_model  # noqa: E402
from hansard.transcript import SAMPLE_RATE  # noqa: E402

small = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "models" / "make_voxtral.py")))

TOKENS_PER_S = 4


def weights(layers: int, device: str) -> voxtral_model.VoxtralWeights:
    """A Voxtral of Mini's shape, bfloat16; its weights are small random numbers."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor

    config = VoxtralConfig(audio_token_id=small.AUDIO)  # type: ignore[no-untyped-call]  # Mini's shape is transformers' default
    config.text_config.num_hidden_layers = layers
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model: Any = VoxtralForConditionalGeneration(config)  # type: ignore[no-untyped-call]
    torch.set_default_dtype(before)
    buffers = [name for name, _ in model.named_buffers()]
    assert all("inv_freq" in name or "embed_positions" in name for name in buffers), buffers
    model = model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.rope_init_fn(module.config, device)[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tekken.json")
        file.write_text(json.dumps(vocabulary(config.text_config.vocab_size)))
        tokenizer = MistralTokenizer.from_file(file)
    extractor = WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
        feature_size=config.audio_config.num_mel_bins
    )
    return voxtral_model.VoxtralWeights(model, tokenizer, extractor, Settings().voxtral_max_tokens)


def vocabulary(size: int) -> dict[str, Any]:
    """The tokenizer of the small Voxtral, filled up to a size with words that mean nothing."""
    made: dict[str, Any] = small.tokenizer()
    for rank in range(len(made["vocab"]), size - small.SPECIALS):
        word = base64.b64encode(f" w{rank}".encode()).decode()
        made["vocab"].append({"rank": rank, "token_bytes": word, "token_str": None})
    made["config"] |= {"num_vocab_tokens": len(made["vocab"]), "default_vocab_size": size}
    return made


def measured(made: voxtral_model.VoxtralWeights, batch: int, cuda: bool) -> dict[str, float]:
    """Seconds for a minute of sound, and the most memory in GB, when so many pieces of 30 s are written at once."""
    random = np.random.default_rng(0)
    sounds = [random.normal(0, 0.05, round(29.9 * SAMPLE_RATE)).astype(np.float32) for _ in range(batch)]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    made.texts(sounds, voxtral_model.Manner("en"), lambda _: None)
    seconds = time.perf_counter() - begin
    memory = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss
    return {"batch": batch, "s_per_minute": round(seconds / (batch / 2), 3), "gb": round(memory / 1e9, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--layers", type=int, default=30)
    asked = parser.parse_args()
    cuda = torch.cuda.is_available()
    voxtral_model.ROOM, voxtral_model.ROOM_PER_S = 0, TOKENS_PER_S
    made = weights(asked.layers, "cuda" if cuda else "cpu")
    if cuda:
        measured(made, 1, cuda)  # the first call also chooses kernels
    rows = [measured(made, batch, cuda) for batch in asked.batch]
    table = Table("pieces at once", "seconds for a minute", "times real time", "GB")
    for row in rows:
        pace = 60 / row["s_per_minute"]
        table.add_row(str(row["batch"]), f"{row['s_per_minute']:.2f}", f"{pace:.1f}", f"{row['gb']:.1f}")
    Console().print(table)
    device = torch.cuda.get_device_name() if cuda else "cpu"
    print(json.dumps({"device": device, "layers": asked.layers, "rows": rows}))


if __name__ == "__main__":
    main()
