"""builder/fetch_models.py from its command line, against a hub on the loopback and the real client of the hub."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import yaml

import hansard.hub
from hansard import manifest, plan, store
from hansard.aligners import bundles
from hansard.diarizers import DIARIZERS, layout
from hansard.errors import HubError, ModelError, ModelMissingError
from hansard.models import Models
from hansard.request import Request
from hansard.settings import Settings
from hansard.transcribers import TRANSCRIBERS
from hub import Hub
from loopback import Loopback, Player
from places import ROOT, TINY

SCRIPT = ROOT / "builder" / "fetch_models.py"

WHISPER = "Systran/faster-whisper-tiny"
GATED = "pyannote/speaker-diarization-community-1"
CLASSIC = "org/pipeline"
PARTS = ("org/segmentation", "org/embedding")
ALIGNER = "org/wav2vec2-tiny"
READER = "hf_reader_who_accepted"
STRANGER = "hf_stranger_who_did_not"

BUNDLE = "WAV2VEC2_ASR_BASE_960H"  # of English


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_models", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fetch_models = loaded()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories, each a folder. The pipelines have no weights that could be loaded: nothing here loads any."""
    root = tmp_path_factory.mktemp("sources")
    community = pipeline(root / "community", {part: f"$model/{part}" for part in ("segmentation", "embedding", "plda")})
    for file in (
        "segmentation/pytorch_model.bin",
        "embedding/pytorch_model.bin",
        *(f"plda/{f}" for f in layout.PLDA_FILES),
    ):
        (community / file).parent.mkdir(exist_ok=True)
        (community / file).write_bytes(file.encode())
    classic = pipeline(root / "classic", dict(zip(("segmentation", "embedding"), PARTS, strict=True)))
    found = {GATED: community, CLASSIC: classic}
    for part in PARTS:
        found[part] = root / part
        found[part].mkdir(parents=True)
        (found[part] / "pytorch_model.bin").write_bytes(part.encode())
    return found | {WHISPER: TINY / "whisper-tiny-synthetic-ct2", ALIGNER: TINY / "wav2vec2-tiny-synthetic"}


def pipeline(folder: Path, parts: dict[str, str]) -> Path:
    clustering = "VBxClustering" if "plda" in parts else "AgglomerativeClustering"
    folder.mkdir()
    config = {"pipeline": {"name": "x", "params": {"clustering": clustering, **parts}}, "params": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def hub(sources: dict[str, Path]) -> Iterator[Hub]:
    with Hub(sources, gated={GATED}, accounts={READER: {GATED}, STRANGER: set()}) as hub:
        yield hub


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: Hub) -> dict[str, str]:
    """An environment in which every place is below the test's own folder."""
    given = {
        "MODELS_DIR": str(tmp_path / "models"),
        "CACHED_MODELS_DIR": str(tmp_path / "cached"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url,
        "ALIGN_MODELS": f'{{"fr": "{ALIGNER}"}}',
        "DEVICE": "cpu",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HUGGINGFACE_TOKEN", "DEFAULT_MODEL", "DIARIZATION_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hansard.hub, "_allowed", {})
    monkeypatch.setattr(fetch_models, "SECRET", tmp_path / "secret")
    return given


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """Where torchaudio's bundles lie."""
    with Loopback() as server:
        monkeypatch.setattr(bundles, "BUNDLES", server.url("/models"))
        server.plays[f"/models/{bundles.file_of(BUNDLE)}"] = lambda player: player.answer(HTTPStatus.OK, bundle())
        yield server


def bundle() -> bytes:
    import torch

    content = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, content)
    return content.getvalue()


def fetch(*arguments: str) -> int:
    return fetch_models.main(list(arguments))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for the manifest."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def listed(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.exists() else set()


def offline(models: Path) -> Models:
    nowhere = models / "nowhere"
    return Models(
        Settings(models_dir=models, cached_models_dir=nowhere, hf_home=nowhere, hf_hub_offline=True, device="cpu")
    )


# What is fetched


