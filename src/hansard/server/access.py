"""Who may call: keys as Bearer, `x-api-key` or a Basic password, compared in constant time, and how often each may.

Without API_KEYS everybody who reaches the server may call it, whatever key a client sends along. Unless that was asked
for with ALLOW_ANONYMOUS, requests must then name this machine: neither a web page of another site nor a proxy that
leads here from elsewhere is let in.

Models are seen and changed by ADMIN_KEYS. Without any, only by whoever calls from this machine itself, from no page but
the server's own and without a proxy between, a server that has no API_KEYS either and is not open to others.

Not covered: a proxy on this machine that names it as the host and adds no header of its own, as nginx's `proxy_pass`
does when nothing else is set, cannot be told from a caller on this machine. Its HTTP/1.0 alone keeps it from models.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import SecretStr
from starlette.types import Scope

from hansard.errors import AccessError, ForbiddenError, RateError, SettingsError
from hansard.settings import Settings

FORWARDING = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
    "via",
)
"""Headers that proxies add."""
WINDOW_S = 60.0  # for which RATE_LIMIT counts
MOST_COUNTED = 10_000  # callers whose requests are counted at once: there are more addresses than memory
SHORTEST_KEY = 8  # characters

_BEARER = HTTPBearer(auto_error=False, description="one of API_KEYS or ADMIN_KEYS")
_HEADER = APIKeyHeader(name="x-api-key", auto_error=False, description="the same key, for clients without Bearer")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a short hash of the key, empty for anybody. `admin` may see and change models.

    `shared`: strangers call under the same name, so that none should be shown what belongs to it.
    """

    owner: str
    admin: bool
    shared: bool = False


class Gate:
    """Knows the keys, and how often each was used in the last minute. Belongs to one event loop."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._callers = {_digest(key): Caller(_owner(key), False) for key in _values(settings.api_keys)}
        self._open = not self._callers
        self._callers |= {_digest(key): Caller(_owner(key), True) for key in _values(settings.admin_keys)}
        self._local_only = self._open and not settings.allow_anonymous
        self._anybody = Caller("", admin=False, shared=self._open and not self._local_only)
        self._owns_all = self._local_only and not settings.admin_keys  # whoever sits at this machine
        self._origins = settings.allow_origins
        self._rate = Rate(settings.rate_limit, now)

    def admit(self, request: Request) -> Caller:
        """Who calls. Raises AccessError for a key that is missing or unknown, RateError above RATE_LIMIT."""
        who = self._known(_key(request))
        if who is None and self._open:
            self._refuse_strangers(request)
            who = Caller("", admin=True) if self._owns_all and _is_direct(request) else self._anybody
        if who is None:
            raise AccessError("give one of the server's keys, as in: Authorization: Bearer KEY")
        self._rate.count(who.owner or _place(request.scope))
        return who

    def _known(self, key: bytes) -> Caller | None:
        """Every key is compared, so that the time tells nothing."""
        given, found = hashlib.sha256(key).digest(), None
        for digest, who in self._callers.items():
            if hmac.compare_digest(digest, given):
                found = who
        return found

    def _refuse_strangers(self, request: Request) -> None:
        """On a server for this machine alone: what another name, a proxy or a page of another site led here."""
        if not self._local_only:
            return
        allowed = _is_own_page(request) or request.headers["origin"] in self._origins
        if not allowed or _is_handed_on(request) or not _is_local(request.headers.get("host", "")):
            raise AccessError(
                "this server has no API_KEYS and answers only to its own machine; set API_KEYS, or ALLOW_ANONYMOUS=true"
            )


class Rate:
    """At most `limit` requests of each caller in any minute; 0 for any number.

    Remembers `limit` times of each of the last MOST_COUNTED callers.
    """

    def __init__(self, limit: int, now: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._now = limit, now
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, owner: str) -> None:
        """Count one request; one that is refused does not count. Raises RateError."""
        if not self._limit:
            return
        now = self._now()
        times = self._times.setdefault(owner, deque())
        while times and times[0] <= now - WINDOW_S:
            times.popleft()
        if len(times) >= self._limit:
            wait = max(1, int(times[0] + WINDOW_S - now) + 1)
            raise RateError(f"at most {self._limit} requests a minute; try again in {wait} s", retry_after_s=wait)
        times.append(now)
        self._times.move_to_end(owner)
        while len(self._times) > MOST_COUNTED:
            self._times.popitem(last=False)


def check(settings: Settings) -> None:
    """Raises SettingsError for keys that can be guessed, and where every page on the web could call without one."""
    for name, keys in (("API_KEYS", settings.api_keys), ("ADMIN_KEYS", settings.admin_keys)):
        if any(len(value) < SHORTEST_KEY for value in _values(keys)):
            raise SettingsError(f"{name} has a key of less than {SHORTEST_KEY} characters, which can be guessed")
    if "*" in settings.allow_origins and not settings.api_keys and not settings.allow_anonymous:
        raise SettingsError(
            "ALLOW_ORIGINS is * and no key is needed, so that any web page could call; set API_KEYS, or name the pages"
        )


async def caller(
    request: Request,
    _bearer: Annotated[object, Security(_BEARER)] = None,
    _header: Annotated[object, Security(_HEADER)] = None,
) -> Caller:
    """Who calls, as a dependency; the two schemes are there for OpenAPI. Raises AccessError, RateError."""
    gate: Gate = request.app.state.gate
    return gate.admit(request)


async def admin(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """A caller who may see and change models. Raises ForbiddenError, and as `caller`."""
    if not who.admin:
        raise ForbiddenError("this key may not see or change models; use one of ADMIN_KEYS")
    return who


def address_of(scope: Scope) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Where a request came from; None where a proxy told what is no address."""
    client = scope.get("client")
    return _address(client[0]) if client else None


