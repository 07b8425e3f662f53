"""The server as a whole: what is public, ids, logs, pages of other sites, and how the process begins and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx
import pytest
from fake_runner import FakeRunner

from hansard import joblog
from hansard.engine.host import EngineHost
from hansard.errors import SettingsError
from hansard.server import logs, requests
from hansard.server.__main__ import _listen, address
from hansard.server.app import create_app
from hansard.server.runners import LocalRunner
from hansard.settings import Settings
from places import ROOT

if TYPE_CHECKING:
    from conftest import Serve, Server

PUBLIC = ("/healthz", "/readyz", "/docs", "/openapi.json")
SAY_NO_MORE = ("/health", "/status")  # than that the server lives, in the words of other servers


@pytest.mark.parametrize("path", PUBLIC)
def test_health_and_docs_are_public(serve: Serve, path: str) -> None:
    assert serve(api_keys=("sk-one",)).http.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_may_be_asked_for_without_a_body(server: Server, path: str) -> None:
    answer = server.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == server.http.get(path).headers["content-length"]


def test_everything_else_needs_a_key(serve: Serve) -> None:
    """Whatever a router adds: an endpoint that forgets to ask is found here."""
    server = serve(api_keys=("sk-one",))
    asked = 0
    for path, methods in server.http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            if path in (*PUBLIC, *SAY_NO_MORE):
                continue
            answer = server.http.request(method, path.replace("{", "").replace("}", ""))
            assert answer.status_code == 401, (method, path)
            asked += 1
    assert asked > 20


def test_the_schema_tells_of_errors_and_keys(server: Server) -> None:
    schema = server.http.get("/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}
    assert "HTTPValidationError" not in schema["components"]["schemas"], "errors have one shape"
    operation = schema["paths"]["/v1/jobs/{job_id}"]["get"]
    assert {"4XX", "5XX"} <= set(operation["responses"])
    assert operation["security"]


def test_an_id_of_the_callers_is_kept_where_it_is_sane(server: Server) -> None:
    def id_for(given: str) -> str:
        return server.http.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"]

    assert id_for("job-7/a.b:c") == "job-7/a.b:c"
    made = {
        id_for(""),
        id_for("with space"),
        id_for("x" * 129),
        id_for("a;b"),
        server.http.get("/").headers["x-request-id"],
    }
    assert len(made) == 5
    assert all(one.startswith("req_") for one in made)


def test_readiness_follows_the_queue(serve: Serve, runner: FakeRunner) -> None:
    server = serve(max_queue=1)
    assert server.http.get("/readyz").json() == {"ready": True, "problem": None, "queued": 0, "running": 0}
    gate = runner.gated()
    assert server.http.post("/v1/jobs", json={"audio": "https://example.com/a.wav"}).status_code == 202
    while server.core.running == 0:
        server.http.get("/healthz")
    assert server.http.post("/v1/jobs", json={"audio": "https://example.com/b.wav"}).status_code == 202
    answer = server.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "problem": "the queue is full", "queued": 1, "running": 1}
    gate.set()


@pytest.mark.parametrize(
    ("state", "lazy", "ready"),
    [
        ("ready", False, True),
        ("starting", False, False),
        ("unfit", False, False),
        ("down", False, False),
        ("down", True, True),
        ("starting", True, False),
    ],
)
def test_readiness_follows_the_engine(
    settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, state: str, lazy: bool, ready: bool
) -> None:
    from starlette.testclient import TestClient

    monkeypatch.setattr(EngineHost, "start", lambda self: None)
    monkeypatch.setattr(EngineHost, "state", property(lambda self: state))
    settings = settings_of(lazy_load_models=lazy, default_model="sphinx", diarization_model="embedded")
    with TestClient(create_app(settings, LocalRunner(settings))) as client:
        answer = client.get("/readyz")
    assert answer.status_code == (200 if ready else 503)
    assert answer.json()["ready"] is ready
    assert bool(answer.json()["problem"]) is not ready


def test_pages_of_allowed_sites_may_read_answers(serve: Serve) -> None:
    server = serve(api_keys=("sk-one",), allow_origins=("https://app.example.com",))
    asked = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    allowed = server.http.options("/v1/jobs", headers=asked)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"
    refused = server.http.get("/v1/jobs", headers={"Origin": "https://app.example.com"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "x-request-id" in refused.headers["access-control-expose-headers"].lower()
    other = server.http.get("/healthz", headers={"Origin": "https://other.example.com"})
    assert "access-control-allow-origin" not in other.headers


def test_no_page_may_read_answers_by_default(server: Server) -> None:
    answer = server.http.get("/healthz", headers={"Origin": "https://app.example.com"})
    assert "access-control-allow-origin" not in answer.headers


def test_the_log_names_requests_and_no_secrets(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        server.http.get("/v1/jobs/a%0Ab?token=sk-secret", headers={"x-request-id": "mine"})
        server.http.get("/healthz")
    lines = [record.getMessage() for record in caplog.records if record.name == "hansard.server.requests"]
    assert len(lines) == 1
    assert lines[0].startswith("GET /v1/jobs/a%0Ab 404 in ")
    assert not [record for record in caplog.records if ours(record) and "sk-secret" in record.getMessage()]


def test_the_log_tells_addresses_only(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for told in ("192.0.2.7", "no address", "::1%x"):
            server.http.get("/v1/jobs/a", headers={"X-Forwarded-For": told})
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [field["client"] for field in fields] == ["192.0.2.7", "-", "::1"]


def ours(record: logging.LogRecord) -> bool:
    """Not by the client, nor by the test server's own access log, which the real one has turned off."""
    return record.name.startswith("hansard")


