"""The workers of a RunPod endpoint as a Runner: a job is posted, looked at until it has ended, and cancelled there.

    POST {url}/{endpoint}/run          {"input": {...}} → {"id": ...}
    GET  {url}/{endpoint}/status/{id}  → status, `output` (while IN_PROGRESS the worker's progress), error
    POST {url}/{endpoint}/cancel/{id}

A call that fails in passing is made again. Where the answer to /run was lost on its way, that leaves a job behind that
nobody asks for; losing the caller's would be worse.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_exponential_jitter

from hansard.errors import (
    CancelledError,
    EngineError,
    HansardError,
    ServiceError,
    SettingsError,
    TokenRefusedError,
    TooLargeError,
)
from hansard.plan import Choice, Plan
from hansard.request import Request
from hansard.retries import passes
from hansard.server.runpod.answers import LONGEST, failure, job_input, transcript
from hansard.server.runpod.inline import LIMIT, inline
from hansard.settings import Settings
from hansard.stages import StageReport
from hansard.transcript import Transcript

log = logging.getLogger(__name__)

AT_ONCE = 16  # jobs that are posted and looked at; the platform has a queue of its own behind that
POLL_S = 1.0  # between two looks at a job
POST_PATIENCE_S = 60.0  # that RunPod may be out of reach before a job is given up that is not posted yet
POLL_PATIENCE_S = 600.0  # the same for a job that is under way there
LET_GO_S = 15.0  # that cancelling a job there may take
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0  # before a call is made again

SERIAL = ("fetch", "decode")  # stages that are over when any later one is told of


class _PassingError(Exception):
    """A call failed in a way that another try may not; `after` seconds were asked for."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


class RunPodRunner:
    """Jobs on the workers of RUNPOD_ENDPOINT_ID; raises SettingsError where that or RUNPOD_API_KEY cannot be one."""

    at_once = AT_ONCE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._base = _base(settings)
        self._key = _key(settings)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        await asyncio.to_thread(self._settings.work_dir.mkdir, parents=True, exist_ok=True)
        timeout = httpx.Timeout(self._settings.read_timeout_s, connect=self._settings.connect_timeout_s)
        self._client = httpx.AsyncClient(headers={"Authorization": f"Bearer {self._key}"}, timeout=timeout)

    async def check(self, request: Request) -> Plan:
        """The stages that the job may go through; which backends do them, and whether they can, the endpoint says."""
        model = Choice("runpod", request.model or "the endpoint's default")
        texts = request.task != "diarization"
        return Plan(
            model if texts else None,
            Choice("runpod", "the endpoint's default") if request.wants_speakers else None,
            align=texts and request.task != "translate",
        )

    async def run(
        self, job_id: str, request: Request, recording: Path | None, plan: Plan, report: StageReport
    ) -> Transcript:
        body, warnings = await asyncio.to_thread(_body, request, recording, self._settings)
        posted = asyncio.ensure_future(self._post(body))
        try:
            remote = await asyncio.shield(posted)
            log.info("job %s is job %s of the endpoint", job_id, remote)
            answer = await self._watch(remote, plan, report)
        except asyncio.CancelledError:
            await _to_the_end(self._cancel(posted))
            raise
        done = await asyncio.to_thread(transcript, answer)  # it may have to be unpacked
        return replace(done, warnings=warnings + done.warnings)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _post(self, body: bytes) -> str:
        """The platform's id of a new job."""
        told = await self._call("POST", "run", POST_PATIENCE_S, body)
        match told.get("id"):
            case str(remote) if re.fullmatch(r"[\w.-]+", remote):
                return remote
        raise ServiceError("RunPod took the job and gave it no id; is RUNPOD_ENDPOINT_URL its address?")

    async def _watch(self, remote: str, plan: Plan, report: StageReport) -> object:
        """What a job's worker answers, once it does."""
        while True:
            told = await self._call("GET", f"status/{remote}", POLL_PATIENCE_S)
            match told.get("status"):
                case "COMPLETED" if told.get("output") is not None:
                    return told["output"]
                case "COMPLETED":
                    raise ServiceError("the endpoint lost the answer of its worker; send the job again, in parts")
                case "CANCELLED":
                    raise CancelledError("the job was cancelled at the endpoint")
                case "TIMED_OUT":
                    raise ServiceError("the endpoint ended the job for taking too long; raise its execution timeout")
                case "FAILED" if told.get("error"):
                    raise failure(told["error"])
                case "FAILED":
                    raise ServiceError("the endpoint's worker failed and does not say why; its log does")
            _pass_on(told.get("output"), plan, report)
            await asyncio.sleep(POLL_S)

    async def _cancel(self, posted: asyncio.Future[str]) -> None:
        """Have the platform stop a job, if it has it; at most LET_GO_S."""
        with suppress(TimeoutError, HansardError, asyncio.CancelledError):
            async with asyncio.timeout(LET_GO_S):
                await self._call("POST", f"cancel/{await posted}", LET_GO_S)
                return
        log.warning("a job could not be cancelled at the endpoint, which may go on with it")

    async def _call(self, method: str, path: str, patience_s: float, body: bytes | None = None) -> Mapping[str, Any]:
        """What the API answers to a call, made until it is answered or the patience ends."""
        tries = AsyncRetrying(
            stop=stop_after_delay(patience_s), wait=_pause, retry=retry_if_exception_type(_PassingError), reraise=True
        )
        try:
            return await tries(self._once, method, path, body)
        except _PassingError as error:
            raise ServiceError(f"RunPod {error}, for {patience_s:.0f} s; try again later") from None

    async def _once(self, method: str, path: str, body: bytes | None) -> Mapping[str, Any]:
        assert self._client is not None, "the runner was not started"
        headers = {"Content-Type": "application/json"}
        try:
            answer = await self._client.request(method, f"{self._base}/{path}", content=body, headers=headers)
        except httpx.HTTPError as error:
            raise _PassingError(f"cannot be reached ({type(error).__name__})") from None
        if passes(answer.status_code):
            raise _PassingError(f"answers {answer.status_code}", _asked_for(answer))
        if answer.status_code != 200:
            raise self._refusal(path, answer)
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise _PassingError("answers with something that is no JSON object")
        return told

    def _refusal(self, path: str, answer: httpx.Response) -> HansardError:
        """The error for an answer that asking again would not change."""
        status, kind = answer.status_code, path.partition("/")[0]
        if status in (401, 403):
            return TokenRefusedError("RunPod refuses the key; correct RUNPOD_API_KEY")
        if status == 404 and kind == "run":
            return SettingsError("RunPod has no such endpoint; correct RUNPOD_ENDPOINT_ID")
        if status == 404:
            return EngineError("RunPod no longer has the job or its answer; send it again")
        if status == 413:
            return TooLargeError("RunPod takes no request as large as this one; give the recording as a URL")
        said = answer.text[:LONGEST].replace(self._key, "…")
        return ServiceError(f"RunPod refuses the call with {status}: {said}")


