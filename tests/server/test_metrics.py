"""The numbers at /metrics, read as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_runner import TRANSCRIPT, FakeRunner, Play
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from hansard.engine.host import EngineHost
from hansard.errors import AudioError
from hansard.request import parse
from hansard.server import metrics
from hansard.server.app import create_app
from hansard.server.gpus import Gpu
from hansard.server.job import Submission
from hansard.server.runners import LocalRunner
from hansard.settings import Settings

if TYPE_CHECKING:
    from conftest import Serve, Server

Read = Callable[..., float | None]


def numbers(server: Server) -> Read:
    """What /metrics says now: `read("hansard_jobs_total", state="failed")`, None where there is no such number."""
    answer = server.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }

    def read(name: str, /, **labels: str) -> float | None:
        return samples.get((name, frozenset(labels.items())))

    return read


def with_jobs(server: Server) -> Server:
    """An endpoint that has a job done, or only sent."""

    async def work(wait: bool = True) -> str:
        job = await server.core.submit(Submission(parse({"audio": "https://example.com/a.wav"})))
        return (await server.core.wait(job.id)).state if wait else job.id

    server.app.add_api_route("/work", work)
    return server


def test_jobs_are_counted_by_how_they_end(server: Server, runner: FakeRunner) -> None:
    with_jobs(server)
    assert server.http.get("/work").json() == "completed"
    assert server.http.get("/work").json() == "completed"
    runner.plays.append(Play(gives=AudioError("no")))
    assert server.http.get("/work").json() == "failed"
    read = numbers(server)
    assert read("hansard_jobs_total", state="completed") == 2
    assert read("hansard_jobs_total", state="failed") == 1
    assert read("hansard_job_errors_total", code="bad_audio") == 1
    assert read("hansard_audio_seconds_total") == 2 * TRANSCRIPT.duration
    assert read("hansard_stage_seconds_sum", stage="transcribe") == 2 * TRANSCRIPT.timings["transcribe"]
    assert read("hansard_job_seconds_count") == 2
    assert read("hansard_job_wait_seconds_count") == 3


def test_the_queue_is_told(server: Server, runner: FakeRunner) -> None:
    with_jobs(server)
    gate = runner.gated()
    for _ in range(3):
        server.http.get("/work?wait=false")
    read = numbers(server)
    assert (read("hansard_jobs_running"), read("hansard_jobs_queued")) == (1, 2)
    gate.set()
    assert server.http.get("/work").json() == "completed"
    read = numbers(server)
    assert (read("hansard_jobs_running"), read("hansard_jobs_queued")) == (0, 0)


def test_requests_are_counted_by_route_not_by_address(server: Server) -> None:
    for number in range(3):
        server.http.get(f"/v1/jobs/{number}")
        server.http.get(f"/nowhere/{number}/at/all/{number}")
    server.http.request("PROPFIND", "/v1/jobs/1")
    read = numbers(server)
    assert read("hansard_http_requests_total", method="GET", route="/v1/jobs/{job_id}", status="404") == 3
    assert read("hansard_http_requests_total", method="GET", route="none", status="404") == 3
    assert read("hansard_http_requests_total", method="other", route="/v1/jobs/{job_id}", status="405") == 1
    assert read("hansard_http_request_seconds_count", route="none") == 3
    assert read("hansard_errors_total", code="job_not_found") == 3
    assert read("hansard_errors_total", code="not_found") == 3


def test_each_server_counts_for_itself(serve: Serve, tmp_path: Path) -> None:
    first, other = serve(), serve(runner=FakeRunner(), state_dir=tmp_path / "other")
    first.http.get("/nowhere")
    assert numbers(other)("hansard_errors_total", code="not_found") is None


def test_gpus_are_told_where_there_are_any(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = (Gpu(0, "H200", 3_000, 140_000, 25), Gpu(1, "H200 slice", 1_000, 20_000, None))
    monkeypatch.setattr(metrics, "gpus", lambda: seen)
    read = numbers(server)
    assert read("hansard_gpu_memory_used_bytes", gpu="0", name="H200") == 3_000
    assert read("hansard_gpu_memory_bytes", gpu="1", name="H200 slice") == 20_000
    assert read("hansard_gpu_busy_ratio", gpu="0", name="H200") == 0.25
    assert read("hansard_gpu_busy_ratio", gpu="1", name="H200 slice") is None


def test_gpus_that_are_gone_are_told_no_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [(Gpu(0, "H200", 3_000, 140_000, 25),), ()]
    monkeypatch.setattr(metrics, "gpus", lambda: seen.pop(0))
    assert numbers(server)("hansard_gpu_busy_ratio", gpu="0", name="H200") == 0.25
    read = numbers(server)
    for name in ("memory_used_bytes", "memory_bytes", "busy_ratio"):
        assert read(f"hansard_gpu_{name}", gpu="0", name="H200") is None


def test_the_state_of_the_engine_and_its_restarts_are_told(
    settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, restarts = ["starting", "ready", "down"], [0, 2, 3]
    monkeypatch.setattr(EngineHost, "start", lambda self: None)
    monkeypatch.setattr(EngineHost, "state", property(lambda self: states[0]))
    monkeypatch.setattr(EngineHost, "restarts", property(lambda self: restarts[0]))
    settings = settings_of(default_model="sphinx", diarization_model="embedded")
    with TestClient(create_app(settings, LocalRunner(settings)), base_url="http://127.0.0.1") as client:
        while states:
            lines = client.get("/metrics").text.splitlines()
            for state in ("starting", "ready", "unfit", "down"):
                assert f'hansard_engine_up{{state="{state}"}} {float(state == states[0])}' in lines
            assert f"hansard_engine_restarts_total {float(restarts[0])}" in lines
            states.pop(0), restarts.pop(0)


def test_of_an_engine_elsewhere_nothing_is_told(server: Server) -> None:
    read = numbers(server)
    assert read("hansard_engine_up", state="ready") is None


def test_no_series_tells_when_another_began(server: Server) -> None:
    server.http.get("/nowhere")
    assert "_created" not in server.http.get("/metrics").text


def test_no_driver_is_no_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert numbers(server)("hansard_gpu_memory_bytes", gpu="0", name="any") is None


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"Authorization": "Bearer sk-one"}, 200)])
def test_numbers_need_a_key_where_there_are_keys(serve: Serve, headers: dict[str, Any], status: int) -> None:
    assert serve(api_keys=("sk-one",)).http.get("/metrics", headers=headers).status_code == status
