"""What is refused at the door, before a byte is downloaded: unknown models, options nobody would honour, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from hansard.diarizers import DIARIZERS
from hansard.errors import (
    HansardError,
    ModelError,
    ModelMissingError,
    RequestError,
    SettingsError,
    TermsError,
    TokenMissingError,
    TokenRefusedError,
    UnsupportedError,
)
from hansard.models import Models
from hansard.plan import GPU_DIARIZER, GPU_TRANSCRIBER, STAGES, Choice, Plan, check, check_settings
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hansard.transcribers.capabilities import OPTIONS, Can
from hub import Hub
from places import TINY

ASKED: dict[str, Any] = {
    "prompt": "Hm.",
    "hotwords": "Hansard",
    "temperature": 0,
    "beam_size": 5,
    "batch_size": 8,
    "target_language": "de",
    "vad_onset": 0.6,
    "vad_offset": 0.3,
    "language_detection_min_prob": 0.5,
    "language_detection_max_tries": 6,
}
"""A value of each option that is not its default."""

NEEDS: dict[str, dict[str, Any]] = {"target_language": {"task": "translate"}}
"""What else a job must say to ask for an option at all."""


@pytest.fixture(autouse=True)
def backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the real ones: `able` can do everything, `plain` nothing but English and French."""

    class Able:
        can: ClassVar[Can] = Can(
            languages=None,
            mixed_languages=True,
            tasks=frozenset({"transcribe", "translate"}),
            options=OPTIONS,
            word_times=True,
            needs_alignment=True,
        )
        models: ClassVar[dict[str, tuple[str, ...]]] = {"able": ()}

        @classmethod
        def takes(cls, name: str, models: Models) -> bool:
            return False

        @classmethod
        def check(cls, model: str, request: Request, models: Models) -> None:
            """Any model can be had."""

        def __init__(self) -> None:
            pytest.fail("checking loads nothing")

    class Plain(Able):
        can: ClassVar[Can] = Can(languages=frozenset({"fr", "en"}))
        models: ClassVar[dict[str, tuple[str, ...]]] = {"plain": ()}

    monkeypatch.setitem(TRANSCRIBERS, "able", Able)
    monkeypatch.setitem(TRANSCRIBERS, "plain", Plain)


