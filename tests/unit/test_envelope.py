"""An answer that fits the platform: what is given up, in which order, with a warning each, measured in bytes."""

from __future__ import annotations

import base64
import gzip
import json
import random
from typing import Any

import pytest

from hansard.envelope import encoded, fit, unpack
from hansard.errors import ResultTooLargeError

WORDS_LEFT_OUT = "words were left out to fit the answer into "
PACKED = "segments were packed into segments_gz (gzip, base64) to fit the answer into "


def answer(*, segments: int = 20, words: int = 5, text: str = "so be it", **other: Any) -> dict[str, Any]:
    spoken = {"word": text, "start": 0.0, "end": 1.0}
    return {
        "segments": [
            {"start": float(at), "end": at + 1.0, "text": text, **({"words": [spoken] * words} if words else {})}
            for at in range(segments)
        ],
        "warnings": ["the first"],
        "model": "sphinx",
        **other,
    }


def size(result: dict[str, Any]) -> int:
    """As the platform's client encodes it."""
    return len(json.dumps(result, ensure_ascii=False).encode("utf-8"))


def bare(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in segment.items() if key != "words"} for segment in result["segments"]]


def test_what_fits_is_left_alone() -> None:
    result = answer()
    assert fit(result, size(result)) == result
    assert fit(result, size(result) * 2) == result


def test_words_go_first() -> None:
    result = answer()
    for limit in (size(result) - 1, size(answer(words=0)) + 200):
        fitted = fit(result, limit)
        assert fitted["segments"] == bare(result)
        assert fitted["warnings"] == ["the first", f"{WORDS_LEFT_OUT}{limit / 1e6:.3g} MB"]
        assert fitted["model"] == "sphinx"
        assert size(fitted) <= limit


def test_then_segments_are_packed() -> None:
    result = answer(segments=500)
    limit = size(answer(segments=500, words=0)) - 1
    fitted = fit(result, limit)
    assert "segments" not in fitted
    assert fitted["segments_count"] == 500
    assert json.loads(gzip.decompress(base64.b64decode(fitted["segments_gz"]))) == bare(result)
    assert fitted["warnings"] == [
        "the first",
        f"{WORDS_LEFT_OUT}{limit / 1e6:.3g} MB",
        f"{PACKED}{limit / 1e6:.3g} MB",
    ]
    assert size(fitted) <= limit


@pytest.mark.parametrize("words", [{"words": 0}, {"words": 0, "segments": 700}])
def test_words_that_are_not_there_are_not_missed(words: dict[str, int]) -> None:
    result = answer(**{"segments": 500, **words})
    fitted = fit(result, size(result) - 1)
    assert [warning.split(" (")[0] for warning in fitted["warnings"][1:]] == ["segments were packed into segments_gz"]
    assert unpack(fitted)["segments"] == result["segments"]


def test_what_does_not_fit_at_all_is_an_error_and_not_a_loss() -> None:
    noise = random.Random(0).randbytes(20_000).hex()
    result = answer(segments=1, words=0, text=noise)
    with pytest.raises(ResultTooLargeError) as refused:
        fit(result, 10_000)
    assert refused.value.sentence.endswith(
        "MB even without words and packed, the limit is 0.01 MB; "
        "send the recording in parts, or ask for fewer output_formats"
    )
    packed = size(fit(result, size(result) - 1))
    assert float(refused.value.sentence.split()[3]) * 1e6 == pytest.approx(packed, rel=0.01)


def test_other_fields_are_never_given_up() -> None:
    result = answer(segments=2000, srt="x" * 5_000, logs=["a line"])
    fitted = fit(result, 20_000)
    assert (fitted["srt"], fitted["logs"]) == (result["srt"], result["logs"])
    with pytest.raises(ResultTooLargeError):
        fit(result, 5_000)


@pytest.mark.parametrize("text", ["日本語です", "שלום", "👩‍👩‍👧", "naïve"])
def test_the_limit_is_of_bytes_not_of_characters(text: str) -> None:
    result = answer(segments=300, words=0, text=text)
    assert len(encoded(result)) == size(result) > len(json.dumps(result, ensure_ascii=False))
    assert "segments" in fit(result, size(result))
    assert "segments_gz" in fit(result, size(result) - 1)


def test_text_is_sent_as_it_is_and_not_as_escapes() -> None:
    assert "日本" in encoded({"text": "日本"}).decode()


@pytest.mark.parametrize("limit", [600, 2_000, 6_000, 20_000, 10_000_000])
def test_what_is_returned_always_fits(limit: int) -> None:
    for segments in (0, 1, 10, 100, 1000):
        for words in (0, 1, 10):
            try:
                fitted = fit(answer(segments=segments, words=words, text="日本"), limit)
            except ResultTooLargeError:
                assert segments >= 10
            else:
                assert size(fitted) <= limit


def test_unpacking_gives_the_answer_back() -> None:
    result = answer(segments=500, words=0, text="日本語 – «да»")
    fitted = fit(result, size(result) - 1)
    assert "segments_gz" in fitted
    assert fitted["warnings"][-1].startswith(PACKED)
    assert unpack(fitted) == result, "nor is it said that its segments are packed"
    assert unpack(result) == result
    shorn = fit(answer(segments=500), size(result) - 1)
    assert unpack(shorn)["warnings"] == [warning for warning in shorn["warnings"] if not warning.startswith(PACKED)]
    assert len(unpack(shorn)["warnings"]) == 2


def test_transcriptions_are_fitted_alike() -> None:
    plain = answer(segments=500)
    result = {"transcriptions": plain.pop("segments"), **plain}
    fitted = fit(result, size(result) // 2)
    assert not any("words" in one for one in fitted["transcriptions"])
    packed = fit(result, size(fitted) // 2)
    assert packed["transcriptions_count"] == 500
    assert unpack(packed)["transcriptions"] == fitted["transcriptions"]
    assert packed["warnings"][-1].startswith("transcriptions were packed into transcriptions_gz")


def test_the_answer_given_is_not_changed() -> None:
    result = answer(segments=500)
    before = json.dumps(result)
    fit(result, size(result) - 1)
    fit(result, size(answer(segments=500, words=0)) - 1)
    assert json.dumps(result) == before


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["duration", "segments"])
def test_numbers_that_json_does_not_have_are_refused(number: float, place: str) -> None:
    result = answer(segments=500)
    if place == "segments":
        result["segments"][-1]["end"] = number
    else:
        result["duration"] = number
    for limit in (10_000_000, 10_000):
        with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
            fit(result, limit)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        fit(answer(duration={1, 2}), 10_000_000)
