"""Tells a job's webhook that the job has ended: one message in the format of Standard Webhooks, sent until it is taken.

    webhook-id          the same for every try of one message: a receiver that has it already drops it
    webhook-timestamp   seconds since 1970, of this try
    webhook-signature   "v1," and the base64 of HMAC-SHA256 over "id.timestamp.body"; only with WEBHOOK_SECRET

A secret that begins with `whsec_` is base64 after that, as the libraries of Standard Webhooks want it; any other is
taken letter by letter. Messages go where audio URLs may lead, and follow no redirect. What was not told when the server
stopped is told by the next one. Not covered: an order between the messages of several jobs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from urllib.parse import urlsplit

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from hansard.audio import guard
from hansard.errors import HansardError, JobMissingError, RefusedUrlError, SettingsError
from hansard.retries import passes
from hansard.server.job import Job
from hansard.server.job_views import answer, view
from hansard.server.jobs import JobCore
from hansard.server.runpod.views import status
from hansard.settings import Settings

log = logging.getLogger(__name__)

TRIES = 8
FIRST_WAIT_S = 1.0  # after the first try; each later wait is four times the one before: an hour and a half together
TIMES_S = (5.0, 15.0)  # that a receiver has to take the connection, and for all of a try
AT_ONCE = 32  # messages under way: receivers that are slow hold up few others
MOST_RESULT = 1_000_000  # bytes of JSON of a result that is sent along; a larger one is to be fetched
PREFIX = "whsec_"
UNTOLD = {"stage", "stage_percent", "eta_s", "position"}  # of a job that has ended


class _AgainError(Exception):
    """A try that failed and may go better later."""


class _GivenUpError(Exception):
    """A try that failed for good."""


def signing_key(secret: SecretStr | None) -> bytes | None:
    """The key of the signature; None where messages go unsigned. Raises SettingsError."""
    text = secret.get_secret_value().strip() if secret else ""
    if not text.startswith(PREFIX):
        return text.encode() or None
    try:
        return base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise SettingsError(f"WEBHOOK_SECRET begins with {PREFIX} and is no base64 after that") from None


def signed(key: bytes | None, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a message."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if key:
        content = b".".join([message_id.encode(), str(timestamp).encode(), body])
        told = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
        headers["webhook-signature"] = f"v1,{told}"
    return headers


class Webhooks:
    """Tells the webhooks of a core's jobs. Make it before the core opens; use it as a context manager inside of it."""

    def __init__(self, core: JobCore, settings: Settings) -> None:
        self._core = core
        self._settings = settings
        self._key = signing_key(settings.webhook_secret)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        core.on_end(self._ended)

    async def __aenter__(self) -> Webhooks:
        """Tell what the last process left untold."""
        self._free = asyncio.Semaphore(AT_ONCE)
        self._client = _client(self._settings)
        for job in self._core.undelivered():
            self._ended(job)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop telling; the rest stays in the store."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _ended(self, job: Job) -> None:
        if job.submission.webhook and job.id not in self._tasks:
            task = asyncio.create_task(self._tell(job, job.submission.webhook))
            self._tasks[job.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    async def _tell(self, job: Job, url: str) -> None:
        """Send a job's message until it is taken, or given up."""
        name = guard.public_name(url)
        tries = AsyncRetrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_exponential(multiplier=FIRST_WAIT_S, exp_base=4),
            retry=retry_if_exception_type(_AgainError),
            reraise=True,
        )
        try:
            told = view(self._core, job).model_dump(mode="json", exclude=UNTOLD)
            body = await asyncio.to_thread(self._body, job, told)
            await tries(self._send, job, url, body)
            log.info("webhook of job %s: %s was told", job.id, name)
        except (_AgainError, _GivenUpError) as error:
            log.warning("webhook of job %s given up: %s %s", job.id, name, error)
        except Exception:  # ours, so the next process tries again
            log.exception("webhook of job %s: %s", job.id, name)
            return
        self._core.delivered(job.id)

    async def _send(self, job: Job, url: str, body: bytes) -> None:
        headers = signed(self._key, f"msg_{job.id}", int(time.time()), body)
        async with self._free:
            code = await self._status(url, body, {"Content-Type": "application/json"} | headers)
        if not 200 <= code < 300:
            raise (_AgainError if passes(code) else _GivenUpError)(f"answered {code}")

    async def _status(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """What a receiver answers; the body of that is of no interest, and may be endless.

        Raises _AgainError, _GivenUpError.
        """
        try:
            guard.check_url(url)
            await _checked(urlsplit(url).hostname or "", self._settings)  # a host that is an address is not looked up
            async with self._client.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return response.status
        except RefusedUrlError as error:
            raise _GivenUpError(error.sentence) from None
        except (HansardError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _AgainError(f"could not be reached ({type(error).__name__})") from None

    def _body(self, job: Job, told: dict[str, object]) -> bytes:
        """The message: the job as its door tells it, with its result where there is one and it is not too large."""
        transcript = None
        with suppress(JobMissingError):  # there is none, or no longer
            transcript = self._core.result(job.id, job.submission.owner) if job.state == "completed" else None
        if job.submission.webhook_shape == "runpod":
            return json.dumps(status(job, transcript)).encode()
        result = json.dumps(answer(job.submission.request, transcript)) if transcript else ""
        if result and len(result) <= MOST_RESULT:
            told["result"] = json.loads(result)
        return json.dumps(told).encode()


class _Resolver(AbstractResolver):
    """Names to addresses, none but those that may be reached: the connection goes to what was judged."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await _checked(host, self._settings)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in found
        ]

    async def close(self) -> None:
        """There is nothing to close."""


async def _checked(host: str, settings: Settings) -> list[tuple[int, str]]:
    """The addresses of a host. Raises RefusedUrlError, FetchError, OSError."""
    found = await asyncio.to_thread(guard.resolve, host, 0, settings.allow_private_urls)
    return [(int(family), str(address[0])) for family, address in found]


@cache
def _trusted() -> ssl.SSLContext:
    """Whose certificates are believed, as elsewhere in this product."""
    return ssl.create_default_context(cafile=certifi.where())


def _client(settings: Settings) -> aiohttp.ClientSession:
    """A client that reaches public addresses only, keeps nothing and heeds no proxy; each try has its limit of time."""
    connector = aiohttp.TCPConnector(
        resolver=_Resolver(settings),
        use_dns_cache=False,
        force_close=True,
        ssl=_trusted(),
    )
    connect_s, whole_s = TIMES_S
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=whole_s, sock_connect=connect_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "hansard"},
    )
