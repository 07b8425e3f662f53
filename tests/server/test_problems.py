"""Every error as a caller meets it: OpenAI's shape, the right status, and word of whether to try again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import openai
import pytest
from fastapi import Query
from fastapi.responses import StreamingResponse

from hansard.errors import HansardError, RateError, from_code
from hansard.server.problems import KINDS

if TYPE_CHECKING:
    from conftest import Serve, Server

RESENT = {408, 409, 429}  # by OpenAI's SDK, and everything from 500 up


def codes(cls: type[HansardError] = HansardError) -> Iterator[str]:
    yield cls.code
    for child in cls.__subclasses__():
        yield from codes(child)


def shaped(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, after a look at its shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    told: dict[str, Any] = body["error"]
    return told


@pytest.fixture
def door(serve: Serve) -> Server:
    """A server with endpoints that fail."""
    server = serve(runpod_api_key="a-secret-of-the-server")

    async def fail(code: str) -> None:
        raise from_code(code, f"the sentence of {code}")

    async def crash() -> None:
        raise ValueError("/a/path/of/the/machine")

    async def tell() -> None:
        raise HansardError("it ends in a-secret-of-the-server and https://example.com/a?signature=abc \ud800")

    async def pick(limit: Annotated[int, Query(le=10)], name: str) -> None: ...

    async def late() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield " "
            raise RateError("too late for a status")

        return StreamingResponse(body())

    for path, endpoint in {"/fail/{code}": fail, "/crash": crash, "/tell": tell, "/pick": pick, "/late": late}.items():
        server.app.add_api_route(path, endpoint)
    return server


def test_the_table_is_the_tree() -> None:
    assert set(KINDS) == set(codes())


def test_what_may_be_sent_again_is_sent_again() -> None:
    """`again` promises that clients do it by themselves."""
    for code, kind in KINDS.items():
        assert not kind.again or kind.status in RESENT or kind.status >= 500, code


def test_every_error_has_openais_shape(door: Server) -> None:
    for code, kind in KINDS.items():
        answer = door.http.get(f"/fail/{code}")
        assert answer.status_code == kind.status, code
        assert shaped(answer) == {"message": f"the sentence of {code}", "type": kind.type, "param": None, "code": code}
        assert answer.headers.get("x-should-retry") == (None if kind.again else "false"), code
        assert ("retry-after" in answer.headers) == (kind.status == 429), code
        assert ("www-authenticate" in answer.headers) == (kind.status == 401), code


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("invalid_request", openai.BadRequestError),
        ("access_denied", openai.AuthenticationError),
        ("terms_not_accepted", openai.PermissionDeniedError),
        ("job_not_found", openai.NotFoundError),
        ("cancelled", openai.ConflictError),
        ("queue_full", openai.RateLimitError),
        ("internal", openai.InternalServerError),
        ("audio_too_large", openai.APIStatusError),
    ],
)
def test_openais_client_raises_what_is_meant(door: Server, code: str, cls: type[openai.APIStatusError]) -> None:
    with (
        openai.OpenAI(base_url=door.url, api_key="any", max_retries=0) as client,
        pytest.raises(cls, match=f"the sentence of {code}") as caught,
    ):
        client.get(f"/fail/{code}", cast_to=object)
    assert caught.value.code == code
    assert caught.value.request_id
    assert caught.value.request_id.startswith("req_")


def test_a_crash_says_where_to_look_and_nothing_else(door: Server, caplog: pytest.LogCaptureFixture) -> None:
    answer = door.http.get("/crash", headers={"x-request-id": "mine-1"})
    assert answer.status_code == 500
    told = shaped(answer)
    assert told["code"] == "internal"
    assert "mine-1" in told["message"]
    assert "path" not in answer.text
    assert "ValueError: /a/path/of/the/machine" in caplog.text
    assert "Exception in ASGI application" not in caplog.text, "the crash was logged twice"


def test_no_secret_leaves(door: Server) -> None:
    told = shaped(door.http.get("/tell"))["message"]
    assert told == "it ends in *** and https://example.com/a?*** ?"


def test_a_parameter_that_is_wrong_is_named(door: Server) -> None:
    answer = door.http.get("/pick?limit=11")
    assert answer.status_code == 400
    told = shaped(answer)
    assert told["param"] == "limit"
    assert "limit: " in told["message"]
    assert "name: " in told["message"]
    assert told["code"] == "invalid_request"


def test_addresses_that_do_not_exist(door: Server) -> None:
    answer = door.http.get("/v1/nothing?key=secret")
    assert answer.status_code == 404
    assert "GET /v1/nothing " in shaped(answer)["message"]
    assert "secret" not in answer.text
    answer = door.http.post("/healthz")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"
    assert shaped(answer)["code"] == "method_not_allowed"


def test_an_error_after_the_answer_began_cuts_it_off(door: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The status is gone; what is left is an end that no client takes for the answer's."""
    with caplog.at_level(logging.INFO), pytest.raises(httpx.RemoteProtocolError):
        door.http.get("/late")
    assert "rate_limited: too late for a status" in caplog.text
    assert "Traceback" not in caplog.text