def _base(settings: Settings) -> str:
    """The address of the endpoint's API."""
    endpoint = (settings.runpod_endpoint_id or "").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", endpoint):
        raise SettingsError("RUNPOD_ENDPOINT_ID is no id of an endpoint; it is the word in the address of its page")
    address = settings.runpod_endpoint_url.strip().rstrip("/")
    if not re.fullmatch(r"https?://[^\s?#]+", address):
        raise SettingsError("RUNPOD_ENDPOINT_URL must be an http(s) address without a query")
    return f"{address}/{endpoint}"


def _key(settings: Settings) -> str:
    given = settings.runpod_api_key
    key = given.get_secret_value().strip() if given else ""
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise SettingsError("RUNPOD_ENDPOINT_ID needs RUNPOD_API_KEY, a key of RunPod without spaces or quotes")
    return key


def _body(request: Request, recording: Path | None, settings: Settings) -> tuple[bytes, tuple[str, ...]]:
    """The body of /run, and the warnings that it costs. Raises TooLargeError, AudioError."""
    given, warnings = job_input(request), tuple[str, ...]()
    if recording is not None:
        rest = len(json.dumps({"input": given}))
        given["audio"], warnings = inline(recording, rest, settings, separate=request.channels == "separate")
    body = json.dumps({"input": given}).encode()
    if len(body) > LIMIT:
        raise TooLargeError("the request is larger than the 10 MB that RunPod takes; give recordings as URLs")
    return body, warnings


def _pass_on(progress: object, plan: Plan, report: StageReport) -> None:
    """Report what a worker says of its progress; looks are rare, so stages may have gone by unseen."""
    match progress:
        case {"stage": str(stage), "stage_percent": int() | float() as percent} if stage in plan.stages:
            for before in SERIAL if stage not in ("load", *SERIAL) else ():
                report(before, 1.0)
            report(stage, percent / 100)


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try: longer each time, or as long as was asked for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, _PassingError) else 0.0
    return max(
        asked, wait_exponential_jitter(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S, jitter=FIRST_PAUSE_S)(state)
    )


def _asked_for(answer: httpx.Response) -> float:
    """Seconds that an answer asks to wait."""
    value = answer.headers.get("retry-after", "")
    return min(float(value), LONGEST_PAUSE_S) if value.isdecimal() else 0.0


async def _to_the_end(work: Any) -> None:
    """Await work to its end, however often the waiting is cancelled."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
