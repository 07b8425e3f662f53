"""What a transcriber can do, readable without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OPTIONS = frozenset(
    {
        "prompt",
        "hotwords",
        "temperature",
        "beam_size",
        "batch_size",
        "target_language",
        "vad_onset",
        "vad_offset",
        "language_detection_min_prob",
        "language_detection_max_tries",
    }
)
"""The fields of a request that only a transcriber can honour; each backend names those it does."""


@dataclass(frozen=True)
class Can:
    """Capabilities, checked before a byte is downloaded: an option not named here is refused by name."""

    languages: frozenset[str] | None  # codes understood; None: any
    needs_language: bool = False  # cannot detect it
    mixed_languages: bool = False  # takes language `multi`: decides anew for each stretch of speech
    tasks: frozenset[str] = frozenset({"transcribe"})
    options: frozenset[str] = frozenset()  # of OPTIONS
    always: Mapping[str, object] = field(default_factory=dict)  # options whose one value is what it does anyway
    word_times: bool = False  # of its own: from `transcribe`, or where it needs alignment from `time_words`
    needs_alignment: bool = False  # the words and their times are an aligner's work first
