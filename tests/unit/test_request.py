"""What a job may ask: names, spellings, types, bounds, agreement, and that no secret shows in a sentence."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from hansard.errors import RequestError
from hansard.request import ALIASES, SETTINGS_NOT_FIELDS, Request, json_schema, parse
from hansard.settings import Settings
from places import ROOT

URL = "https://example.com/a.mp3"
NAN, INF = math.nan, math.inf
SCHEMA = Draft202012Validator(json_schema())
TEST_INPUT = json.loads((ROOT / "test_input.json").read_text())["input"]

SPELLINGS = [(name, alias) for name, aliases in ALIASES.items() for alias in aliases]
VALUES = {
    "audio": "data:audio/wav;base64,UklGRg==",
    "prompt": "Dr. Smith",
    "diarization": True,
    "align_output": True,
    "huggingface_access_token": "hf_abcdefgh",
}
"""A value for each field of ALIASES that its default is not."""


def ask(**fields: Any) -> Request:
    return parse({"audio": URL, **fields})


def refusal(payload: object) -> str:
    """The sentence with which a payload is refused."""
    with pytest.raises(RequestError) as refused:
        parse(payload)
    return refused.value.sentence


def refused(**fields: Any) -> str:
    return refusal({"audio": URL, **fields})


# Names


@pytest.mark.parametrize(("name", "alias"), SPELLINGS)
def test_every_spelling_means_the_same(name: str, alias: str) -> None:
    others = {} if name == "audio" else {"audio": URL}
    request = parse({**others, alias: VALUES[name]})
    assert request == parse({**others, name: VALUES[name]})
    assert request.model_fields_set == {*others, name}


@pytest.mark.parametrize(("name", "alias"), [*SPELLINGS, ("audio_url", "audio_file")])
def test_two_spellings_at_once_are_refused(name: str, alias: str) -> None:
    value = VALUES.get(name, URL)
    others = {} if name.startswith("audio") else {"audio": URL}
    assert refusal({**others, name: value, alias: value}) == (
        f"{name} and {alias} say the same thing; give one of them"
    )


@pytest.mark.parametrize(("name", "alias"), SPELLINGS)
def test_the_other_spelling_may_be_null(name: str, alias: str) -> None:
    others = {} if name == "audio" else {"audio": URL}
    expected = parse({**others, name: VALUES[name]})
    assert parse({**others, name: VALUES[name], alias: None}) == expected
    assert parse({**others, name: None, alias: VALUES[name]}) == expected


def test_null_means_the_default() -> None:
    names = {*Request.model_fields, *(alias for _, alias in SPELLINGS)} - {"audio"}
    assert ask(**dict.fromkeys(names)) == ask()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("beamsize", "; did you mean beam_size?"),
        ("Language", "; did you mean language?"),
        ("audio_urls", "; did you mean audio_url?"),
        ("hf_tokens", "; did you mean hf_token?"),
        ("qqq", ""),
    ],
)
def test_an_unknown_name_is_refused(name: str, hint: str) -> None:
    assert refused(**{name: None}) == f"{name} is not a field of a job{hint}"


def test_an_unknown_name_is_not_repeated_at_any_length() -> None:
    assert refused(**{"x" * 10_000: 1}) == f"{'x' * 60} is not a field of a job"


@pytest.mark.parametrize(("name", "variable"), SETTINGS_NOT_FIELDS.items())
def test_decoding_thresholds_belong_to_the_worker(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(**{name: 0.5}) == (
        f"{name} is a setting of the worker, not a field of a job; set the environment variable {variable}"
    )
    monkeypatch.setenv(variable, "0.125")
    assert 0.125 in Settings().model_dump().values()


@pytest.mark.parametrize(
    ("payload", "kind"),
    [(None, "null"), ([], "a list"), ("x", "a string"), (7, "a number"), (0.5, "a number"), (True, "true or false")],
)
def test_the_input_is_an_object(payload: object, kind: str) -> None:
    assert refusal(payload) == f"input must be an object of named fields, not {kind}"


@pytest.mark.parametrize("payload", [{}, {"audio": None}, {"audio_file": None, "language": "en"}])
def test_audio_is_asked_for(payload: dict[str, Any]) -> None:
    assert refusal(payload) == "audio is missing: give audio, audio_url, audio_file or audio_base64"


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"audio_base64": URL}, "audio_base64 holds a URL; send it as audio_url"),
        ({"audio_url": "UklGRg=="}, "audio_url holds no URL; send base64 as audio_base64"),
    ],
)
def test_a_source_under_the_wrong_name_is_refused(payload: dict[str, Any], sentence: str) -> None:
    assert refusal(payload) == sentence


@pytest.mark.parametrize("name", ["audio", "audio_file"])
@pytest.mark.parametrize("value", [URL, "UklGRg==", "data:audio/wav;base64,UklGRg==", "file:///runpod-volume/a.wav"])
def test_audio_and_audio_file_take_any_source(name: str, value: str) -> None:
    assert parse({name: value}).audio == value


def test_every_problem_is_in_one_error() -> None:
    problems = refusal(
        {
            "diarize": True,
            "diarization": True,
            "bogus": 1,
            "no_speech_threshold": 0.1,
            "beam_size": 99,
            "language": "english",
            "output_formats": ["docx"],
            "temperature": "hot",
        }
    )
    for part in (
        "audio is missing",
        "diarize and diarization",
        "bogus",
        "NO_SPEECH_THRESHOLD",
        "beam_size",
        "language must",
        "output_formats.0",
        "temperature",
    ):
        assert problems.count(part) == 1, part
    assert problems.count("; ") >= 7


def test_disagreements_are_in_one_error() -> None:
    problems = refused(min_speakers=3, max_speakers=2, vad_onset=0.1, vad_offset=0.2, output_formats=["rttm"])
    for part in ("min_speakers is greater", "need diarization: true", "vad_offset is greater", "rttm needs"):
        assert part in problems


# Types and bounds

WRONG: list[tuple[str, Any]] = [
    ("audio", 5),
    ("audio", ""),
    ("audio", ["https://example.com"]),
    ("task", "summarize"),
    ("task", True),
    ("model", 3),
    ("language", 5),
    ("prompt", ["a"]),
    ("hotwords", ["a"]),
    ("temperature", "0.5"),
    ("temperature", True),
    ("temperature", -0.01),
    ("temperature", 1.01),
    ("beam_size", "5"),
    ("beam_size", True),
    ("beam_size", 0),
    ("beam_size", 21),
    ("batch_size", "64"),
    ("batch_size", 0),
    ("batch_size", 257),
    ("diarization", "true"),
    ("diarization", 1),
    ("num_speakers", False),
    ("num_speakers", 0),
    ("num_speakers", 51),
    ("min_speakers", 0),
    ("max_speakers", 51),
    ("max_speakers", "2"),
    ("align_output", 0),
    ("align_output", "yes"),
    ("vad_onset", "0.5"),
    ("vad_onset", 1.1),
    ("vad_offset", -0.1),
    ("vad_offset", True),
    ("language_detection_min_prob", 1.5),
    ("language_detection_max_tries", 0),
    ("language_detection_max_tries", 101),
    ("speaker_verification", "no"),
    ("speaker_samples", {"name": "Eve", "url": URL}),
    ("speaker_samples", ["Eve"]),
    ("speaker_samples", [{"name": "", "url": URL}]),
    ("speaker_samples", [{"name": "E" * 101, "url": URL}]),
    ("speaker_samples", [{"url": URL}]),
    ("speaker_samples", [{"name": "Eve", "url": ""}]),
    ("speaker_samples", [{"name": "Eve", "file_path": "/etc/passwd"}]),
    ("speaker_threshold", 2),
    ("segments", [{"start": 0, "end": 1}]),
    ("segments", [{"start": "0", "end": 1, "speaker": "A"}]),
    ("segments", [{"start": -1, "end": 1, "speaker": "A"}]),
    ("segments", [{"start": 0, "end": 1, "speaker": 5}]),
    ("segments", [{"start": 0, "end": 1, "speaker": "A", "text": "hm"}]),
    ("output_formats", "srt"),
    ("output_formats", ["docx"]),
    ("channels", "stereo"),
    ("huggingface_access_token", 5),
    ("debug", "true"),
    ("debug", 1),
]

WRONG_BEYOND_A_SCHEMA: list[tuple[str, Any]] = [
    ("temperature", NAN),
    ("temperature", INF),
    ("beam_size", 5.0),
    ("vad_onset", NAN),
    ("language_detection_min_prob", NAN),
    ("language_detection_max_tries", 2.0),
    ("speaker_samples", [{"name": "Eve"}]),
    ("speaker_samples", [{"name": "Eve", "url": URL, "audio": URL}]),
    ("speaker_threshold", -NAN),
    ("segments", [{"start": 2, "end": 1, "speaker": "A"}]),
    ("segments", [{"start": 1, "end": 1, "speaker": "A"}]),
    ("segments", [{"start": NAN, "end": 1, "speaker": "A"}]),
    ("segments", [{"start": 0, "end": NAN, "speaker": "A"}]),
    ("segments", [{"start": 0, "end": INF, "speaker": "A"}]),
]
"""What JSON Schema cannot tell: numbers that JSON does not have, floats that are whole, two fields that disagree."""


def enabled(name: str) -> dict[str, Any]:
    """What a payload needs so that the field itself is the only question."""
    extra: dict[str, dict[str, Any]] = {
        "segments": {"task": "transcription"},
        "speaker_samples": {"speaker_verification": True, "diarization": True},
        "speaker_threshold": {
            "speaker_verification": True,
            "diarization": True,
            "speaker_samples": [{"name": "Eve", "url": URL}],
        },
        "num_speakers": {"diarization": True},
        "min_speakers": {"diarization": True},
        "max_speakers": {"diarization": True},
    }
    return extra.get(name, {})


@pytest.mark.parametrize(("name", "value"), WRONG + WRONG_BEYOND_A_SCHEMA)
def test_wrong_types_and_values_are_refused_by_name(name: str, value: Any) -> None:
    assert refused(**{**enabled(name), name: value}).startswith(name)


RIGHT: list[tuple[str, Any]] = [
    ("task", "translate"),
    ("model", "large-v3"),
    ("language", "haw"),
    ("language", "multi"),
    ("prompt", ""),
    ("temperature", 0),
    ("temperature", 1),
    ("temperature", 0.5),
    ("beam_size", 1),
    ("beam_size", 20),
    ("batch_size", 1),
    ("batch_size", 256),
    ("num_speakers", 1),
    ("num_speakers", 50),
    ("min_speakers", 50),
    ("max_speakers", 1),
    ("vad_onset", 1),
    ("vad_offset", 0),
    ("language_detection_min_prob", 1),
    ("language_detection_max_tries", 100),
    ("speaker_samples", [{"name": "Eve", "url": URL}, {"name": "E" * 100, "audio": "UklGRg==", "url": None}]),
    ("speaker_threshold", 0.85),
    ("segments", []),
    ("segments", [{"start": 0, "end": 0.5, "speaker": "A"}]),
    ("output_formats", ["srt", "vtt", "txt", "tsv"]),
    ("channels", "separate"),
]


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_right_values_are_taken_as_they_are(name: str, value: Any) -> None:
    taken = ask(**{**enabled(name), name: value}).model_dump(exclude_none=True)[name]
    assert taken == (
        [{k: v for k, v in item.items() if v is not None} for item in value] if name == "speaker_samples" else value
    )


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("en", "en"),
        ("EN", "en"),
        (" en ", "en"),
        ("en-US", "en"),
        ("pt-br", "pt"),
        ("zh-Hant-TW", "zh"),
        ("yue", "yue"),
        ("zh_CN", "zh"),
        ("zh_Hant_TW", "zh"),
        ("es_419", "es"),
        ("fr_FR.UTF-8", "fr"),
    ],
)
def test_languages_are_brought_to_their_code(given: str, taken: str) -> None:
    assert ask(language=given).language == taken


@pytest.mark.parametrize("given", ["english", "", "-", "_", "e", "5", "en\n-", "en_", "en_a b", "éé", "auto"])
def test_what_is_no_language_code_is_refused(given: str) -> None:
    assert refused(language=given) == "language must be a code such as en, fr or ru"


# Agreement: what is refused, and its nearest neighbour that is not

SAMPLES = [{"name": "Eve", "url": URL}]
TURNS = [{"start": 0, "end": 1, "speaker": "A"}]
DISAGREEMENTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"diarization": True, "min_speakers": 3, "max_speakers": 2},
        {"diarization": True, "min_speakers": 2, "max_speakers": 2},
        "min_speakers is greater than max_speakers",
    ),
    (
        {"diarization": True, "num_speakers": 2, "min_speakers": 2},
        {"diarization": True, "num_speakers": 2},
        "num_speakers already says how many; leave out min_speakers and max_speakers",
    ),
    (
        {"diarization": True, "num_speakers": 2, "max_speakers": 2},
        {"diarization": True, "num_speakers": 2, "max_speakers": None},
        "num_speakers already says how many; leave out min_speakers and max_speakers",
    ),
    *(
        (
            {name: 2},
            {name: 2, "diarization": True},
            "num_speakers, min_speakers and max_speakers need diarization: true",
        )
        for name in ("num_speakers", "min_speakers", "max_speakers")
    ),
    (
        {"task": "translate", "num_speakers": 2},
        {"task": "diarization", "num_speakers": 2},
        "num_speakers, min_speakers and max_speakers need diarization: true",
    ),
    (
        {"vad_onset": 0.3, "vad_offset": 0.31},
        {"vad_onset": 0.3, "vad_offset": 0.3},
        "vad_offset is greater than vad_onset",
    ),
    # An onset alone lowers the offset with it; an offset alone is meant.
    ({"vad_offset": 0.6}, {"vad_onset": 0.3}, "vad_offset is greater than vad_onset"),
    (
        {"channels": "separate", "diarization": True},
        {"channels": "mix", "diarization": True},
        "channels: separate already gives one speaker per channel; leave out diarization",
    ),
    (
        {"channels": "separate", "task": "diarization"},
        {"channels": "separate", "task": "translate"},
        "channels: separate already gives one speaker per channel; leave out diarization",
    ),
    (
        {"diarization": True, "speaker_verification": True, "speaker_samples": []},
        {"diarization": True, "speaker_verification": True, "speaker_samples": SAMPLES},
        "speaker_verification needs speaker_samples",
    ),
    (
        {"speaker_verification": True, "speaker_samples": SAMPLES},
        {"speaker_verification": True, "speaker_samples": SAMPLES, "task": "diarization"},
        "speaker_verification needs diarization: true",
    ),
    (
        {"diarization": True, "speaker_samples": SAMPLES},
        {"diarization": True, "speaker_samples": []},
        "speaker_samples and speaker_threshold need speaker_verification: true",
    ),
    (
        {"diarization": True, "speaker_threshold": 0.0},
        {"diarization": True, "speaker_threshold": None},
        "speaker_samples and speaker_threshold need speaker_verification: true",
    ),
    (
        {"segments": TURNS},
        {"segments": TURNS, "task": "transcription"},
        "segments belong to task: transcription",
    ),
    (
        {"target_language": "de"},
        {"target_language": "de", "task": "translate"},
        "target_language needs task: translate",
    ),
    (
        {"target_language": "de", "language": "fr"},
        {"target_language": "de", "language": "de"},
        "target_language needs task: translate",
    ),
    (
        {"target_language": "multi", "task": "translate"},
        {"target_language": None, "task": "translate"},
        "target_language must be one language",
    ),
    ({"segments": []}, {"segments": None}, "segments belong to task: transcription"),
    (
        {"output_formats": ["srt", "rttm"]},
        {"output_formats": ["srt", "rttm"], "diarization": True},
        "output format rttm needs diarization: true",
    ),
    (
        {"output_formats": ["rttm"], "channels": "mix"},
        {"output_formats": ["rttm"], "channels": "separate"},
        "output format rttm needs diarization: true",
    ),
    (
        {"output_formats": ["rttm"], "task": "translate"},
        {"output_formats": ["rttm"], "task": "diarization"},
        "output format rttm needs diarization: true",
    ),
    (
        {"task": "diarization", "output_formats": ["rttm", "srt"]},
        {"task": "transcription", "output_formats": ["rttm", "srt"]},
        "task diarization gives turns without text; of output_formats it takes rttm only",
    ),
    (
        {"task": "diarization", "align_output": True},
        {"task": "transcription", "align_output": True},
        "task diarization gives turns without text; leave out align_output",
    ),
    (
        {"task": "translate", "align_output": True},
        {"task": "translate", "diarization": True},
        "the words of a translation have no times of their own; leave out align_output",
    ),
    (
        {"task": "transcription", "channels": "separate"},
        {"task": "transcription", "channels": "mix"},
        "task transcription hears all channels as one; leave out channels",
    ),
    (
        {"task": "transcription", "segments": TURNS, "diarization": True},
        {"task": "transcription", "diarization": True, "num_speakers": 2},
        "segments already say who speaks; leave out diarization",
    ),
    (
        {"task": "transcription", "segments": TURNS, "num_speakers": 2},
        {"task": "transcription", "num_speakers": 2},
        "num_speakers, min_speakers and max_speakers need diarization: true",
    ),
]


@pytest.mark.parametrize(("wrong", "right", "sentence"), DISAGREEMENTS)
def test_fields_must_agree(wrong: dict[str, Any], right: dict[str, Any], sentence: str) -> None:
    assert refused(**wrong) == sentence
    ask(**right)


# Secrets

TOKEN = "hf_doNotShowThisToken"
PAYLOAD = "UklGRkRPTk9UU0hPVw"


@pytest.mark.parametrize(
    "payload",
    [
        {"audio": PAYLOAD, "hf_token": TOKEN, "beam_size": "x"},
        {"audio": PAYLOAD, "hf_token": TOKEN, "min_speakers": 2},
        {"audio": [PAYLOAD], "hf_token": [TOKEN]},
        {"audio": {"url": PAYLOAD}, "hf_token": {"token": TOKEN}},
        {"audio_url": PAYLOAD, "audio_file": PAYLOAD, "hf_token": TOKEN, "huggingface_access_token": TOKEN},
        {"audio": "x", "speaker_samples": [{"name": "Eve", "audio": [PAYLOAD]}]},
        {"audio": "x", "speaker_samples": [{"name": "Eve", "audio": PAYLOAD, "url": PAYLOAD}]},
        {"audio": "x", "speaker_samples": PAYLOAD},
        {"audio": "x", "language": TOKEN},
    ],
)
def test_no_error_holds_the_recording_or_the_token(payload: dict[str, Any]) -> None:
    sentence = refusal(payload)
    assert PAYLOAD not in sentence
    assert TOKEN not in sentence


def test_no_pydantic_error_holds_them_either() -> None:
    with pytest.raises(ValueError, match="beam_size") as error:
        Request.model_validate({"audio": PAYLOAD, "huggingface_access_token": [TOKEN], "beam_size": 99})
    assert "huggingface_access_token" in str(error.value)
    assert not {PAYLOAD, TOKEN, "99"} & set(str(error.value).split())
    assert "input_value" not in str(error.value)


def test_a_request_can_be_printed() -> None:
    request = parse({"audio": PAYLOAD, "hf_token": TOKEN, "language": "en"})
    for text in (repr(request), str(request), f"{request!r}"):
        assert "language='en'" in text
        assert PAYLOAD not in text
        assert TOKEN not in text


def test_the_token_is_a_secret_of_the_job() -> None:
    assert ask(hf_token=TOKEN).secrets() == (TOKEN,)
    assert ask(hf_token="").secrets() == ask().secrets() == ()


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ask().language = "de"  # type: ignore[misc]


# JSON Schema

PAYLOADS: list[dict[str, Any]] = [
    TEST_INPUT,
    {},
    {"language": "en"},
    {"audio": URL},
    *({alias: URL} for alias in ALIASES["audio"] if alias != "audio_base64"),
    {"audio_base64": "UklGRg=="},
    {"audio": URL, "audio_url": URL},
    {"audio_url": URL, "audio_file": URL},
    {"audio": URL, "audio_base64": None},
    {"audio": None, "audio_file": URL},
    {"audio": None},
    {"audio": URL, "bogus": 1},
    {"audio": URL, "no_speech_threshold": 0.5},
    {"audio": URL, "diarization": True, "diarize": None},
    {"audio": URL, "language": "EN"},
    {"audio": URL, "language": "english"},
    *({"audio": URL, "language": code} for code in ("zh_CN", "zh_Hant-TW", "fr_FR.UTF-8", "en_", "en_english", "_CN")),
    {"audio": URL, **dict.fromkeys(name for name in Request.model_fields if name != "audio")},
    *({"audio": URL, name: VALUES[name]} for name in VALUES),
    *({"audio": URL, alias: VALUES[name]} for name, alias in SPELLINGS if name != "audio"),
    *({"audio": URL, alias: 5} for name, alias in SPELLINGS if name != "audio"),
    *({"audio": URL, **enabled(name), name: value} for name, value in RIGHT),
    *({"audio": URL, **enabled(name), name: value} for name, value in WRONG),
]


def accepted(payload: dict[str, Any]) -> bool:
    try:
        parse(payload)
    except RequestError:
        return False
    return True


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: json.dumps(payload)[:70])
def test_the_schema_accepts_what_is_accepted(payload: dict[str, Any]) -> None:
    assert SCHEMA.is_valid(payload) == accepted(payload)


def test_the_table_of_payloads_has_both_kinds() -> None:
    kinds = [accepted(payload) for payload in PAYLOADS]
    assert kinds.count(True) > 30
    assert kinds.count(False) > 30


def test_the_schema_names_every_field_with_its_default() -> None:
    properties = json_schema()["properties"]
    assert set(properties) == {*Request.model_fields, *(alias for _, alias in SPELLINGS)}
    for name, field in Request.model_fields.items():
        assert properties[name]["description"] == field.description
        if not field.is_required():
            assert properties[name]["default"] == field.default


def test_the_test_input_asks_for_words_and_speakers() -> None:
    request = parse(TEST_INPUT)
    assert request.align_output
    assert request.diarization
    assert SCHEMA.is_valid(TEST_INPUT)


# Callers of the workers that this one replaces

WHISPERX_WORKER: dict[str, Any] = {
    "audio_file": URL,
    "language": None,
    "language_detection_min_prob": 0,
    "language_detection_max_tries": 5,
    "initial_prompt": None,
    "batch_size": 64,
    "temperature": 0,
    "vad_onset": 0.500,
    "vad_offset": 0.363,
    "align_output": True,
    "diarization": True,
    "huggingface_access_token": TOKEN,
    "min_speakers": 2,
    "max_speakers": 5,
    "debug": True,
    "speaker_verification": False,
    "speaker_samples": [],
}
"""Every option in the README of kodxana/whisperx-worker, most of them at the default that it names."""


def test_a_payload_of_whisperx_worker_is_accepted() -> None:
    request = parse(WHISPERX_WORKER)
    assert SCHEMA.is_valid(WHISPERX_WORKER)
    assert (request.audio, request.batch_size, request.temperature) == (URL, 64, 0.0)
    assert (request.min_speakers, request.max_speakers, request.secrets()) == (2, 5, (TOKEN,))
    assert (request.vad_onset, request.vad_offset) == (0.5, 0.363)
    defaults = ask()
    assert request.language_detection_min_prob == defaults.language_detection_min_prob
    assert request.language_detection_max_tries == defaults.language_detection_max_tries


def test_a_payload_of_faster_whisper_worker_is_accepted_where_it_can_be() -> None:
    payload = {
        "audio_base64": "UklGRg==",
        "model": "turbo",
        "language": None,
        "initial_prompt": "Hm.",
        "temperature": 0,
        "beam_size": 5,
        "word_timestamps": True,
    }
    request = parse(payload)
    assert SCHEMA.is_valid(payload)
    assert (request.audio, request.prompt, request.align_output) == ("UklGRg==", "Hm.", True)


@pytest.mark.parametrize(
    "name",
    [
        "transcription",
        "translate",
        "translation",
        "best_of",
        "patience",
        "length_penalty",
        "suppress_tokens",
        "condition_on_previous_text",
        "temperature_increment_on_fallback",
        "enable_vad",
    ],
)
def test_what_only_faster_whisper_worker_offers_is_refused_in_a_sentence(name: str) -> None:
    assert refused(**{name: None}).startswith(f"{name} is not a field of a job")


def test_a_path_of_the_machine_is_no_speaker_sample() -> None:
    sentence = refused(diarization=True, speaker_verification=True, speaker_samples=[{"name": "A", "file_path": "/a"}])
    assert "speaker_samples.0.file_path" in sentence
    assert "/a" not in sentence
