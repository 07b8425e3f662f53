"""What the process was given: the one reader of the environment.

Every field is an environment variable of the same name in capitals; README's table is tested against this class.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hansard.errors import SettingsError

OLDER_PREFIX = "asr_"
MOST = 1_000_000  # MB, seconds or lines: more than anybody needs, and less than what no file and no socket takes


def _threshold(name: str, default: float, description: str) -> float:
    """A decoding threshold, also readable under the older name with the prefix ASR_."""
    value: float = Field(default, validation_alias=AliasChoices(name, OLDER_PREFIX + name), description=description)
    return value


class Settings(BaseSettings):
    """All settings, with their defaults. Units are in the names: MB are 10^6 bytes, hours and seconds are time."""

    model_config = SettingsConfigDict(
        case_sensitive=False, extra="ignore", frozen=True, allow_inf_nan=False, env_ignore_empty=True
    )

    default_model: str | None = Field(
        None, description="transcriber for a job that names no model; unset: `large-v3` on a GPU, else `sphinx`"
    )
    diarization_model: str | None = Field(
        None,
        description="diarizer: a name, a folder or a hub id; unset: "
        "`pyannote/speaker-diarization-community-1` on a GPU, else `embedded`",
    )
    diarization_required: bool = Field(
        False, description="refuse a job whose speakers cannot be told apart, instead of a warning in its answer"
    )
    align_models: Annotated[dict[str, str], NoDecode] = Field(
        {}, description="JSON, language to hub id or folder under MODELS_DIR: aligners other than WhisperX's own"
    )
    models_dir: Path = Field(Path("/models"), description="folder of models that came with the image")
    cached_models_dir: Path = Field(
        Path("/runpod-volume/huggingface-cache/hub"), description="the platform's cache of hub models, only read"
    )
    hf_home: Path = Field(
        Path("~/.cache/huggingface"),
        validation_alias=AliasChoices("hf_home", "model_cache_dir"),
        description="folder of the hub's own cache; downloads go to its `hub`",
    )
    hf_hub_offline: bool = Field(False, description="never ask the model hub")
    hf_endpoint: str = Field("https://huggingface.co", description="address of the model hub")
    hf_token: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("hf_token", "huggingface_token"),
        description="token for gated models, where the job brings none; also HUGGINGFACE_TOKEN",
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="where models run; auto: a GPU if there is one")
    compute_type: (
        Literal["float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16"] | None
    ) = Field(
        None,
        description="arithmetic of the transcriber; unset: for Whisper float16 on a GPU that has it, else int8; "
        "for the others, which have no int8, bfloat16 on a GPU that has it, else float16; on a CPU float32",
    )
    vad_method: Literal["pyannote", "silero"] = Field(
        "pyannote", description="what finds speech for every transcriber but sphinx"
    )
    voxtral_max_tokens: int = Field(
        100_000, ge=1000, description="most tokens of sound and text that Voxtral works on at once, all chunks together"
    )
    voxtral_endpoint: str = Field(
        "https://api.mistral.ai/v1", description="address of the service behind `voxtral-` models"
    )
    voxtral_api_key: SecretStr | None = Field(None, description="key for VOXTRAL_ENDPOINT; never logged")
    voxtral_timeout_s: float = Field(300, gt=0, description="seconds that one call of VOXTRAL_ENDPOINT may take")

    max_audio_mb: int = Field(500, ge=1, description="largest recording accepted, in MB")
    max_audio_hours: float = Field(12, gt=0, description="longest recording accepted, in hours")
    audio_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (Path("/runpod-volume"),),
        description="folders that file: URLs may read, separated by ':' (a lone ':' for none)",
    )
    allow_private_urls: bool = Field(False, description="let audio URLs lead to private addresses (tests)")
    connect_timeout_s: float = Field(10, gt=0, description="seconds to wait for a connection")
    read_timeout_s: float = Field(30, gt=0, description="seconds to wait for the next bytes")
    download_retries: int = Field(4, ge=0, description="times a broken download is resumed")
    work_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()), description="where a job's files live while it runs"
    )

    no_speech_threshold: float = _threshold("no_speech_threshold", 0.6, "decoding guard: silence above this")
    logprob_threshold: float = _threshold("logprob_threshold", -1.0, "decoding guard: too unsure below this")
    compression_ratio_threshold: float = _threshold(
        "compression_ratio_threshold", 2.4, "decoding guard: repetition above this"
    )

    cancel_grace_s: float = Field(5, ge=0, description="seconds a cancelled job has to stop by itself")
    result_limit_mb: float = Field(9, gt=0, description="largest answer the platform takes, in MB of JSON")
    log_tail_lines: int = Field(50, ge=0, description="lines of the log that an answer carries")
    log_file: Path = Field(Path("container_log.txt"), description="the worker's log")
    log_file_mb: float = Field(10, gt=0, description="size at which the log is rotated, in MB; one old file is kept")

    host_bind_address: str | None = Field(
        None,
        description="address the server listens on; unset: every one with API_KEYS or ALLOW_ANONYMOUS, else 127.0.0.1",
    )
    host_port: int = Field(8000, ge=0, le=65535, description="port the server listens on")
    advertised_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="addresses under which callers reach the server, such as https://asr.example.com, separated by ','",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        validation_alias=AliasChoices("api_keys", "openai_keys", "whisper_api_key"),
        description="keys of the server's callers, separated by ','; also OPENAI_KEYS, WHISPER_API_KEY",
    )
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="keys that may also see and change models, separated by ','"
    )
    allow_anonymous: bool = Field(False, description="let a server without API_KEYS be reached from elsewhere")
    allow_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="web pages whose scripts may call the server, as in https://app.example.com, separated by ','"
    )
    rate_limit: int = Field(0, ge=0, description="requests a minute of each key; 0 for any number")
    state_dir: Path = Field(Path("~/.hansard"), description="where the server keeps jobs, results and uploads")
    result_ttl_hours: float = Field(24, gt=0, description="hours for which the server keeps a finished job")
    max_queue: int = Field(100, ge=1, description="jobs that may wait; more are refused")
    model_aliases: Annotated[dict[str, str], NoDecode] = Field(
        {}, description="JSON, a name that callers of the server give to a model's own name; empty: DEFAULT_MODEL"
    )
    lazy_load_models: bool = Field(False, description="let the server load models with the first job, not at its start")
    model_idle_timeout: float = Field(
        0, ge=0, description="seconds after which the server lets unused models go; 0: it keeps them"
    )
    webhook_secret: SecretStr | None = Field(None, description="key of the signature under the server's webhooks")
    runpod_endpoint_id: str | None = Field(
        None, description="RunPod endpoint that does the server's jobs; unset: this machine does"
    )
    runpod_api_key: SecretStr | None = Field(None, description="key for RUNPOD_ENDPOINT_ID; never logged")
    runpod_endpoint_url: str = Field("https://api.runpod.ai/v2", description="address of RunPod's API (tests)")
    bucket_endpoint_url: str | None = Field(
        None,
        description="address of an S3 storage for recordings too large for a request to RUNPOD_ENDPOINT_ID; "
        "unset: they are made smaller, or refused",
    )
    bucket_name: str | None = Field(None, description="bucket for them, in which they lie while their job is done")
    bucket_access_key_id: str | None = Field(
        None, description="name of a key that may write, read and delete under `hansard/` in BUCKET_NAME"
    )
    bucket_secret_access_key: SecretStr | None = Field(
        None, description="the secret of BUCKET_ACCESS_KEY_ID; never logged"
    )
    bucket_region: str = Field("us-east-1", description="region of BUCKET_NAME")
    log_json: bool = Field(False, description="write the server's log as JSON lines")

    @property
    def on_gpu(self) -> bool:
        """Do models run on a GPU? Judged by the driver's device files, so that nothing opens the GPU here."""
        return self.device == "cuda" or (self.device == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))

    def secrets(self) -> tuple[str, ...]:
        """Values that no log and no answer may hold."""
        given = (
            self.hf_token,
            self.voxtral_api_key,
            self.webhook_secret,
            self.runpod_api_key,
            self.bucket_secret_access_key,
        )
        keys = [key.get_secret_value().strip() for key in (*given, *self.api_keys, *self.admin_keys) if key]
        return tuple(key for key in keys if key)

    @field_validator("hf_home", "models_dir", "cached_models_dir", "work_dir", "state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        """Where it is now: NeMo changes the working directory of its process while it loads a model."""
        try:
            return value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("the home folder that ~ stands for is not known; write the whole path") from None

    @field_validator("api_keys", "admin_keys", "advertised_hosts", "allow_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator(
        "connect_timeout_s", "read_timeout_s", "voxtral_timeout_s", "result_limit_mb", "log_file_mb", "log_tail_lines"
    )
    @classmethod
    def _check_size(cls, value: float) -> float:
        if value > MOST:
            raise ValueError(f"must be at most {MOST}")
        return value

    @field_validator("advertised_hosts")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"(?i)https?://[^\s/?#@]+(/[^\s?#]*)?", address) for address in value):
            raise ValueError("each must be an address such as https://asr.example.com")
        return tuple(address.rstrip("/") for address in value)

    @field_validator("allow_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """As browsers send them: small letters, nothing after the host and its port."""
        origins = tuple(origin.removesuffix("/").lower() for origin in value)
        if not all(re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@*]+", origin) for origin in origins):
            raise ValueError("each must be an origin such as https://app.example.com, or * for every one")
        return origins

    @field_validator("align_models", "model_aliases", mode="before")
    @classmethod
    def _read_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            raise ValueError('must be JSON such as {"fr": "owner/name"}') from None

    @field_validator("audio_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


def load(env_file: Path | None = None) -> Settings:
    """The settings of this process; `env_file` says what the environment leaves open.

    Raises SettingsError naming every variable that cannot be used.
    """
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        problems = "; ".join(f"{_variable(str(e['loc'][0]))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"the environment cannot be used: {problems}") from None


def _variable(field: str) -> str:
    """The name under which a field's value was given."""
    older = (OLDER_PREFIX + field).upper()
    return older if older in os.environ and field.upper() not in os.environ else field.upper()
