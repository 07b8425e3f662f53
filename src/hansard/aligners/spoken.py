"""A written text as tokens, each with the words that are said for it ("$43,000": forty three thousand dollars).

Times are found for what is said, and given to what is written. A reading need not be the one that was spoken: what
lies between a token's first and last sound does not change its times.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

from hansard.transcript import UNSPACED


@dataclass(frozen=True, slots=True)
class Token:
    """A word as written, and the words said for it in lower case; none for punctuation."""

    text: str
    spoken: tuple[str, ...]


def tokens(text: str, language: str) -> list[Token]:
    """The tokens of a text in a language (ISO 639 code); joined, they are the text without its spaces.

    A token is what stands between spaces. In a language of UNSPACED it is a character with the vowels and signs that
    belong to it, and the punctuation beside it; numbers and words in other scripts stay whole.
    """
    written = text.split()
    if language in UNSPACED:
        written = [cluster for part in written for cluster in _clusters(part)]
    return _spaced_thousands([Token(word, _spoken(word, language)) for word in written], language)


# Tokens without spaces

_WHOLE = re.compile(r"[$€£¥₩₽]?\d+(?:[.,:]\d+)*[%％]?|[A-Za-zÀ-ɏͰ-ԯ]+(?:['’-][A-Za-zÀ-ɏͰ-ԯ]+)*|.", re.DOTALL)
_BEFORE = "เแโใไເແໂໃໄ"  # Thai and Lao vowels that are written before their consonant
_AFTER = "ะาำๅๆະາຳຽໆ"  # and those after it that are letters to Unicode
_STACKING = "\u17d2\u1039"  # Khmer coeng, Burmese virama: the next consonant is written under this one
_OPENING = ("Ps", "Pi")


def _clusters(part: str) -> Iterator[str]:
    held = ""
    for piece in _WHOLE.findall(part):
        if held and not _belong(held, piece):
            yield held
            held = ""
        held += piece
    if held:
        yield held


def _belong(held: str, piece: str) -> bool:
    """Is this piece of text a part of the token before it?"""
    kind, last = unicodedata.category(piece[0]), held[-1]
    if kind in _OPENING:
        return all(unicodedata.category(character) in _OPENING for character in held)
    beside = kind[0] in "MPZ" or piece in _AFTER
    return beside or last in _BEFORE or last in _STACKING or unicodedata.category(last) in _OPENING


# What is said

NUM2WORDS = {"nn": "no", "kk": "kz", "zh": "ja", "yue": "ja"}
"""Languages that num2words has under another name; Chinese numbers are written like Japanese ones."""

CURRENCIES = {
    "$": "USD",
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "₽": "RUB",
    "₴": "UAH",
    "₹": "INR",
    "₩": "KRW",
    "₪": "ILS",
}

SYMBOLS = {
    "%": {
        "en": "percent", "fr": "pour cent", "de": "prozent", "es": "por ciento", "it": "per cento", "pt": "por cento",
        "nl": "procent", "ru": "процентов", "uk": "відсотків", "pl": "procent", "cs": "procent", "sk": "percent",
        "sv": "procent", "da": "procent", "no": "prosent", "nn": "prosent", "fi": "prosenttia", "hu": "százalék",
        "ro": "la sută", "tr": "yüzde", "ca": "per cent", "id": "persen", "vi": "phần trăm", "ja": "パーセント",
        "ko": "퍼센트", "el": "τοις εκατό", "hr": "posto", "sl": "odstotkov", "fa": "درصد", "ar": "بالمئة",
        "he": "אחוז", "hi": "प्रतिशत", "th": "เปอร์เซ็นต์",
    },
    "&": {"en": "and", "fr": "et", "de": "und", "es": "y", "it": "e", "pt": "e", "nl": "en", "ru": "и", "pl": "i"},
    "+": {"en": "plus", "fr": "plus", "de": "plus", "es": "más", "it": "più", "pt": "mais", "nl": "plus", "ru": "плюс"},
    "№": {"en": "number", "fr": "numéro", "ru": "номер", "uk": "номер"},
    "@": {"en": "at", "fr": "arobase", "de": "at", "es": "arroba", "it": "chiocciola", "ru": "собака"},
    "°": {
        "en": "degrees", "fr": "degrés", "de": "grad", "es": "grados", "it": "gradi", "pt": "graus", "ru": "градусов",
    },
}  # fmt: skip
"""What symbols are called. One without a name here is left as it is: to an aligner, some sound."""

ORDINALS = {
    "en": "st|nd|rd|th",
    "fr": "ers?|res?|ères?|nde?|e|es|èmes?|emes?",
    "es": "[ºª]|er|o|a",
    "pt": "[ºª]|o|a",
    "it": "[º°ª]",
    "nl": "e|de|ste",
    "sv": ":?[ae]",
    "ru": "-?(?:й|ый|ой|я|ая|е|ое|го|ого|му|ому|м|ом|х|ых)",
}
"""What is written after the digits of an ordinal number."""

NO_NUMBERS = frozenset({"am"})
"""Languages whose numbers are left as digits: num2words 0.5.14 does not come back from an Amharic million."""

POINT_LANGUAGES = frozenset(
    {"de", "es", "it", "pt", "nl", "tr", "id", "da", "el", "ro", "hr", "sl", "ca", "gl", "eu", "vi"}
)
"""Languages that put a point, not a comma, between thousands."""

YEARS = frozenset({"en", "de", "nl", "da"})
"""Languages that read a year otherwise than a number, and num2words knows how."""

DIGITS_READ_SINGLY = 10  # from this many on it is a telephone or account number

_NUMBER = re.compile(rf"([{''.join(CURRENCIES)}]?)(\d+(?:[.,:'’]\d+)*)([^\d\s]*)")
_GAPS = re.compile(r"[\s\-‐‑–—/…_]+")


def _spoken(word: str, language: str) -> tuple[str, ...]:
    """The words said for a written one."""
    found = _NUMBER.search(word)
    if found is None:
        return tuple(_words(word, language))
    said = _words(word[: found.start()], language)
    for sign, digits, rest in _NUMBER.findall(word):
        ordinal = re.match(rf"(?:{ORDINALS.get(language, '(?!)')})(?!\w)", rest)
        said += _number(digits, language, ordinal=ordinal is not None)
        said += _words(sign, language)  # written before its number, said after it
        said += _words(rest[ordinal.end() :] if ordinal else rest, language)
    return tuple(said)


def _words(text: str, language: str) -> list[str]:
    """Text without digits: symbols by their names, cut at hyphens, without what is punctuation only."""
    named = "".join(f" {_name(sign, language)} " if _is_symbol(sign) else sign for sign in text)
    return [bare for word in _GAPS.split(named.lower()) if (bare := _bare(word))]


def _bare(word: str) -> str:
    """A word without the punctuation around it."""
    said = [place for place, sign in enumerate(word) if sign in SYMBOLS or unicodedata.category(sign)[0] in "LMNS"]
    return word[said[0] : said[-1] + 1] if said else ""


def _is_symbol(sign: str) -> bool:
    return sign in SYMBOLS or unicodedata.category(sign) == "Sc"


def _name(sign: str, language: str) -> str:
    """What a symbol is called in a language, or the symbol."""
    if sign in SYMBOLS:
        return SYMBOLS[sign].get(language, sign)
    from num2words import CONVERTER_CLASSES

    forms = getattr(CONVERTER_CLASSES.get(NUM2WORDS.get(language, language)), "CURRENCY_FORMS", {})
    return str(forms[CURRENCIES[sign]][0][-1]) if CURRENCIES.get(sign) in forms else sign


def _number(digits: str, language: str, *, ordinal: bool) -> list[str]:
    """A number as written in a language; a time, a date or a version is several numbers."""
    thousands = "." if language in POINT_LANGUAGES else ","
    if re.fullmatch(rf"\d{{1,3}}(?:[{thousands}'’]\d{{3}})+(?:[.,]\d+)?", digits):
        digits = re.sub(f"[{thousands}'’]", "", digits)
    if ordinal:
        return _said(digits, language, "ordinal")
    if re.fullmatch(r"\d+[.,]\d+", digits):
        return _said(digits.replace(",", "."), language, "cardinal")
    return [word for part in re.split(r"\D", digits) for word in _integer(part, language)]


def _integer(digits: str, language: str) -> list[str]:
    year = re.fullmatch(r"1[1-9]\d\d|20\d\d", digits) is not None
    singly = (digits[0] == "0" and len(digits) > 1) or len(digits) >= DIGITS_READ_SINGLY
    if singly or (year and language in {"zh", "yue"}):
        return [word for digit in digits for word in _said(digit, language, "cardinal")]
    return _said(digits, language, "year" if year and language in YEARS else "cardinal")


def _said(number: str, language: str, kind: str) -> list[str]:
    return list(_num2words(number, NUM2WORDS.get(language, language), kind))


@lru_cache(maxsize=4096)
def _num2words(number: str, language: str, kind: str) -> tuple[str, ...]:
    """The words of a number; where num2words has none for it, the digits: to an aligner, some sounds."""
    from num2words import num2words

    if language in NO_NUMBERS:
        return (number,)
    try:
        said = num2words(Decimal(number) if "." in number else int(number), lang=language, to=kind)
    except Exception:  # each language refuses what is too large for it in its own way, some by endless recursion
        return (number,)
    return tuple(_words(said, language))


def _spaced_thousands(found: list[Token], language: str) -> list[Token]:
    """Numbers with spaces between their thousands, as in French and Russian, read as one: "43 000" is not 43 and 0.

    Each of the tokens gets an even share of the words.
    """
    read, place = list(found), 0
    while place < len(read):
        stop = _end_of_thousands(read, place)
        if stop > place + 1:
            said = _spoken("".join(token.text for token in read[place:stop]), language)
            cuts = [round(len(said) * cut / (stop - place)) for cut in range(stop - place + 1)]
            shares = [said[start:end] for start, end in pairwise(cuts)]
            read[place:stop] = [Token(token.text, share) for token, share in zip(read[place:stop], shares, strict=True)]
        place = stop
    return read


def _end_of_thousands(found: list[Token], place: int) -> int:
    """The place after the last token of the number that begins at a place."""
    stop, more = place + 1, re.fullmatch(r"\D*[1-9]\d{0,2}", found[place].text) is not None
    while more and stop < len(found) and re.fullmatch(r"\d{3}\D*", found[stop].text):
        more = found[stop].text.isdecimal()
        stop += 1
    return stop
