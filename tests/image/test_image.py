"""The image as it is built and run: no weights by accident, no token by accident, no root, no network.

Run by builder/check-image. Not covered: a GPU, the real base where it cannot be pulled, the real weights, the build
with NeMo (canary), aligners that are files of torchaudio's.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import soundfile

if "HANSARD_DOCKER" not in os.environ:
    pytest.skip("needs a Docker engine: run builder/check-image", allow_module_level=True)

from conftest import DIARIZER, LANGUAGE, RUN_S, RUSSIAN, VOXTRAL, Builder, Image, Say, docker
from places import CLIPS, ROOT

sys.path.insert(0, str(ROOT / "tests" / "platform"))
from fake_platform import FakePlatform

BLOCK = 1 << 24
HEALTHY_S = 180
BEGINNING = 80_000  # samples of a clip, two sentences: what the SDK prints of a result is cut at 4,096 characters
MODELS = ("faster-whisper-large-v3", DIARIZER.partition("/")[2], "wav2vec2-large-xlsr-53-russian")


@pytest.fixture(scope="module")
def slim(builder: Builder) -> Image:
    return builder.build("slim")


@pytest.fixture(scope="module")
def whisper(builder: Builder) -> Image:
    return builder.build("whisper")


# What is built


def test_slim_has_no_weights(slim: Image) -> None:
    assert slim.run("find", "/models", "-mindepth", "1").stdout == ""


def test_whisper_has_the_weights_of_its_tables(whisper: Image, builder: Builder) -> None:
    folders = whisper.run("find", "/models", "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\n").stdout.split()
    assert sorted(folders) == sorted(MODELS)
    assert DIARIZER in {
        asked.path.removeprefix("/api/models/").removesuffix("/auth-check") for asked in builder.hub.log
    }


def test_other_builds_have_theirs(builder: Builder) -> None:
    for target, more in (("russian", RUSSIAN), ("voxtral", VOXTRAL)):
        image = builder.build(target)
        default = dict(line.partition("=")[::2] for line in image.described["Config"]["Env"])["DEFAULT_MODEL"]
        folders = set(image.run("ls", "/models").stdout.split())
        assert default == more.partition("/")[2]
        assert {default, *MODELS[1:]} <= folders
        assert (MODELS[0] in folders) == (target == "russian")


def test_a_build_without_a_token_goes_on_without_the_gated_model(builder: Builder) -> None:
    """And its worker does its job without speakers, where it cannot have the model either."""
    image = builder.build_plainly()
    assert f"{builder.hub.url}/{DIARIZER}" in image.output
    assert sorted(image.run("ls", "/models").stdout.split()) == sorted({*MODELS} - {DIARIZER.partition("/")[2]})
    done = image.run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "speakers were not told apart" in done.stdout


def test_weights_can_be_read_by_anybody_and_written_by_nobody(whisper: Image) -> None:
    assert whisper.run("find", "/models", "-not", "-readable").stdout == ""
    assert whisper.run("find", "/models", "/app", "-writable", "-not", "-type", "l").stdout == ""


def test_the_worker_is_not_root(slim: Image) -> None:
    assert slim.run("id", "-u").stdout.strip() == "1000"


def test_the_configuration_is_what_the_platform_reads(whisper: Image, say: Say) -> None:
    config = whisper.described["Config"]
    assert config["Cmd"] == ["python", "-u", "src/handler.py"]
    assert not config["Entrypoint"]
    env = dict(line.partition("=")[::2] for line in config["Env"])
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert not {"HF_TOKEN", "HF_ENDPOINT", "HUGGINGFACE_TOKEN"} & set(env)
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses", "revision")} <= set(
        config["Labels"]
    )
    say(json.dumps({name: config[name] for name in ("Cmd", "User", "WorkingDir", "Healthcheck", "Env")}, indent=1))


def test_nothing_of_the_repository_that_the_worker_does_not_need(slim: Image) -> None:
    found = slim.run("ls", "-A", "/app", "/app/builder").stdout.split()
    assert not {"tests", "README.md", ".git", "fetch_models.py", ".venv.lock"} & set(found)
    assert slim.run("sh", "-c", "command -v uv").stdout == ""


def test_sizes(slim: Image, whisper: Image, say: Say) -> None:
    for image in (slim, whisper):
        history = docker("history", "--format", "{{.Size}}\t{{.CreatedBy}}", image.tag).stdout.splitlines()
        say(f"{image.tag}: {image.described['Size'] / 1e9:.2f} GB")
        for line in history:
            size, _, command = line.partition("\t")
            if size != "0B":
                say(f"  {size:>8}  {command[:100]}")
            if "COPY src" in command:
                assert re.fullmatch(r"[\d.]+k?B", size), "the layer of the code holds more than the code"


# The token


class Layers:
    """A saved image, read as whoever holds it could: every file of it, and every layer unpacked."""

    def __init__(self, tag: str) -> None:
        self._tag = tag

    def found(self, *needles: bytes) -> set[bytes]:
        """Which of these are anywhere in it."""
        found: set[bytes] = set()
        with subprocess.Popen([os.environ["HANSARD_DOCKER"], "save", self._tag], stdout=subprocess.PIPE) as save:
            with tarfile.open(fileobj=save.stdout, mode="r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None:
                        found |= _found(_unpacked(file), needles)
            assert save.wait(RUN_S) == 0
        return found


def _unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a file of a saved image in blocks, unpacked where it is a layer that was packed with gzip."""
    first = file.read(BLOCK)
    assert not first.startswith(b"\x28\xb5\x2f\xfd"), "a layer is packed with zstd, which is not looked into"
    if not first.startswith(b"\x1f\x8b"):
        while first:
            yield first
            first = file.read(BLOCK)
        return
    with gzip.open(_Chained(first, file)) as content:
        while block := content.read(BLOCK):
            yield block


