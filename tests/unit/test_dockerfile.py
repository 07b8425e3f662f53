"""What can be told of the image without building it: the Dockerfile, its builds by name, and what they are given.

Building and running it is tests/image, by builder/check-image.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hcl2
import pytest

from hansard.aligners.table import aligner_of
from hansard.diarizers import DIARIZERS
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from places import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()

NOT_OURS = {
    "PATH": "the interpreter of .venv is `python`",
    "PYTHONPATH": "hansard.health is run as a module",
    "NVIDIA_DRIVER_CAPABILITIES": "NVIDIA's container runtime reads it",
    "NVIDIA_VISIBLE_DEVICES": "NVIDIA's container runtime reads it",
}
"""Variables of the image that are no settings, and who reads them."""


def instructions(kind: str) -> list[str]:
    """What stands after a kind of instruction, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2] for line in joined.splitlines() if line.partition(" ")[0] == kind]


def unquoted(value: Any) -> Any:
    """hcl2 keeps the quotes of keys and strings."""
    if isinstance(value, dict):
        return {unquoted(name): unquoted(part) for name, part in value.items()}
    if isinstance(value, list):
        return [unquoted(part) for part in value]
    return value.strip('"') if isinstance(value, str) else value


BAKE = unquoted(hcl2.loads((ROOT / "docker-bake.hcl").read_text()))
TARGETS = {name: target for entry in BAKE["target"] for name, target in entry.items()}
VARIABLES = {name: variable["default"] for entry in BAKE["variable"] for name, variable in entry.items()}
BUILDS = sorted(set(TARGETS) - {"worker"})
ARGS = {name: default.strip('"') for name, equals, default in (a.partition("=") for a in instructions("ARG")) if equals}


def given(target: str) -> dict[str, str]:
    """The build arguments of a target, with what it inherits and the Dockerfile's defaults."""
    own = {**TARGETS["worker"]["args"], **TARGETS[target].get("args", {})}
    return ARGS | {
        name: VARIABLES.get(value.removeprefix("${").removesuffix("}"), value) for name, value in own.items()
    }


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    command = [hadolint, "--no-color", ROOT / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_everything_that_is_copied_reaches_the_build() -> None:
    """And nothing else does: .dockerignore names what the Dockerfile copies."""
    sources = {source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]}
    allowed = {line.removeprefix("!") for line in IGNORED if line.startswith("!")}
    assert IGNORED[1] == "*"
    assert {source.removesuffix("/hansard") for source in sources} == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_every_variable_is_a_setting_or_somebody_elses() -> None:
    names = {name for line in instructions("ENV") for name in re.findall(r"(\w+)=", line)}
    settings = {name.upper() for name in Settings.model_fields}
    assert names - settings == set(NOT_OURS)
    assert names & settings


def test_no_variable_and_no_argument_carries_a_token() -> None:
    assert not [line for line in instructions("ARG") + instructions("ENV") if "TOKEN" in line or "KEY" in line]
    assert "--mount=type=secret,id=hf_token" in DOCKERFILE
    assert TARGETS["worker"]["secret"] == ["id=hf_token,env=HF_TOKEN"]


def test_the_builds_have_their_names() -> None:
    assert BUILDS == ["canary", "russian", "slim", "voxtral", "whisper"]
    assert all(TARGETS[name]["inherits"] == ["worker"] for name in BUILDS)
    assert TARGETS["worker"]["platforms"] == ["linux/amd64"]


@pytest.mark.parametrize("target", BUILDS)
def test_a_build_names_what_there_is(target: str) -> None:
    args = given(target)
    transcribers = {name for cls in TRANSCRIBERS.values() for name in cls.models}
    diarizers = {name for cls in DIARIZERS.values() for name in cls.models}
    assert set(TARGETS[target].get("args", {})) <= set(ARGS)
    assert {args["DEFAULT_MODEL"], *args["MORE_MODELS"].split()} - {""} <= transcribers
    assert args["DIARIZATION_MODEL"] in diarizers | {""}
    for language in args["LANGUAGES"].split():
        assert aligner_of(language, Settings())
    assert all((ROOT / lock).is_file() for lock in args["MORE_LOCKS"].split())


@pytest.mark.parametrize("target", BUILDS)
def test_a_worker_that_holds_everything_asks_nobody(target: str) -> None:
    """Only the build without weights may download, and it has no defaults that it does not hold."""
    args = given(target)
    assert (args["REQUIRE_ALL"] == "1") == (target != "slim")
    assert bool(args["DEFAULT_MODEL"]) == bool(args["DIARIZATION_MODEL"]) == (target != "slim")


def test_a_model_without_times_of_its_own_has_an_aligner_for_every_language() -> None:
    for target in BUILDS:
        for cls in TRANSCRIBERS.values():
            if given(target)["DEFAULT_MODEL"] in cls.models and cls.can.needs_alignment and not cls.can.word_times:
                assert set(given(target)["LANGUAGES"].split()) == cls.can.languages, target


def test_a_build_without_arguments_is_whisper_that_may_go_on_without_a_token() -> None:
    assert {name: value for name, value in given("whisper").items() if value != ARGS[name]} == {"REQUIRE_ALL": "1"}


def test_what_the_server_keeps_is_its_users_alone() -> None:
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    assert any("--mode 0700 /var/lib/hansard" in line for line in lines)
