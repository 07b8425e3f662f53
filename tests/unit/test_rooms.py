"""The architecture: who may import whom, what importing costs, how large things grow, and the tree of errors."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansard import errors
from hansard.errors import HansardError, from_code
from places import ROOT

SRC = ROOT / "src"
CORE = sorted((SRC / "hansard").rglob("*.py"))
PRODUCT = sorted([*SRC.rglob("*.py"), *(ROOT / "builder").rglob("*.py")])

HEAVY = {
    "torch",
    "torchaudio",
    "pyannote",
    "whisperx",
    "faster_whisper",
    "transformers",
    "nemo",
    "av",
    "pocketsphinx",
    "runpod",
}
DOORS = {"handler", "demo"}
PURE = {
    "hansard.transcript",
    "hansard.request",
    "hansard.errors",
    "hansard.render",
    "hansard.speakers.assign",
}
LIGHT = {"numpy", "pydantic"}
ENDLESS_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "shared", "manager"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a tree imports, at any depth; of `from a import b`, both a and a.b, since b may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


# Importing


@pytest.mark.parametrize(
    "module", ["handler", "hansard.request", "hansard.pipeline", "hansard.engine.host", "hansard.server.app"]
)
def test_importing_loads_no_engine(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    loaded = set(run.stdout.split())
    assert "hansard" in loaded
    assert not loaded & HEAVY


def test_nothing_imports_a_door() -> None:
    for path in CORE:
        assert not {name.partition(".")[0] for name in imports(parsed(path))} & DOORS, module_of(path)


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_rooms_import_only_each_other(module: str) -> None:
    for name in imports(parsed(SRC.joinpath(*module.split(".")).with_suffix(".py"))):
        top = name.partition(".")[0]
        if top == "hansard":
            assert name in PURE or name.rpartition(".")[0] in PURE, name
        else:
            assert top in LIGHT | sys.stdlib_module_names, name


def test_the_data_needs_no_more_than_numpy() -> None:
    found = {name.partition(".")[0] for name in imports(parsed(SRC / "hansard" / "transcript.py"))}
    assert found <= {"numpy"} | sys.stdlib_module_names


def test_the_core_never_speaks_of_a_platform() -> None:
    for path in CORE:
        if "server" in path.parts:
            continue
        found = {name.partition(".")[0] for name in imports(parsed(path))}
        assert not found & {"runpod", "fastapi", "starlette", "uvicorn"}, module_of(path)


def test_backends_do_not_know_each_other() -> None:
    for room in ("transcribers", "diarizers"):
        for path in SRC.joinpath("hansard", room).glob("*.py"):
            other = f"hansard.{'diarizers' if room == 'transcribers' else 'transcribers'}"
            assert not any(name.startswith(other) for name in imports(parsed(path))), path.name


# Budgets

FUNCTIONS = {
    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node
    for path in PRODUCT
    for node in ast.walk(parsed(path))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}


def test_there_is_something_to_measure() -> None:
    assert len(PRODUCT) > 20
    assert len(FUNCTIONS) > 150


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first decorator to the end."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    return (function.end_lineno or 0) - first + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller can name; `self`, `cls`, `*args` and `**kwargs` are not counted."""
    taken = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return len([parameter for parameter in taken if parameter.arg not in ("self", "cls")])


def test_functions_are_short() -> None:
    assert not {name: length(function) for name, function in FUNCTIONS.items() if length(function) > 60}


def test_functions_take_few_parameters() -> None:
    assert not {name: parameters(function) for name, function in FUNCTIONS.items() if parameters(function) > 6}


def test_modules_are_short() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in PRODUCT}
    assert not {name: lines for name, lines in lengths.items() if lines > 400}


def test_modules_say_what_they_are() -> None:
    assert not [path for path in PRODUCT if not ast.get_docstring(parsed(path))]


def test_no_module_is_a_heap() -> None:
    everything = [path for folder in ("src", "builder", "tests") for path in (ROOT / folder).rglob("*")]
    assert not [path for path in everything if path.stem.lower() in ENDLESS_NAMES]


# The tree of errors


def tree(cls: type[HansardError] = HansardError) -> Iterator[type[HansardError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def drawn() -> dict[str, tuple[str, str]]:
    """Of each class in the drawing its code, and the class that it hangs under, read from the indentation."""
    found: dict[str, tuple[str, str]] = {}
    above: list[tuple[int, str]] = []
    for line in str(errors.__doc__).splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), None)
        if name is None or line.lstrip("│├└─ ").split()[0] != name:
            continue
        depth = line.index(name)
        above = [(where, parent) for where, parent in above if where < depth]
        found[name] = (line.split(name)[1].split()[0], above[-1][1] if above else "Exception")
        above.append((depth, name))
    return found


def test_the_drawing_is_the_tree() -> None:
    ours = [cls for cls in tree() if cls.__module__ == "hansard.errors"]
    assert drawn() == {cls.__name__: (cls.code, cls.__bases__[0].__name__) for cls in ours}
    assert len(ours) > 15


def test_no_two_errors_share_a_code() -> None:
    codes = [cls.code for cls in tree() if cls.__module__ == "hansard.errors"]
    assert len(codes) == len(set(codes))


def test_every_error_is_in_the_tree_and_in_its_module() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    assert {cls for cls in tree() if cls.__module__.startswith("hansard")} == set(classes)


@pytest.mark.parametrize("cls", list(tree()), ids=lambda cls: cls.__name__)
def test_an_error_survives_the_way_as_text(cls: type[HansardError]) -> None:
    error = cls("the sentence: with a colon")
    again = from_code(error.code, error.sentence)
    assert type(again) is cls
    assert str(again) == str(error) == f"{cls.code}: the sentence: with a colon"


def test_an_unknown_code_is_our_mistake() -> None:
    again = from_code("from_the_future", "hm")
    assert type(again) is HansardError
    assert str(again) == "internal: hm"