def test_a_worker_finds_everything_without_a_network_and_a_second_run_downloads_nothing(
    models: Path, hub: Hub, server: Loopback, sources: dict[str, Path], tmp_path: Path, capfd: Any
) -> None:
    (tmp_path / "secret").write_text(f"{READER}\n")
    everything = ("tiny", GATED, "--languages", "fr", "en")
    assert fetch(*everything) == 0
    for repository in (WHISPER, GATED, ALIGNER):
        assert contents(models / repository.partition("/")[2]) == contents(sources[repository])
    assert listed(models) == {"faster-whisper-tiny", "speaker-diarization-community-1", "wav2vec2-tiny", "torchaudio"}
    assert all(manifest.missing(models / name) == () and manifest.read(models / name) for name in listed(models))
    eyes = offline(models)
    job = Request(audio="https://localhost/x", model="tiny", language="en", diarization=True)
    planned = plan.check(
        job, eyes.settings.model_copy(update={"diarization_model": GATED, "diarization_required": True})
    )
    assert planned.diarizer
    assert not planned.warnings
    assert eyes.kind(WHISPER) == "whisper"
    assert eyes.kind(ALIGNER) == "Wav2Vec2ForCTC"
    assert bundles.folder(BUNDLE, "en", eyes) == models / "torchaudio"
    before = len(hub.fetched()), len(server.asked)
    out = capfd.readouterr().out
    assert out.count("fetched") == 4
    assert fetch(*everything) == 0
    assert (len(hub.fetched()), len(server.asked)) == before
    assert capfd.readouterr().out.count("already whole") == 4


def test_the_token_of_the_secret_is_used_and_kept_nowhere(
    models: Path, hub: Hub, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    secret = tmp_path / "secret"
    secret.write_text(f"  {READER}\n")
    assert fetch(GATED, "--downloads", str(tmp_path / "downloads")) == 0
    assert {asked.token for asked in hub.log} <= {READER, None}
    assert READER in {asked.token for asked in hub.log}
    secret.unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if READER.encode() in path.read_bytes()]
    assert READER not in "".join(capfd.readouterr()) + repr(dict(os.environ))


@pytest.mark.parametrize("written", [None, " \n"])
def test_without_a_secret_the_token_of_the_environment_is_used(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    if written is not None:
        (tmp_path / "secret").write_text(written)
    assert fetch(GATED) == 0
    assert {asked.token for asked in hub.log} == {READER, None}  # None: of the other host for large files


def test_everybody_reads_what_is_laid_out_and_equal_files_have_equal_times(models: Path, server: Loopback) -> None:
    before = os.umask(0o077)
    try:
        assert fetch("tiny", "--languages", "en") == 0
    finally:
        os.umask(before)
    paths = [models, *models.rglob("*")]
    assert len(paths) > 8
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o644}
    assert {path.stat().st_mtime for path in paths} == {store.MTIME}


def test_the_defaults_of_the_settings_are_meant_without_a_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_MODEL", "tiny")
    monkeypatch.setenv("DIARIZATION_MODEL", CLASSIC)
    assert fetch() == 0
    assert listed(models) == {"faster-whisper-tiny", "pipeline", "segmentation", "embedding"}
    assert layout.read(CLASSIC, offline(models)).segmentation == models / "segmentation"


def test_the_defaults_are_those_of_a_worker_whatever_machine_fills_the_folder(hub: Hub) -> None:
    assert fetch() == 1  # this hub has neither
    asked = {asked.path for asked in hub.log}
    assert "/api/models/Systran/faster-whisper-large-v3" in asked
    assert f"/api/models/{plan.GPU_DIARIZER}" in asked


def test_languages_alone_are_aligners_alone(models: Path) -> None:
    assert fetch("--languages", "fr") == 0
    assert listed(models) == {"wav2vec2-tiny"}


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({"DEFAULT_MODEL": "embedded"}, "DEFAULT_MODEL: model embedded is a diarizer"),
        ({"DIARIZATION_MODEL": "tiny"}, "DIARIZATION_MODEL: model 'tiny' is no known diarizer"),
        ({"DEFAULT_MODEL": CLASSIC}, "DEFAULT_MODEL: model 'org/pipeline' is not known"),  # seen when it is there
    ],
)
def test_a_default_of_another_role_is_refused(
    hub: Hub, capfd: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], refused: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert fetch(*variables.values()) == 1
    assert f"error: {refused}" in capfd.readouterr().err
    assert (hub.log == []) is (CLASSIC not in variables.values())