class _Chained:
    """A file, with what was read of it already put back before it."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int = -1) -> bytes:
        if not self._first:
            return self._rest.read(size)
        block, self._first = (self._first, b"") if size < 0 else (self._first[:size], self._first[size:])
        return block

    def close(self) -> None:
        """Nothing to let go: the archive owns the file."""


def _found(blocks: Iterator[bytes], needles: tuple[bytes, ...]) -> set[bytes]:
    """Which needles are in these blocks, or across two of them."""
    overlap = max(len(needle) for needle in needles) - 1
    found: set[bytes] = set()
    tail = b""
    for block in blocks:
        content = tail + block
        found |= {needle for needle in needles if needle in content}
        tail = content[-overlap:]
    return found


def test_the_token_is_nowhere(whisper: Image, builder: Builder, say: Say) -> None:
    """The control shows that the weights' layer was searched; the next test, that a token is found."""
    token = builder.token.encode()
    (baked,) = json.loads(whisper.run("cat", f"/models/{MODELS[1]}/.hansard.json").stdout)["revision"].split()
    control = baked.encode()
    begin = time.monotonic()
    found = Layers(whisper.tag).found(token, control)
    say(f"token in {whisper.tag}: {token in found}; a revision baked beside it: {control in found}")
    say(f"searched in {time.monotonic() - begin:.0f} s")
    assert found == {control}
    assert builder.token not in whisper.output
    assert builder.token not in docker("history", "--no-trunc", whisper.tag).stdout


def test_a_token_that_is_kept_is_found(builder: Builder, tmp_path: Path, say: Say) -> None:
    base = os.environ.get("HANSARD_BASE_IMAGE", "python:3.11-slim-bookworm")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base}\nRUN --mount=type=secret,id=hf_token cp /run/secrets/hf_token /leak\n"
    )
    secret = ("--network", "host", "--secret", "id=hf_token,env=HF_TOKEN")
    docker("build", "--no-cache", *secret, "--tag", "hansard-check:leak", str(tmp_path), HF_TOKEN=builder.token)
    found = Layers("hansard-check:leak").found(builder.token.encode())
    say(f"token in an image that copies it: {bool(found)}")
    assert found


# What it does


def test_slim_answers_without_network(slim: Image, meeting_truth: list[dict[str, Any]]) -> None:
    done = slim.run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for turn in meeting_truth[:1]:
        assert turn["text"] in done.stdout
    assert "SPEAKER_01" in done.stdout


