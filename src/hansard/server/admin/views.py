"""What the admin endpoints answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hansard.health import State as EngineState
from hansard.server.admin.inventory import Kind

ModelState = Literal["missing", "downloading", "cached", "loading", "ready", "failed"]

DOWNLOAD = {"bytes": 1_544_000_000, "total": 3_088_000_000, "percent": 50.0, "speed": 96_500_000, "eta_s": 16.0}
MODEL = {
    "key": "large-v3",
    "names": ["Systran/faster-whisper-large-v3", "large", "large-v3"],
    "kind": "transcriber",
    "repository": "Systran/faster-whisper-large-v3",
    "needs": ["Systran/faster-whisper-large-v3"],
    "state": "ready",
    "bytes": 3_090_000_000,
    "download": None,
    "last_error": None,
    "devices": ["cuda"],
    "needs_gpu": False,
}
QUEUE = {"queued": 3, "running": 1}
GPU = {
    "index": 0,
    "name": "NVIDIA L4",
    "memory_used": 7_400_000_000,
    "memory_total": 24_150_000_000,
    "busy_percent": 93,
}
MACHINE = {
    "cpus": 8,
    "cpu_percent": 22.5,
    "memory_total": 33_500_000_000,
    "memory_available": 21_000_000_000,
    "gpus": [GPU],
    "disks": [{"setting": "HF_HOME", "total": 250_000_000_000, "free": 180_000_000_000}],
}


def _shown(*examples: dict[str, Any], closed: bool = False) -> ConfigDict:
    """A model with examples for OpenAPI; `closed`: no fields but its own."""
    return ConfigDict(extra="forbid" if closed else "ignore", json_schema_extra={"examples": list(examples)})


class DownloadView(BaseModel):
    """How far a download is. Without `total` nobody says how many bytes there are, and `percent` may stay 0."""

    model_config = _shown(DOWNLOAD)

    bytes: int | None = Field(description="fetched so far, with what an earlier try left")
    total: int | None
    percent: float
    speed: float | None = Field(description="bytes a second, over the last ten seconds")
    eta_s: float | None = Field(description="seconds until the end at this speed")


class ModelView(BaseModel):
    """A model of this server."""

    model_config = _shown(MODEL, {**MODEL, "state": "downloading", "download": DOWNLOAD, "bytes": 0, "devices": []})

    key: str = Field(examples=["large-v3", "pyannote/speaker-diarization-community-1", "aligner:en"])
    names: list[str] = Field(description="every name it goes by; each may be used for the key")
    kind: Kind
    repository: str | None = Field(None, description="where it comes from on the model hub, if it does")
    needs: list[str] = Field(description="all that must be fetched for it; none: it rides in a package or is a service")
    state: ModelState = Field(
        description="`cached` on the disk, `ready` in the engine's memory too, `failed` as `last_error` says"
    )
    bytes: int = Field(description="on the disk")
    download: DownloadView | None = Field(None, description="while it is `downloading`")
    last_error: str | None = Field(None, description="why the last download or load failed, until the next one begins")
    devices: list[str] = Field(description="where it is loaded", examples=[["cuda"]])
    needs_gpu: bool | None = Field(
        None,
        description="do its weights take more than the memory that this server may use? null while their size is not "
        "known",
    )


class LoadOrder(BaseModel):
    """Where to load a model."""

    model_config = _shown({"devices": ["cuda"]}, closed=True)

    devices: list[str] = Field([], max_length=16, description="the engine's one device, or left out")


class GpuView(BaseModel):
    """A GPU as its driver tells it; memory in bytes."""

    model_config = _shown(GPU)

    index: int
    name: str
    memory_used: int
    memory_total: int
    busy_percent: int | None


class DiskView(BaseModel):
    """The disk under a folder that a setting names, in bytes."""

    setting: str = Field(examples=["HF_HOME"])
    total: int
    free: int


class MachineView(BaseModel):
    """The machine; memory in bytes, the load of all its cores since the last look in percent."""

    model_config = _shown(MACHINE)

    cpus: int = Field(description="that the server may use: fewer than there are in a container with a limit")
    cpu_percent: float
    memory_total: int = Field(description="that the server may use, likewise")
    memory_available: int = Field(description="what is left of it")
    gpus: list[GpuView]
    disks: list[DiskView]


class EngineView(BaseModel):
    """Who does the jobs; of an endpoint's workers neither state nor device are known here."""

    model_config = _shown({"runner": "local", "state": "ready", "device": "cuda"})

    runner: Literal["local", "elsewhere"]
    state: EngineState | None
    device: Literal["cuda", "cpu"] | None


class QueueView(BaseModel):
    """The jobs that wait and run, of all callers."""

    model_config = _shown(QUEUE)

    queued: int
    running: int


class EndpointView(BaseModel):
    """An endpoint, at every address under which this server is reached."""

    method: str
    path: str
    summary: str
    urls: list[str]


class AdminStatus(BaseModel):
    """Everything that an operator wants to see."""

    model_config = _shown(
        {
            "version": "1.0.0",
            "engine": {"runner": "local", "state": "ready", "device": "cuda"},
            "queue": QUEUE,
            "models": [MODEL],
            "machine": MACHINE,
            "versions": {"hansard": "1.0.0", "torch": "2.8.0", "torch_cuda": "12.8"},
            "endpoints": [
                {
                    "method": "POST",
                    "path": "/v1/audio/transcriptions",
                    "summary": "Transcribe",
                    "urls": ["https://asr.example.com/v1/audio/transcriptions"],
                }
            ],
        }
    )

    version: str
    engine: EngineView
    queue: QueueView
    models: list[ModelView]
    machine: MachineView
    versions: dict[str, str | None] = Field(description="of packages; null: not installed", examples=[{"torch": "2.8"}])
    endpoints: list[EndpointView]
