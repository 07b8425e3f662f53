"""What the admin endpoints answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from hansard.health import State as EngineState
from hansard.server.admin.inventory import Kind

ModelState = Literal["missing", "downloading", "cached", "loading", "ready", "failed"]


class DownloadView(BaseModel):
    """How far a download is. Without `total` nobody says how many bytes there are."""

    bytes: int | None = Field(description="fetched so far, with what an earlier try left")
    total: int | None
    percent: float
    speed: float | None = Field(description="bytes a second, over the last ten")
    eta_s: float | None = Field(description="seconds until the end at this speed")


class ModelView(BaseModel):
    """A model of this server."""

    key: str = Field(examples=["large-v3", "pyannote/speaker-diarization-community-1", "aligner:en"])
    names: list[str] = Field(description="every name it goes by; each may be used for the key")
    kind: Kind
    repository: str | None = Field(description="where it comes from on the model hub, if it does")
    needs: list[str] = Field(description="all that must be fetched for it; none: it rides in a package or is a service")
    state: ModelState = Field(
        description="`cached` on the disk, `ready` in the engine's memory too, `failed` as `last_error` says"
    )
    bytes: int = Field(description="on the disk")
    download: DownloadView | None = Field(description="while it is `downloading`")
    last_error: str | None = Field(description="why the last download or load failed, until the next one begins")
    devices: list[str] = Field(description="where it is loaded", examples=[["cuda"]])
    needs_gpu: bool | None = Field(
        description="are its weights larger than this machine's memory? null while their size is not known"
    )


class LoadOrder(BaseModel):
    """Where to load a model."""

    devices: list[str] = Field([], max_length=16, description="the engine's one device, or left out")


class GpuView(BaseModel):
    """A GPU as its driver tells it; memory in bytes."""

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
    """The machine; memory in bytes, the load of all cores since the last look in percent."""

    cpus: int
    cpu_percent: float
    memory_total: int
    memory_available: int
    gpus: list[GpuView]
    disks: list[DiskView]


class EngineView(BaseModel):
    """Who does the jobs; of an endpoint's workers neither state nor device are known here."""

    runner: Literal["local", "elsewhere"]
    state: EngineState | None
    device: Literal["cuda", "cpu"] | None


class QueueView(BaseModel):
    """The jobs that wait and run, of all callers."""

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

    version: str
    engine: EngineView
    queue: QueueView
    models: list[ModelView]
    machine: MachineView
    versions: dict[str, str | None] = Field(description="of packages; null: not installed", examples=[{"torch": "2.8"}])
    endpoints: list[EndpointView]
