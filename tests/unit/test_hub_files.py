"""The files for the RunPod Hub: after its guide, in step with settings and requests, and tests that can be passed."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import inspect
import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jiwer
import pytest
from jsonschema import Draft202012Validator
from pydantic.fields import FieldInfo

from handler import Worker
from hansard import errors
from hansard.audio.decode import MOST_CHANNELS
from hansard.errors import HansardError
from hansard.plan import CPU_DIARIZER, CPU_TRANSCRIBER, GPU_DIARIZER, check, check_settings
from hansard.request import parse
from hansard.settings import Settings, load
from hansard.transcript import SAMPLE_RATE
from places import DATA, ROOT

HUB = json.loads((ROOT / ".runpod/hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod/tests.json").read_text())
BAKE = (ROOT / "docker-bake.hcl").read_text()
SCHEMA = json.loads((DATA / "hub.schema.json").read_text())

INPUTS: dict[str, dict[str, Any]] = {entry["key"]: entry["input"] for entry in HUB["config"]["env"] if "input" in entry}
FIXED: dict[str, str] = {entry["key"]: entry["value"] for entry in HUB["config"]["env"] if "value" in entry}
PRESETS: dict[str, dict[str, Any]] = {preset["name"]: preset["defaults"] for preset in HUB["config"]["presets"]}
FIELDS: dict[str, FieldInfo] = {name.upper(): field for name, field in Settings.model_fields.items()}

NOT_SHOWN = {
    "MODELS_DIR": "where the image has its models",
    "CACHED_MODELS_DIR": "where the platform has its models",
    "HF_HOME": "a folder of the image",
    "WORK_DIR": "a folder of the image",
    "LOG_FILE": "the platform has its own log of what a worker prints",
    "LOG_FILE_MB": "the same",
    "HF_HUB_OFFLINE": "the image knows whether it holds everything",
    "HF_ENDPOINT": "the platform reaches the public hub",
    "DEVICE": "fixed: a worker whose GPU is missing is to leave, not to go on without",
    "ALLOW_PRIVATE_URLS": "for tests; on a shared network it would be a hole",
    "CANCEL_GRACE_S": "nobody has to know how a job is stopped",
}
"""Settings that are no input of the Hub's form, and why."""