@pytest.fixture(autouse=True)  # HF_HUB_OFFLINE is not set here: the hub's client would keep it for other tests
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights, no token and no hub, whatever the machine has."""
    for variable in ("HF_TOKEN", "HUGGINGFACE_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("CACHED_MODELS_DIR", str(tmp_path / "cached"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("DEVICE", "cpu")


def settings(**given: Any) -> Settings:
    return Settings(**{"hf_hub_offline": True, **given})


def plan(model: str | None = "able", models_dir: Path | None = None, **fields: Any) -> Plan:
    given = {"models_dir": models_dir} if models_dir else {}
    return check(parse({"audio": "data:,", "model": model, **fields}), settings(**given))


def chosen(made: Plan) -> str:
    assert made.transcriber
    return made.transcriber.model


def unsupported(model: str | None, **fields: Any) -> str:
    with pytest.raises(UnsupportedError) as refused:
        plan(model, **fields)
    return refused.value.sentence


# Which model


def test_no_model_means_the_default() -> None:
    request = parse({"audio": "data:,"})
    assert chosen(check(request, settings(default_model="able"))) == "able"
    assert chosen(check(request, settings(default_model="plain"))) == "plain"
    assert chosen(check(request, settings())) == "sphinx"


def test_a_gpu_changes_the_defaults() -> None:
    request = parse({"audio": "data:,", "diarization": True})
    with pytest.raises(ModelMissingError):
        check(request, settings(device="cuda"))
    made = check(request, settings(device="cuda", default_model="able"))
    assert GPU_TRANSCRIBER in TRANSCRIBERS["whisper"].models
    assert GPU_DIARIZER in DIARIZERS["pyannote"].models
    assert made.diarizer is None
    assert [warning.split(":")[0] for warning in made.warnings] == ["speakers were not told apart"]


@pytest.mark.parametrize(("model", "default"), [("whisper-9", "able"), (None, "whisper-9")])
def test_an_unknown_model_is_told_the_known_ones(model: str | None, default: str, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "faster-whisper-of-ours"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"0")
    (folder / "config.json").write_text("{}")
    request = parse({"audio": "data:,", "model": model})
    with pytest.raises(HansardError, match="model 'whisper-9' is not known; known models: ") as refused:
        check(request, settings(default_model=default))
    for known in ("tiny", "large-v3", "turbo", "sphinx", "faster-whisper-large-v3-russian", "faster-whisper-of-ours"):
        assert f" {known}," in refused.value.sentence
    told = ("model_not_found", "model") if model else ("invalid_request", None)
    assert (refused.value.code, refused.value.param) == told


@pytest.mark.parametrize("name", ["voxtral-mini-latest", "voxtral-small-latest", "voxtral-ours"])
def test_a_folder_goes_before_a_service(name: str, tmp_path: Path) -> None:
    """Its sound is to stay on this machine, also while the folder is being filled."""
    folder = tmp_path / "models" / name
    folder.mkdir(parents=True)
    with pytest.raises((RequestError, ModelError)):
        plan(name)
    for file in ("model.safetensors", "tekken.json", "preprocessor_config.json"):
        (folder / file).write_bytes(b"0")
    (folder / "config.json").write_text('{"architectures": ["VoxtralForConditionalGeneration"]}')
    assert plan(name).transcriber == Choice("voxtral", name)


@pytest.mark.parametrize("name", ["voxtral-", "voxtral-../../etc", "voxtral-mini\n", "Voxtral-Mini-Latest"])
def test_what_no_service_has_is_refused_at_the_door(name: str) -> None:
    with pytest.raises(ModelMissingError, match="any voxtral- name behind VOXTRAL_ENDPOINT"):
        plan(name)


def test_a_folder_of_the_image_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "ours"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"0")
    (folder / "config.json").write_text("{}")
    assert plan("ours").transcriber == Choice("whisper", "ours")


@pytest.mark.parametrize("name", ["../models/ours", "/etc", "ours/../ours", "", ".", "..", "a/b/c", "a\x00b", "~"])
def test_no_other_place_of_the_machine_is_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "models" / "ours").mkdir(parents=True)
    (tmp_path / "models" / "ours" / "model.bin").write_bytes(b"0")
    (tmp_path / "models" / "ours" / "config.json").write_text("{}")
    if name == "":
        pytest.skip("an empty name means the default")
    with pytest.raises(ModelMissingError):
        plan(name)


def test_a_diarizer_is_no_transcriber() -> None:
    with pytest.raises(UnsupportedError, match="model embedded is a diarizer") as refused:
        plan("embedded")
    assert refused.value.param == "model"


@pytest.mark.parametrize("field", ["default_model", "diarization_model"])
def test_defaults_that_no_job_could_use_are_a_mistake_of_the_settings(field: str) -> None:
    with pytest.raises(SettingsError, match=f"{field.upper()}: model 'nobody' is"):
        check_settings(settings(**{field: "nobody"}))
    check_settings(settings())


# Options


def test_the_table_of_options_is_whole() -> None:
    assert set(ASKED) == OPTIONS


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_each_option_is_refused_by_name_where_it_would_be_ignored(option: str) -> None:
    asked = {option: ASKED[option], **NEEDS.get(option, {})}
    assert unsupported("plain", **asked).split("; ")[-1] == f"model plain does not take {option}"
    assert plan("able", **asked).transcriber == Choice("able", "able")


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_an_option_at_its_default_asks_for_nothing(option: str) -> None:
    assert plan("plain", **{option: Request.model_fields[option].default}).transcriber == Choice("plain", "plain")


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
    assert chosen(plan(model, language=language)) == model


def test_a_language_that_is_not() -> None:
    assert unsupported("plain", language="de") == "model plain does not know language de; it knows: en, fr"


def test_language_multi_is_for_those_who_take_it() -> None:
    assert plan("able", language="multi").transcriber
    assert unsupported("plain", language="multi").startswith("model plain does not take language multi")
    assert unsupported("sphinx", language="multi").startswith("model sphinx does not take language multi")


def test_a_language_to_write_that_is_what_the_model_writes_anyway() -> None:
    assert chosen(plan("whisper-tiny-synthetic-ct2", task="translate", target_language="en", models_dir=TINY))
    refused = unsupported("whisper-tiny-synthetic-ct2", task="translate", target_language="de", models_dir=TINY)
    assert refused == "model whisper-tiny-synthetic-ct2 does not take target_language"


def test_a_model_that_cannot_detect_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRANSCRIBERS["plain"], "can", Can(languages=frozenset({"fr"}), needs_language=True))
    assert unsupported("plain") == "model plain cannot detect the language; name it in language"
    assert plan("plain", language="fr").transcriber


def test_what_one_model_cannot_do_is_its_own_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: str, request: Request, models: Models) -> None:
        raise UnsupportedError(f"{model} hears no {request.language}")

    monkeypatch.setattr(TRANSCRIBERS["able"], "check", refuse)
    assert unsupported("able", language="fr") == "able hears no fr"


@pytest.mark.parametrize(("formats", "align"), [(["srt"], True), (["txt", "vtt"], True), (["txt", "tsv"], False)])
def test_captions_of_a_model_without_times_want_an_aligner(
    formats: list[str], align: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one caption would hold all that is said in half a minute."""
    monkeypatch.setattr(TRANSCRIBERS["plain"], "can", Can(languages=frozenset({"en"}), needs_alignment=True))
    assert plan("plain", language="en", output_formats=formats).align is align
    assert plan("able", language="en", output_formats=formats).align is False


