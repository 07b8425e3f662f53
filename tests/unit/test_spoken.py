"""What is said for what is written, and how texts without spaces are cut."""

import pytest

from hansard.aligners.spoken import SYMBOLS, tokens
from hansard.transcript import UNSPACED

UNSPACED_TEXTS = {
    "ja": "今日は2014年、東京で「3.5%」です。OK?",
    "zh": "2014年有43,000人(左右)。",
    "yue": "佢哋話:「好呀!」",
    "th": "สวัสดีครับ เท่านั้น ๒๐๑๔",
    "lo": "ສະບາຍດີ ເຈົ້າ",
    "km": "ខ្ញុំជាខ្មែរ។",
    "my": "မြန်မာဘာသာ ၁၂",
}


def said(text: str, language: str) -> dict[str, str]:
    return {token.text: " ".join(token.spoken) for token in tokens(text, language)}


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("en", "2014", "twenty fourteen"),
        ("en", "2150", "two thousand one hundred and fifty"),
        ("en", "$43,000", "forty three thousand dollars"),
        ("en", "(£12.", "twelve pounds sterling"),
        ("en", "3.5", "three point five"),
        ("en", "12:30", "twelve thirty"),
        ("en", "24/7", "twenty four seven"),
        ("en", "1st,", "first"),
        ("en", "22nd", "twenty second"),
        ("en", "007", "zero zero seven"),
        ("en", "0123456789", "zero one two three four five six seven eight nine"),
        ("en", "№5", "number five"),
        ("en", "50%.", "fifty percent"),
        ("en", "Q&A", "q and a"),
        ("en", "5G", "five g"),
        ("en", "Well-known", "well known"),
        ("en", "“Don't!”", "don't"),
        ("en", "–", ""),
        ("fr", "1er", "premier"),
        ("fr", "3,5", "trois virgule cinq"),
        ("fr", "12h30", "douze h trente"),
        ("fr", "20€", "vingt euros"),
        ("de", "1984", "neunzehnhundertvierundachtzig"),
        ("de", "43.000,5", "dreiundvierzigtausend komma fünf"),
        ("ru", "1-й", "первый"),
        ("ru", "15%", "пятнадцать процентов"),
        ("ja", "2014", "二千十四"),
        ("zh", "2014", "二 零 一 四"),
        ("zh", "43000", "四万三千"),
        ("no", "21", "tjueen"),
        ("nn", "21", "tjueen"),
    ],
)
def test_a_token_is_read(language: str, written: str, spoken: str) -> None:
    assert said(written, language) == {written: spoken}


def test_a_language_without_number_words_keeps_the_digits() -> None:
    assert said("2014 में", "hi") == {"2014": "2014", "में": "में"}
    assert said("4802626", "am") == {"4802626": "4802626"}


def test_an_unknown_symbol_stays() -> None:
    assert said("100 ₿", "en") == {"100": "one hundred", "₿": "₿"}
    assert said("3 %", "ka")["%"] == "%"


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("43 000 €", "fr", {"43": "quarante trois", "000": "mille", "€": "euros"}),
        ("1 250 человек", "ru", {"1": "одна тысяча", "250": "двести пятьдесят", "человек": "человек"}),
        ("in 2014 300 people", "en", {"2014": "twenty fourteen", "300": "three hundred"}),
        ("room 5 200.", "en", {"5": "five thousand", "200.": "two hundred"}),
    ],
)
def test_thousands_with_spaces_are_one_number(text: str, language: str, expected: dict[str, str]) -> None:
    found = said(text, language)
    assert {token: found[token] for token in expected} == expected


@pytest.mark.parametrize(
    ("language", "written"),
    [
        ("es", "9" * 15 + "º"),
        ("en", "9" * 5000 + "th"),
        ("en", "1" + ",000" * 300),
    ],
)
def test_a_number_too_large_to_be_read_is_still_a_token(language: str, written: str) -> None:
    [token] = tokens(written, language)
    assert token.text == written
    assert token.spoken


@pytest.mark.parametrize("text", ["", " ", "a", "  two  words ", "x\u00a0y\tz\n", "12 , 5 ; – 3 000 000"])
def test_tokens_are_what_stands_between_spaces(text: str) -> None:
    assert [token.text for token in tokens(text, "en")] == text.split()


def test_every_unspaced_language_has_a_text_here() -> None:
    assert set(UNSPACED_TEXTS) == UNSPACED


@pytest.mark.parametrize("language", UNSPACED_TEXTS)
def test_without_spaces_the_tokens_make_up_the_text(language: str) -> None:
    text = UNSPACED_TEXTS[language]
    found = tokens(text, language)
    assert "".join(token.text for token in found) == "".join(text.split())
    assert len(found) > 3
    assert all(token.spoken for token in found)


@pytest.mark.parametrize(
    ("language", "cut"),
    [
        ("ja", "今 日 は 2014 年、 東 京 で 「3.5%」 で す。 OK?"),
        ("zh", "2014 年 有 43,000 人 (左 右)。"),
        ("th", "ส วั ส ดี ค รั บ เท่า นั้ น ๒๐๑๔"),
        ("km", "ខ្ញុំ ជា ខ្មែ រ។"),
    ],
)
def test_signs_vowels_and_punctuation_stay_with_their_character(language: str, cut: str) -> None:
    assert [token.text for token in tokens(UNSPACED_TEXTS[language], language)] == cut.split()


def test_symbols_are_called_in_lower_case_words() -> None:
    assert all(name == name.lower() for names in SYMBOLS.values() for name in names.values())
