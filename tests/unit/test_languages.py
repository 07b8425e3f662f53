"""The language of a text, for models that write it and do not say which they heard."""

from __future__ import annotations

import threading

import pytest

from hansard.request import Request, parse
from hansard.transcribers.languages import NO_WORDS, of_text, of_texts

EIGHT = frozenset({"en", "es", "fr", "pt", "hi", "de", "nl", "it"})

SENTENCES = {
    "en": "Good morning everybody, let us begin with the minutes of last week.",
    "es": "Buenos días a todos, empecemos con el acta de la semana pasada.",
    "fr": "Bonjour à tous, commençons par le procès-verbal de la semaine dernière.",
    "pt": "Bom dia a todos, vamos começar com a ata da semana passada.",
    "hi": "सभी को सुप्रभात, चलिए पिछले सप्ताह के कार्यवृत्त से शुरू करते हैं।",
    "de": "Guten Morgen zusammen, beginnen wir mit dem Protokoll der letzten Woche.",
    "nl": "Goedemorgen allemaal, laten we beginnen met de notulen van vorige week.",
    "it": "Buongiorno a tutti, cominciamo con il verbale della settimana scorsa.",
}


def asked(language: str | None = None, sure: float = 0.0) -> Request:
    return parse({"audio": "data:,", "language": language, "language_detection_min_prob": sure})


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_told(language: str) -> None:
    found, probability = of_text(SENTENCES[language], EIGHT)
    assert found == language
    assert 0.8 < probability <= 1


@pytest.mark.parametrize("language", SENTENCES)
def test_only_the_languages_in_question_are_found(language: str) -> None:
    assert of_text(SENTENCES[language], EIGHT - {language})[0] in EIGHT - {language}


def test_a_language_that_is_named_is_believed() -> None:
    written = of_texts(asked("de"), [SENTENCES["fr"], ""], EIGHT)
    assert (written.each, written.language, written.probability) == (("de", "de"), "de", None)


def test_all_texts_have_the_language_of_most() -> None:
    written = of_texts(asked(), [SENTENCES["fr"], SENTENCES["fr"], "OK, hello."], EIGHT)
    assert set(written.each) == {written.language} == {"fr"}
    assert written.warnings == ()


def test_each_text_has_its_own_where_they_are_mixed() -> None:
    written = of_texts(asked("multi"), [SENTENCES["fr"], SENTENCES["en"], "", "?!", SENTENCES["fr"]], EIGHT)
    assert written.each == ("fr", "en", "fr", "fr", "fr")
    assert written.language == "fr"


@pytest.mark.parametrize("among", [EIGHT, None])
@pytest.mark.parametrize("text", ["OK.", "?!", "123"])
def test_a_text_that_tells_nothing_is_taken_for_english_and_told(text: str, among: frozenset[str] | None) -> None:
    written = of_texts(asked(), [text], among)
    assert written.language == "en"
    [warning] = written.warnings
    assert "too short to tell its language" in warning


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Dzień dobry wszystkim, zaczynamy zebranie.", "pl"),
        ("Добрий день усім, починаємо наші збори.", "uk"),
        ("Доброе утро всем, начнём с протокола прошлой недели.", "ru"),
        ("God morgon allihopa, låt oss börja med protokollet.", "sv"),
        ("Herkese günaydın, geçen haftanın tutanağıyla başlayalım.", "tr"),
        ("Bună dimineața tuturor, să începem cu procesul-verbal.", "ro"),
    ],
)
def test_any_language_may_be_found_where_none_is_ruled_out(text: str, language: str) -> None:
    assert of_texts(asked(), [text]).language == language


def test_doubt_is_said() -> None:
    [warning] = of_texts(asked(sure=0.9), ["Oui."], EIGHT).warnings
    assert "less than language_detection_min_prob 0.9" in warning


@pytest.mark.parametrize("texts", [[], [""], ["", " "]])
def test_without_a_text_there_is_no_language(texts: list[str]) -> None:
    written = of_texts(asked(), texts, EIGHT)
    assert (written.language, written.probability, written.warnings) == ("en", 0.0, (NO_WORDS,))
    assert len(written.each) == len(texts)


def test_several_threads_may_ask() -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda code: found.append(of_text(SENTENCES[code], EIGHT)[0]), args=(code,))
        for code in SENTENCES
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(SENTENCES)
