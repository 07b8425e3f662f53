"""Where weights are found, what is downloaded, and how each refusal of a hub reads, through the real client."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import hansard.hub
from hansard.errors import (
    CancelledError,
    HubError,
    ModelError,
    ModelMissingError,
    TermsError,
    TokenMissingError,
    TokenRefusedError,
)
from hansard.models import Models
from hansard.settings import Settings
from hub import Hub
from places import ROOT, TINY

REVISION = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40

WHISPER = "Systran/faster-whisper-tiny"
GATED = "pyannote/speaker-diarization-community-1"
READER = "hf_reader_who_accepted"
STRANGER = "hf_stranger_who_did_not"
UNKNOWN = "hf_of_nobody_at_all"


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hansard.hub, "_allowed", {})
    for name in ("HF_TOKEN", "HUGGINGFACE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    repositories = {WHISPER: TINY / "whisper-tiny-synthetic-ct2", GATED: TINY / "wav2vec2-tiny-synthetic"}
    with Hub(repositories, gated={GATED}, accounts={READER: {GATED}, STRANGER: set()}) as hub:
        yield hub


def settings(tmp_path: Path, hub: Hub | None = None, **fields: Any) -> Settings:
    """Every place below the test's own folder."""
    given: dict[str, Any] = {
        "models_dir": tmp_path / "models",
        "cached_models_dir": tmp_path / "volume" / "hub",
        "hf_home": tmp_path / "home",
        "hf_endpoint": hub.url if hub else "http://127.0.0.1:9",
        **fields,
    }
    return Settings(**given)


def model(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder that passes for a whole Whisper."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(weights)
    return folder


def cached(root: Path, repository: str, revision: str = REVISION, ref: str | None = REVISION) -> Path:
    """The same in a hub cache: links to blobs."""
    place = root / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / revision
    model(place / "blobs")
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.bin"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    if ref is not None:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(ref)
    return snapshot


# On this machine

PLACES: dict[str, Callable[[Path], Path]] = {
    "baked under its owner": lambda tmp: model(tmp / "models/org/name"),
    "baked": lambda tmp: model(tmp / "models/name"),
    "baked as a cache": lambda tmp: cached(tmp / "models", "org/name"),
    "the platform's cache": lambda tmp: cached(tmp / "volume/hub", "org/name"),
    "the hub's cache": lambda tmp: cached(tmp / "home/hub", "org/name"),
}


@pytest.mark.parametrize("first", PLACES)
def test_the_first_place_that_has_it_wins(tmp_path: Path, first: str) -> None:
    names = list(PLACES)
    folders = {name: PLACES[name](tmp_path) for name in names[names.index(first) :]}
    models = Models(settings(tmp_path))
    assert models.find("org/name") == models.get("org/name") == folders[first]
    models.check("org/name")


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    assert Models(settings(tmp_path)).find("org/name") is None
    assert Models(settings(tmp_path)).names() == []


@pytest.mark.parametrize("variable", ["default_model", "diarization_model", "align_models"])
def test_a_folder_anywhere_is_the_operators_choice(tmp_path: Path, variable: str) -> None:
    folder = model(tmp_path / "elsewhere" / "mine")
    value = {"en": str(folder)} if variable == "align_models" else str(folder)
    assert Models(settings(tmp_path, **{variable: value})).get(str(folder)) == folder
    assert Models(settings(tmp_path)).find(str(folder)) is None


def test_an_operators_folder_without_a_model_is_told_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="DEFAULT_MODEL") as refused:
        Models(settings(tmp_path, default_model=str(tmp_path / "gone"))).get(str(tmp_path / "gone"))
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        *("../outside", "org/../../outside", "..", ".", "", "/", "~/outside", "models/../../outside", "./org"),
        *("/etc", "C:\\x", "..\\outside", "org/name/more", "org//name", "a\0b", "org/na\0me", "a\nb", "org/name\n"),
        *(".hidden", "org/.hidden", "--x/y", "a--b/c", "x" * 5000, "org/" + "x" * 5000, "й" * 128, "file:///etc"),
    ],
)
def test_a_name_that_is_neither_a_folder_of_ours_nor_a_repository(tmp_path: Path, hub: Hub, name: str) -> None:
    for folder in ("outside", "models/.hidden", "models/org/.hidden", "models/org/name/more", "home/outside"):
        model(tmp_path / folder)
    model(tmp_path / "models/known")
    models = Models(settings(tmp_path, hub))
    assert models.find(name) is None
    for verb in (models.get, models.check):
        with pytest.raises(ModelMissingError, match=r"MODELS_DIR \(known\)") as refused:
            verb(name)
        assert len(refused.value.sentence) < 400
        assert refused.value.sentence.isprintable()
    assert hub.log == []
    assert not (tmp_path / "home/hub").exists()