@contextmanager
def logging_as(settings: Settings) -> Iterator[None]:
    """The process's log as the server writes it, and afterwards as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.set_up(settings)
        yield
    finally:
        for handler in set(root.handlers) - set(before):
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)


def logged(settings: Settings, capsys: pytest.CaptureFixture[str]) -> str:
    """An error with a traceback, as it is written in the course of a request."""
    token = requests.current.set("req_1")
    with logging_as(settings):
        try:
            int("the key sk-secret-of-ours")
        except ValueError:
            logging.getLogger("hansard.x").exception("failed\nfor hf_abcdefgh", extra={"job": "job_1"})
    requests.current.reset(token)
    return capsys.readouterr().err


@pytest.mark.parametrize("log_json", [True, False])
def test_what_a_job_brought_is_not_logged_while_it_runs(
    settings_of: Callable[..., Settings], capsys: pytest.CaptureFixture[str], log_json: bool
) -> None:
    def line() -> str:
        with logging_as(settings_of(log_json=log_json)):
            logging.getLogger("hansard.x").info("the hub refused open-sesame")
        return capsys.readouterr().err

    joblog.register("job_1", ["open-sesame"])
    assert "refused ***" in line()
    joblog.forget("job_1")
    assert "refused open-sesame" in line()


def test_lines_of_json(settings_of: Callable[..., Settings], capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(settings_of(log_json=True, api_keys=("sk-secret-of-ours",)), capsys)
    assert line.count("\n") == 1
    told = json.loads(line)
    assert told.pop("time").endswith("+00:00")
    assert told.pop("traceback").endswith("10: 'the key ***'")
    assert told == {
        "level": "ERROR",
        "logger": "hansard.x",
        "message": "failed\nfor hf_***",
        "request_id": "req_1",
        "job_id": "job_1",
    }


def test_lines_of_text(
    settings_of: Callable[..., Settings], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = settings_of(api_keys=("sk-secret-of-ours",), log_file=tmp_path / "log.txt")
    text = logged(settings, capsys)
    assert "ERROR hansard.x [req_1 job_1] failed\nfor hf_***\nTraceback" in text
    assert text.endswith("10: 'the key ***'\n")
    assert (tmp_path / "log.txt").read_text() == text


def test_a_log_file_that_cannot_be_is_told(settings_of: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LOG_FILE"), logging_as(settings_of(log_file=tmp_path / "no" / "log.txt")):
        pass


def test_a_caller_that_still_waits_when_the_server_ends_is_told_to_come_back(serve: Serve) -> None:
    server = serve()
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    server.app.add_api_route("/wait", wait)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.get, f"{server.url}/wait", timeout=60, trust_env=False)
        assert waiting.wait(60)
        server.stop()
        answer = asked.result(60)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "stopping"
    assert "retry-after" in answer.headers
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({}, "127.0.0.1"),
        ({"admin_keys": ("k",)}, "127.0.0.1"),
        ({"api_keys": ("k",)}, "0.0.0.0"),
        ({"allow_anonymous": True}, "0.0.0.0"),
        ({"host_bind_address": "::1"}, "::1"),
        ({"host_bind_address": "localhost"}, "localhost"),
        ({"host_bind_address": "10.0.0.1", "api_keys": ("k",)}, "10.0.0.1"),
        ({"host_bind_address": "127.0.0.1", "api_keys": ("k",)}, "127.0.0.1"),
    ],
)
def test_where_it_listens(settings_of: Callable[..., Settings], given: dict[str, Any], host: str) -> None:
    assert address(settings_of(**given)) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_nobody_listens_to_the_world_without_keys(settings_of: Callable[..., Settings], host: str) -> None:
    with pytest.raises(SettingsError, match="API_KEYS"):
        address(settings_of(host_bind_address=host))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6, or not beside IPv4")
def test_every_address_is_of_either_kind() -> None:
    with _listen("::", 0) as listener:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1]), timeout=60).close()


# The process


def process(folder: Path, **given: str) -> subprocess.Popen[str]:
    """The real command, without an engine: it would only be started by a job."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "src"),
        "DEFAULT_MODEL": "sphinx",
        "DIARIZATION_MODEL": "embedded",
        "LAZY_LOAD_MODELS": "true",
        "STATE_DIR": str(folder / "state"),
        "WORK_DIR": str(folder / "work"),
        "HF_HOME": str(folder / "hub"),
        "HOST_PORT": "0",
        "LOG_JSON": "true",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "hansard.server"], env=environment | given, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def started(stderr: IO[str]) -> tuple[str, list[str]]:
    """Where a process listens, and what it says at its start: three lines."""
    lines = [json.loads(stderr.readline())["message"] for _ in range(3)]
    return lines[0].split()[2], lines


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_cleanly(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    with process(tmp_path) as server:
        assert server.stderr
        url, lines = started(server.stderr)
        assert lines[1:] == [
            "jobs are done by this machine: sphinx, speakers by embedded",
            "no key is needed; set API_KEYS to be reached from other machines",
        ]
        assert httpx.get(f"{url}/healthz", trust_env=False, timeout=60).json() == {"status": "ok"}
        server.send_signal(sent)
        rest = server.stderr.read()
        assert server.wait(60) == code
    assert "Traceback" not in rest
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.timeout(120)
def test_what_keeps_it_from_starting_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        runs = {
            "HOST_PORT": process(tmp_path, HOST_PORT=port),
            "API_KEYS": process(tmp_path, HOST_BIND_ADDRESS="0.0.0.0"),
            "STATE_DIR": process(tmp_path, STATE_DIR=str(tmp_path / "file")),
            "8 characters": process(tmp_path, API_KEYS="secret"),
            "ALLOW_ORIGINS": process(tmp_path, ALLOW_ORIGINS="*"),
        }
        for name, run in runs.items():
            with run:
                said = run.communicate(timeout=60)[1]
                assert run.returncode == 1, said
                assert "Traceback" not in said
                assert said.splitlines()[-1].startswith("invalid_settings: ")
                assert name in said.splitlines()[-1]


@pytest.mark.timeout(120)
def test_the_process_keeps_to_itself_and_to_its_limits(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    before = os.umask(0o022)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    given = {"ALLOW_ANONYMOUS": "true", "HOST_BIND_ADDRESS": "127.0.0.1", "FORWARDED_ALLOW_IPS": "192.0.2.1"}
    try:
        server = process(tmp_path, **given, RATE_LIMIT="1")
    finally:
        os.umask(before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with server:
        try:
            assert server.stderr
            url, lines = started(server.stderr)
            assert "see each other's jobs" in lines[2]
            assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                assert client.get("/healthz", headers={"X": "x" * 70_000}).status_code == 431
                from_7, from_8 = ({"X-Forwarded-For": f"192.0.2.{number}"} for number in (7, 8))
                asked = [client.get("/v1/jobs", headers=headers).status_code for headers in (from_7, from_8, from_8)]
            assert asked == [200, 200, 429]
            files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
            assert files
            assert {path.stat().st_mode & 0o077 for path in files} == {0}
        finally:
            server.terminate()
            server.communicate()


def test_the_command_says_how_to_use_it() -> None:
    told = subprocess.run([ROOT / "builder/serve", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.startswith("Set up what is missing")
    assert "usage: builder/serve" in told.stdout
    for wrong in (["--nothing"], ["--profile", "nobody"], ["--profile"]):
        run = subprocess.run([ROOT / "builder/serve", *wrong], capture_output=True, text=True, check=False, timeout=60)
        assert run.returncode != 0
        assert "builder/serve" in run.stderr
