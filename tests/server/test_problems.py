"""Every error as a caller meets it: OpenAI's shape, the right status, and word of whether to try again."""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import openai
import pytest
from fastapi import Query
from fastapi.responses import StreamingResponse

from hansard import joblog
from hansard.errors import HansardError, RateError, RequestError, from_code
from hansard.request import parse
from hansard.server import problems
from hansard.server.problems import KINDS
from hansard.settings import Settings

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
        param = from_code(code, "").param
        assert shaped(answer) == {"message": f"the sentence of {code}", "type": kind.type, "param": param, "code": code}
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


def test_what_a_running_job_brought_does_not_leave_either(door: Server) -> None:
    secret = "a-secret-of-a-job"
    path = f"/repeat/{secret}"

    async def repeat(text: str) -> None:
        raise HansardError(f"it was {text}")

    door.app.add_api_route("/repeat/{text}", repeat)
    joblog.register("job", [secret, "short"])
    try:
        assert shaped(door.http.get(path))["message"] == "it was ***"
        assert shaped(door.http.get("/repeat/short"))["message"] == "it was short"
    finally:
        joblog.forget("job")
    assert shaped(door.http.get(path))["message"] == f"it was {secret}"


def test_a_long_sentence_is_cut_before_secrets_are_looked_for(
    settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked for in a part that does not grow with what a caller sends; none is cut in two and then told."""
    looked: list[int] = []

    def redact(text: str, secrets: Iterable[str]) -> str:
        looked.append(len(text))
        return joblog.redact(text, secrets)

    monkeypatch.setattr(problems, "redact", redact)
    settings = settings_of(runpod_api_key="a-secret-of-the-server")
    body = problems.body(RequestError("a.b:" * 1_000_000), settings)
    assert looked == [2 * problems.LONGEST_MESSAGE]
    assert len(body["error"]["message"]) == problems.LONGEST_MESSAGE + 1
    url = "https://example.com/?" + "x" * (2 * problems.LONGEST_MESSAGE - 33)
    told = problems.body(RequestError(f"{url} a-secret-of-the-server and more"), settings)["error"]["message"]
    assert "a-s" not in told


def test_a_long_name_costs_no_more_than_a_short_one(server: Server) -> None:
    """Neither to look for near names, nor to repeat it."""
    name = "a.b:" * 250_000
    with pytest.raises(RequestError) as told:
        parse({"audio": "https://example.com/a.wav", "task": "transcription", "segments": [{name: 1}]})
    assert len(told.value.sentence) < 500
    for path in ("/v1/jobs", "/v1/audio/transcriptions"):
        begin = time.process_time()
        answer = server.http.post(path, json={"audio": "https://example.com/a.wav", name: 1, "segments": [{name: 1}]})
        assert answer.status_code == 400
        assert len(answer.content) < 5000
        assert time.process_time() - begin < 2, path


def test_near_names_are_looked_for_a_few_times_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And among names that somebody may have meant to write."""
    looked: list[str] = []
    near = difflib.get_close_matches

    def look(word: str, known: list[str], n: int) -> list[str]:
        looked.append(word)
        return near(word, known, n=n)

    monkeypatch.setattr(difflib, "get_close_matches", look)
    for path in ("/v1/jobs", "/v1/audio/transcriptions"):
        many = {f"num_speaker{number}": 1 for number in range(1000)}
        answer = server.http.post(path, json={"audio": "https://example.com/a.wav", "x" * 61: 1, **many})
        told = shaped(answer)["message"]
        assert "x" * 60 + " is not a field" in told
        assert "did you mean num_speakers?" in told
        assert told.count(" is not a field") == 20
        assert len(looked) == 19
        assert max(map(len, looked)) <= 60
        looked.clear()


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