SERVER = {
    *(
        "HOST_BIND_ADDRESS",
        "HOST_PORT",
        "ADVERTISED_HOSTS",
        "API_KEYS",
        "ADMIN_KEYS",
        "ALLOW_ANONYMOUS",
        "ALLOW_ORIGINS",
    ),
    *("RATE_LIMIT", "STATE_DIR", "RESULT_TTL_HOURS", "MAX_QUEUE", "MODEL_ALIASES", "LAZY_LOAD_MODELS", "LOG_JSON"),
    *("MODEL_IDLE_TIMEOUT", "WEBHOOK_SECRET", "RUNPOD_ENDPOINT_ID", "RUNPOD_API_KEY", "RUNPOD_ENDPOINT_URL"),
    *("BUCKET_ENDPOINT_URL", "BUCKET_NAME", "BUCKET_REGION", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"),
}
"""Settings of the self-hosted server, which an endpoint does not run."""

SERVER_CODES = {
    *("access_denied", "forbidden", "rate_limited", "queue_full", "job_not_found", "job_not_finished", "timed_out")
}
"""Errors that only the server gives."""

OWN_WORDS = {
    "DEFAULT_MODEL": "the form has no table of models beside it",
    "HF_TOKEN": "the form has to say what it is good for",
}
"""Inputs that do not repeat the setting's description, and why."""

POOLS: dict[str, tuple[int, set[str]]] = {
    "AMPERE_16": (16, {"NVIDIA RTX A4000"}),
    "AMPERE_24": (24, {"NVIDIA RTX A5000", "NVIDIA L4", "NVIDIA GeForce RTX 3090"}),
    "ADA_24": (24, {"NVIDIA GeForce RTX 4090"}),
    "AMPERE_48": (48, {"NVIDIA A40", "NVIDIA RTX A6000"}),
    "ADA_48_PRO": (48, {"NVIDIA L40", "NVIDIA L40S", "NVIDIA RTX 6000 Ada Generation"}),
    "AMPERE_80": (80, {"NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"}),
    "ADA_80_PRO": (80, {"NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL"}),
    "HOPPER_141": (141, {"NVIDIA H200"}),
}
"""RunPod's pools: GB of memory of each GPU, and GPUs that are certainly in it. Blackwell is left out: not tried."""

LEAST_GPU_GB = 16
IMAGE_GB = {"packages": 8.2, "large-v3": 3.1, "aligners of en, fr and ru": 2.1}
DOWNLOADS_GB = {"Voxtral-Mini-3B-2507": 9.4, "the Russian large-v3": 3.1, "turbo": 1.6, "the diarizer": 0.1}
"""What the disk of a worker may come to hold: the image, and every model of the presets."""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a single setting."""
    for name in [*FIELDS, "HUGGINGFACE_TOKEN", *(f"ASR_{name}" for name in FIELDS)]:
        monkeypatch.delenv(name, raising=False)


# The schema


def problems(document: Any, kind: str) -> list[str]:
    """What the schema of one of the two files says against a document."""
    validator = Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]})
    return [error.message for error in validator.iter_errors(document)]


def test_both_files_are_as_the_guide_says() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert problems(HUB, "hub") == []
    assert problems(TESTS, "tests") == []


SLIPS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("hub", lambda hub: hub.pop("title")),
    ("hub", lambda hub: hub.update(category="speech")),
    ("hub", lambda hub: hub.update(version="1")),
    ("hub", lambda hub: hub["config"].pop("gpuIds")),
    ("hub", lambda hub: hub["config"].update(containerDiskInGb="40")),
    ("hub", lambda hub: hub["config"].update(allowedCudaVersions=[12.8])),
    ("hub", lambda hub: hub["config"].update(presets={"Russian": {}})),
    ("hub", lambda hub: hub["config"]["presets"][0]["defaults"].update(DEVICE=None)),
    ("hub", lambda hub: hub["config"]["env"][1].update(value="large-v3")),
    ("hub", lambda hub: hub["config"]["env"][1]["input"].pop("description")),
    ("hub", lambda hub: hub["config"]["env"][1]["input"].update(type="secret")),
    ("hub", lambda hub: hub["config"]["env"][1]["input"].update(min=1)),
    ("hub", lambda hub: hub["config"]["env"][1]["input"].update(placeholder="turbo")),
    ("tests", lambda tests: tests["tests"][0].update(expected_output={})),
    ("tests", lambda tests: tests["tests"][0].pop("input")),
    ("tests", lambda tests: tests["tests"][0].update(timeout="10m")),
    ("tests", lambda tests: tests["config"].update(env=[{"key": "HF_TOKEN", "input": {}}])),
]


@pytest.mark.parametrize(("kind", "slip"), SLIPS)
def test_the_schema_sees_a_slip(kind: str, slip: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(json.dumps({"hub": HUB, "tests": TESTS}[kind]))
    slip(document)
    assert problems(document, kind)


# The inputs of the form


def test_every_setting_is_shown_or_left_out_for_a_reason() -> None:
    assert len(INPUTS) + len(FIXED) == len(HUB["config"]["env"]), "an input is there twice"
    assert set(FIXED) <= set(NOT_SHOWN)
    assert {*INPUTS, *NOT_SHOWN, *SERVER} == set(FIELDS)
    assert not {*INPUTS, *NOT_SHOWN} & SERVER
    assert not set(INPUTS) & set(NOT_SHOWN)


def test_a_form_left_as_it_is_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults are sent as text, an input without one as an empty variable or as none."""
    expected = load()
    for key, given in INPUTS.items():
        monkeypatch.setenv(key, as_sent(key, given.get("default", "")))
    assert load() == expected


def as_sent(key: str, value: Any) -> str:
    """The text that the platform makes of an input's value."""
    return str(INPUTS[key]["trueValue" if value else "falseValue"]) if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_has_a_default_where_the_setting_has_one(key: str) -> None:
    assert ("default" in INPUTS[key]) == (FIELDS[key].default is not None)
    assert INPUTS[key]["required"] is False


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_says_what_the_setting_says(key: str) -> None:
    same = INPUTS[key]["description"] == (FIELDS[key].description or "").replace("`", "")
    assert same != (key in OWN_WORDS)


def test_no_two_inputs_have_one_name() -> None:
    assert len({given["name"] for given in INPUTS.values()}) == len(INPUTS)


def kind(annotation: Any) -> str:
    """The type of an input for a setting; `huggingface` would pick a model and is none of them."""
    kinds = [part for part in get_args(annotation) if part is not type(None)] or [annotation]
    return {bool: "boolean", int: "number", float: "number"}.get(kinds[0], "string")


def choices(annotation: Any) -> list[str]:
    """The values of a Literal, also within a union."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in choices(part)]


@pytest.mark.parametrize("key", INPUTS)
def test_an_input_has_the_type_and_the_options_of_the_setting(key: str) -> None:
    annotation = FIELDS[key].annotation
    assert INPUTS[key]["type"] == kind(annotation)
    assert [option["value"] for option in INPUTS[key].get("options", [])] == choices(annotation)


@pytest.mark.parametrize("key", [key for key in INPUTS if INPUTS[key]["type"] == "number"])
def test_a_number_has_the_bounds_of_the_setting(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that is itself excluded is shown as a round number beyond it."""
    bounds = {name: value for part in FIELDS[key].metadata for name, value in vars_of(part).items()}
    assert set(bounds) <= {"ge", "gt"}
    assert ("min" in INPUTS[key]) == bool(bounds)
    assert "max" not in INPUTS[key]
    if bounds:
        least = INPUTS[key]["min"]
        assert least == bounds["ge"] if "ge" in bounds else least > bounds["gt"]
        monkeypatch.setenv(key, str(least))
        assert getattr(load(), key.lower()) == least


def vars_of(constraint: Any) -> dict[str, float]:
    """The bounds of a pydantic constraint."""
    found = {name: getattr(constraint, name, None) for name in ("ge", "gt", "le", "lt")}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("key", [key for key in INPUTS if INPUTS[key]["type"] == "boolean"])
@pytest.mark.parametrize("value", [True, False])
def test_both_sides_of_a_switch_are_understood(key: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(key, as_sent(key, value))
    assert getattr(load(), key.lower()) is value


@pytest.mark.parametrize("key", [key for key in FIELDS if "SecretStr" in str(FIELDS[key].annotation)])
def test_no_secret_has_a_value(key: str) -> None:
    assert INPUTS.get(key, {}).get("default", "") == ""
    assert not [name for name, defaults in PRESETS.items() if key in defaults]
    assert key not in {entry["key"] for entry in TESTS["config"]["env"]}


def test_what_the_token_is_for_is_said() -> None:
    assert "pyannote/speaker-diarization-community-1" in INPUTS["HF_TOKEN"]["description"]
    assert not INPUTS["HF_TOKEN"]["advanced"]


@pytest.mark.parametrize("name", ["large-v3", "turbo", "faster-whisper-large-v3-russian", "Voxtral-Mini-3B-2507"])
def test_a_model_that_the_form_names_is_one(name: str, tmp_path: Path) -> None:
    assert name in re.split(r"[ ,()]+", INPUTS["DEFAULT_MODEL"]["description"])
    check_settings(Settings(default_model=name, models_dir=tmp_path))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_worker(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A preset is the form with other defaults: the worker takes it, and each value means something."""
    assert set(PRESETS[name]) <= set(INPUTS)
    for key, value in PRESETS[name].items():
        monkeypatch.setenv(key, as_sent(key, value))
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    settings = load()
    check_settings(settings)
    assert {key: getattr(settings, key.lower()) for key in PRESETS[name]} == PRESETS[name]


def test_there_is_a_preset_for_each_way_to_use_it() -> None:
    assert {defaults["DIARIZATION_MODEL"] for defaults in PRESETS.values()} == {GPU_DIARIZER}
    assert [defaults["DEFAULT_MODEL"] for defaults in PRESETS.values()] == [
        "large-v3",
        "faster-whisper-large-v3-russian",
        "Voxtral-Mini-3B-2507",
        "turbo",
    ]


# The machine


def cuda_of_torch() -> tuple[int, ...]:
    """The CUDA of the installed torch, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    found = re.search(r"(?m)^cuda\b.*'([\d.]+)'", (Path(spec.origin).parent / "version.py").read_text())
    assert found, "torch is built without CUDA"
    return version(found[1])


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_cuda_versions_begin_with_the_one_in_the_image() -> None:
    """It is a list of what is allowed, no minimum: newer ones belong to it. Tools read the first as the minimum."""
    versions = [version(text) for text in HUB["config"]["allowedCudaVersions"]]
    assert versions == sorted(set(versions))
    assert versions[0] == cuda_of_torch()
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(versions)]
    assert [step for step in steps if step != (0, 1)] == [(1, -9)], "a gap would shut out machines: 12.9, then 13.0"
    assert TESTS["config"]["allowedCudaVersions"] == HUB["config"]["allowedCudaVersions"]


def test_every_gpu_is_large_enough() -> None:
    pools = HUB["config"]["gpuIds"].split(",")
    assert len(set(pools)) == len(pools) > 2
    assert sorted(pools, key=lambda pool: POOLS[pool][0] != 24) == pools, (
        "24 GB do, and are the cheapest that always do"
    )
    assert all(POOLS[pool][0] >= LEAST_GPU_GB for pool in pools)
    assert TESTS["config"]["gpuTypeId"] in set().union(*(POOLS[pool][1] for pool in pools))
    assert HUB["config"]["gpuCount"] == TESTS["config"]["gpuCount"] == 1


def test_the_disk_has_room_for_the_image_the_presets_and_a_recording() -> None:
    settings = load()
    samples = settings.max_audio_hours * 3600 * SAMPLE_RATE * MOST_CHANNELS  # kept apart
    recording_gb = settings.max_audio_mb / 1e3 + samples * 2 / 1e9  # as it came, and as int16
    needed = sum(IMAGE_GB.values()) + sum(DOWNLOADS_GB.values()) + recording_gb
    assert needed < HUB["config"]["containerDiskInGb"] < 2 * needed


def test_the_worker_is_where_the_guide_looks_for_it() -> None:
    assert (ROOT / ".runpod" / "handler.py").samefile(ROOT / "src" / "handler.py")


# What the README says of an endpoint


def rows(heading: str) -> dict[str, str]:
    """The first table under a heading of README.md: first column to the second."""
    part = (ROOT / "README.md").read_text().partition(f"### {heading}\n")[2].partition("\n### ")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in part.splitlines() if line.startswith("| ")]
    return {first: second for first, second in cells if set(first) != {"-"}}


def test_the_readme_chooses_what_the_hub_is_told() -> None:
    chosen = rows("Create the endpoint")
    pools = [pool for pool in re.findall(r"`(\w+)`", chosen["GPU"]) if pool != "AMPERE_80"]
    assert HUB["config"]["gpuIds"].startswith(",".join(pools))
    assert chosen["container disk"].startswith(f"{HUB['config']['containerDiskInGb']} GB;")
    assert chosen["CUDA versions"].startswith(HUB["config"]["allowedCudaVersions"][0])
    assert chosen["environment"].startswith(f"`DEVICE={FIXED['DEVICE']}`")


def test_the_readme_names_every_build() -> None:
    named = [name for first in rows("Build and push") for name in re.findall(r"`(\w+)`", first)]
    assert sorted(named) == sorted(set(re.findall(r'(?m)^target "(\w+)"', BAKE)) - {"worker"})


def test_the_readme_says_of_every_error_what_to_do() -> None:
    named = [code for first in rows("When a job fails") for code in re.findall(r"`([a-z_]+)`", first)]
    codes = {cls.code for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, HansardError)}
    assert sorted(named) == sorted(codes - SERVER_CODES)


