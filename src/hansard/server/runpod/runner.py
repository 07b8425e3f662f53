"""The workers of a RunPod endpoint as a Runner: a job is posted, looked at until it has ended, and cancelled there.

    POST {url}/{endpoint}/run          {"input": {...}} → {"id": ...}
    GET  {url}/{endpoint}/status/{id}  → status, `output` (while IN_PROGRESS the worker's progress), error
    POST {url}/{endpoint}/cancel/{id}

A call that fails in passing is made again. Where the answer to /run was lost on its way, that leaves a job behind that
nobody asks for; losing the caller's would be worse. What a job is called there is written down while it is under way:
a server that takes up another's jobs looks at them and pays for none twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_exponential_jitter

from hansard.errors import CancelledError, EngineError, HansardError, ServiceError, SettingsError, TooLargeError
from hansard.plan import Choice, Plan
from hansard.request import Request
from hansard.retries import passes
from hansard.server.runpod import bucket
from hansard.server.runpod.answers import failure, job_input, model_of, shown, transcript, wants_words
from hansard.server.runpod.inline import LIMIT, fits, inline
from hansard.server.runpod.notes import NAME, Job, Notes
from hansard.settings import Settings
from hansard.shielded import to_the_end
from hansard.stages import StageReport
from hansard.transcript import Transcript

log = logging.getLogger(__name__)

AT_ONCE = 16  # jobs that are posted and looked at; the platform has a queue of its own behind that
UPLOADS = 3  # recordings on their way to the bucket at once; each holds a thread that others wait for
POLL_S = 1.0  # between two looks at a job
POST_PATIENCE_S = 60.0  # that RunPod may be out of reach before a job is given up that is not posted yet
POLL_PATIENCE_S = 600.0  # the same for a job that is under way there
LOOKS, LOOK_AGAIN_S = 4, 3.0  # at a job that is refused or not there, and seconds between them: one may be a mistake
LET_GO_S = 15.0  # that cancelling a job there may take
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0  # before a call is made again

ITS_OWN = "the endpoint's default"
NO_ACCESS = "the server's access to its endpoint was refused; its log says more"

GOING_ON = ("IN_QUEUE", "IN_PROGRESS")
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")

BEFORE = {
    "transcribe": ("fetch", "decode"),
    "diarize": ("fetch", "decode"),
    "align": ("fetch", "decode", "transcribe"),
    "assign": ("fetch", "decode", "transcribe", "align", "diarize"),
}
"""The stages that are over when a later one is told of: looks are rare, so stages may go by unseen."""

See = Callable[[Mapping[str, Any]], None]


class _PassingError(Exception):
    """A call failed in a way that another try may not; `after` seconds were asked for."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


class _RefusedError(Exception):
    """An answer that asking again at once would not change: its status, and what it says; `looked` at a job."""

    def __init__(self, status: int, said: str, *, looked: bool) -> None:
        super().__init__(status)
        self.status, self.said, self.looked = status, said, looked


