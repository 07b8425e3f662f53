"""Transcripts in OpenAI's shapes; pure."""

import json
import math
import zlib
from dataclasses import replace
from typing import Any

import pytest
from fake_runner import TRANSCRIPT

from hansard import render
from hansard.request import parse
from hansard.server.openai.answers import letters, plain, respond
from hansard.server.openai.form import Ask
from hansard.server.runpod import answers as worker_answers
from hansard.transcript import Segment, Sureness, Transcript

REQUEST = parse({"audio": "upload"})


def body(ask: Ask, transcript: Transcript = TRANSCRIPT) -> dict[str, Any]:
    response = respond(ask, transcript)
    assert response.headers["content-type"] == "application/json"
    told: dict[str, Any] = json.loads(bytes(response.body))
    return told


def events(ask: Ask, transcript: Transcript = TRANSCRIPT) -> list[dict[str, Any]]:
    text = bytes(respond(ask, transcript).body).decode()
    *told, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in told]


def spoken(*texts: str) -> Transcript:
    segments = tuple(Segment(number, number + 1, text) for number, text in enumerate(texts))
    return replace(TRANSCRIPT, segments=segments)


def asked(**fields: Any) -> Ask:
    """A job with these fields, answered in verbose_json."""
    request = parse({"audio": "upload", **fields})
    return Ask(request, "verbose_json", words=request.align_output)


def test_json_has_the_text_its_language_and_its_length() -> None:
    told = body(Ask(REQUEST))
    assert told["text"] == "good morning hello"
    assert told["languages"] == [{"code": "en"}]
    assert told["usage"] == {"type": "duration", "seconds": 3.5}
    assert told["warnings"] == ["this was made up"]
    assert not {"words", "segments", "timings"} & set(told)


def test_languages_of_a_mixed_recording() -> None:
    one, two = TRANSCRIPT.segments
    mixed = replace(TRANSCRIPT, language="multi", segments=(replace(one, language="de"), replace(two, language="en")))
    assert body(Ask(REQUEST), mixed)["languages"] == [{"code": "de"}, {"code": "en"}]
    assert body(Ask(REQUEST), replace(TRANSCRIPT, language=""))["languages"] == []


def test_verbose_json_names_the_language_and_tells_the_codes_beside() -> None:
    one, two = TRANSCRIPT.segments
    german = replace(TRANSCRIPT, language="de", segments=(one, replace(two, language="yue")))
    told = body(asked(), german)
    assert (told["language"], told["languages"]) == ("german", [{"code": "de"}, {"code": "yue"}])
    assert told["segments"][1]["language"] == "yue"
    assert body(asked(), replace(TRANSCRIPT, language=""))["language"] == ""


def test_verbose_segments_have_every_field_and_their_speaker() -> None:
    told = body(asked())
    assert (told["task"], told["language"], told["duration"]) == ("transcribe", "english", 3.5)
    assert told["languages"] == [{"code": "en"}]
    first, second = told["segments"]
    assert {key: first[key] for key in ("id", "start", "end", "text", "speaker", "seek", "tokens")} == {
        **{"id": 0, "start": 0.5, "end": 2.0, "text": "good morning"},
        **{"speaker": "SPEAKER_00", "seek": 50, "tokens": []},
    }
    for key in ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob"):
        assert isinstance(second[key], float)
    assert "words" not in told


def test_verbose_numbers_that_are_known_are_true() -> None:
    told = body(asked(temperature=0.25), spoken("la " * 200, "la"))
    long, short = told["segments"]
    assert (long["temperature"], body(asked())["segments"][0]["temperature"]) == (0.25, 0.0)
    said = ("la " * 200).strip().encode()
    assert long["compression_ratio"] == pytest.approx(len(said) / len(zlib.compress(said)), abs=1e-4)
    assert long["compression_ratio"] > 10
    assert 0 < short["compression_ratio"] < 1


def test_verbose_segments_tell_how_sure_the_engine_was() -> None:
    first, second = TRANSCRIPT.segments
    sure = replace(first, sureness=Sureness(0.4, -0.31415926, 0.02))
    told = body(asked(temperature=0.25), replace(TRANSCRIPT, segments=(sure, second)))["segments"]
    kept = [(one["temperature"], one["avg_logprob"], one["no_speech_prob"]) for one in told]
    assert kept == [(0.4, -0.3142, 0.02), (0.25, 0.0, 0.0)]


