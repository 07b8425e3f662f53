"""What is refused at the door, before a byte is downloaded: unknown models, and options nobody would honour."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from hansard.errors import RequestError, SettingsError, UnsupportedError
from hansard.pipeline import STAGES, Plan, check, check_settings
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.capabilities import OPTIONS, Can

ASKED: dict[str, Any] = {
    "prompt": "Hm.",
    "hotwords": "Hansard",
    "temperature": 0,
    "beam_size": 5,
    "batch_size": 8,
    "vad_onset": 0.6,
    "vad_offset": 0.3,
    "language_detection_min_prob": 0.5,
    "language_detection_max_tries": 6,
}
"""A value of each option that is not its default."""


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the real ones: `able` can do everything, `plain` nothing but English and French."""

    class Able:
        can: ClassVar[Can] = Can(languages=None, tasks=frozenset({"transcribe", "translate"}), options=OPTIONS)

        def __init__(self) -> None:
            pytest.fail("checking loads nothing")

    class Plain(Able):
        can: ClassVar[Can] = Can(languages=frozenset({"fr", "en"}))

    monkeypatch.setitem(TRANSCRIBERS, "able", Able)
    monkeypatch.setitem(TRANSCRIBERS, "plain", Plain)


def plan(model: str | None = "able", **fields: Any) -> Plan:
    return check(parse({"audio": "data:,", "model": model, **fields}), Settings(diarization_model="embedded"))


def unsupported(model: str, **fields: Any) -> str:
    with pytest.raises(UnsupportedError) as refused:
        plan(model, **fields)
    return refused.value.sentence


def test_no_model_means_the_default() -> None:
    request = parse({"audio": "data:,"})
    assert check(request, Settings(default_model="able", diarization_model="embedded")).transcriber == "able"
    assert check(request, Settings(default_model="plain", diarization_model="embedded")).transcriber == "plain"


@pytest.mark.parametrize(("model", "default"), [("whisper-9", "able"), (None, "whisper-9")])
def test_an_unknown_model_is_told_the_known_ones(model: str | None, default: str) -> None:
    request = parse({"audio": "data:,", "model": model})
    with pytest.raises(RequestError) as refused:
        check(request, Settings(default_model=default, diarization_model="embedded"))
    assert refused.value.sentence == f"model 'whisper-9' is not known; known models: {', '.join(TRANSCRIBERS)}"
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize("field", ["default_model", "diarization_model"])
def test_defaults_that_no_job_could_use_are_a_mistake_of_the_settings(field: str) -> None:
    with pytest.raises(SettingsError, match=f"{field.upper()} is 'nobody'; it must be one of: "):
        check_settings(Settings(**{field: "nobody"}))
    check_settings(Settings())


def test_the_table_of_options_is_whole() -> None:
    assert set(ASKED) == OPTIONS


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_each_option_is_refused_by_name_where_it_would_be_ignored(option: str) -> None:
    assert unsupported("plain", **{option: ASKED[option]}) == f"model plain does not take {option}"
    assert plan("able", **{option: ASKED[option]}).transcriber == "able"


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_an_option_at_its_default_asks_for_nothing(option: str) -> None:
    assert plan("plain", **{option: Request.model_fields[option].default}).transcriber == "plain"


def test_everything_refused_is_said_at_once() -> None:
    sentence = unsupported("plain", task="translate", language="de", **ASKED)
    assert sentence.split("; ") == [
        "model plain does not offer task translate",
        "it offers: transcribe",
        "model plain does not know language de",
        "it knows: en, fr",
        *(f"model plain does not take {option}" for option in sorted(OPTIONS)),
    ]


@pytest.mark.parametrize(("model", "language"), [("plain", "fr"), ("plain", None), ("able", "de"), ("able", None)])
def test_a_language_that_is_known(model: str, language: str | None) -> None:
    assert plan(model, language=language).transcriber == model


def test_a_language_that_is_not() -> None:
    assert unsupported("plain", language="de") == "model plain does not know language de; it knows: en, fr"


@pytest.mark.parametrize("task", ["translate", "diarization", "transcription"])
def test_a_task_that_is_not_offered(task: str) -> None:
    assert unsupported("plain", task=task) == f"model plain does not offer task {task}; it offers: transcribe"


def test_tasks_that_are_offered() -> None:
    assert plan("able", task="translate").transcriber == "able"
    assert unsupported("able", task="diarization").endswith("it offers: transcribe, translate")


def test_voices_are_not_verified_by_a_diarizer_that_cannot() -> None:
    samples = [{"name": "Eve", "url": "https://example.com/eve.wav"}]
    sentence = unsupported("able", diarization=True, speaker_verification=True, speaker_samples=samples)
    assert sentence == "diarizer embedded does not verify speakers; leave out speaker_verification"


@pytest.mark.parametrize(
    ("fields", "diarizer", "stages"),
    [
        ({}, None, ["fetch", "decode", "transcribe"]),
        ({"diarization": False}, None, ["fetch", "decode", "transcribe"]),
        ({"diarization": True}, "embedded", ["fetch", "decode", "transcribe", "diarize", "assign"]),
        ({"channels": "separate"}, None, ["fetch", "decode", "transcribe"]),
    ],
)
def test_the_plan_names_the_diarizer_and_its_stages(
    fields: dict[str, Any], diarizer: str | None, stages: list[str]
) -> None:
    made = plan("able", **fields)
    assert made.diarizer == diarizer
    assert list(made.stages.items()) == [(stage, STAGES[stage]) for stage in stages]


def test_the_shares_of_the_stages_are_percents() -> None:
    assert sum(STAGES.values()) == 100
