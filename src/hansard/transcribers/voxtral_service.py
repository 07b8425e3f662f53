"""The HTTP client of a service that holds models: calls from several threads, tried again where that may help.

Nothing of the environment steers it: no proxy, no netrc, no redirect followed, no cookie kept. The key is in one
header of its session and nowhere else; what the service says of an error is told without keys, addresses and paths.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from hansard.errors import (
    CancelledError,
    HansardError,
    ModelMissingError,
    ServiceError,
    SettingsError,
    TokenMissingError,
    TokenRefusedError,
)
from hansard.settings import Settings
from hansard.transcript import Report

if TYPE_CHECKING:
    from requests import Response, Session
    from tenacity import RetryCallState

log = logging.getLogger(__name__)

T = TypeVar("T")

MISTRAL = "mistral.ai"  # the domain of the service whose models these are; its hosts differ from vLLM in small things

TRIES = 5
FIRST_PAUSE_S = 1.0  # doubled from try to try
LONGEST_PAUSE_S = 30.0
LONGEST_RETRY_AFTER_S = 60.0
PASSING = frozenset({408, 425, 429})  # and 5xx: what may be different in a moment
TICK_S = 0.25  # between two looks at whether the job is to go on
LARGEST_ANSWER = 1 << 25  # bytes; the text of ten minutes is a few thousand
BLOCK = 1 << 16
LONGEST_SAID = 200  # characters of a service's own words

_KEY = re.compile(r"[!-~]+")  # what an HTTP header takes
_UNFIT = re.compile(r"\w+://\S+|(?<![\w.])/[\w.@-]+(?:/[\w.@-]*)+|\S{32,}")  # addresses, paths, keys and the like


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is: its address without a slash at the end, and whether it is Mistral's own."""

    address: str
    mistral: bool

    @classmethod
    def of(cls, settings: Settings) -> Endpoint:
        """The service that the settings name. Raises SettingsError for what is no plain http(s) address."""
        address = settings.voxtral_endpoint.strip().rstrip("/")
        try:
            parts = urlsplit(address)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            parts, host = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not host:
            raise SettingsError("VOXTRAL_ENDPOINT must be an http(s) address such as https://api.mistral.ai/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise SettingsError(
                "VOXTRAL_ENDPOINT must hold neither a password nor ? nor #; give the key in VOXTRAL_API_KEY"
            )
        return cls(address, host == MISTRAL or host.endswith("." + MISTRAL))


def check_access(settings: Settings) -> Endpoint:
    """The service of the settings, where nothing is known that would keep it from answering; nobody is asked.

    Raises SettingsError for an address or a key that cannot be used, TokenMissingError without a key for Mistral's own.
    """
    endpoint = Endpoint.of(settings)
    key = _key(settings)
    if key is None and endpoint.mistral:
        raise TokenMissingError(
            "Mistral's service asks for a key: set VOXTRAL_API_KEY, or VOXTRAL_ENDPOINT to a service without one"
        )
    return endpoint


def _key(settings: Settings) -> str | None:
    """The key as a header takes it, if there is one. Raises SettingsError."""
    key = settings.voxtral_api_key.get_secret_value().strip() if settings.voxtral_api_key else ""
    if key and not _KEY.fullmatch(key):
        raise SettingsError("VOXTRAL_API_KEY holds characters that no key has; copy it anew, without spaces or quotes")
    return key or None


