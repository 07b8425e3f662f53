"""Who is let in, as whom, and how often."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends

from hansard.errors import RateError, SettingsError
from hansard.server import access
from hansard.server.access import FORWARDING, Caller, Rate, address_of, admin, caller, is_loopback
from hansard.settings import Settings

if TYPE_CHECKING:
    from conftest import Serve, Server

KEYS = {"api_keys": ("sk-one", "sk-two"), "admin_keys": ("sk-admin",)}


def door(serve: Serve, **given: Any) -> Server:
    """A server with an endpoint for every caller and one for admins."""
    server = serve(**given)

    async def who(caller: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        return {"owner": caller.owner, "admin": caller.admin} | ({"shared": True} if caller.shared else {})

    async def models(caller: Annotated[Caller, Depends(admin)]) -> str:
        return "yours"

    server.app.add_api_route("/who", who)
    server.app.add_api_route("/models", models)
    return server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_known_key_is_let_in_however_it_is_sent(serve: Serve) -> None:
    server = door(serve, **KEYS)
    ways = [
        bearer("sk-one"),
        {"authorization": "bearer  sk-one"},
        {"Authorization": "sk-one"},
        {"x-api-key": "sk-one"},
    ]
    ways.append({"Authorization": "Basic dXNlcjpwYXNz", "x-api-key": "sk-one"})
    owners = {server.http.get("/who", headers=way).json()["owner"] for way in ways}
    assert len(owners) == 1
    owner = owners.pop()
    assert len(owner) == 16
    assert "sk-one" not in owner
    assert server.http.get("/who", headers=bearer("sk-two")).json() not in ({"owner": owner, "admin": False}, {})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("sk-three"),
        {"Authorization": "Bearer"},
        bearer("sk-one sk-two"),
        bearer("SK-ONE"),
        {"Authorization": "Basic sk-one"},
        {"Authorization": b"Bearer sk-\xff"},
        {"x-api-key": "sk-on"},
    ],
    ids=["none", "unknown", "empty", "two", "case", "basic", "bytes", "prefix"],
)
def test_others_are_not(serve: Serve, headers: dict[str, Any]) -> None:
    server = door(serve, **KEYS)
    answer = server.http.get("/who", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "access_denied"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert "sk-" not in answer.text


def test_admins_are_callers_too_and_callers_no_admins(serve: Serve) -> None:
    server = door(serve, **KEYS)
    assert server.http.get("/who", headers=bearer("sk-admin")).json()["admin"] is True
    assert server.http.get("/models", headers=bearer("sk-admin")).json() == "yours"
    assert server.http.get("/models").status_code == 401
    refused = server.http.get("/models", headers=bearer("sk-one"))
    assert refused.status_code == 403
    assert "ADMIN_KEYS" in refused.json()["error"]["message"]


def test_without_keys_this_machine_may_do_everything(serve: Serve) -> None:
    """Clients that cannot go without a key send any."""
    server = door(serve)
    assert server.http.get("/who").json() == {"owner": "", "admin": True}
    assert server.http.get("/who", headers=bearer("whatever")).json() == {"owner": "", "admin": True}
    assert server.http.get("/who", headers={"Host": "localhost"}).status_code == 200
    assert server.http.get("/who", headers={"Host": "[::1]:8000"}).status_code == 200
    assert server.http.get("/who", headers={"Origin": server.url}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "asr.example.com"},
        {"Host": "127.0.0.1.example.com"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        *({name: "127.0.0.1"} for name in FORWARDING),
    ],
    ids=str,
)
def test_without_keys_nothing_leads_here_from_elsewhere(serve: Serve, headers: dict[str, str]) -> None:
    """Neither a name that was made to lead to 127.0.0.1, nor a page of another site, nor a proxy."""
    server = door(serve)
    refused = server.http.get("/who", headers=headers)
    assert refused.status_code == 401
    assert "API_KEYS" in refused.json()["error"]["message"]
    assert server.http.get("/healthz", headers=headers).status_code == 200


def test_an_allowed_page_may_call_without_keys(serve: Serve) -> None:
    """But it is no admin: who sits at this machine is, not whose page happens to be open there."""
    server = door(serve, allow_origins=("https://example.com",))
    answer = server.http.get("/who", headers={"Origin": "https://example.com"})
    assert answer.json() == {"owner": "", "admin": False}
    assert server.http.get("/models", headers={"Origin": "https://example.com"}).status_code == 403


def test_not_every_page_may_call_without_keys(serve: Serve) -> None:
    """However the server was told so: started that way it does not even begin."""
    server = door(serve, allow_origins=("*",))
    assert server.http.get("/who", headers={"Origin": "https://example.com"}).status_code == 401


def test_a_proxy_that_hides_is_no_admin(serve: Serve) -> None:
    """As nginx's `proxy_pass` speaks when nothing else is set."""
    server = door(serve)
    for version, status in ((b"1.0", b" 403 "), (b"1.1", b" 200 ")):
        with socket.create_connection((server.http.base_url.host, server.http.base_url.port)) as raw:
            raw.settimeout(60)
            raw.sendall(b"GET /models HTTP/" + version + b"\r\nHost: 127.0.0.1:8000\r\nConnection: close\r\n\r\n")
            assert status in raw.recv(1000)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"api_keys": ("1234567",)}, "API_KEYS"),
        ({"api_keys": ("12345678", "1234567 ")}, "API_KEYS"),
        ({"api_keys": ("12345678",), "admin_keys": ("k",)}, "ADMIN_KEYS"),
        ({"allow_origins": ("*",)}, "ALLOW_ORIGINS"),
        ({"allow_origins": ("https://example.com", "*"), "admin_keys": ("12345678",)}, "ALLOW_ORIGINS"),
    ],
)
def test_what_lets_anybody_in_is_refused(
    settings_of: Callable[..., Settings], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError, match=told) as refused:
        access.check(settings_of(**given))
    assert "1234567" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"api_keys": ("12345678",), "allow_origins": ("*",)},
        {"allow_anonymous": True, "allow_origins": ("*",)},
        {"allow_origins": ("https://example.com",)},
    ],
)
def test_what_does_not_is_taken(settings_of: Callable[..., Settings], given: dict[str, Any]) -> None:
    access.check(settings_of(**given))


