"""Who is let in, as whom, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends

from hansard.errors import RateError
from hansard.server.access import Caller, Rate, admin, caller

if TYPE_CHECKING:
    from conftest import Serve, Server

KEYS = {"api_keys": ("sk-one", "sk-two"), "admin_keys": ("sk-admin",)}


def door(serve: Serve, **given: Any) -> Server:
    """A server with an endpoint for every caller and one for admins."""
    server = serve(**given)

    async def who(caller: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        return {"owner": caller.owner, "admin": caller.admin}

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
    ],
)
def test_without_keys_nothing_leads_here_from_elsewhere(serve: Serve, headers: dict[str, str]) -> None:
    """Neither a name that was made to lead to 127.0.0.1, nor a page of another site, nor a proxy."""
    server = door(serve)
    refused = server.http.get("/who", headers=headers)
    assert refused.status_code == 401
    assert "API_KEYS" in refused.json()["error"]["message"]
    assert server.http.get("/healthz", headers=headers).status_code == 200


def test_an_allowed_page_may_call_without_keys(serve: Serve) -> None:
    server = door(serve, allow_origins=("https://example.com",))
    assert server.http.get("/who", headers={"Origin": "https://example.com"}).status_code == 200


def test_anonymous_callers_from_elsewhere_are_no_admins(serve: Serve) -> None:
    server = door(serve, allow_anonymous=True)
    elsewhere = {"Host": "asr.example.com"}
    assert server.http.get("/who", headers=elsewhere).json() == {"owner": "", "admin": False}
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