# The tests that the Hub runs


@pytest.fixture
def env_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that the Hub's tests run with."""
    for entry in TESTS["config"]["env"]:
        assert entry["key"] in INPUTS
        monkeypatch.setenv(entry["key"], entry["value"])


@pytest.mark.parametrize("job", TESTS["tests"], ids=lambda job: str(job["name"]))
def test_a_job_of_the_hub_needs_nothing_from_outside(job: dict[str, Any], env_of_tests: None) -> None:
    """No token and no address; its sound is tests/data/meeting.ogg, which the test of the whole job listens to."""
    asked = parse(job["input"])
    assert asked.secrets() == ()
    kind, _, sound = asked.audio.partition(";base64,")
    assert kind == "data:audio/ogg"
    assert base64.b64decode(sound, validate=True) == (DATA / "meeting.ogg").read_bytes()
    assert len(json.dumps(job)) < 1_000_000
    assert job["timeout"] >= 300_000  # milliseconds: the first job of a worker waits for its models
    assert load().diarization_model == CPU_DIARIZER


def test_the_jobs_of_the_hub_ask_for_words_speakers_and_captions() -> None:
    asked = [parse(job["input"]) for job in TESTS["tests"]]
    assert any(job.align_output and not job.diarization for job in asked)
    assert any(job.align_output and job.diarization for job in asked)
    assert any({"srt", "vtt"} <= set(job.output_formats) for job in asked)
    assert all(job.model is None for job in asked)
    assert {entry["key"] for entry in TESTS["config"]["env"]} == {"DIARIZATION_MODEL"}  # what the image holds
    assert len({job["name"] for job in TESTS["tests"]}) == len(asked)