def test_a_model_without_times_can_have_its_words_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gives no word times" in unsupported("plain", language="en", align_output=True)
    monkeypatch.setattr(TRANSCRIBERS["plain"], "can", Can(languages=frozenset({"en"}), needs_alignment=True))
    assert plan("plain", language="en", align_output=True).align


def test_a_task_that_is_not_offered() -> None:
    assert unsupported("plain", task="translate") == "model plain does not offer task translate; it offers: transcribe"
    assert plan("able", task="translate").transcriber == Choice("able", "able")


# The tasks of the first worker


def test_task_diarization_needs_no_transcriber() -> None:
    made = plan(None, task="diarization")
    assert (made.transcriber, made.diarizer, made.align) == (None, Choice("embedded", "embedded"), False)
    assert made.model == "embedded"


def test_task_diarization_takes_the_diarizer_by_name(tmp_path: Path) -> None:
    (tmp_path / "models" / "speaker-diarization-3.1").mkdir(parents=True)
    (tmp_path / "models" / "speaker-diarization-3.1" / "config.yaml").write_text("pipeline:\n  name: x\n")
    for part in ("segmentation-3.0", "wespeaker-voxceleb-resnet34-LM"):
        (tmp_path / "models" / part).mkdir()
        (tmp_path / "models" / part / "pytorch_model.bin").write_bytes(b"0")
    name = "pyannote/speaker-diarization-3.1"
    assert plan(name, task="diarization").diarizer == Choice("pyannote", name)
    with pytest.raises(RequestError, match="is a diarizer; ask for task: diarization"):
        plan(name)


def test_task_diarization_takes_no_other_model() -> None:
    with pytest.raises(ModelMissingError, match=r"model 'able' is no known diarizer; known diarizers: .*embedded"):
        plan("able", task="diarization")


@pytest.mark.parametrize("option", [*sorted(OPTIONS - set(NEEDS)), "language"])
def test_task_diarization_takes_no_option_of_a_transcriber(option: str) -> None:
    value = ASKED.get(option, "fr")
    assert option in unsupported(None, task="diarization", **{option: value})


def test_task_transcription_diarizes_unless_told_who_speaks() -> None:
    segments = [{"start": 0, "end": 1, "speaker": "A"}]
    assert plan(task="transcription").diarizer == Choice("embedded", "embedded")
    assert plan(task="transcription", segments=segments).diarizer is None
    assert plan(task="transcription", segments=[]).diarizer is None


# Weights


HUB_DIARIZER = {"diarization_model": GPU_DIARIZER}


def test_without_a_token_a_job_loses_its_speakers_only() -> None:
    request = parse({"audio": "data:,", "model": "able", "diarization": True})
    made = check(request, settings(**HUB_DIARIZER))
    assert (chosen(made), made.diarizer) == ("able", None)
    assert len(made.warnings) == 1
    assert made.warnings[0].startswith("speakers were not told apart: ")
    assert "diarize" not in made.stages


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"diarization": True}, {"diarization_required": True}),
        ({"diarization": True, "hf_token": "hf_abcdefgh"}, {}),
        ({"diarization": True}, {"hf_token": "hf_abcdefgh"}),
        ({"task": "transcription"}, {}),
        ({"task": "diarization", "model": None}, {}),
    ],
)
def test_where_speakers_are_needed_their_absence_is_an_error(fields: dict[str, Any], given: dict[str, Any]) -> None:
    request = parse({"audio": "data:,", "model": "able", **fields})
    with pytest.raises(ModelMissingError, match="HF_HUB_OFFLINE"):
        check(request, settings(**HUB_DIARIZER, **given))