def _place(scope: Scope) -> str:
    """Under what an anonymous caller is counted: its address, or the network that one line has in IPv6."""
    address = address_of(scope)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address or "nowhere")


def _is_direct(request: Request) -> bool:
    """Did this machine itself send the request, from no other site's page, and no proxy hand it on?"""
    address = address_of(request.scope)
    from_here = address is not None and address.is_loopback and request.scope.get("http_version") != "1.0"
    return from_here and _is_own_page(request) and not _is_handed_on(request)


def _is_handed_on(request: Request) -> bool:
    """Has a proxy left its mark?"""
    return any(name in request.headers for name in FORWARDING)


def _is_own_page(request: Request) -> bool:
    """Did no page of a browser send this, or one of the server's own?"""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    return origin in (None, f"http://{host}", f"https://{host}")


def _key(request: Request) -> bytes:
    """The key as it came, empty if none did; RunPod's callers may leave out the word Bearer."""
    scheme, _, rest = request.headers.get("authorization", "").strip().partition(" ")
    named = request.headers.get("x-api-key", "").strip()
    if scheme.lower() == "basic":  # a proxy's own password, or an app's that only takes http://any:KEY@host
        given = named or _password(rest)
    else:
        given = (rest.strip() if scheme.lower() == "bearer" else "" if rest else scheme) or named
    return given.encode("latin-1")


def _password(basic: str) -> str:
    """What follows the name in the base64 of Basic; empty where there is nothing to read."""
    try:
        return base64.b64decode(basic.strip()).decode("latin-1").partition(":")[2]
    except ValueError:
        return ""


def _values(keys: Iterable[SecretStr]) -> list[bytes]:
    return [value.encode() for key in keys if (value := key.get_secret_value().strip())]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _owner(key: bytes) -> str:
    """A name for whoever has this key that does not give the key away."""
    return hashlib.sha256(b"owner of a job: " + key).hexdigest()[:16]


def _is_local(host: str) -> bool:
    """Does a Host header name this machine?"""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def is_loopback(name: str) -> bool:
    """Is this a name or an address that only this machine reaches?"""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text is, without its zone; IPv4 within IPv6, as a socket for both tells it, is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
