"""The client of a service that holds models: calls from several threads, tried again where that may help.

What the service says of an error is told without keys, addresses and paths.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
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
from hansard.retries import TOO_MANY, passes
from hansard.settings import Settings
from hansard.transcribers.voxtral_answers import error_within, object_of, said_of
from hansard.transcribers.voxtral_pace import Pace, PassingError, backoff, jitter
from hansard.transcript import Report

if TYPE_CHECKING:
    from tenacity import RetryCallState

log = logging.getLogger(__name__)

T = TypeVar("T")

MISTRAL = "mistral.ai"  # the domain of the service whose models these are; its hosts differ from vLLM in small things

TRIES = 5
TICK_S = 0.25  # between two looks at whether the job is to go on

_KEY = re.compile(r"[!-~]+")  # what an HTTP header takes


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


class Service:
    """One job's access to a service, for as many threads as `at_once`; `stop` ends all calls, `close` at once."""

    def __init__(self, settings: Settings, at_once: int, stop: threading.Event) -> None:
        from hansard.transcribers.voxtral_http import Wire

        self._endpoint = check_access(settings)
        self._key = _key(settings)
        self._stop = stop
        self._wire = Wire(settings, self._key, at_once, stop)
        self._pace = Pace()

    def ask(self, path: str, model: str, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        """What `read` makes of the answer to a POST, its `body` in the terms of requests; asked up to five times.

        While the service has too much to do (429) but lets calls of the job through, it is asked more often. `read`
        raises ValueError for an answer that lacks what it should have; that is asked for again. Raises
        TokenRefusedError, TokenMissingError, ModelMissingError, ServiceError; CancelledError once `stop` is set.
        """
        from tenacity import RetryError, Retrying, retry_if_exception_type

        counted: list[PassingError] = []

        def once() -> T:
            try:
                return self._in_turn(lambda: self._answer(path, model, body, read))
            except PassingError as error:
                if error.counts:
                    counted.append(error)
                raise

        tries = Retrying(
            stop=lambda _: len(counted) >= TRIES,
            wait=lambda state: self._pause(_failure(state), len(counted)),
            before_sleep=_tell,
            sleep=self._wait,
            retry=retry_if_exception_type(PassingError),
        )
        try:
            return tries(once)
        except RetryError as error:
            cause = error.last_attempt.exception()
        raise ServiceError(
            f"the service behind VOXTRAL_ENDPOINT {cause}, {TRIES} times; try again later, with a smaller batch_size "
            "if it has too much to do"
        )

    def close(self) -> None:
        """Ends the calls under way, and lets go of all connections."""
        self._wire.close()

    def _wait(self, seconds: float) -> None:
        """A pause, over at once when the job is."""
        self._stop.wait(seconds)

    def _now(self) -> float:
        return time.monotonic()

    def _pause(self, error: PassingError, failures: int) -> float:
        """Seconds before the next try: longer each time, or as long as the service asks for."""
        pause = self._pace.left(self._now()) if error.busy else max(error.after, backoff(failures))
        return pause + jitter()

    def _in_turn(self, call: Callable[[], T]) -> T:
        """A call, when the service is ready for it."""
        while not self._stop.is_set() and (left := self._pace.left(self._now())):
            self._wait(left + jitter())
        if self._stop.is_set():
            raise CancelledError("the job was stopped")
        begun = self._now()
        try:
            with self._pace.under_way(begun):
                answer = call()
        except PassingError as error:
            if self._stop.is_set():  # which is why it failed
                raise CancelledError("the job was stopped") from None
            if error.busy:
                error.counts = self._pace.refused(begun, self._now(), error.after)
            raise
        self._pace.answered(self._now())
        return answer

    def _answer(self, path: str, model: str, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
        """One try."""
        status, answer = self._wire.post(f"{self._endpoint.address}{path}", body)
        told = object_of(answer)
        status = error_within(told) if status == 200 else status
        if passes(status):
            raise PassingError(f"answers {status}", busy=status == TOO_MANY)
        if status != 200:
            raise self._refusal(status, model, told)
        try:
            return read(told or {})
        except ValueError:
            raise PassingError("answered with something that is no transcript") from None

    def _refusal(self, status: int, model: str, told: Mapping[str, Any] | None) -> HansardError:
        """The error for an answer that asking again would not change."""
        said = said_of(told, self._key)
        words = f': "{said}"' if said else ""
        if status in (401, 403):
            return self._refused_key(status, model, words)
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
        return ServiceError(f"the service behind VOXTRAL_ENDPOINT refuses the call with {status}{words}")

    def _refused_key(self, status: int, model: str, words: str) -> HansardError:
        if self._key is None:
            return TokenMissingError("the service behind VOXTRAL_ENDPOINT asks for a key; set VOXTRAL_API_KEY")
        if status == 401:
            return TokenRefusedError("the service behind VOXTRAL_ENDPOINT refuses the key; correct VOXTRAL_API_KEY")
        return TokenRefusedError(  # as Mistral answers for a model that a subscription does not hold
            f"the service behind VOXTRAL_ENDPOINT does not let this key use model {model[:100]!r}{words}; name another "
            "model, or give VOXTRAL_API_KEY one that may"
        )


def side_by_side(calls: Sequence[Callable[[], T]], lengths: Sequence[float], at_once: int, report: Report) -> list[T]:
    """What all calls give, in their order; `report` hears several times a second which share of `lengths` is done.

    Raises what the first to fail raises, and whatever `report` raises; however it ends, no call is begun afterwards.
    Those under way go on until something ends them.
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


def _failure(state: RetryCallState) -> PassingError:
    """Why the last try failed."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, PassingError)
    return error


def _tell(state: RetryCallState) -> None:
    """Log why there will be another try, and when."""
    log.warning("the service behind VOXTRAL_ENDPOINT %s; asked again in %.0f s", _failure(state), state.upcoming_sleep)