class _PassingError(Exception):
    """A try that failed and may go well in a moment; `after` is the pause in seconds that the service asked for."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


class Service:
    """One job's access to a service, for as many threads as `at_once`; `stop` ends all calls.

    A call takes at most VOXTRAL_TIMEOUT_S from its first byte to its last; a service that sends its headers drop by
    drop can draw it out.
    """

    def __init__(self, settings: Settings, at_once: int, stop: threading.Event) -> None:
        self._endpoint = check_access(settings)
        self._key = _key(settings)
        self._connect_s = min(settings.connect_timeout_s, settings.voxtral_timeout_s)
        self._total_s = settings.voxtral_timeout_s
        self._stop = stop
        self._session = _session(self._key, at_once)

    def ask(self, path: str, model: str, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        """What `read` makes of the answer to a POST, its `body` in the terms of requests; asked up to five times.

        `read` raises ValueError for an answer that lacks what it should have; that is asked for again. Raises
        TokenRefusedError, TokenMissingError, ModelMissingError, ServiceError; CancelledError once `stop` is set.
        """
        from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt

        tries = Retrying(
            stop=stop_after_attempt(TRIES),
            wait=_pause,
            before_sleep=_tell,
            sleep=self._wait,
            retry=retry_if_exception_type(_PassingError),
        )
        try:
            answer: T = tries(self._once, path, model, body, read)
        except RetryError as error:
            cause = error.last_attempt.exception()
        else:
            return answer
        raise ServiceError(
            f"the service behind VOXTRAL_ENDPOINT {cause}, {TRIES} times; try again later, with a smaller batch_size "
            "if it has too much to do"
        )

    def close(self) -> None:
        self._session.close()

    def _wait(self, seconds: float) -> None:
        """The pause between two tries, over at once when the job is."""
        self._stop.wait(seconds)

    def _once(self, path: str, model: str, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        if self._stop.is_set():
            raise CancelledError("the job was stopped")
        status, answer = self._post(path, body)
        told = _object(answer)
        status = _error_within(told) if status == 200 else status
        if _passes(status):
            raise _PassingError(f"answers {status}")
        if status != 200:
            raise self._refusal(status, model, told)
        try:
            return read(told or {})
        except ValueError:
            raise _PassingError("answered with something that is no transcript") from None

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer. Raises _PassingError where there is none, or where it says `not now`."""
        from requests import RequestException, Timeout
        from requests.exceptions import SSLError
        from urllib3.exceptions import HTTPError
        from urllib3.exceptions import TimeoutError as SlowError
        from urllib3.util import Timeout as Limit

        until = time.monotonic() + self._total_s
        try:
            with self._session.post(
                f"{self._endpoint.address}{path}",
                timeout=Limit(total=self._total_s, connect=self._connect_s),  # type: ignore[arg-type]
                allow_redirects=False,
                stream=True,
                **body,
            ) as response:
                if _passes(response.status_code):
                    raise _PassingError(f"answers {response.status_code}", _asked_pause(response))
                return response.status_code, _content(response, until)
        except (Timeout, SlowError, TimeoutError):
            failed = f"did not answer within {self._total_s:g} s"
        except SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ServiceError(
                    "the certificate of the service behind VOXTRAL_ENDPOINT cannot be trusted; correct the address"
                ) from None
            failed = "broke off the connection"
        except (RequestException, HTTPError, OSError):
            failed = "could not be reached or broke off its answer"
        raise _PassingError(failed)

    def _refusal(self, status: int, model: str, told: Mapping[str, Any] | None) -> HansardError:
        """The error for an answer that asking again would not change."""
        said = _said(told, self._key)
        if status in (401, 403) and self._key is None:
            return TokenMissingError("the service behind VOXTRAL_ENDPOINT asks for a key; set VOXTRAL_API_KEY")
        if status in (401, 403):
            return TokenRefusedError("the service behind VOXTRAL_ENDPOINT refuses the key; correct VOXTRAL_API_KEY")
        if status == 404 or said.lower().startswith("invalid model"):  # Mistral answers 400 to a model it lacks
            return ModelMissingError(
                f"the service behind VOXTRAL_ENDPOINT has no model {model[:100]!r}; name one that it has, or correct "
                "the address, which as a rule ends in /v1"
            )
        if status == 413:
            return ServiceError(
                "the service behind VOXTRAL_ENDPOINT takes no piece as large as this one; raise its limit of a "
                "request's size, or give shorter segments"
            )
        if 300 <= status < 400:
            return ServiceError("VOXTRAL_ENDPOINT answers with a redirect, which is not followed; set the new address")
        words = f': "{said}"' if said else ""
        return ServiceError(f"the service behind VOXTRAL_ENDPOINT refuses the call with {status}{words}")


