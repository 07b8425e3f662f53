"""Which language a text is in, for models that write it and do not say; and what every model says of its doubts.

Texts are told apart by py3langid, whose model rides in its package: naive Bayes over byte n-grams (Lui and Baldwin
2012). A sentence is enough where few languages come into question, a single word is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hansard.request import Request

NO_LANGUAGE = ("zxx",)  # what py3langid calls a text that is none
EVIDENCE = 2.5  # times as likely as any other must the likeliest language be, or it is a guess
SURE = 0.5  # of the language of one text alone; below, it is taken to be in that of all
MIXED = "multi"  # as a request's language: decide anew for each stretch of speech
NO_SPEECH = "no speech was found, so no language could be detected"
NO_WORDS = "no words were recognised, so no language could be told"


@dataclass(frozen=True, slots=True)
class Written:
    """The language of each text, that of all of them, and how sure it is where it was not given."""

    each: tuple[str, ...]
    language: str
    probability: float | None = None
    warnings: tuple[str, ...] = ()


def of_texts(request: Request, texts: Sequence[str], among: frozenset[str] | None = None) -> Written:
    """The language that a request names, or that of all texts together, or with `multi` of each text.

    With `multi`, a text that is too short to tell has the language of all together.
    """
    if request.language not in (None, MIXED):
        return Written((request.language,) * len(texts), request.language)
    if not any(text.strip() for text in texts):
        return Written(("en",) * len(texts), "en", 0.0, (NO_WORDS,))
    language, probability = of_text(" ".join(texts), among)
    each = [language] * len(texts)
    if request.language == MIXED:
        alone = [of_text(text, among) for text in texts]
        each = [one if chance >= SURE else language for one, chance in alone]
    warnings = doubts(language, probability, request.language_detection_min_prob)
    if not warnings and probability < SURE:
        warnings = (f"the text is too short to tell its language and was taken for {language}; name it in language",)
    return Written(tuple(each), language, probability, warnings)


def of_text(text: str, among: frozenset[str] | None = None) -> tuple[str, float]:
    """The likeliest of these languages (None: of all that are known), and its probability among them.

    Of a text that tells next to nothing, English.
    """
    identifier = _identifier(among)
    language, probability = identifier.classify(text)
    if probability * len(identifier.labels) < EVIDENCE:
        return "en", float(probability)
    return str(language), float(probability)


def doubts(language: str, probability: float, least: float) -> tuple[str, ...]:
    """The warning for a language that is less sure than a request wants it."""
    if probability >= least:
        return ()
    return (
        f"the language was taken for {language} with probability {probability:.4f}, less than "
        f"language_detection_min_prob {least:g}; if it is another, name it in language",
    )


@lru_cache
def _identifier(among: frozenset[str] | None) -> Any:
    """py3langid's model for some of its languages; one that it does not know is never found."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = {label for label in identifier.labels if label not in NO_LANGUAGE}
    identifier.set_languages(sorted(known if among is None else known & among))
    return identifier
