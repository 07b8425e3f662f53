"""The files of deploy/ fit the server: its settings, port, commands, limits and time-outs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from hansard.server import __main__ as command
from hansard.server.multipart import TEXT_MB
from hansard.settings import Settings
from places import ROOT

DEPLOY = ROOT / "deploy"
CADDY = (DEPLOY / "Caddyfile").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()
UNIT_TEXT = (DEPLOY / "hansard.service").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETTINGS = {name.upper() for name in Settings.model_fields}
NOT_OURS = {"PYTHONPATH"}
LIMIT_MB = Settings.model_fields["max_audio_mb"].default + TEXT_MB  # the largest body that the server takes


def defaults(name: str) -> Any:
    """A setting's default, whatever the environment of the tests says."""
    return Settings.model_fields[name].default


@pytest.fixture(scope="module")
def unit() -> ConfigParser:
    class Repeated(dict[str, Any]):
        """A key that comes again adds to its value."""

        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, self[key] + value if key in self and isinstance(value, list) else value)

    parser = ConfigParser(dict_type=Repeated, strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT_TEXT)
    return parser


def environment(unit: ConfigParser) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(unit["Service"]["Environment"].replace("\n", " ")))


# Where requests go


def test_proxies_lead_to_the_servers_port() -> None:
    port = defaults("host_port")
    assert re.findall(r"reverse_proxy (\S+) {", CADDY) == [f"127.0.0.1:{port}"]
    assert re.findall(r"^ +server (\S+);", NGINX, re.MULTILINE) == [f"127.0.0.1:{port}"]
    for service in COMPOSE["services"].values():
        assert [published.rsplit(":", 1)[1] for published in service["ports"]] == [str(port)]
    assert f"EXPOSE {port}\n" in DOCKERFILE


def test_proxies_take_the_largest_recording_and_leave_the_refusal_to_the_server() -> None:
    assert int(re.findall(r"max_size (\d+)MB", CADDY)[0]) > LIMIT_MB
    assert int(re.findall(r"client_max_body_size (\d+)m;", NGINX)[0]) > LIMIT_MB


def test_proxies_hold_nothing_back() -> None:
    assert "proxy_request_buffering off;" in NGINX
    assert "proxy_buffering off;" in NGINX
    assert int(re.findall(r"flush_interval (-?\d+)s", CADDY)[0]) == 1  # -1 would keep jobs that nobody waits for


def test_proxies_wait_as_long_as_the_longest_recording_may_take() -> None:
    """A third of its length; Caddy waits for any time unless it is told otherwise."""
    hours = int(re.findall(r"proxy_read_timeout (\d+)h;", NGINX)[0])
    assert hours * 3 >= defaults("max_audio_hours")
    assert not re.search(r"timeout|response_header", CADDY)


def test_proxies_let_go_of_connections_before_the_server_does() -> None:
    assert int(re.findall(r"keepalive (\d+)s", CADDY)[0]) < command.KEEP_ALIVE_S
    assert int(re.findall(r"keepalive_timeout (\d+)s;", NGINX)[0]) < command.KEEP_ALIVE_S


def test_nginx_passes_what_the_server_reads() -> None:
    headers = dict(re.findall(r"proxy_set_header (\S+) (\S+);", NGINX))
    assert headers["Host"] == "$http_host"
    assert headers["X-Request-ID"] == "$hansard_request_id"
    assert headers["Connection"] == '""'


# What is started


def test_variables_are_settings(unit: ConfigParser) -> None:
    named = set(environment(unit)) - NOT_OURS
    for service in COMPOSE["services"].values():
        named |= set(service["environment"])
    for text in (CADDY, NGINX, UNIT_TEXT, (DEPLOY / "compose.yaml").read_text()):
        named |= set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b(?!=\w*/src)", text)) - {"AF_INET", "AF_UNIX", "AF_NETLINK"}
    assert named <= SETTINGS
    assert {"API_KEYS", "STATE_DIR", "HF_HOME"} <= named


def test_the_unit_starts_the_server_that_the_clone_holds(unit: ConfigParser) -> None:
    service = unit["Service"]
    clone = Path(service["WorkingDirectory"])
    python, *_, option, module = shlex.split(service["ExecStart"])
    assert (option, module) == ("-m", "hansard.server")
    assert Path(python) == clone / ".venv/bin/python"
    assert environment(unit)["PYTHONPATH"] == str(clone / "src")
    assert (ROOT / "src/hansard/server/__main__.py").is_file()
    for file in re.findall(r"builder/\S+|requirements\.txt|deploy/\S+", UNIT_TEXT):
        assert (ROOT / file).is_file(), file