def side_by_side(calls: Sequence[Callable[[], T]], lengths: Sequence[float], at_once: int, report: Report) -> list[T]:
    """What all calls give, in their order; `report` hears several times a second which share of `lengths` is done.

    Raises what the first to fail raises, and whatever `report` raises; however it ends, no call is begun afterwards.
    Those under way end by themselves.
    """
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="voxtral")
    try:
        futures: dict[Future[T], float] = {
            threads.submit(call): length for call, length in zip(calls, lengths, strict=True)
        }
        waiting, settled = set(futures), 0.0
        while waiting:
            done, waiting = wait(waiting, TICK_S, FIRST_COMPLETED)
            for future in [one for one in futures if one in done]:
                future.result()
                settled += futures[future]
            report(min(1.0, settled / sum(lengths)))
        report(1.0)
        return [future.result() for future in futures]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def placed(call: Callable[[], T], where: str) -> Callable[[], T]:
    """The same call, whose errors say where it was."""

    def call_there() -> T:
        try:
            return call()
        except CancelledError:
            raise
        except HansardError as error:
            raise type(error)(f"{where}: {error.sentence}") from None

    return call_there


def _session(key: str | None, at_once: int) -> Session:
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.trust_env = False  # or a netrc would replace the key, and a proxy would see it
    session.headers.update({"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "hansard"})
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    if key:
        session.headers["Authorization"] = f"Bearer {key}"
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=at_once, max_retries=0))
    return session


def _content(response: Response, until: float) -> bytes:
    """The body of an answer. Raises TimeoutError where it is not whole by then, _PassingError where it has no end."""
    content = bytearray()
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if (connection := response.raw.connection) and connection.sock:
            connection.sock.settimeout(left)  # requests' own limit starts anew with every block
        block = response.raw.read1(BLOCK, decode_content=True)
        if not block:
            return bytes(content)
        content += block
        if len(content) > LARGEST_ANSWER:
            raise _PassingError("answered with something that is no transcript")


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try: doubled each time, or as long as the service asks for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, _PassingError) else 0.0
    return max(asked, min(FIRST_PAUSE_S * 2.0 ** (state.attempt_number - 1), LONGEST_PAUSE_S))


def _tell(state: RetryCallState) -> None:
    """Log why there will be another try, and when."""
    error = state.outcome.exception() if state.outcome else None
    log.warning("the service behind VOXTRAL_ENDPOINT %s; asked again in %g s", error, state.upcoming_sleep)


def _asked_pause(response: Response) -> float:
    """The seconds that a Retry-After asks for, as a number or as a date; at most LONGEST_RETRY_AFTER_S."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        seconds = (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _object(answer: bytes) -> Mapping[str, Any] | None:
    """The JSON object that an answer is, or None."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _passes(status: int) -> bool:
    """May it be another answer in a moment?"""
    return status in PASSING or status >= 500


def _error_within(told: Mapping[str, Any] | None) -> int:
    """The status of an error that came with status 200, as vLLM 0.15 was seen to send; 200 where it is none."""
    if told is None or not (told.get("error") or told.get("object") == "error"):
        return 200
    within = told["error"] if isinstance(told.get("error"), dict) else told
    code = within.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 400


def _said(told: Mapping[str, Any] | None, key: str | None) -> str:
    """What a service says of an error, short, without anything that may be a secret or an address.

    It is in `message` or `detail`, in `error` or not; a list holds one `msg` for each field.
    """
    words: Any = told
    for _ in range(4):
        if isinstance(words, list):
            words = "; ".join(str(one.get("msg", "")) if isinstance(one, dict) else str(one) for one in words)
        if not isinstance(words, dict):
            break
        words = next((words[name] for name in ("error", "message", "detail") if words.get(name)), "")
    text = words if isinstance(words, str) else ""
    if key:
        text = text.replace(key, "***")
    return " ".join(_UNFIT.sub("***", text).split())[:LONGEST_SAID]