@pytest.mark.parametrize(
    ("client", "told"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8::1", 5), "2001:db8::1"),
        (("fe80::1%eth0", 5), "fe80::1"),
        (("::1%\nGET / 200", 5), "::1"),
        (("anything at all", 0), None),
        (None, None),
    ],
)
def test_an_address_is_one_or_nothing(client: tuple[str, int] | None, told: str | None) -> None:
    address = address_of({"client": client})
    assert (str(address) if address else None) == told


def test_what_this_machine_is() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost", "a.localhost")))
    assert not any(map(is_loopback, ("", "192.0.2.1", "::", "::ffff:192.0.2.1", "localhost.example.com", "1%1")))


def test_anonymous_callers_from_elsewhere_are_no_admins(serve: Serve) -> None:
    server = door(serve, allow_anonymous=True)
    elsewhere = {"Host": "asr.example.com"}
    assert server.http.get("/who", headers=elsewhere).json() == {"owner": "", "admin": False, "shared": True}
    assert server.http.get("/models", headers=elsewhere).status_code == 403


def test_admin_keys_alone_leave_the_rest_open(serve: Serve) -> None:
    server = door(serve, admin_keys=("sk-admin",))
    assert server.http.get("/who").json() == {"owner": "", "admin": False}
    assert server.http.get("/models", headers=bearer("sk-admin")).status_code == 200


def test_each_key_has_its_own_rate(serve: Serve) -> None:
    server = door(serve, **KEYS, rate_limit=2)
    assert [server.http.get("/who", headers=bearer("sk-one")).status_code for _ in range(3)] == [200, 200, 429]
    refused = server.http.get("/who", headers=bearer("sk-one"))
    assert refused.json()["error"]["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert server.http.get("/who", headers=bearer("sk-two")).status_code == 200
    assert server.http.get("/healthz").status_code == 200


def test_callers_without_a_key_are_told_apart_by_their_address(serve: Serve) -> None:
    """As a proxy on this machine tells it; one line of IPv6 has as many addresses as it likes."""
    server = door(serve, allow_anonymous=True, rate_limit=1)

    def status(address: str) -> int:
        return server.http.get("/who", headers={"X-Forwarded-For": address}).status_code

    assert [status("192.0.2.1"), status("192.0.2.1"), status("192.0.2.2")] == [200, 429, 200]
    assert [status("2001:db8::1"), status("2001:db8::2"), status("2001:db8:0:1::1")] == [200, 429, 200]
    assert [status("made up"), status("made up again")] == [200, 429]


def test_only_so_many_callers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MOST_COUNTED", 3)
    rate = Rate(2)
    for name in ("a", "b", "c", "a", "d"):
        rate.count(name)
    assert list(rate._times) == ["c", "a", "d"]


def test_the_window_slides() -> None:
    now = [1000.0]
    rate = Rate(3, lambda: now[0])
    for moment in (0, 20, 40):
        now[0] = 1000 + moment
        rate.count("a")
    now[0] = 1059.5
    with pytest.raises(RateError) as refused:
        rate.count("a")
    assert refused.value.retry_after_s == 1
    rate.count("b")
    now[0] = 1060.5
    rate.count("a")
    with pytest.raises(RateError) as refused:
        rate.count("a")
    assert refused.value.retry_after_s == 20


def test_waiting_as_long_as_told_is_enough() -> None:
    now = [0.0]
    rate = Rate(1, lambda: now[0])
    rate.count("a")
    for moment in (0.0, 0.4, 17.2, 59.9):
        now[0] = moment
        with pytest.raises(RateError) as refused:
            rate.count("a")
        assert moment + refused.value.retry_after_s >= 60
    now[0] += refused.value.retry_after_s
    rate.count("a")


def test_no_limit_remembers_nothing() -> None:
    rate = Rate(0)
    for _ in range(100):
        rate.count("a")
    assert rate._times == {}