def test_the_absolute_path_of_a_model_is_no_name_for_a_job(tmp_path: Path) -> None:
    folder = model(tmp_path / "models" / "tiny")
    with pytest.raises(ModelMissingError):
        Models(settings(tmp_path)).get(str(folder))


def test_a_link_laid_by_whoever_built_the_image_is_followed(tmp_path: Path) -> None:
    model(tmp_path / "volume" / "large")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tmp_path / "volume" / "large")
    assert Models(settings(tmp_path)).get("mine") == tmp_path / "models" / "mine"


def _break_link(snapshot: Path) -> None:
    (snapshot / "config.json").resolve().unlink()


def _empty(snapshot: Path) -> None:
    (snapshot / "model.bin").write_bytes(b"")


def _no_weights(snapshot: Path) -> None:
    (snapshot / "model.bin").unlink()


def _no_snapshot(snapshot: Path) -> None:
    (snapshot.parents[1] / "refs/main").write_text(OTHER)


def _escape(snapshot: Path) -> None:
    (snapshot.parents[1] / "refs/main").write_text("../blobs")


def _two_without_ref(snapshot: Path) -> None:
    (snapshot.parents[1] / "refs/main").unlink()
    (snapshot.parent / OTHER).mkdir()


FAULTS = [_break_link, _empty, _no_weights, _no_snapshot, _escape, _two_without_ref]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["volume/hub", "home/hub"])
def test_a_model_that_is_not_whole_is_not_there(tmp_path: Path, place: str, fault: Callable[[Path], None]) -> None:
    snapshot = cached(tmp_path / place, "org/name")
    assert Models(settings(tmp_path)).find("org/name") == snapshot
    fault(snapshot)
    assert Models(settings(tmp_path)).find("org/name") is None


def test_the_next_place_serves_where_the_first_is_not_whole(tmp_path: Path) -> None:
    _no_weights(model(tmp_path / "models/name"))
    whole = cached(tmp_path / "home/hub", "org/name")
    assert Models(settings(tmp_path)).get("org/name") == whole


def test_an_only_snapshot_without_a_ref_is_a_copied_cache_or_an_unfinished_download(tmp_path: Path) -> None:
    copied = cached(tmp_path / "volume/hub", "org/copied", ref=None)
    cached(tmp_path / "home/hub", "org/unfinished", ref=None)
    assert Models(settings(tmp_path)).find("org/copied") == copied
    assert Models(settings(tmp_path)).find("org/unfinished") is None