def test_the_unit_lets_the_server_write_where_it_is_told_to(unit: ConfigParser) -> None:
    service, told = unit["Service"], environment(unit)
    assert service["ProtectSystem"] == "strict"
    assert told["STATE_DIR"] == f"/var/lib/{service['StateDirectory']}"
    assert told["HF_HOME"] == f"/var/cache/{service['CacheDirectory']}"
    assert told["WORK_DIR"] == "/var/tmp"
    assert service["PrivateTmp"] == "true"


def test_the_unit_leaves_cuda_alone(unit: ConfigParser) -> None:
    closed = {"PrivateDevices", "ProtectClock", "ProcSubset", "MemoryDenyWriteExecute", "DeviceAllow", "DevicePolicy"}
    assert not closed & set(unit["Service"])


def test_whoever_stops_the_server_waits_for_its_end(unit: ConfigParser) -> None:
    needs = command.GRACE_S + defaults("cancel_grace_s") + 10  # and the engine's own end
    assert int(unit["Service"]["TimeoutStopSec"]) > needs
    assert unit["Service"]["KillMode"] == "mixed"
    for service in COMPOSE["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) > needs


def test_compose_starts_images_that_are_built() -> None:
    tags = re.findall(r'tags += \["\$\{IMAGE\}:(\w+)"\]', (ROOT / "docker-bake.hcl").read_text())
    assert {name: service["profiles"] for name, service in COMPOSE["services"].items()} == {
        "cpu": ["cpu"],
        "cuda": ["cuda"],
    }
    for service in COMPOSE["services"].values():
        image, tag = service["image"].split(":")
        assert image == "hansard"
        assert tag in tags
        assert service["command"] == ["python", "-m", "hansard.server"]
    devices = COMPOSE["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_compose_leaves_the_check_to_the_image() -> None:
    """Which knows of servers without an engine, too."""
    assert 'CMD ["python", "-m", "hansard.health"]' in DOCKERFILE
    for service in COMPOSE["services"].values():
        assert "healthcheck" not in service
        assert service["environment"]["HOST_PORT"] == defaults("host_port")


def test_volumes_lie_where_the_image_keeps_things_and_belong_to_its_user() -> None:
    steps = re.findall(r"install --directory --owner hansard --group hansard ([^&\n\\]*(?:\\\n[^&\n\\]*)*)", DOCKERFILE)
    made = " ".join(steps).split()
    for service in COMPOSE["services"].values():
        where = dict(volume.split(":") for volume in service["volumes"])
        assert set(where) == set(COMPOSE["volumes"])
        assert set(where.values()) <= set(made)
        assert where["state"] == re.findall(r"STATE_DIR=(\S+)", DOCKERFILE)[0]
        assert where["models"] == str(defaults("hf_home")).replace("~", "/home/hansard")


def test_no_key_can_be_committed() -> None:
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert COMPOSE["services"]["cpu"]["env_file"] == ".env"
    assert COMPOSE["services"]["cpu"]["environment"]["API_KEYS"].startswith("${API_KEYS:?")


# What the programs themselves say, where they are installed


def _at(folder: Path) -> Callable[[re.Match[str]], str]:
    names = {"ssl_certificate": "cert.pem", "ssl_certificate_key": "key.pem"}
    return lambda match: f"{match[1]} {folder}/{names[match[1]]};"


def test_nginx_takes_its_site(tmp_path: Path) -> None:
    nginx = shutil.which("nginx")
    openssl = shutil.which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("nginx or openssl is not installed")
    pair = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", *pair]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    site = re.sub(r"(ssl_certificate|ssl_certificate_key) \S+/asr.example.com\.\w+;", _at(tmp_path), NGINX)
    (tmp_path / "site.conf").write_text(site.replace(":443 ssl", ":18443 ssl").replace(" 443 ssl", " 18443 ssl"))
    whole = (
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; include {tmp_path}/site.conf; }}"
    )
    (tmp_path / "nginx.conf").write_text(whole)
    done = subprocess.run(
        [nginx, "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_caddy_takes_its_file() -> None:
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("caddy is not installed")
    checked = [caddy, "validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile"]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
