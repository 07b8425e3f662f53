"""The guard: pure rules that tell a sound transcript of a chunk from one that a model made up.

Batched decoders have none: faster-whisper and whisperX take the three thresholds and ignore them when they batch.
Compression ratio, log-probability and no-speech are those of the Whisper paper (Radford et al. 2022, section 4.5).
Loops and density are ours; what they do not catch is fluent invention in speech, which only its low probability tells.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from hansard.settings import Settings
from hansard.transcript import Span

DENSEST = 30.0  # letters a second; fast English is about 20, with timing errors 25
DENSE_FROM = 30.0  # letters; below, a second of speech more or less decides too much
WIDE = 3.0  # letters that one character of Chinese, Japanese or Korean counts for
LEAST_WORDS = 8  # that a loop makes, so that "no, no, no, no" is none
LEAST_LETTERS = 30
WINDOW = 450  # letters: what is said in about 30 s
LONGEST_LOOP = 30  # words or letters of what is repeated
MOST_TOLD = 10  # places that a warning names
LEAST_GAP_S = 1.5  # of speech without words, to be a fault; the model's times are half a second wrong at worst
_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_LETTER = re.compile(r"\w")


class Fault(Enum):
    """What is wrong with a transcript, as an answer's warning tells it."""

    SILENCE = "nothing is said"
    REPETITION = "the model repeated itself"
    ENDLESS = "the model came to no end"
    DENSITY = "more words than can be said in the time"
    DOUBT = "the model was unsure of the words"
    GAP = "somebody speaks and no words were recognised"


LEFT_OUT = (Fault.REPETITION, Fault.DENSITY, Fault.ENDLESS)
"""Faults of words that an answer does not hold."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The thresholds of the guard: probability of silence, mean log-probability of a token, bytes over packed bytes."""

    no_speech: float
    logprob: float
    compression: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.no_speech_threshold, settings.logprob_threshold, settings.compression_ratio_threshold)


@dataclass(frozen=True, slots=True)
class Heard:
    """A transcript to judge: text, how sure the model was, the sound's length and the speech in it, both in seconds.

    `ended` is false where the model was cut off before it said that its text was whole.
    """

    text: str
    logprob: float
    no_speech: float
    seconds: float
    speech: float
    ended: bool = True


def fault(heard: Heard, limits: Limits) -> Fault | None:
    """What is wrong with a transcript, the worst first; None: it stands.

    Where the model holds that nobody speaks it is believed only if the voice activity found next to no speech either.
    """
    text = heard.text.strip()
    unspoken = heard.no_speech > limits.no_speech and heard.logprob < limits.logprob
    if not text or unspoken:
        return Fault.GAP if heard.speech >= LEAST_GAP_S else Fault.SILENCE
    if compression_ratio(text) > limits.compression or loops(text):
        return Fault.REPETITION
    if letters(text) > max(DENSE_FROM, DENSEST * heard.seconds):
        return Fault.DENSITY
    if not heard.ended:
        return Fault.ENDLESS
    return Fault.DOUBT if heard.logprob < limits.logprob else None


def complaints(found: Iterable[tuple[Span, Fault | None]]) -> list[str]:
    """What could not be mended, one sentence for each kind of fault, with the times."""
    faults: dict[Fault, list[Span]] = {kind: [] for kind in (*LEFT_OUT, Fault.GAP, Fault.DOUBT)}
    for span, kind in found:
        if kind in faults:
            faults[kind].append(span)
    left_out = "; these words were left out"
    return [
        f"{kind.value}{left_out if kind in LEFT_OUT else ''}: {places(spans)}"
        for kind, spans in faults.items()
        if spans
    ]


def places(spans: Sequence[Span]) -> str:
    """The times of spans, in order, as a warning tells them."""
    told = [f"{span.start:.1f}-{span.end:.1f} s" for span in sorted(spans, key=lambda span: (span.start, span.end))]
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return ", ".join(told[:MOST_TOLD]) + more


def compression_ratio(text: str) -> float:
    """Letters of a text over its bytes when packed: about 1.5 in speech, above 2.4 where it repeats itself.

    Of a long text the worst stretch of WINDOW letters counts, for the ratio grows with the length. Letters are packed
    as one byte each: the UTF-8 of Hindi or Russian, of which half hardly varies, packs as well as a loop.
    """
    at = range(0, max(1, len(text) - WINDOW // 2), WINDOW // 2)
    return max(_packed(text[begin : begin + WINDOW]) for begin in at)


def _packed(text: str) -> float:
    codes = {letter: code for code, letter in enumerate(dict.fromkeys(text))}
    raw = bytes(codes[letter] for letter in text) if len(codes) < 256 else text.encode()
    return len(raw) / len(zlib.compress(raw))


def loops(text: str) -> bool:
    """Does a text say the same words, or write the same letters or dots, over and over without a break?"""
    words = re.findall(r"\w+", text.lower())
    return _repeats(words, LEAST_WORDS) or _repeats(list("".join(text.lower().split())), LEAST_LETTERS)


def _repeats(units: Sequence[str], least: int) -> bool:
    """Is some run of units said four times in a row (three, if it is long), `least` units or more in all?"""
    _, codes = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    for length in range(1, min(len(codes) // 3, LONGEST_LOOP) + 1):
        times = 4 if 2 * length < least else 3
        same = np.flatnonzero(np.append(codes[length:] != codes[:-length], True))
        longest = int(np.diff(same, prepend=-1).max()) - 1 + length
        if longest >= max(least, times * length):
            return True
    return False


def letters(text: str) -> float:
    """How many letters and digits a text has; a Chinese, Japanese or Korean character counts as several."""
    wide = len(_WIDE.findall(text))
    return len(_LETTER.findall(text)) - wide + WIDE * wide