def test_the_platforms_cache_is_only_read(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    snapshot = cached(volume / "hub", "org/name")
    paths = [volume, *volume.rglob("*")]
    before = {path: path.lstat().st_mtime_ns for path in paths}
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        models = Models(settings(tmp_path))
        assert models.get("org/name") == snapshot
        assert models.find("org/other") is None
        assert {path: path.lstat().st_mtime_ns for path in (volume, *volume.rglob("*"))} == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_names_and_kinds(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    model(models_dir / "whisper-a")
    cached(models_dir, "org/whisper-b")
    pipeline = models_dir / "diarizer"
    pipeline.mkdir()
    (pipeline / "config.yaml").write_text("version: 3.1.0\npipeline:\n  name: x\n")
    part = models_dir / "part-of-a-pipeline"
    part.mkdir()
    (part / "config.yaml").write_text("model:\n  pipeline: no\n")
    (part / "pytorch_model.bin").write_bytes(b"weights")
    (models_dir / "ctc").symlink_to(TINY / "wav2vec2-tiny-synthetic")
    (models_dir / "notes.txt").write_text("none")
    models = Models(settings(tmp_path))
    assert models.names() == ["ctc", "diarizer", "org/whisper-b", "whisper-a"]
    assert models.names("whisper") == ["org/whisper-b", "whisper-a"]
    assert models.names("pyannote") == ["diarizer"]
    assert models.names("Wav2Vec2ForCTC") == ["ctc"]
    assert models.kind("part-of-a-pipeline") is None
    assert models.find("part-of-a-pipeline") == part
    assert models.kind("whisper-c") is None


# Refused by a hub

REFUSALS = [
    (GATED, None, TokenMissingError, ["{page}", "accept its terms", "HF_TOKEN", "huggingface_access_token"]),
    (GATED, STRANGER, TermsError, ["accept the terms", "{page}", "account of this token"]),
    (GATED, UNKNOWN, TokenRefusedError, ["{hub}/settings/tokens", "HF_TOKEN"]),
    (WHISPER, UNKNOWN, TokenRefusedError, ["{hub}/settings/tokens"]),
    (WHISPER, "hf_with\nline", TokenRefusedError, ["copy it again"]),
    (WHISPER, "hf_тoken", TokenRefusedError, ["copy it again"]),
    ("org/none", None, ModelMissingError, ["no model org/none", "or it is private", "{page}", "HF_TOKEN"]),
    ("org/none", READER, ModelMissingError, ["no model org/none", "{page}"]),
]


@pytest.mark.parametrize("verb", ["check", "get"])
@pytest.mark.parametrize(("name", "token", "error", "words"), REFUSALS)
def test_each_refusal_says_what_to_do(
    *, tmp_path: Path, hub: Hub, caplog: Any, name: str, token: str | None, error: Any, words: list[str], verb: str
) -> None:
    models = Models(settings(tmp_path, hub), SecretStr(token) if token else None)
    with caplog.at_level("DEBUG"), pytest.raises(error) as refused:
        getattr(models, verb)(name)
    assert type(refused.value) is error
    for word in words:
        assert word.format(hub=hub.url, page=f"{hub.url}/{name}") in refused.value.sentence
    seen = repr(refused.value) + refused.value.sentence + caplog.text + repr(vars(models))
    assert token is None or token not in seen
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    assert hub.fetched() == []


@pytest.mark.parametrize("verb", ["check", "get"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble(tmp_path: Path, hub: Hub, verb: str, status: int) -> None:
    hub.broken = status
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        getattr(Models(settings(tmp_path, hub)), verb)(WHISPER)


def test_a_hub_that_does_not_answer(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hansard.hub, "ANSWER_S", 0.3)
    hub.silent = True
    begin = time.monotonic()
    with pytest.raises(HubError):
        Models(settings(tmp_path, hub)).check(WHISPER)
    assert time.monotonic() - begin < 15
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(HubError):
            Models(settings(tmp_path, hf_endpoint=closed)).check(WHISPER)


def test_an_address_that_is_no_hub(tmp_path: Path, hub: Hub) -> None:
    hub.broken = 200  # an empty page, as a captive portal gives
    with pytest.raises(HubError):
        Models(settings(tmp_path, hub)).get(WHISPER)


def test_credentials_in_the_endpoint_are_not_shown(tmp_path: Path, hub: Hub) -> None:
    endpoint = hub.url.replace("//", "//someone:secret@")
    with pytest.raises(ModelMissingError) as refused:
        Models(settings(tmp_path, hf_endpoint=endpoint)).check("org/none")
    assert "secret" not in refused.value.sentence
    assert f"{hub.url}/org/none" in refused.value.sentence


@pytest.mark.parametrize("verb", ["check", "get"])
def test_offline_nobody_is_asked(tmp_path: Path, hub: Hub, verb: str) -> None:
    with pytest.raises(ModelMissingError, match="HF_HUB_OFFLINE is set"):
        getattr(Models(settings(tmp_path, hub, hf_hub_offline=True)), verb)(WHISPER)
    assert hub.log == []


def test_a_login_of_this_machine_is_not_used(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(TokenMissingError):
        Models(settings(tmp_path, hub, hf_token=None)).check(GATED)
    assert [asked.token for asked in hub.log] == [None]


@pytest.mark.parametrize("whose", ["the job's", "the operator's"])
def test_a_token_that_may_read(tmp_path: Path, hub: Hub, whose: str) -> None:
    if whose == "the job's":
        models = Models(settings(tmp_path, hub, hf_token=SecretStr(STRANGER)), SecretStr(f" {READER}\n"))
    else:
        models = Models(settings(tmp_path, hub, hf_token=SecretStr(READER)))
    assert models.has_token
    models.check(GATED)
    assert [(asked.path, asked.token) for asked in hub.log] == [(f"/api/models/{GATED}/auth-check", READER)]


def test_a_yes_is_remembered_for_its_token_and_a_no_is_not(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(token: str) -> None:
        Models(settings(tmp_path, hub), SecretStr(token)).check(GATED)

    for _ in range(2):
        with pytest.raises(TermsError):
            check(STRANGER)
    assert len(hub.log) == 2
    hub.accounts = {READER: {GATED}, STRANGER: {GATED}}
    for token in (STRANGER, STRANGER, READER, READER, STRANGER):
        check(token)
    assert [asked.token for asked in hub.log[2:]] == [STRANGER, READER]
    monkeypatch.setattr(hansard.hub, "REMEMBER_S", -1)
    monkeypatch.setattr(hansard.hub, "_allowed", {})
    check(READER)
    check(READER)
    assert len(hub.log) == 6
    assert READER not in repr(hansard.hub._allowed)


# Downloaded


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_download_is_whole_and_is_not_repeated(tmp_path: Path, hub: Hub) -> None:
    told: list[float] = []
    online = settings(tmp_path, hub)
    folder = Models(online, SecretStr(READER), told.append).get(GATED)
    assert contents(folder) == contents(TINY / "wav2vec2-tiny-synthetic")
    assert told[0] == 0
    assert told[-1] == 1
    assert told == sorted(told)
    assert {asked.token for asked in hub.log if not asked.path.startswith("/cdn/")} == {READER}
    assert {asked.token for asked in hub.log if asked.path.startswith("/cdn/")} == {None}  # another host
    asked = len(hub.log)
    offline = settings(tmp_path, hub, hf_hub_offline=True)
    assert Models(online).get(GATED) == Models(offline).get(GATED) == folder
    assert Models(online).kind(GATED) == "Wav2Vec2ForCTC"
    Models(offline).check(GATED)
    assert len(hub.log) == asked


def test_only_what_is_used_is_downloaded(tmp_path: Path) -> None:
    used = {"config.json", "model.safetensors", "vocab.json", "other/pytorch_model.bin", "model.bin"}
    unused = {
        *("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "model.gguf", "README.md"),
        *(".gitattributes", "language_model/5gram.bin", "training_args.bin", "runs/1/events"),
        *("consolidated.safetensors", "params.json"),
    }
    for name in used | unused:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    with Hub({"org/mixed": tmp_path / "source"}) as hub:
        folder = Models(settings(tmp_path, hub)).get("org/mixed")
        assert len(hub.fetched()) == len(used)
    assert set(contents(folder)) == used


def test_an_archive_of_nemos_is_all_it_needs(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("canary.nemo", "model.safetensors", "pytorch_model.bin", "config.json"):
        (tmp_path / "source" / name).write_text("{}")
    with Hub({"org/canary": tmp_path / "source"}) as hub:
        models = Models(settings(tmp_path, hub))
        assert set(contents(models.get("org/canary"))) == {"canary.nemo", "config.json"}
        assert models.kind("org/canary") == "nemo"


def test_a_repository_without_weights(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    with Hub({"org/empty": tmp_path / "source"}) as hub, pytest.raises(ModelError, match="holds no weights"):
        Models(settings(tmp_path, hub)).get("org/empty")


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Hub]:
    """A hub with 32 MB to download: the client writes 10 MB at a time."""
    with Hub({"org/large": model(tmp_path / "source", os.urandom(32_000_000))}) as hub:
        yield hub


def test_a_cancelled_download_stops_and_the_next_one_resumes_it(tmp_path: Path, large: Hub) -> None:
    def cancel(fraction: float) -> None:
        if fraction > 0.3:
            raise CancelledError("enough")

    large.pause_s = 0.005
    with pytest.raises(CancelledError, match="enough"):
        Models(settings(tmp_path, large), report=cancel).get("org/large")
    time.sleep(0.2)
    sent = large.sent
    time.sleep(0.3)
    assert large.sent == sent < 32_000_000
    assert Models(settings(tmp_path, large)).find("org/large") is None
    with pytest.raises(ModelMissingError):
        Models(settings(tmp_path, large, hf_hub_offline=True)).get("org/large")

    large.pause_s = 0
    told: list[float] = []
    folder = Models(settings(tmp_path, large), report=told.append).get("org/large")
    assert contents(folder) == contents(tmp_path / "source")
    resumed = [asked.range for asked in large.log if asked.range]
    assert len(resumed) == 1
    assert int(str(resumed[0]).removeprefix("bytes=").rstrip("-")) >= 10_000_000
    assert told[-1] == 1
    assert 0.3 < told[1] < 1


def test_progress_is_told_by_bytes(tmp_path: Path, large: Hub) -> None:
    large.pause_s = 0.004
    told: list[float] = []
    Models(settings(tmp_path, large), report=told.append).get("org/large")
    assert told == sorted(told)
    assert len({fraction for fraction in told if 0 < fraction < 0.98}) >= 2


def test_two_downloads_of_one_model_at_once(tmp_path: Path, large: Hub) -> None:
    found: list[Path] = []
    models = Models(settings(tmp_path, large))
    threads = [threading.Thread(target=lambda: found.append(models.get("org/large"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert contents(found[0]) == contents(tmp_path / "source")
    assert len([path for path in large.fetched() if path.startswith("/cdn/")]) == 1


def _get(given: Settings) -> None:
    Models(given).get("org/large")


def test_a_download_ends_with_the_process_that_wanted_it(tmp_path: Path, large: Hub) -> None:
    large.pause_s = 0.05
    process = multiprocessing.get_context("spawn").Process(target=_get, args=(settings(tmp_path, large),))
    process.start()
    while large.sent == 0 and process.is_alive():
        time.sleep(0.05)
    process.kill()
    process.join()
    time.sleep(1.5)
    sent = large.sent
    time.sleep(0.3)
    assert 0 < large.sent == sent


def test_a_disk_that_is_too_small_is_told_before_the_download(tmp_path: Path, hub: Hub) -> None:
    hub.inflated = 10**9
    with pytest.raises(ModelError, match="GB left; point HF_HOME") as refused:
        Models(settings(tmp_path, hub)).get(WHISPER)
    assert type(refused.value) is ModelError
    assert hub.fetched() == []


def test_a_disk_that_fills_up(tmp_path: Path, hub: Hub) -> None:
    blobs = tmp_path / "home/hub" / f"models--{WHISPER.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    weights = hub.repositories[WHISPER].blobs["model.bin"]
    (blobs / f"{weights.name}.incomplete").symlink_to("/dev/full")
    with pytest.raises(ModelError, match=r"the disk is full.*HF_HOME"):
        Models(settings(tmp_path, hub)).get(WHISPER)


def test_a_cache_that_cannot_be_written(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    with pytest.raises(ModelError, match="HF_HOME") as refused:
        Models(settings(tmp_path, hub)).get(WHISPER)
    assert os.strerror(errno.ENOTDIR) in refused.value.sentence
    assert str(tmp_path) not in refused.value.sentence


# What it costs


def test_finding_and_asking_load_no_engine(tmp_path: Path, hub: Hub) -> None:
    code = f"""
import sys
from pathlib import Path
from hansard.models import Models
from hansard.settings import Settings
assert "huggingface_hub" not in sys.modules
Models(Settings(hf_endpoint={hub.url!r}, hf_home=Path({str(tmp_path)!r}))).check({WHISPER!r})
assert "huggingface_hub" in sys.modules
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    paths = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
    run = subprocess.run(
        [sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True, timeout=180
    )
    assert not set(run.stdout.split()) & {
        "torch",
        "transformers",
        "pyannote",
        "whisperx",
        "faster_whisper",
        "ctranslate2",
    }
    assert run.stderr == ""
