"""What the process was given: every field has its variable, every bad value its name, and nobody else looks."""

from __future__ import annotations

import ast
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from hansard.errors import SettingsError
from hansard.settings import Settings, load
from places import ROOT

GIVEN: dict[str, tuple[str, str, Any]] = {
    "default_model": ("DEFAULT_MODEL", "large-v3", "large-v3"),
    "diarization_model": ("DIARIZATION_MODEL", "community-1", "community-1"),
    "diarization_required": ("DIARIZATION_REQUIRED", "true", True),
    "align_models": ("ALIGN_MODELS", '{"fr": "owner/name"}', {"fr": "owner/name"}),
    "models_dir": ("MODELS_DIR", "/m", Path("/m")),
    "cached_models_dir": ("CACHED_MODELS_DIR", "/c", Path("/c")),
    "hf_home": ("HF_HOME", "~/h", Path("~/h").expanduser()),
    "hf_hub_offline": ("HF_HUB_OFFLINE", "1", True),
    "hf_endpoint": ("HF_ENDPOINT", "http://127.0.0.1:1", "http://127.0.0.1:1"),
    "hf_token": ("HF_TOKEN", "hf_abcdefgh", SecretStr("hf_abcdefgh")),
    "device": ("DEVICE", "cuda", "cuda"),
    "compute_type": ("COMPUTE_TYPE", "int8", "int8"),
    "voxtral_max_tokens": ("VOXTRAL_MAX_TOKENS", "5000", 5000),
    "voxtral_endpoint": ("VOXTRAL_ENDPOINT", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
    "voxtral_api_key": ("VOXTRAL_API_KEY", "key-abcdefgh", SecretStr("key-abcdefgh")),
    "voxtral_timeout_s": ("VOXTRAL_TIMEOUT_S", "20", 20.0),
    "vad_method": ("VAD_METHOD", "silero", "silero"),
    "max_audio_mb": ("MAX_AUDIO_MB", "7", 7),
    "max_audio_hours": ("MAX_AUDIO_HOURS", "0.5", 0.5),
    "audio_roots": ("AUDIO_ROOTS", f"/a{os.pathsep}/b c", (Path("/a"), Path("/b c"))),
    "allow_private_urls": ("ALLOW_PRIVATE_URLS", "true", True),
    "connect_timeout_s": ("CONNECT_TIMEOUT_S", "2.5", 2.5),
    "read_timeout_s": ("READ_TIMEOUT_S", "3.5", 3.5),
    "download_retries": ("DOWNLOAD_RETRIES", "0", 0),
    "work_dir": ("WORK_DIR", "/w", Path("/w")),
    "no_speech_threshold": ("NO_SPEECH_THRESHOLD", "0.25", 0.25),
    "logprob_threshold": ("LOGPROB_THRESHOLD", "-2", -2.0),
    "compression_ratio_threshold": ("COMPRESSION_RATIO_THRESHOLD", "3", 3.0),
    "cancel_grace_s": ("CANCEL_GRACE_S", "0", 0.0),
    "result_limit_mb": ("RESULT_LIMIT_MB", "19.5", 19.5),
    "log_tail_lines": ("LOG_TAIL_LINES", "0", 0),
    "log_file": ("LOG_FILE", "/var/log/x.txt", Path("/var/log/x.txt")),
    "log_file_mb": ("LOG_FILE_MB", "1.5", 1.5),
    "host_bind_address": ("HOST_BIND_ADDRESS", "0.0.0.0", "0.0.0.0"),
    "host_port": ("HOST_PORT", "80", 80),
    "advertised_hosts": (
        "ADVERTISED_HOSTS",
        "https://a.example/, http://b.example:8000/asr",
        ("https://a.example", "http://b.example:8000/asr"),
    ),
    "api_keys": ("API_KEYS", "key-one, key-two,", (SecretStr("key-one"), SecretStr("key-two"))),
    "admin_keys": ("ADMIN_KEYS", "key-three", (SecretStr("key-three"),)),
    "allow_anonymous": ("ALLOW_ANONYMOUS", "true", True),
    "allow_origins": (
        "ALLOW_ORIGINS",
        "https://a.example/,HTTPS://B.example:81, app://notes",
        ("https://a.example", "https://b.example:81", "app://notes"),
    ),
    "rate_limit": ("RATE_LIMIT", "60", 60),
    "state_dir": ("STATE_DIR", "~/s", Path("~/s").expanduser()),
    "result_ttl_hours": ("RESULT_TTL_HOURS", "0.5", 0.5),
    "max_queue": ("MAX_QUEUE", "7", 7),
    "model_aliases": ("MODEL_ALIASES", '{"whisper-1": "turbo"}', {"whisper-1": "turbo"}),
    "lazy_load_models": ("LAZY_LOAD_MODELS", "true", True),
    "model_idle_timeout": ("MODEL_IDLE_TIMEOUT", "600", 600.0),
    "webhook_secret": ("WEBHOOK_SECRET", "secret-abcdefgh", SecretStr("secret-abcdefgh")),
    "runpod_endpoint_id": ("RUNPOD_ENDPOINT_ID", "abc123", "abc123"),
    "runpod_api_key": ("RUNPOD_API_KEY", "rpa_abcdefgh", SecretStr("rpa_abcdefgh")),
    "runpod_endpoint_url": ("RUNPOD_ENDPOINT_URL", "http://127.0.0.1:1/v2", "http://127.0.0.1:1/v2"),
    "bucket_endpoint_url": ("BUCKET_ENDPOINT_URL", "http://127.0.0.1:1", "http://127.0.0.1:1"),
    "bucket_name": ("BUCKET_NAME", "sound", "sound"),
    "bucket_access_key_id": ("BUCKET_ACCESS_KEY_ID", "id-abcdefgh", "id-abcdefgh"),
    "bucket_secret_access_key": ("BUCKET_SECRET_ACCESS_KEY", "secret-abcdefgh", SecretStr("secret-abcdefgh")),
    "bucket_region": ("BUCKET_REGION", "eu-central-1", "eu-central-1"),
    "log_json": ("LOG_JSON", "true", True),
}
"""Of each field its variable, a text for it that is not its default, and what that text means."""

THRESHOLDS = [name for name in GIVEN if name.endswith("_threshold")]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a single setting."""
    for variable, _, _ in GIVEN.values():
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(f"ASR_{variable}", raising=False)


def test_a_key_is_hidden_whatever_stands_around_it() -> None:
    settings = Settings(hf_token=SecretStr(" hf_abcdefgh\n"), voxtral_api_key=SecretStr("key-abcdefgh "))
    assert settings.secrets() == ("hf_abcdefgh", "key-abcdefgh")
    assert Settings(voxtral_api_key=SecretStr("  ")).secrets() == ()


def test_folders_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(models_dir=Path("m"), cached_models_dir=Path("c"), hf_home=Path("h"), work_dir=Path("w"))
    found = (settings.models_dir, settings.cached_models_dir, settings.hf_home, settings.work_dir)
    assert found == tuple(tmp_path / name for name in "mchw")


def test_the_table_has_every_field() -> None:
    assert set(GIVEN) == set(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_each_field_is_read_from_its_variable(
    name: str, case: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, text, value = GIVEN[name]
    before = load()
    assert getattr(before, name) != value
    monkeypatch.setenv(case(variable), text)
    assert load() == before.model_copy(update={name: value})


@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholds_are_known_by_their_older_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, text, value = GIVEN[name]
    monkeypatch.setenv(f"ASR_{variable}", text)
    assert getattr(load(), name) == value
    monkeypatch.setenv(variable, "0.75")
    assert getattr(load(), name) == 0.75


def test_the_token_is_known_by_its_other_name_and_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGGINGFACE_TOKEN", "hf_abcdefgh")
    settings = load()
    assert settings.secrets() == ("hf_abcdefgh",)
    assert "hf_abcdefgh" not in repr(settings)
    assert Settings().model_copy(update={"hf_token": None}).secrets() == ()


@pytest.mark.parametrize(("device", "on_gpu"), [("cuda", True), ("cpu", False)])
def test_the_device_can_be_chosen(device: str, on_gpu: bool) -> None:
    assert Settings(device=device).on_gpu is on_gpu


BAD = {
    "ALIGN_MODELS": ["fr=owner/name", "[]", "1", "[" * 100_000],
    "MODEL_ALIASES": ["[" * 100_000],
    "ADVERTISED_HOSTS": ["asr.example.com", "ftp://a.example", "https://", "https://a.example?b", "https://a b"],
    "ALLOW_ORIGINS": ["app.example.com", "null", "https://a.example/app", "https://*.example.com", "https://", "//a"],
    "MODELS_DIR": ["~nosuchuser/x"],
    "DEVICE": ["gpu", "cuda:0"],
    "COMPUTE_TYPE": ["half"],
    "VAD_METHOD": ["webrtc"],
    "HF_HUB_OFFLINE": ["maybe"],
    "MAX_AUDIO_MB": ["0", "1.5", "many"],
    "MAX_AUDIO_HOURS": ["0", "-1", "nan", "x"],
    "ALLOW_PRIVATE_URLS": ["maybe"],
    "CONNECT_TIMEOUT_S": ["0"],
    "READ_TIMEOUT_S": ["0", "1e305"],
    "DOWNLOAD_RETRIES": ["-1", "1.5"],
    "NO_SPEECH_THRESHOLD": ["x", "nan"],
    "LOGPROB_THRESHOLD": ["x"],
    "COMPRESSION_RATIO_THRESHOLD": ["x"],
    "CANCEL_GRACE_S": ["-0.1"],
    "RESULT_LIMIT_MB": ["0", "inf", "nan", "1e305"],
    "LOG_TAIL_LINES": ["-1", "5.5", "1" + "0" * 30],
    "LOG_FILE_MB": ["0", "inf", "nan", "1e305"],
}


@pytest.mark.parametrize(("variable", "text"), [(variable, text) for variable in BAD for text in BAD[variable]])
def test_a_value_that_cannot_be_used_is_refused_by_name(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError, match=f"the environment cannot be used: {variable}: "):
        load()


def test_every_bad_variable_is_named_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, texts in BAD.items():
        monkeypatch.setenv(variable, texts[0])
    with pytest.raises(SettingsError) as refused:
        load()
    for variable in BAD:
        assert refused.value.sentence.count(f"{variable}: ") == 1
    assert refused.value.code == "invalid_settings"


def test_a_bad_value_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_AUDIO_MB", "hf_pastedIntoTheWrongVariable")
    with pytest.raises(SettingsError) as refused:
        load()
    assert "hf_" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_bad_older_name_is_named_as_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ASR_{GIVEN[name][0]}", "x")
    with pytest.raises(SettingsError, match=f": ASR_{GIVEN[name][0]}: "):
        load()


def test_the_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "profile.env"
    file.write_text("MAX_AUDIO_MB=7\nDEFAULT_MODEL=turbo\nUNKNOWN=1\n")
    monkeypatch.setenv("MAX_AUDIO_MB", "9")
    settings = load(file)
    assert (settings.max_audio_mb, settings.default_model) == (9, "turbo")
    assert settings.model_fields_set == {"max_audio_mb", "default_model"}


def test_the_environment_comes_before_the_file_under_either_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "profile.env"
    file.write_text("NO_SPEECH_THRESHOLD=0.25\n")
    assert load(file).no_speech_threshold == 0.25
    monkeypatch.setenv("ASR_NO_SPEECH_THRESHOLD", "0.5")
    assert load(file).no_speech_threshold == 0.5


def test_a_bad_value_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "profile.env"
    file.write_text("MAX_AUDIO_MB=many\n")
    with pytest.raises(SettingsError, match="MAX_AUDIO_MB"):
        load(file)


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Platforms' forms send every field that was left empty."""
    monkeypatch.setenv("MAX_AUDIO_MB", "")
    monkeypatch.setenv("DEFAULT_MODEL", "")
    assert load() == Settings()


def test_no_file_is_read_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MAX_AUDIO_MB=7\n")
    monkeypatch.chdir(tmp_path)
    assert load().max_audio_mb == 500


@pytest.mark.parametrize(
    ("text", "roots"),
    [
        ("/a", (Path("/a"),)),
        (os.pathsep.join(["/a", "", "/b/../c", ""]), (Path("/a"), Path("/b/../c"))),
        (os.pathsep, ()),
    ],
)
def test_roots_are_split(text: str, roots: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIO_ROOTS", text)
    assert load().audio_roots == roots


def test_every_page_may_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_ORIGINS", "*")
    assert load().allow_origins == ("*",)


def test_nothing_is_allowed_by_default() -> None:
    settings = load()
    assert settings.audio_roots == (Path("/runpod-volume"),)
    assert not settings.allow_private_urls
    assert settings.work_dir == Path(tempfile.gettempdir())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().max_audio_mb = 1  # type: ignore[misc]


# The one reader of the environment

SRC = ROOT / "src"
FOR_VENDORS = {
    "handler.py": {
        "RUNPOD_WEBHOOK_GET_JOB": "asks whether the SDK runs against a platform or in a local mode",
        "RUNPOD_LOG_LEVEL": "the SDK reads it when it is imported",
        "RUNPOD_SKIP_GPU_CHECK": "the SDK reads it when it starts",
    },
    "hansard/aligners/bundles.py": {
        "TORCH_HOME": "torch.hub reads it: where its cache is, for a process without torch",
        "XDG_CACHE_HOME": "the same",
    },
    "hansard/vendors.py": {"PYANNOTE_METRICS_ENABLED": "pyannote reads it when it is imported"},
}
"""Who else touches the environment, which variables, and why it cannot be a setting."""


def touches(tree: ast.AST) -> int:
    """How often a module speaks of the environment, however it got hold of it."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    return sum(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and any(n.name in names for n in node.names))
        for node in ast.walk(tree)
    )


def test_only_settings_reads_the_environment() -> None:
    found = {}
    for path in SRC.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if touches(tree):
            found[path.relative_to(SRC).as_posix()] = (touches(tree), tree)
    assert set(found) - {"hansard/settings.py"} == set(FOR_VENDORS)
    for name, variables in FOR_VENDORS.items():
        count, tree = found[name]
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert count == len(variables), name
        assert all(texts.count(variable) == 1 for variable in variables), name


@pytest.mark.parametrize(
    "code", ["import os\nos.environ['A']", "from os import getenv", "import os as o\no.getenv('A')", "os.putenv(a, b)"]
)
def test_what_counts_as_touching(code: str) -> None:
    assert touches(ast.parse(code)) == 1