class RunPodRunner:
    """Jobs on the workers of RUNPOD_ENDPOINT_ID; raises SettingsError where what it needs of the settings is no use."""

    at_once = AT_ONCE

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._base = _base(settings)
        self._key = _key(settings)
        self._has_bucket = bucket.is_given(settings)
        self._bucket: bucket.Bucket | None = None
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._notes = Notes(settings.state_dir / "remote")
        self._client: httpx.AsyncClient | None = None
        self._released = False

    async def start(self) -> None:
        await asyncio.to_thread(self._settings.work_dir.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(self._notes.sweep)
        self._bucket = await asyncio.to_thread(bucket.Bucket, self._settings) if self._has_bucket else None
        timeout = httpx.Timeout(self._settings.read_timeout_s, connect=self._settings.connect_timeout_s)
        self._client = httpx.AsyncClient(headers={"Authorization": f"Bearer {self._key}"}, timeout=timeout)

    async def check(self, request: Request) -> Plan:
        """The stages that the job may go through; which backends do them, and whether they can, the endpoint says."""
        chosen = Choice("runpod", model_of(request, self._settings) or ITS_OWN)
        if request.task == "diarization":
            return Plan(None, chosen)
        diarizer = Choice("runpod", ITS_OWN) if request.wants_speakers else None
        return Plan(chosen, diarizer, align=wants_words(request))

    async def run(
        self, job_id: str, request: Request, recording: Path | None, plan: Plan, report: StageReport
    ) -> Transcript:
        job = self._notes.read(job_id) or Job(job_id)
        secrets = (*self._settings.secrets(), *request.secrets())
        left = False
        try:
            final = await self._final(job, request, recording, lambda told: _pass_on(told, request, plan, report))
            job.over = True
            done = await asyncio.to_thread(_result, final, secrets)  # it may have to be unpacked
        except asyncio.CancelledError:
            left = self._released and not request.huggingface_access_token  # without its token nobody takes it up
            raise
        except _RefusedError as refused:
            raise self._refusal(refused) from None
        finally:
            await to_the_end(self._posted(job) if left else self._clear(job))
        return replace(done, warnings=job.warnings + done.warnings)

    async def forget(self, job_id: str) -> None:
        """Leave nothing of a job that an earlier server posted and this one will not run."""
        if job := self._notes.read(job_id):
            await self._clear(job)

    def release(self) -> None:
        """From now on a job whose `run` is cancelled goes on at the endpoint, for the next server to look at."""
        self._released = True

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    # A job's way

    async def _final(self, job: Job, request: Request, recording: Path | None, see: See) -> Mapping[str, Any]:
        """The status in which a job ends. Raises _RefusedError, ServiceError, and what posting it does."""
        if job.remote is not None:
            log.info("job %s is taken up again: it is job %s of the endpoint", job.id, job.remote)
            try:
                return await self._watch(job.remote, see)
            except _RefusedError as refused:
                if refused.status != 404:
                    raise
            log.warning("the endpoint no longer knows job %s; it is sent anew", job.id)
            job.remote, job.warnings = None, ()
        body = await self._body(job, request, recording)
        job.posting = asyncio.create_task(self._post(job, body))
        await asyncio.shield(job.posting)
        assert job.remote is not None
        return await self._watch(job.remote, see)

    async def _body(self, job: Job, request: Request, recording: Path | None) -> bytes:
        """The body of /run. Raises TooLargeError, AudioError, ServiceError."""
        given = job_input(request, self._settings)
        if recording is not None:
            rest = len(json.dumps({"input": given}))
            if self._bucket is None or await asyncio.to_thread(fits, recording, rest):
                separate = request.channels == "separate"
                told = await asyncio.to_thread(inline, recording, rest, self._settings, separate=separate)
                given["audio"], job.warnings = told
            else:
                given["audio"] = await self._upload(self._bucket, job, recording)
        body = await asyncio.to_thread(lambda: json.dumps({"input": given}).encode())
        if len(body) > LIMIT:
            raise TooLargeError("the request is larger than the 10 MB that RunPod takes; give recordings as URLs")
        return body

    async def _upload(self, there: bucket.Bucket, job: Job, recording: Path) -> str:
        """The address of a recording in the bucket, once it is there. Raises ServiceError."""
        stop = threading.Event()
        async with self._uploads:
            job.stored = True
            sent = asyncio.create_task(asyncio.to_thread(there.put, job.id, recording, stop))
            try:
                await asyncio.shield(sent)
            except asyncio.CancelledError:
                stop.set()
                with suppress(HansardError):
                    await to_the_end(sent)  # what it sends later would stay there
                raise
        return await asyncio.to_thread(there.address, job.id)

    async def _post(self, job: Job, body: bytes) -> None:
        """Give a job to the platform, and write down what it is called there."""
        told = await self._call("POST", "run", POST_PATIENCE_S, body)
        remote = told.get("id")
        if not isinstance(remote, str) or not NAME.fullmatch(remote):
            raise ServiceError("RunPod took the job and gave it no id; is RUNPOD_ENDPOINT_URL its address?")
        job.remote = remote
        log.info("job %s is job %s of the endpoint", job.id, remote)
        await asyncio.to_thread(self._notes.write, job)

    async def _watch(self, remote: str, see: See) -> Mapping[str, Any]:
        """The status in which a job of the platform ends; `see` is shown each that comes before."""
        while (told := await self._look(remote))["status"] not in FINAL:
            see(told)
            await asyncio.sleep(POLL_S)
        return told

    async def _look(self, remote: str) -> Mapping[str, Any]:
        """A job's status. Raises _RefusedError where it is refused or missing each time, ServiceError."""
        refusals = 0
        while True:
            try:
                return await self._call("GET", f"status/{remote}", POLL_PATIENCE_S)
            except _RefusedError as refused:
                refusals += 1
                if refused.status not in (401, 403, 404) or refusals == LOOKS:
                    raise
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _posted(self, job: Job) -> None:
        """Wait for the answer to a job that is being posted, at most LET_GO_S, so that it is written down."""
        if job.posting is not None:
            with suppress(HansardError, _RefusedError):
                try:
                    await asyncio.wait_for(job.posting, LET_GO_S)
                except TimeoutError:
                    log.warning("job %s was given up while it was sent; the endpoint may do it for nobody", job.id)

    async def _clear(self, job: Job) -> None:
        """Leave nothing of a job: not at work there, not in the notes, not in the bucket."""
        await self._posted(job)
        if job.remote is not None and not job.over:
            await self._cancel(job.remote)
        await asyncio.to_thread(self._notes.remove, job.id)
        if job.stored and self._bucket is not None:
            try:
                await asyncio.to_thread(self._bucket.remove, job.id)
            except HansardError as error:
                log.warning("the recording of job %s stays in the bucket: %s", job.id, error.sentence)

    async def _cancel(self, remote: str) -> None:
        """Have the platform stop a job; at most LET_GO_S."""
        with suppress(TimeoutError, HansardError, _RefusedError):
            async with asyncio.timeout(LET_GO_S):
                await self._call("POST", f"cancel/{remote}", LET_GO_S)
                return
        log.warning("job %s of the endpoint could not be cancelled, it may go on", remote)

    # Calls

    async def _call(self, method: str, path: str, patience_s: float, body: bytes | None = None) -> Mapping[str, Any]:
        """What the API answers to a call, made until it is answered or the patience ends.

        Raises ServiceError, and _RefusedError for what another try would not change.
        """
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
        if not answer.is_success:
            raise _RefusedError(answer.status_code, answer.text, looked=method == "GET")
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise _PassingError("answers with something that is no JSON object")
        if method == "GET" and told.get("status") not in (*GOING_ON, *FINAL):
            raise _PassingError("answers without a status that is known")
        return told

    def _refusal(self, refused: _RefusedError) -> HansardError:
        """The caller's error for an answer; what only the operator can change is told in the log."""
        status = refused.status
        if status in (401, 403):
            log.error("RunPod refuses the key with %d; correct RUNPOD_API_KEY", status)
            return ServiceError(NO_ACCESS)
        if status == 404 and not refused.looked:
            log.error("RunPod has no such endpoint; correct RUNPOD_ENDPOINT_ID")
            return ServiceError(NO_ACCESS)
        if status == 404:
            return EngineError("RunPod no longer has the job or its answer; send it again")
        if status == 413:
            return TooLargeError("RunPod takes no request as large as this one; give the recording as a URL")
        said = shown(refused.said, self._settings.secrets())
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


def _result(final: Mapping[str, Any], secrets: tuple[str, ...]) -> Transcript:
    """What a final status holds. Raises the error that it tells of."""
    output = final.get("output")
    match final["status"]:
        case "COMPLETED" if output is not None:
            return transcript(output, secrets)
        case "COMPLETED":
            raise ServiceError("the endpoint lost the answer of its worker; send the job again, in parts")
        case "CANCELLED":
            raise CancelledError("the job was cancelled at the endpoint")
        case "TIMED_OUT":
            raise ServiceError("the endpoint ended the job for taking too long; raise its execution timeout")
    error = final.get("error") or (output.get("error") if isinstance(output, dict) else None)
    if error:
        raise failure(error, secrets)
    raise ServiceError("the endpoint's worker failed and does not say why; its log does")


def _pass_on(told: Mapping[str, Any], request: Request, plan: Plan, report: StageReport) -> None:
    """Report what a worker says of its progress, once it works."""
    match told:
        case {
            "status": "IN_PROGRESS",
            "output": {"stage": str(stage), "stage_percent": int() | float() as percent},
        } if stage in plan.stages and 0 <= percent <= 100:
            turns_first = ("diarize",) if request.task == "transcription" and stage == "transcribe" else ()
            for before in (*BEFORE.get(stage, ()), *turns_first):
                if before in plan.stages:
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