@pytest.mark.parametrize(
    ("token", "repositories", "kind", "says"),
    [
        ("hf_unknown_token", {GPU_DIARIZER: TINY}, TokenRefusedError, "token"),
        ("hf_stranger", {GPU_DIARIZER: TINY}, TermsError, f"/{GPU_DIARIZER}"),
        (None, {GPU_DIARIZER: TINY}, TokenMissingError, f"/{GPU_DIARIZER}"),
        ("hf_stranger", {}, ModelMissingError, GPU_DIARIZER),
    ],
)
def test_a_gated_diarizer_is_asked_for_before_anything_else(
    token: str | None, repositories: dict[str, Path], kind: type[Exception], says: str
) -> None:
    with Hub(repositories, gated={GPU_DIARIZER}, accounts={"hf_stranger": set()}) as hub:
        request = parse({"audio": "data:,", "model": "able", "diarization": True, "hf_token": token})
        asked = settings(**HUB_DIARIZER, hf_endpoint=hub.url, hf_hub_offline=False, diarization_required=True)
        with pytest.raises(kind, match=says):
            check(request, asked)


CUSTOM = """
pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params: {clustering: AgglomerativeClustering, segmentation: pyannote/segmentation-3.0, embedding: $model/embedding}
params: {}
"""


def test_a_pipeline_of_the_operator_is_checked_with_the_parts_it_names(tmp_path: Path) -> None:
    """Not in mid-job, after the recording was downloaded and decoded."""
    folder = tmp_path / "models" / "ours"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CUSTOM)
    request = parse({"audio": "data:,", "model": "able", "diarization": True})
    assert check(request, settings(diarization_model="ours")).diarizer is None
    with pytest.raises(ModelMissingError, match=r"pyannote/segmentation-3\.0"):
        check(request, settings(diarization_model="ours", diarization_required=True))


def test_a_repository_that_holds_no_whisper_is_refused_before_it_is_downloaded() -> None:
    with Hub({"someone/aligner": TINY / "wav2vec2-tiny-synthetic"}) as hub:
        asked = settings(hf_endpoint=hub.url, hf_hub_offline=False)
        with pytest.raises(ModelMissingError, match=r"someone/aligner is no model .* it has no model\.bin"):
            check(parse({"audio": "data:,", "model": "someone/aligner"}), asked)
        assert not [asked for asked in hub.log if "/resolve/" in asked.path]


@pytest.mark.parametrize("name", ["no-such-folder", "/nowhere"])
def test_an_aligner_that_is_nowhere_is_a_mistake_of_the_settings(name: str) -> None:
    with pytest.raises(SettingsError, match=r"ALIGN_MODELS: .* is no folder under MODELS_DIR with a model"):
        check_settings(settings(align_models={"fr": name}))
    check_settings(settings(align_models={"fr": "owner/name"}))


def test_no_answer_names_a_path_of_the_machine() -> None:
    assert Plan(Choice("whisper", "/models/of/ours")).model == "ours"
    assert Plan(Choice("whisper", "owner/name")).model == "owner/name"


# The plan


@pytest.mark.parametrize(
    ("fields", "diarizer", "stages"),
    [
        ({}, None, ["load", "fetch", "decode", "transcribe"]),
        ({"align_output": True}, None, ["load", "fetch", "decode", "transcribe", "align"]),
        (
            {"diarization": True},
            Choice("embedded", "embedded"),
            ["load", "fetch", "decode", "transcribe", "align", "diarize", "assign"],
        ),
        ({"channels": "separate"}, None, ["load", "fetch", "decode", "transcribe"]),
        (
            {"task": "translate", "diarization": True},
            Choice("embedded", "embedded"),
            ["load", "fetch", "decode", "transcribe", "diarize", "assign"],
        ),
    ],
)
def test_the_plan_names_the_diarizer_and_its_stages(
    fields: dict[str, Any], diarizer: Choice | None, stages: list[str]
) -> None:
    made = plan("able", **fields)
    assert made.diarizer == diarizer
    assert list(made.stages.items()) == [(stage, STAGES[stage]) for stage in stages]


def test_a_model_that_gives_words_by_itself_needs_no_aligner() -> None:
    assert not plan("sphinx", align_output=True, diarization=True).align


def test_the_shares_of_the_stages_are_percents() -> None:
    assert sum(STAGES.values()) == 100