def test_words_with_and_without_segments() -> None:
    ask = asked(align_output=True)
    told = body(replace(ask, segments=False))
    assert "segments" not in told
    assert [word["word"] for word in told["words"]] == ["good", "morning", "hello"]
    assert told["words"][0] == {"word": "good", "start": 0.5, "end": 1.0, "score": 0.9, "speaker": "SPEAKER_00"}
    assert "segments" in body(ask)


def test_recognised_speakers_are_named_in_segments_and_words() -> None:
    one, two = TRANSCRIPT.segments
    known = replace(TRANSCRIPT, segments=(one, replace(two, speaker_id="ann", similarity=0.75)))
    told = body(asked(align_output=True), known)
    assert [segment["speaker"] for segment in told["segments"]] == ["SPEAKER_00", "ann"]
    assert told["segments"][1]["similarity"] == 0.75
    assert [word["speaker"] for word in told["words"]] == ["SPEAKER_00", "SPEAKER_00", "ann"]


def test_diarized_json_names_whom_it_knows_and_counts_the_others_in_letters() -> None:
    one, two = TRANSCRIPT.segments
    third = replace(two, speaker="SPEAKER_02", start=3.0, end=3.5)
    known = replace(TRANSCRIPT, segments=(one, replace(two, speaker_id="A", similarity=0.9), third))
    samples = [{"name": "A", "audio": "AAAA"}]
    request = parse({"audio": "upload", "diarization": True, "speaker_verification": True, "speaker_samples": samples})
    told = body(Ask(request, "diarized_json"), known)
    assert [segment["speaker"] for segment in told["segments"]] == ["B", "A", "C"]
    assert set(told["segments"][0]) == {"type", "id", "start", "end", "text", "speaker"}
    assert told["segments"][0]["type"] == "transcript.text.segment"
    assert (told["task"], told["duration"]) == ("transcribe", 3.5)


def test_more_speakers_than_letters() -> None:
    many = replace(TRANSCRIPT, segments=tuple(Segment(n, n + 1, "yes", speaker=f"SPEAKER_{n:02d}") for n in range(50)))
    names = letters(many, set())
    assert len(set(names.values())) == 50
    assert names["SPEAKER_25"] == "Z"
    assert names["SPEAKER_26"] == "AA"


def test_a_segment_of_nobody() -> None:
    told = body(Ask(REQUEST, "diarized_json"), spoken("hello"))
    assert told["segments"][0]["speaker"] == "unknown"


def test_a_translation_is_in_the_language_asked_for() -> None:
    german = replace(TRANSCRIPT, language="de")
    told = body(asked(task="translate"), german)
    assert (told["task"], told["language"]) == ("translate", "english")
    assert body(asked(task="translate", target_language="fr"), german)["language"] == "french"
    short = Ask(parse({"audio": "upload", "task": "translate"}))
    assert not {"languages"} & (set(told) | set(body(short, german)))
    assert body(replace(short, format="diarized_json"), german)["task"] == "translate"


@pytest.mark.parametrize(
    ("name", "written", "kind"),
    [
        ("text", "txt", "text/plain; charset=utf-8"),
        ("srt", "srt", "application/x-subrip; charset=utf-8"),
        ("vtt", "vtt", "text/vtt; charset=utf-8"),
        ("rttm", "rttm", "text/plain; charset=utf-8"),
    ],
)
def test_texts_are_what_render_writes(name: str, written: str, kind: str) -> None:
    response = respond(Ask(REQUEST, name), TRANSCRIPT)
    assert bytes(response.body).decode() == render.FORMATS[written](TRANSCRIPT)
    assert response.headers["content-type"] == kind
    assert response.headers["x-warnings"] == "this was made up"


def test_what_cannot_be_followed_is_a_warning_in_every_shape() -> None:
    ask, both = Ask(REQUEST, warnings=("so it is",)), ["so it is", "this was made up"]
    for name in ("json", "verbose_json", "diarized_json"):
        assert body(replace(ask, format=name))["warnings"] == both
    for name in ("text", "srt", "vtt"):
        assert respond(replace(ask, format=name), TRANSCRIPT).headers["x-warnings"] == "; ".join(both)
    for name in ("json", "text", "diarized_json"):
        assert events(replace(ask, format=name, stream=True))[-1]["warnings"] == both


def test_what_utf8_has_no_bytes_for() -> None:
    odd = replace(spoken("half \ud800 a pair"), warnings=("ц\n\ud800",))
    for ask in (Ask(REQUEST), Ask(REQUEST, "text"), Ask(REQUEST, stream=True)):
        assert b"half" in bytes(respond(ask, odd).body)


