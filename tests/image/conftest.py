"""Images built from the real Dockerfile through docker-bake.hcl, with small models from a hub on the loopback."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hub import Hub
from places import ROOT, TINY

pytestmark = pytest.mark.slow

DIARIZER = "pyannote/speaker-diarization-community-1"
WHISPER = "Systran/faster-whisper-large-v3"
VOXTRAL = "mistralai/Voxtral-Mini-3B-2507"
RUSSIAN = "bzikst/faster-whisper-large-v3-russian"
ALIGNER = "jonatasgrosman/wav2vec2-large-xlsr-53-russian"
LANGUAGE = "ru"  # whose aligner is a repository of the hub; those of en and fr are files of torchaudio's

BUILD_S = 1800
RUN_S = 300


def docker(*arguments: str, timeout: float = RUN_S, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """One command of the engine that builder/check-image found or made."""
    done = subprocess.run(
        [os.environ["HANSARD_DOCKER"], *arguments],
        cwd=ROOT,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0 or not check, f"docker {arguments[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done


@dataclass(frozen=True)
class Image:
    """A built image, and what its build printed."""

    tag: str
    output: str

    @property
    def described(self) -> dict[str, Any]:
        """As `docker image inspect` has it."""
        return dict(json.loads(docker("image", "inspect", self.tag).stdout)[0])

    @property
    def layers(self) -> list[str]:
        """Digests, the base's first."""
        return list(self.described["RootFS"]["Layers"])

    def run(self, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """A container without network, to its end; without a command its own."""
        return docker("run", "--rm", "--network", "none", *options, self.tag, *command, check=False)

    def result(self, *command: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """What the job of /app/test_input.json gave, as the SDK's local mode prints it."""
        done = self.run(*command, options=options)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (printed,) = re.findall(r"Job result: (.*)", done.stdout)
        return dict(ast.literal_eval(printed)["output"])


class Builder:
    """docker-bake.hcl, with the base and the model hub of this check."""

    def __init__(self, hub: Hub, token: str, context: Path = ROOT) -> None:
        self.hub = hub
        self.token = token
        self._context = context

    def of(self, context: Path) -> Builder:
        """The same for another copy of the repository."""
        return Builder(self.hub, self.token, context)

    def try_to_build(self, target: str, *options: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """Build a target of docker-bake.hcl as hansard-check:TARGET."""
        order = json.loads(docker("buildx", "bake", "--print", target).stdout)["target"][target]
        secrets = [word for secret in order["secret"] for word in ("--secret", secret)]
        platforms = ("--platform", *order["platforms"])
        token = self.token if token is None else token
        return self._run(target, order["args"], *platforms, *secrets, *options, HF_TOKEN=token)

    def _run(self, name: str, args: dict[str, str], *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`docker build` with the network of this machine, where the hub is."""
        args = args | {"HF_ENDPOINT": self.hub.url}
        if "HANSARD_BASE_IMAGE" in os.environ:
            args["BASE_IMAGE"] = os.environ["HANSARD_BASE_IMAGE"]
        if args.get("LANGUAGES") != "":
            args["LANGUAGES"] = LANGUAGE
        return docker(
            *("build", "--progress", "plain", "--network", "host", "--tag", f"hansard-check:{name}"),
            *(word for arg, value in args.items() for word in ("--build-arg", f"{arg}={value}")),
            *(*options, str(self._context)),
            timeout=BUILD_S,
            check=False,
            **env,
        )

    def build(self, target: str) -> Image:
        """A target of docker-bake.hcl, with the token."""
        done = self.try_to_build(target)
        assert done.returncode == 0, done.stderr[-5000:]
        return Image(f"hansard-check:{target}", done.stdout + done.stderr)

    def build_plainly(self) -> Image:
        """As the RunPod Hub and its builds from GitHub do: no target, no arguments of the product, no secret."""
        done = self._run("plain", {})
        assert done.returncode == 0, done.stderr[-5000:]
        return Image("hansard-check:plain", done.stdout + done.stderr)


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """The hub has small models under the names of the real ones; only the token of this run may read the gated one."""
    folder = tmp_path_factory.mktemp("pyannote")
    runpy.run_path(str(ROOT / "tests" / "models" / "make_pyannote.py"))["make"](folder)
    token = f"hf_{secrets.token_hex(20)}"
    whisper = TINY / "whisper-tiny-synthetic-ct2"
    voxtral = runpy.run_path(str(ROOT / "tests" / "models" / "make_voxtral.py"))["make"]
    repositories = {
        **{WHISPER: whisper, RUSSIAN: whisper, VOXTRAL: voxtral(tmp_path_factory.mktemp("voxtral") / "model")},
        **{ALIGNER: TINY / "wav2vec2-tiny-synthetic", DIARIZER: folder / DIARIZER},
    }
    with Hub(repositories, gated={DIARIZER}, accounts={token: {DIARIZER}}) as hub:
        yield Builder(hub, token)
    built = docker("image", "ls", "--quiet", "hansard-check").stdout.split()
    docker("image", "rm", "--force", *built)


Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Print a figure, whatever pytest captures."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="", flush=True)

    return line
