"""The operator's endpoints: who may use them, what they tell, and models fetched, loaded and let go."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fake_runner import FakeRunner

import hansard.hub
from hansard import plan
from hansard.aligners import bundles
from hansard.allowance import Memory
from hansard.engine.wire import Warm
from hansard.errors import EngineMissingError, HansardError, ModelError
from hansard.plan import Choice, Plan
from hansard.request import Request
from hansard.server.admin import routes as admin
from hansard.server.admin import stockroom
from hansard.server.admin.downloads import WINDOW_S, Download
from hansard.server.admin.inventory import entry_named
from hansard.server.runners import LocalRunner
from hansard.settings import Settings
from hansard.stages import StageReport
from hansard.transcribers import canary
from hansard.transcript import Transcript
from hub import Hub
from loopback import Loopback, Player
from places import TINY

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Serve, Server

PATIENCE_S = 60.0
WHISPER, OTHER = "Systran/faster-whisper-tiny", "Systran/faster-whisper-base"
SPHINX, EMBEDDED, TINY_ONE = Choice("sphinx", "sphinx"), Choice("embedded", "embedded"), Choice("whisper", "tiny")

KEY = {"Authorization": "Bearer sk-admin"}


class FakeEngine:
    """An engine that holds what it is told to; `gate` keeps it from loading, `fails` is what loading raises."""

    def __init__(self) -> None:
        self.warm = Warm()
        self.state = "ready"
        self.waits, self.restarts = False, 0
        self.gate = threading.Event()
        self.gate.set()
        self.fails: HansardError | None = None
        self.loads: list[Choice] = []
        self.told: Callable[[], None] = lambda: None

    def retire(self) -> None:
        """Nothing is started here."""

    def on_change(self, hook: Callable[[], None]) -> None:
        self.told = hook

    async def load(self, choice: Choice) -> None:
        self.loads.append(choice)
        await asyncio.to_thread(self.gate.wait, PATIENCE_S)
        if self.fails:
            raise self.fails
        self.hold(*self.warm.ready, choice)

    async def unload(self, choice: Choice) -> None:
        await asyncio.to_thread(self.gate.wait, PATIENCE_S)
        self.hold(*(held for held in self.warm.ready if held != choice))

    def hold(self, *choices: Choice) -> None:
        self.be(Warm(ready=choices))

    def be(self, warm: Warm) -> None:
        self.warm = warm
        self.told()


class FakeLocal(LocalRunner):
    """This machine's runner with that engine; its jobs are a FakeRunner's."""

    def __init__(self) -> None:
        super().__init__(Settings())
        self.jobs = FakeRunner()
        self.fake = FakeEngine()

    async def start(self) -> None:
        self._engine = self.fake  # type: ignore[assignment]

    async def check(self, request: Request) -> Plan:
        return await self.jobs.check(request)

    async def run(
        self, job_id: str, request: Request, recording: Path | None, plan: Plan, report: StageReport
    ) -> Transcript:
        return await self.jobs.run(job_id, request, recording, plan, report)

    async def close(self) -> None: ...


@pytest.fixture
def local() -> FakeLocal:
    return FakeLocal()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hansard.hub, "_allowed", {})
    folder = TINY / "whisper-tiny-synthetic-ct2"
    with Hub({WHISPER: folder, OTHER: folder, "nvidia/canary-1b-v2": folder}) as hub:
        yield hub


@pytest.fixture
def here(serve: Serve, local: FakeLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    """A server of this machine with folders of its own, for callers with KEY."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def start(hub: Hub | None = None, **given: Any) -> Server:
        where = {"hf_endpoint": hub.url, "hf_hub_offline": False} if hub else {}
        own = {"models_dir": tmp_path / "models", "cached_models_dir": tmp_path / "volume", "device": "cpu"}
        server = serve(local, **{"admin_keys": ("sk-admin",), "api_keys": ("sk-one",), **own, **where, **given})
        server.http.headers.update(KEY)
        return server

    return start