@pytest.mark.parametrize("job", TESTS["tests"], ids=lambda job: str(job["name"]))
@pytest.mark.parametrize("model", [CPU_TRANSCRIBER, "large-v3"])
def test_a_job_of_the_hub_is_planned_without_a_warning(
    model: str, job: dict[str, Any], env_of_tests: None, tmp_path: Path
) -> None:
    """With large-v3 in a folder of the image that looks like it, and the hub out of reach."""
    folder = tmp_path / "faster-whisper-large-v3"
    folder.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    settings = load().model_copy(update={"default_model": model, "models_dir": tmp_path, "hf_hub_offline": True})
    plan = check(parse(job["input"]), settings)
    assert plan.model == model
    assert plan.warnings == ()
    assert (plan.diarizer is not None) == parse(job["input"]).diarization


@pytest.mark.timeout(120)
def test_the_first_job_of_the_hub_is_done(
    env_of_tests: None, meeting_truth: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Through the door and the engine process, with the default model of a machine without a GPU."""
    settings = load().model_copy(
        update={"device": "cpu", "work_dir": tmp_path / "work", "log_file": tmp_path / "log.txt"}
    )
    before = logging.getLogger().handlers[:]
    worker = Worker(settings, echo=False)
    try:
        answer = asyncio.run(worker.handle({"id": "hub", "input": TESTS["tests"][0]["input"]}))
    finally:
        worker.close()
        logging.getLogger().handlers[:] = before
    assert "error" not in answer
    said = " ".join(turn["text"] for turn in meeting_truth)
    words = [word["word"] for segment in answer["segments"] for word in segment["words"]]
    assert jiwer.wer(said, " ".join(words)) <= 0.1