def test_what_needs_no_weights_is_said_to_need_nothing(models: Path, hub: Hub, capfd: Any) -> None:
    names = ["sphinx", "embedded", "voxtral-mini-latest", "voxtral-mini-2602"]
    assert fetch(*names) == 0
    out = capfd.readouterr().out
    assert all(f"{name} " in out for name in names)
    assert out.count("needs nothing") == len(names)
    assert hub.log == []
    assert listed(models) == set()


def test_a_repository_of_no_table_is_known_by_its_files(models: Path, hub: Hub, tmp_path: Path, capfd: Any) -> None:
    assert fetch(CLASSIC, WHISPER, ALIGNER) == 1
    assert listed(models) == {"pipeline", "segmentation", "embedding", "faster-whisper-tiny", ".downloads"}
    assert f"{ALIGNER} has neither config.yaml nor model.bin" in capfd.readouterr().err
    assert not (models / ".downloads" / "models--org--wav2vec2-tiny").exists()


def test_no_two_repositories_of_the_tables_share_a_folder() -> None:
    from whisperx.alignment import DEFAULT_ALIGN_MODELS_HF

    known = {
        repository
        for backend in (*TRANSCRIBERS.values(), *DIARIZERS.values())
        for repositories in backend.models.values()
        for repository in repositories
    }
    known |= set(DEFAULT_ALIGN_MODELS_HF.values())
    folders = {repository.rpartition("/")[2] for repository in known}
    assert len(folders) == len(known) > 30
    assert bundles.FOLDER not in folders


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], ["'nobody' is not known", "large-v3", "embedded"]),
        (["tiny", "../models"], ["is not known"]),
        (["tiny", "--languages", "xx"], ["no aligner for language xx", "ALIGN_MODELS"]),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_fetched(
    hub: Hub, capfd: Any, arguments: list[str], words: list[str]
) -> None:
    assert fetch(*arguments) == 1
    err = capfd.readouterr().err
    assert all(word in err for word in words)
    assert err.count("\n") == 1
    assert hub.log == []