def model(server: Server, key: str) -> dict[str, Any]:
    answer = server.http.get(f"/api/admin/models/{key}")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def until(server: Server, key: str, *states: str) -> dict[str, Any]:
    """The model once it is in one of the states."""
    end = time.monotonic() + PATIENCE_S
    while (now := model(server, key))["state"] not in states:
        assert time.monotonic() < end, now
        time.sleep(0.02)
    return now


def post(server: Server, path: str, status: int = 202, **given: Any) -> dict[str, Any]:
    answer = server.http.post(f"/api/admin/models/{path}", **given)
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    return told


def refusal(server: Server, path: str, status: int, **given: Any) -> str:
    return str(post(server, path, status, **given)["error"]["message"])


# Who may


def test_only_admin_keys_open_it(here: Callable[..., Server]) -> None:
    server = here()
    for path in ("status", "events", "models/tiny"):
        for key, status in (("sk-one", 403), ("sk-none", 401)):
            answer = server.http.get(f"/api/admin/{path}", headers={"Authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, None)
    assert server.http.get("/api/admin/status").status_code == 200


def test_without_keys_only_this_machine_is_an_admin(serve: Serve) -> None:
    server = serve()
    assert server.http.get("/api/admin/status").status_code == 200
    for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"):
        assert server.http.get("/api/admin/status", headers={name: "127.0.0.1"}).status_code in (401, 403), name


def test_without_admin_keys_a_server_with_callers_has_no_admin(serve: Serve) -> None:
    for given in ({"api_keys": ("sk-one",)}, {"allow_anonymous": True}):
        server = serve(**given)
        answer = server.http.get("/api/admin/status", headers={"Authorization": "Bearer sk-one"})
        assert answer.status_code == 403, given
        server.stop()


# What it tells


def test_the_status_tells_what_there_is(here: Callable[..., Server]) -> None:
    told = here(advertised_hosts=("https://asr.example.com/",)).http.get("/api/admin/status").json()
    assert told["engine"] == {"runner": "local", "state": "ready", "device": "cpu"}
    models = {view["key"]: view for view in told["models"]}
    assert models["tiny"]["repository"] == WHISPER
    assert models["tiny"]["state"] == "missing"
    assert models["sphinx"]["state"] == "cached"
    assert models["sphinx"]["repository"] is None
    assert models["large-v3"]["names"] == ["Systran/faster-whisper-large-v3", "large", "large-v3"]
    assert {view["kind"] for view in told["models"]} == {"transcriber", "diarizer", "aligner"}
    assert models["aligner:en"]["needs"] == ["WAV2VEC2_ASR_BASE_960H"]
    assert len(models["pyannote/speaker-diarization-3.1"]["needs"]) == 3
    assert told["machine"]["memory_total"] > told["machine"]["memory_available"] > 0
    assert [disk["setting"] for disk in told["machine"]["disks"]] == ["STATE_DIR", "HF_HOME", "WORK_DIR"]
    assert set(told["versions"]) >= {"torch", "torch_cuda", "torchaudio", "ctranslate2", "pyannote.audio", "whisperx"}
    assert told["versions"]["hansard"] == told["version"]
    urls = {url for endpoint in told["endpoints"] for url in endpoint["urls"]}
    assert "https://asr.example.com/v1/audio/transcriptions" in urls
    assert "https://asr.example.com/api/admin/models/{key}/load" in urls


def test_without_advertised_hosts_the_urls_are_those_of_the_request(here: Callable[..., Server]) -> None:
    server = here()
    endpoints = server.http.get("/api/admin/status").json()["endpoints"]
    assert ("GET", "/healthz") in {(endpoint["method"], endpoint["path"]) for endpoint in endpoints}
    assert all(url.startswith(f"{server.url}/") for endpoint in endpoints for url in endpoint["urls"])


def test_a_model_that_is_not_there_is_told(here: Callable[..., Server]) -> None:
    server = here()
    for key in ("nothing", "../../etc/passwd", "/etc", "aligner:xx"):
        answer = server.http.post(f"/api/admin/models/{key}/load")
        assert answer.status_code == 404, key
        assert "error" in answer.json()


def test_of_workers_elsewhere_nothing_is_held_here(serve: Serve) -> None:
    server = serve(FakeRunner())
    told = server.http.get("/api/admin/status").json()
    assert told["models"] == []
    assert told["engine"] == {"runner": "elsewhere", "state": None, "device": None}
    for path in ("tiny/load", "tiny/unload", "tiny/download"):
        assert "workers of its RunPod endpoint" in refusal(server, path, 400)


# Load, unload


def test_a_model_is_loaded_and_let_go(here: Callable[..., Server], local: FakeLocal) -> None:
    server = here()
    local.fake.gate.clear()
    assert post(server, "sphinx/load", json={"devices": ["cpu"]})["state"] == "loading"
    assert post(server, "sphinx/load")["state"] == "loading"
    local.fake.gate.set()
    assert until(server, "sphinx", "ready")["devices"] == ["cpu"]
    assert local.fake.loads == [Choice("sphinx", "sphinx")], "a second order joins the first"
    post(server, "sphinx/unload")
    assert until(server, "sphinx", "cached")["devices"] == []


def test_any_of_its_names_is_the_model(here: Callable[..., Server], local: FakeLocal) -> None:
    """A job that asked for `large` has loaded what is listed as large-v3."""
    server = here()
    local.fake.hold(Choice("whisper", "large"))
    assert model(server, "large")["key"] == model(server, "large-v3")["key"] == "large-v3"
    assert model(server, "large-v3")["state"] == "ready"
    post(server, "large-v3/unload")
    until(server, "large", "missing")


def test_why_a_load_failed_is_told_until_the_next(here: Callable[..., Server], local: FakeLocal) -> None:
    server = here()
    local.fake.fails = ModelError("its weights are damaged; fetch it again")
    post(server, "embedded/load")
    assert until(server, "embedded", "failed")["last_error"] == "its weights are damaged; fetch it again"
    local.fake.fails = None
    post(server, "embedded/load")
    assert until(server, "embedded", "ready")["last_error"] is None


def test_an_error_is_over_once_the_model_is_seen_ready(here: Callable[..., Server], local: FakeLocal) -> None:
    """A job has loaded it; that the engine lets it go afterwards is no failure."""
    server = here()
    local.fake.fails = ModelError("its weights are damaged; fetch it again")
    post(server, "embedded/load")
    until(server, "embedded", "failed")
    local.fake.hold(EMBEDDED)
    assert until(server, "embedded", "ready")["last_error"] is None
    local.fake.hold()
    assert until(server, "embedded", "cached", "failed")["state"] == "cached"


def test_what_the_engine_could_not_load_by_itself_is_told(here: Callable[..., Server], local: FakeLocal) -> None:
    server = here()
    local.fake.be(Warm(failed={SPHINX: "it is broken"}))
    assert until(server, "sphinx", "failed")["last_error"] == "it is broken"
    local.fake.gate.clear()
    told = post(server, "sphinx/load")
    assert (told["state"], told["last_error"]) == ("loading", None)
    local.fake.fails = ModelError("it is still broken")
    local.fake.gate.set()
    assert until(server, "sphinx", "failed")["last_error"] == "it is still broken"
    local.fake.be(Warm())
    local.fake.be(Warm(failed={SPHINX: "it broke again"}))
    local.fake.fails = None
    post(server, "sphinx/unload")
    until(server, "sphinx", "cached")
    local.fake.be(Warm())
    time.sleep(0.1)
    local.fake.be(Warm(failed={SPHINX: "and again"}))
    assert until(server, "sphinx", "failed")["last_error"] == "and again"


def test_readiness_tells_of_a_default_that_cannot_be_loaded(here: Callable[..., Server], local: FakeLocal) -> None:
    defaults = {"default_model": "sphinx", "diarization_model": "embedded"}
    server = here(**defaults)

    def problem() -> str | None:
        answer = server.http.get("/readyz")
        assert (answer.status_code == 200) is answer.json()["ready"]
        told: str | None = answer.json()["problem"]
        return told

    assert problem() is None
    local.fake.be(Warm(failed={EMBEDDED: "no voices", TINY_ONE: "some other model"}))
    assert problem() is None
    local.fake.be(Warm(failed={SPHINX: "its files are gone"}))
    assert problem() == "the default model sphinx cannot be loaded: its files are gone"
    local.fake.be(Warm(ready=(SPHINX,)))
    assert problem() is None
    server.stop()
    server = here(diarization_required=True, **defaults)
    local.fake.be(Warm(failed={EMBEDDED: "no voices"}))
    assert problem() == "the default model embedded cannot be loaded: no voices"


@pytest.mark.parametrize(
    ("orders", "state"),
    [
        (("load", "unload"), "cached"),
        (("load", "unload", "load"), "ready"),
        (("unload", "load", "unload", "load", "load"), "ready"),
        (("load", "unload", "load", "unload"), "cached"),
    ],
)
def test_of_several_orders_the_last_one_wins(
    here: Callable[..., Server], local: FakeLocal, orders: tuple[str, ...], state: str
) -> None:
    server = here()
    local.fake.gate.clear()  # a job is running
    for order in orders:
        told = post(server, f"sphinx/{order}")
    assert told["state"] == ("loading" if state == "ready" else "cached")
    local.fake.gate.set()
    until(server, "sphinx", state)
    time.sleep(0.2)
    assert model(server, "sphinx")["state"] == state


def test_unloading_beats_a_load_that_still_downloads(here: Callable[..., Server], local: FakeLocal, hub: Hub) -> None:
    server = here(hub)
    hub.pause_s = 0.05
    assert post(server, "tiny/load")["state"] == "downloading"
    assert post(server, "tiny/unload")["state"] == "downloading", "what comes is kept"
    hub.pause_s = 0.0
    until(server, "tiny", "cached", "ready", "failed")
    time.sleep(0.3)
    assert (model(server, "tiny")["state"], local.fake.loads) == ("cached", [])


def test_a_backend_that_is_not_installed_is_told_before_a_download(
    here: Callable[..., Server], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise EngineMissingError("Canary needs NeMo; install it")

    monkeypatch.setattr(canary, "installed", missing)
    server = here(hub)
    answer = server.http.post("/api/admin/models/canary-1b-v2/load")
    assert "needs NeMo" in answer.json()["error"]["message"]
    assert model(server, "canary-1b-v2")["state"] == "missing"
    assert not hub.fetched()


def test_a_load_takes_no_fields_that_nobody_reads(here: Callable[..., Server], local: FakeLocal) -> None:
    assert "device" in refusal(here(), "sphinx/load", 400, json={"device": "cuda"})
    assert local.fake.loads == []


def test_bodies_answers_and_keys_have_examples(here: Callable[..., Server]) -> None:
    told = here().http.get("/openapi.json").json()
    for name in ("AdminStatus", "ModelView", "LoadOrder", "Alive", "Readiness"):
        assert told["components"]["schemas"][name]["examples"], name
    paths = told["paths"]
    assert paths["/api/admin/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["example"]
    for path, item in paths.items():
        if path.startswith("/api/admin/models/"):
            for about in item.values():
                assert "large-v3" in about["parameters"][0]["schema"]["examples"]


@pytest.mark.parametrize("devices", [["cuda"], ["cpu", "cuda"], ["cpu:1"]])
def test_the_engine_has_one_device(here: Callable[..., Server], local: FakeLocal, devices: list[str]) -> None:
    assert "one device, cpu" in refusal(here(), "sphinx/load", 400, json={"devices": devices})
    assert local.fake.loads == []


# Download


def test_a_download_is_followed_cancelled_and_resumed(here: Callable[..., Server], hub: Hub) -> None:
    server = here(hub)
    hub.pause_s = 0.2
    assert post(server, f"{WHISPER}/download")["key"] == "tiny"
    end = time.monotonic() + PATIENCE_S
    while not ((now := model(server, "tiny"))["download"] or {}).get("bytes"):
        assert now["state"] == "downloading", now
        assert time.monotonic() < end
        time.sleep(0.02)
    size = now["download"]["total"]
    assert 0 < now["download"]["bytes"] < size
    assert now["download"]["percent"] == round(100 * now["download"]["bytes"] / size, 1)
    assert post(server, "tiny/download")["download"]["total"] == size, "a second one joins"
    cancelled = server.http.delete("/api/admin/models/tiny/download").json()
    assert (cancelled["state"], cancelled["last_error"]) == ("missing", None)
    hub.pause_s = 0.0
    kept = {path: path.stat().st_mtime_ns for path in server.settings.hf_home.rglob("blobs/*") if not path.suffix}
    assert kept
    post(server, "tiny/download")
    whole = until(server, "tiny", "cached", "failed")
    assert (whole["state"], whole["bytes"], whole["needs_gpu"]) == ("cached", size, False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was there was not fetched again"


def test_a_download_that_waits_for_its_turn_is_off_at_once(
    here: Callable[..., Server], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stockroom, "AT_ONCE", 1)
    server = here(hub)
    hub.pause_s = 0.2
    post(server, "tiny/download")
    assert post(server, "base/download")["state"] == "downloading"
    begin = time.monotonic()
    assert server.http.delete("/api/admin/models/base/download").json()["state"] == "missing"
    assert time.monotonic() - begin < 2
    assert post(server, "base/download")["state"] == "downloading"
    server.http.delete("/api/admin/models/base/download")
    hub.pause_s = 0.0
    until(server, "tiny", "cached")
    time.sleep(0.3)
    assert not [path for path in hub.fetched() if OTHER in path]


def test_what_is_cancelled_is_off_at_once_and_can_be_fetched_anew(
    here: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the server that it comes from has fallen silent, and the thread waits for it."""
    content = b"x" * 3000
    asked: list[str | None] = []

    def play(player: Player) -> None:
        asked.append(player.headers["Range"])
        if len(asked) > 1:
            said = f"bytes 1000-{len(content) - 1}/{len(content)}"
            player.answer(206, content[1000:], Content_Range=said)
            return
        player.start(200, Content_Length=len(content))
        player.wfile.write(content[:1000])
        player.stall()

    with Loopback() as source:
        monkeypatch.setattr(bundles, "BUNDLES", source.url("/models"))
        monkeypatch.setattr(bundles, "READ_S", 2.0)
        source.plays[f"/models/{bundles.FILES['WAV2VEC2_ASR_BASE_960H']}"] = play
        server = here(hf_hub_offline=False)
        post(server, "aligner:en/download")
        end = time.monotonic() + PATIENCE_S
        while (model(server, "aligner:en")["download"] or {}).get("bytes") != 1000:
            assert time.monotonic() < end
            time.sleep(0.02)
        told = model(server, "aligner:en")["download"]
        assert (told["total"], told["percent"]) == (3000, 33.3)
        begin = time.monotonic()
        cancelled = server.http.delete("/api/admin/models/aligner:en/download").json()
        assert (cancelled["state"], cancelled["last_error"]) == ("missing", None)
        assert time.monotonic() - begin < 1.5
        assert post(server, "aligner:en/download")["state"] == "downloading"
        assert asked == [None], "the first thread has the file still"
        whole = until(server, "aligner:en", "cached", "failed", "missing")
        assert (whole["state"], whole["bytes"]) == ("cached", 3000)
        assert asked == [None, "bytes=1000-"]
    assert [path.name for path in server.settings.hf_home.rglob("torchaudio/*")] == [
        bundles.FILES["WAV2VEC2_ASR_BASE_960H"]
    ]


def test_what_the_engine_fetches_is_a_download_that_is_joined(
    here: Callable[..., Server], local: FakeLocal, hub: Hub
) -> None:
    """As the default model at the first start."""
    server = here(hub)
    local.fake.gate.clear()
    local.fake.be(Warm(loading=(TINY_ONE,), fetched={TINY_ONE: 0.25}))
    told = until(server, "tiny", "downloading")
    assert (told["download"]["percent"], told["download"]["total"]) == (25.0, None)
    assert post(server, "tiny/load")["state"] == "downloading"
    told = post(server, "tiny/download")
    assert told["download"]["percent"] == 25.0
    assert told["download"]["bytes"] == told["download"]["total"] // 4 > 0, "the hub was asked"
    assert local.fake.loads == [TINY_ONE], "the engine knows what to do with it"
    local.fake.be(Warm(loading=(TINY_ONE,)))
    assert until(server, "tiny", "loading")["download"] is None, "it is all there"
    time.sleep(0.5)
    assert not hub.fetched(), "there was no second download"
    local.fake.be(Warm())  # the job that it was for was cancelled
    local.fake.gate.set()
    until(server, "tiny", "ready")
    end = time.monotonic() + PATIENCE_S
    while model(server, "tiny")["bytes"] == 0:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_download_that_stalls_has_no_speed(here: Callable[..., Server]) -> None:
    server, now = here(), 100.0
    download = Download(entry_named("tiny", server.settings), server.settings, lambda: now)
    assert download.pace.speed is None
    download._sizes[WHISPER] = 1000
    for size in (400, 500, 600):  # of which an earlier try had fetched 400
        download._note(WHISPER, size)
        now += 1.0
    assert download.pace.speed == pytest.approx(200 / 3)
    assert download.pace.eta_s == pytest.approx(400 / (200 / 3))
    now += 3.0
    assert download.pace.speed == pytest.approx(200 / 6)
    now += WINDOW_S
    assert (download.pace.speed, download.pace.eta_s) == (0.0, None)
    download._note(WHISPER, 700)
    now += 1.0
    assert download.pace.speed == pytest.approx(100 / (WINDOW_S + 5), rel=0.2)


def test_what_is_missing_is_fetched_before_it_is_loaded(
    here: Callable[..., Server], local: FakeLocal, hub: Hub
) -> None:
    server = here(hub)
    assert post(server, "tiny/load")["state"] == "downloading"
    assert until(server, "tiny", "ready", "failed")["state"] == "ready"
    assert local.fake.loads == [Choice("whisper", "tiny")]


def test_a_hub_that_refuses_is_told_at_once(here: Callable[..., Server]) -> None:
    server = here()
    for path in ("tiny/download", "tiny/load"):
        answer = server.http.post(f"/api/admin/models/{path}")
        assert answer.status_code in (404, 503)
        assert "HF_HUB_OFFLINE" in answer.json()["error"]["message"]
    assert "nothing to download" in refusal(server, "sphinx/download", 400)


def test_a_model_larger_than_the_memory_needs_a_gpu(
    here: Callable[..., Server], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "memory", lambda: Memory(1000, 1000))
    server = here(hub)
    for path in ("tiny/download", "tiny/load"):
        assert "tiny needs a GPU here" in refusal(server, path, 400)
    assert not hub.fetched()


# Events


@contextmanager
def events(server: Server) -> Iterator[Callable[[str], Any]]:
    """Read the stream: the data of the next event of a name."""
    with server.http.stream("GET", "/api/admin/events") as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()

        def following(name: str) -> Any:
            for line in lines:
                if line == f"event: {name}":
                    return json.loads(next(lines).removeprefix("data: "))
            raise AssertionError("the stream ended")

        yield following


def test_events_tell_of_models_and_the_queue(
    here: Callable[..., Server], local: FakeLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "LOOK_S", 0.02)
    server = here()
    with events(server) as following:
        assert {"sphinx", "embedded"} <= {view["key"] for view in following("models")}
        assert following("queue") == {"queued": 0, "running": 0}
        local.fake.hold(Choice("sphinx", "sphinx"))
        changed = following("model")
        assert (changed["key"], changed["state"]) == ("sphinx", "ready")
        gate = local.jobs.gated()
        server.http.post("/v1/jobs", json={"audio": "https://example.com/a.wav"})
        assert following("queue")["running"] in (0, 1)
        gate.set()
        post(server, "sphinx/unload")
        assert following("model")["state"] == "cached"