def test_whisper_answers_without_network(whisper: Image, tmp_path: Path, say: Say) -> None:
    """The baked models do the job: text, aligned words and speakers by them."""
    sound, rate = soundfile.read(CLIPS / "meeting_ru.flac", stop=BEGINNING)
    turns = [
        turn for turn in json.loads((CLIPS / "meeting_ru.json").read_text())["turns"] if turn["end"] < len(sound) / rate
    ]
    recording = io.BytesIO()
    soundfile.write(recording, sound, rate, format="FLAC")
    job = job_of(recording.getvalue(), diarization=True, language=LANGUAGE, align_output=True)
    tmp_path.chmod(0o755)
    (tmp_path / "test_input.json").write_text(json.dumps(job))
    mount = f"type=bind,source={tmp_path}/test_input.json,target=/app/test_input.json,readonly"
    result = whisper.result(options=("--mount", mount))
    assert result["model"] == "large-v3"
    assert [segment["text"] for segment in result["segments"]] == [turn["text"] for turn in turns]
    assert len(result["speakers"]) == len({turn["speaker"] for turn in turns}) > 1
    assert all(segment["words"] for segment in result["segments"])
    assert result["warnings"] == []
    say(f"timings without network: {result['timings']}")


def test_a_worker_takes_jobs_and_is_healthy(slim: Image, whisper: Image, say: Say) -> None:
    for image in (slim, whisper):
        with FakePlatform() as platform:
            env = platform.env("worker-1", Path("/home/hansard"))
            options = [word for name, value in env.items() for word in ("--env", f"{name}={value}")]
            options += ["--env", "ALLOW_PRIVATE_URLS=true", "--network", "host", "--health-interval", "2s"]
            job = platform.submit(json.loads((ROOT / "test_input.json").read_text())["input"])
            begin = time.monotonic()
            container = docker("run", "--detach", *options, image.tag).stdout.strip()
            try:
                taken = platform.wait_taken(job, RUN_S) - begin
                final = platform.wait_final(job, RUN_S)
                assert final.error is None, final.error
                wait_healthy(container, HEALTHY_S)
                docker("stop", "--time", "60", container)
                state = json.loads(docker("inspect", container).stdout)[0]["State"]
                assert state["ExitCode"] == 0
            finally:
                docker("rm", "--force", container)
            say(f"{image.tag}: first job taken after {taken:.1f} s, its result after {final.at - begin:.1f} s")
            assert platform.violations == []


def wait_healthy(container: str, patience_s: float) -> None:
    """Return when the container's HEALTHCHECK says so."""
    end = time.monotonic() + patience_s
    while True:
        health = json.loads(docker("inspect", container).stdout)[0]["State"]["Health"]
        if health["Status"] == "healthy":
            return
        assert time.monotonic() < end, health
        time.sleep(1)


def job_of(sound: bytes, **fields: Any) -> dict[str, Any]:
    """A job that brings its recording with it."""
    return {"input": {"audio": f"data:audio/flac;base64,{base64.b64encode(sound).decode()}", **fields}}


# What a change costs


def test_a_change_of_the_code_sends_only_the_last_layer_again(whisper: Image, builder: Builder, tmp_path: Path) -> None:
    """Nor does it download the weights again."""
    before, fetched = whisper.layers, builder.hub.fetched()
    copy_of_the_context(tmp_path)
    with (tmp_path / "src" / "hansard" / "__init__.py").open("a") as file:
        file.write("# a change\n")
    after = builder.of(tmp_path).build("whisper").layers
    assert len(after) == len(before)
    assert after[-1] != before[-1]
    assert after[:-1] == before[:-1]
    assert builder.hub.fetched() == fetched


def copy_of_the_context(folder: Path) -> None:
    """What the Dockerfile may copy, in another folder."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        source = ROOT / line.removeprefix("!")
        if line.startswith("!") and source.is_dir():
            shutil.copytree(source, folder / source.relative_to(ROOT), ignore=shutil.ignore_patterns("__pycache__"))
        elif line.startswith("!"):
            (folder / source.relative_to(ROOT)).parent.mkdir(exist_ok=True)
            shutil.copy2(source, folder / source.relative_to(ROOT))
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy2(ROOT / name, folder / name)


def test_without_a_token_the_promise_to_hold_everything_fails_the_build(builder: Builder) -> None:
    # The layer of a build that had a token would be taken: secrets are no part of the cache's key.
    done = builder.try_to_build("whisper", "--no-cache-filter", "models", token="")
    assert done.returncode != 0
    assert f"{builder.hub.url}/{DIARIZER}" in done.stderr