def test_times_that_are_no_numbers() -> None:
    bad = replace(TRANSCRIPT, segments=(Segment(math.nan, math.inf, "hello"),), duration=math.nan)
    for name in ("json", "verbose_json", "diarized_json"):
        told = body(Ask(REQUEST, name), bad)
        assert told["usage"]["seconds"] == 0


def test_other_formats_and_timings_beside_the_json() -> None:
    told = body(Ask(parse({"audio": "upload", "output_formats": ["srt"], "debug": True})))
    assert told["srt"] == render.FORMATS["srt"](TRANSCRIPT)
    assert told["timings"] == TRANSCRIPT.timings


def test_diarization_without_text() -> None:
    request = parse({"audio": "upload", "task": "diarization"})
    told = body(Ask(request, "json"))
    assert told["num_speakers"] == 2
    assert told["segments"][0] == {"id": 0, "start": 0.5, "end": 2.0, "speaker": "SPEAKER_00"}
    assert "speakers" not in told
    verbose = body(Ask(request, "verbose_json"))
    assert verbose["speakers"][0] == {"id": "SPEAKER_00", "speech_seconds": 1.5, "segments": 1}


def test_a_turn_of_nobody_counts_for_nobody() -> None:
    one, two = TRANSCRIPT.segments
    request = parse({"audio": "upload", "task": "diarization"})
    told = body(Ask(request, "verbose_json"), replace(TRANSCRIPT, segments=(one, replace(two, speaker=None))))
    assert (told["num_speakers"], [speaker["id"] for speaker in told["speakers"]]) == (1, ["SPEAKER_00"])
    assert "speaker" not in told["segments"][1]


def test_a_diarization_has_the_same_names_in_json_and_in_rttm() -> None:
    one, two = TRANSCRIPT.segments
    known = replace(TRANSCRIPT, segments=(one, replace(two, speaker_id="Ann Lee", similarity=0.75)))
    request = parse({"audio": "upload", "task": "diarization"})
    assert [segment["speaker"] for segment in body(Ask(request), known)["segments"]] == ["SPEAKER_00", "Ann Lee"]
    rows = bytes(respond(Ask(request, "rttm"), known).body).decode().splitlines()
    assert [row.split()[7] for row in rows] == ["SPEAKER_00", "Ann_Lee"]


@pytest.mark.parametrize("label", ["Ann_Lee", "SPEAKER_01"])
def test_an_rttm_outlives_the_way_through_a_worker(label: str) -> None:
    """Of a worker that writes the names, or of one that writes the labels."""
    one, two = TRANSCRIPT.segments
    known = replace(TRANSCRIPT, segments=(one, replace(two, speaker_id="Ann Lee", similarity=0.75)))
    rttm = render.FORMATS["rttm"](known)
    answer = {**render.to_result(known), "rttm": rttm.replace("Ann_Lee", label)}
    assert render.FORMATS["rttm"](worker_answers.transcript(answer)) == rttm


def test_a_stream_says_the_text_piece_by_piece_then_whole() -> None:
    told = events(Ask(REQUEST, stream=True))
    assert [event["type"] for event in told] == [*["transcript.text.delta"] * 2, "transcript.text.done"]
    assert told[-1]["text"] == "good morning hello"
    assert told[-1]["languages"] == [{"code": "en"}]
    assert "usage" not in told[-1], "in a stream it would have to be in tokens"


def test_a_stream_of_text_is_that_of_json() -> None:
    assert events(Ask(REQUEST, "text", stream=True)) == events(Ask(REQUEST, stream=True))


def test_a_stream_of_speakers_has_their_segments() -> None:
    told = events(Ask(REQUEST, "diarized_json", stream=True))
    delta, segment = told[:2]
    assert (delta["segment_id"], delta["delta"]) == (segment["id"], "good morning")
    assert (segment["type"], segment["speaker"]) == ("transcript.text.segment", "A")


@pytest.mark.parametrize(
    "texts",
    [
        ("good", "morning"),
        ("", "good", "  ", "morning", ""),
        ("今日は。", "はい。", "ok"),
        ("two\nlines \x85 here", " and\u2028more "),
        ("안녕", "하세요"),
        (),
    ],
)
def test_the_pieces_are_the_text(texts: tuple[str, ...]) -> None:
    transcript = spoken(*texts)
    told = events(Ask(REQUEST, stream=True), transcript)
    assert "".join(event["delta"] for event in told[:-1]) == told[-1]["text"] == plain(transcript)