@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        ["tiny", "--languages", " "],
        ["tiny", "--models-dir", ""],
        ["tiny", "--models-dir", "~nosuchuser/x"],
        ["tiny", "--downloads", "~nosuchuser/x"],
    ],
)
def test_an_argument_that_means_nothing_is_refused(hub: Hub, capfd: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fetch(*arguments)
    assert ended.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("builder/fetch_models.py: error: argument ")
    assert hub.log == []


def test_a_secret_that_cannot_be_read_is_an_error(tmp_path: Path, capfd: Any, hub: Hub) -> None:
    (tmp_path / "secret").mkdir()
    assert fetch("tiny") == 1
    assert (
        capfd.readouterr().err == "error: the secret hf_token cannot be read: mount it so that this user may read it\n"
    )
    assert hub.log == []


# What is there already

FOLDER = "faster-whisper-tiny"


def _gone(folder: Path) -> None:
    (folder / "config.json").unlink()


def _cut(folder: Path) -> None:
    os.truncate(folder / "model.bin", 1000)


def _turned(folder: Path) -> None:
    content = bytearray((folder / "model.bin").read_bytes())
    content[-1] ^= 1
    (folder / "model.bin").write_bytes(content)


def _unreadable(folder: Path) -> None:
    (folder / manifest.FILE).write_text("{")


def _older(folder: Path) -> None:
    there = manifest.read(folder)
    assert there
    manifest.write(folder, manifest.Manifest(WHISPER, "0" * 40, there.files[1:]))
    (folder / "config.json").write_text("{}")


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def test_what_is_damaged_or_of_another_revision_is_replaced(
    models: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    """The downloads, which are hard links to what is damaged, are kept and so damaged with it."""
    kept = ("--downloads", str(tmp_path / "downloads"))
    assert fetch("tiny", *kept) == 0
    for damage in (_gone, _cut, _turned, _unreadable, _older, _emptied):
        damage(models / FOLDER)
        assert fetch("tiny", *kept) == 0, damage
        assert contents(models / FOLDER) == contents(sources[WHISPER]), damage
        there = manifest.read(models / FOLDER)
        assert there
        assert manifest.wrong(models / FOLDER, there.files) == (), damage
        assert listed(models) == {FOLDER}


def test_a_code_change_downloads_nothing_that_is_kept(models: Path, hub: Hub, server: Loopback, tmp_path: Path) -> None:
    again = ("tiny", "--languages", "en", "--downloads", str(tmp_path / "downloads"))
    assert fetch(*again) == 0
    shutil.rmtree(models)
    before = len(hub.fetched()), len(server.asked)
    assert fetch(*again) == 0
    assert (len(hub.fetched()), len(server.asked)) == before
    assert listed(models) == {FOLDER, "torchaudio"}


def test_a_folder_that_was_brought_by_other_means_is_kept_if_it_is_whole(
    models: Path, hub: Hub, sources: dict[str, Path], capfd: Any
) -> None:
    """It is not changed, and neither is what its links lead to."""
    theirs = models.parent / "theirs"
    shutil.copytree(sources[WHISPER], theirs)
    (models / FOLDER).mkdir(parents=True)
    for path in theirs.iterdir():
        path.chmod(0o600)
        (models / FOLDER / path.name).symlink_to(path)

    def state() -> dict[Path, tuple[int, float]]:
        return {path: (path.stat().st_mode, path.stat().st_mtime) for path in (*theirs.iterdir(), models / FOLDER)}

    before = state()
    for _ in range(2):
        assert fetch("tiny") == 0
        assert "already whole" in capfd.readouterr().out
    assert hub.fetched() == []
    assert state() == before
    assert listed(models / FOLDER) == listed(theirs)


def test_a_bundle_that_was_brought_by_other_means_is_kept_if_it_is_whole(
    models: Path, server: Loopback, capfd: Any
) -> None:
    file = models / "torchaudio" / bundles.file_of(BUNDLE)
    file.parent.mkdir(parents=True)
    file.write_bytes(bundle())
    assert fetch("--languages", "en") == 0
    assert "already whole" in capfd.readouterr().out
    assert listed(file.parent) == {file.name}
    file.write_bytes(b"mine")
    assert fetch("--languages", "en") == 1
    assert f"the file {file.name} in the folder torchaudio under MODELS_DIR is in the way" in capfd.readouterr().err
    assert file.read_bytes() == b"mine"
    assert server.asked == []


@pytest.mark.parametrize("damage", [_gone, _unreadable])
def test_a_damaged_folder_with_something_else_in_it_is_not_replaced(
    models: Path, capfd: Any, damage: Callable[[Path], None]
) -> None:
    assert fetch("tiny") == 0
    (models / FOLDER / "mine").mkdir()
    (models / FOLDER / "mine" / "notes.txt").write_text("mine")
    assert fetch("tiny") == 0
    damage(models / FOLDER)
    assert fetch("tiny") == 1
    assert "is in the way" in capfd.readouterr().err
    assert (models / FOLDER / "mine" / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_moved_is_replaced(
    models: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a layer of an image, under an overlay."""
    assert fetch("tiny") == 0
    _cut(models / FOLDER)
    move = os.replace

    def fail(source: Path, target: Path) -> None:
        if source == models / FOLDER:
            raise OSError(errno.EXDEV, "another layer")
        move(source, target)

    monkeypatch.setattr(os, "replace", fail)
    assert fetch("tiny") == 0
    assert contents(models / FOLDER) == contents(sources[WHISPER])
    assert listed(models) == {FOLDER}


@pytest.mark.parametrize("trouble", ["offline", "down"])
def test_what_is_whole_needs_no_hub(
    models: Path, hub: Hub, capfd: Any, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    assert fetch("tiny", CLASSIC) == 0
    capfd.readouterr()
    if trouble == "down":
        hub.broken = 503
    else:
        settings = Settings(hf_hub_offline=True)
        monkeypatch.setattr(fetch_models, "load", lambda: settings)
    before = len(hub.log)
    assert fetch("tiny", CLASSIC) == 0
    assert capfd.readouterr().out.count("whole, not compared with the hub") == 4
    assert (len(hub.log) == before) is (trouble == "offline")
    _turned(models / FOLDER)
    assert fetch("tiny") == 1
    assert FOLDER in listed(models)


def test_a_folder_that_cannot_be_written_is_only_looked_at(
    models: Path, hub: Hub, server: Loopback, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ("tiny", "--languages", "en")
    assert fetch(*whole) == 0
    before, there = len(hub.fetched()), contents(tmp_path)

    def read_only(method: str, writes: Callable[..., bool]) -> None:
        original = getattr(Path, method)

        def guarded(path: Path, *given: Any, **named: Any) -> Any:
            if path.is_relative_to(models) and writes(*given):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return original(path, *given, **named)

        monkeypatch.setattr(Path, method, guarded)

    read_only("open", lambda mode="r", *_: mode not in {"r", "rb"})
    read_only("mkdir", lambda *_: True)
    assert fetch(*whole) == 0
    out, err = capfd.readouterr()
    assert out.count("already whole") == 2
    assert "cannot be written; what is in it is only looked at" in err
    assert fetch(CLASSIC, "--downloads", str(tmp_path / "downloads")) == 1
    assert "is not whole in MODELS_DIR, which cannot be written" in capfd.readouterr().err
    assert len(hub.fetched()) == before
    assert contents(tmp_path) == there


@pytest.mark.parametrize("marked", [True, False])
def test_a_folder_that_holds_something_else_is_not_touched(models: Path, hub: Hub, capfd: Any, marked: bool) -> None:
    (models / FOLDER).mkdir(parents=True)
    (models / FOLDER / "mine.bin").write_text("mine")
    if marked:
        manifest.write(models / FOLDER, manifest.Manifest("somebody/faster-whisper-tiny", "0" * 40, ()))
    before = contents(models / FOLDER)
    assert fetch("tiny") == 1
    assert f"{FOLDER} under MODELS_DIR is in the way" in capfd.readouterr().err
    assert contents(models / FOLDER) == before
    assert hub.fetched() == []


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 100), lambda file: file.unlink(), None])
def test_a_damaged_bundle_is_replaced(models: Path, server: Loopback, damage: Callable[[Path], None] | None) -> None:
    assert fetch("sphinx", "--languages", "en") == 0
    file = models / "torchaudio" / bundles.file_of(BUNDLE)
    content = file.read_bytes()
    if damage:
        damage(file)
    else:  # of the same length
        file.write_bytes(content[:-1] + b"\1")
    assert fetch("sphinx", "--languages", "en") == 0
    assert file.read_bytes() == content
    assert len(server.asked) == 2


# What goes wrong


def test_a_gated_model_without_a_token_is_skipped_loudly(models: Path, hub: Hub, capfd: Any) -> None:
    assert fetch(GATED, "tiny") == 0
    out, err = capfd.readouterr()
    assert listed(models) == {FOLDER}
    loud = [line for line in err.splitlines() if line.startswith("!!!")]
    assert len(loud) >= 4
    assert f"{GATED} IS NOT FETCHED" in err
    assert f"visit {hub.url}/{GATED}" in err
    assert "set HF_TOKEN, or give the build --secret id=hf_token,env=HF_TOKEN" in err
    assert "huggingface_access_token" not in err
    assert "skipped" in out


def test_a_gated_model_without_a_token_fails_where_all_are_required(models: Path, hub: Hub, capfd: Any) -> None:
    assert fetch(GATED, "tiny", "--require-all") == 1
    assert f"error: {GATED} is gated: visit {hub.url}/{GATED}" in capfd.readouterr().err
    assert FOLDER in listed(models)


@pytest.mark.parametrize(
    ("token", "word"), [(STRANGER, "accept the terms"), ("hf_nobody", "does not accept the token")]
)
def test_a_token_that_does_not_help_fails_and_the_rest_is_fetched(
    models: Path, tmp_path: Path, capfd: Any, token: str, word: str
) -> None:
    (tmp_path / "secret").write_text(token)
    names = (GATED, "tiny") if token == STRANGER else (GATED,)
    assert fetch(*names) == 1
    out, err = capfd.readouterr()
    assert word in err
    assert token not in out + err
    assert (FOLDER in listed(models)) is (token == STRANGER)


def alter(hub: Hub, repository: str, file: str) -> Callable[[], None]:
    """Let a hub deliver another byte than it states; returns what ends that."""
    blob = hub.repositories[repository].blobs[file]
    content = blob.content
    assert blob.name  # is computed from the content, once
    vars(blob)["content"] = content[:-1] + bytes([content[-1] ^ 1])

    def mend() -> None:
        vars(blob)["content"] = content

    return mend


def test_wrong_bytes_are_never_put_into_place(models: Path, hub: Hub, capfd: Any) -> None:
    mends = [alter(hub, WHISPER, file) for file in ("config.json", "model.bin")]  # a small file and a large one
    assert fetch("tiny") == 1
    assert "other content than the model hub states, in config.json, model.bin;" in capfd.readouterr().err
    assert listed(models) == {".downloads"}
    assert len(hub.fetched()) == len(set(hub.fetched())) + 2  # the wrong files, once more
    for mend in mends:
        mend()
    assert fetch("tiny") == 0
    assert listed(models) == {FOLDER}


def test_a_bundle_that_is_none_is_fetched_once_more(models: Path, server: Loopback, capfd: Any) -> None:
    path = f"/models/{bundles.file_of(BUNDLE)}"
    server.plays[path] = lambda player: player.answer(HTTPStatus.OK, b"<html>")
    assert fetch("sphinx", "--languages", "en") == 1
    assert "delivered damaged" in capfd.readouterr().err
    assert len(server.asked) == 2
    assert "torchaudio" not in listed(models)

    def break_off(player: Player) -> None:
        player.answer(HTTPStatus.OK, bundle()[:100], Content_Length=len(bundle()))

    server.plays[path] = break_off
    assert fetch("sphinx", "--languages", "en") == 1
    assert "could not be downloaded; try again later" in capfd.readouterr().err
    assert "torchaudio" not in listed(models)


def test_a_hub_in_trouble_is_told_once_for_each_model(hub: Hub, capfd: Any) -> None:
    hub.broken = 503
    assert fetch("tiny", CLASSIC) == 1
    err = capfd.readouterr().err
    assert err.count("error: ") == err.count("could not deliver") == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOLCK])
def test_a_disk_that_does_not_take_it(
    models: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    with monkeypatch.context() as broken:
        broken.setattr(os, "link", fail)
        broken.setattr(shutil, "copyfile", fail)
        assert fetch("tiny") == 1
    err = capfd.readouterr().err
    assert os.strerror(number) in err
    assert "--models-dir" in err
    assert "--downloads" not in err
    assert str(tmp_path) not in err
    assert listed(models) == {".downloads"}


@pytest.mark.parametrize("named", [True, False])
def test_a_disk_without_room_is_named_as_it_was_given(hub: Hub, tmp_path: Path, capfd: Any, named: bool) -> None:
    hub.inflated = 10**12
    assert fetch("tiny", *(["--downloads", str(tmp_path / "downloads")] if named else [])) == 1
    err = capfd.readouterr().err
    assert ("the disk of --downloads has" in err) is named
    assert ("the disk of --models-dir has" in err) is not named


def test_a_folder_that_cannot_be_made(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "file").touch()
    assert fetch("tiny", "--models-dir", str(tmp_path / "file" / "models")) == 1
    err = capfd.readouterr().err
    assert "the models could not be stored: Not a directory" in err
    assert str(tmp_path) not in err


def test_files_are_copied_where_they_cannot_be_linked(
    models: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", fail)
    assert fetch("tiny") == 0
    assert contents(models / FOLDER) == contents(sources[WHISPER])


def served(folder: Path, files: dict[str, bytes]) -> Path:
    """A repository of other files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


CANNOT_BE_LOADED = "holds files that cannot be loaded; name another model"
WAV2VEC2 = {path.name: path.read_bytes() for path in (TINY / "wav2vec2-tiny-synthetic").iterdir() if path.is_file()}
TABLE_PIPELINE = {"config.yaml": b"pipeline: {}", "segmentation/pytorch_model.bin": b"x"}


def archive_of(name: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return archive.getvalue()


REFUSED = {
    "org/safetensors": ({"config.json": b"{}", "model.bin": b"x", "model.safetensors": b"x"}, CANNOT_BE_LOADED),
    "org/no-tar": ({"config.yaml": b"pipeline:", "x.nemo": b"no tar"}, CANNOT_BE_LOADED),
    "org/another-tar": ({"config.yaml": b"pipeline:", "x.nemo": archive_of("readme")}, CANNOT_BE_LOADED),
    "org/no-weights": ({"config.yaml": b"x: 1"}, "holds no weights"),
    "org/pipeline-of-2": (TABLE_PIPELINE, "no config.yaml of a pyannote speaker diarization pipeline"),
    GATED: (TABLE_PIPELINE, "no config.yaml of a pyannote speaker diarization pipeline"),
    WHISPER: (WAV2VEC2, "tiny is no Whisper for CTranslate2"),
    ALIGNER: ({**WAV2VEC2, "preprocessor_config.json": b"{"}, CANNOT_BE_LOADED),
    "org/torchaudio": ({"config.json": b"{}", "model.bin": b"x"}, "the folder of torchaudio's own aligners"),
}
ASKED = {WHISPER: ("tiny",), ALIGNER: ("--languages", "fr")}  # else by the repository's name


@pytest.mark.parametrize("repository", REFUSED)
def test_a_model_that_no_worker_could_use_is_not_put_into_place(
    models: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, repository: str
) -> None:
    files, refused = REFUSED[repository]
    with Hub({repository: served(tmp_path / "served", files)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert fetch(*ASKED.get(repository, (repository,))) == 1
    err = capfd.readouterr().err
    assert refused in err
    assert "Traceback" not in err
    assert listed(models) <= {".downloads"}


def test_an_archive_with_a_configuration_is_taken_for_nemos(models: Path, tmp_path: Path) -> None:
    """That the two above are refused for what is in them."""
    files = {"config.yaml": b"pipeline:", "x.nemo": archive_of("./model_config.yaml")}
    store._check_files("org/nemo", served(tmp_path / "nemo", files))


def test_what_ctranslate2_does_not_take_is_refused(models: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctranslate2.contains_model", lambda _: False)
    assert fetch("tiny") == 1
    assert CANNOT_BE_LOADED in capfd.readouterr().err
    assert listed(models) == {".downloads"}


def test_the_eyes_of_a_worker_ask_no_hub(models: Path, hub: Hub, tmp_path: Path) -> None:
    (models / ".stage").parent.mkdir()
    settings = Settings(hf_endpoint=hub.url, models_dir=models)
    filled = store.Store(settings, models / ".stage", None, fetch_models.Told().following)
    with pytest.raises(ModelMissingError):
        filled.bring(store.Wanted("tiny", lambda _: (WHISPER,), lambda eyes: eyes.get(CLASSIC)))
    assert not [asked for asked in hub.log if CLASSIC in asked.path]
    assert listed(models) == {".downloads"}


def test_a_file_that_would_lie_outside_is_refused(models: Path, tmp_path: Path, capfd: Any, hub: Hub) -> None:
    blobs = hub.repositories[WHISPER].blobs
    blobs["../../outside.bin"] = blobs["model.bin"]
    assert fetch("tiny") == 1
    assert "outside of its folder" in capfd.readouterr().err
    assert hub.fetched() == []


def test_two_parts_of_one_name_are_refused(models: Path, tmp_path: Path, sources: dict[str, Path], capfd: Any) -> None:
    parts = {"segmentation": "org/segmentation", "embedding": "other/segmentation"}
    served = {"org/twins": pipeline(tmp_path / "twins", parts), **dict.fromkeys(parts.values(), sources[PARTS[0]])}
    with Hub(served) as hub:
        os.environ["HF_ENDPOINT"] = hub.url  # which the fixture restores
        assert fetch("org/twins") == 1
    assert "would share the folder segmentation" in capfd.readouterr().err
    assert listed(models) == {".downloads"}


# Interrupted, and beside another run


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Hub]:
    """A hub with 32 MB to download: the client writes 10 MB at a time."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.bin").write_bytes(b"weights." * 4_000_000)
    with Hub({"org/large": source}) as hub:
        yield hub


def until(true: Callable[[], bool]) -> None:
    """Wait for what must come."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupted_run_keeps_what_the_next_one_goes_on_with(
    models: Path, large: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    large.pause_s = 0.005
    command = [sys.executable, "-W", "error", str(SCRIPT), "org/large"]
    given = {**environment, "HF_ENDPOINT": large.url, "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: any(path.stat().st_size >= 10_000_000 for path in models.rglob("*.incomplete")))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in out + err
    assert listed(models) == {".downloads"}
    large.pause_s = 0
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=True)
    assert "org/large: fetched" in done.stderr
    [resumed] = [asked.range for asked in large.log if asked.range]
    assert int(resumed.removeprefix("bytes=").rstrip("-")) >= 10_000_000
    assert contents(models / "large") == contents(tmp_path / "source")
    assert listed(models) == {"large"}


def test_a_part_that_is_too_long_does_not_stop_a_download(models: Path, hub: Hub, tmp_path: Path) -> None:
    blob = hub.repositories[WHISPER].blobs["model.bin"]
    part = tmp_path / "downloads" / "models--Systran--faster-whisper-tiny" / "blobs" / f"{blob.name}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(blob.content + b"more")
    assert fetch("tiny", "--downloads", str(tmp_path / "downloads")) == 0


def test_a_run_waits_for_the_one_before(models: Path, hub: Hub, capfd: Any) -> None:
    models.mkdir()
    status: list[int] = []
    second = threading.Thread(target=lambda: status.append(fetch("tiny")))
    with (models / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second.start()
        told: list[str] = []
        until(lambda: "another run fills this folder" in (told.append(capfd.readouterr().err) or "".join(told)))
        assert hub.log == status == []
        (models / ".lock").unlink()  # as a run does at its end
    second.join(60)
    assert status == [0]
    assert listed(models) == {FOLDER}


def test_what_a_killed_run_left_is_cleared_away(models: Path, server: Loopback, tmp_path: Path) -> None:
    (models / ".stage" / FOLDER).mkdir(parents=True)
    (models / ".lock").touch()
    left = tmp_path / "downloads" / "torchaudio" / f"{bundles.PREFIX}left"
    left.mkdir(parents=True)
    assert fetch("tiny", "--languages", "en", "--downloads", str(tmp_path / "downloads")) == 0
    assert listed(models) == {FOLDER, "torchaudio"}
    assert listed(left.parent) == {bundles.file_of(BUNDLE)}


# What is told


def test_a_log_has_a_line_for_each_tenth_and_one_at_either_end(capfd: Any) -> None:
    with fetch_models.Told().following("org/name", 3_100_000_000) as report:
        for thousandth in range(1001):
            report(thousandth / 1000)
    first, *tenths, last = capfd.readouterr().err.splitlines()
    assert first == "org/name: fetching 3.1 GB"
    assert tenths == [f"org/name: {tenth * 10} %" for tenth in range(1, 10)]
    assert last.startswith("org/name: downloaded and checked in ")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_a_bar_and_a_log_has_none(capfd: Any, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI sets it for its logs
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with fetch_models.Told().following("org/name", 10) as report:
        report(0.5)
    err = capfd.readouterr().err
    assert ("━" in err) is terminal
    assert (" 50 %\n" in err) is not terminal


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOLCK, errno.ENAMETOOLONG, errno.EXDEV])
def test_a_sentence_for_what_an_error_of_the_disk_means(number: int) -> None:
    with (
        pytest.raises(ModelError, match=f"x could not be stored: {os.strerror(number)}; let --y be"),
        store.storing("x", "--y"),
    ):
        raise OSError(number, os.strerror(number))


def test_a_sentence_for_a_download_that_fails() -> None:
    with pytest.raises(HubError, match="x could not be downloaded"), store.storing("x", "--y"):
        raise requests.ConnectionError
