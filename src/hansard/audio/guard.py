"""Which URLs may be fetched, and connections that cannot be led elsewhere.

The name is resolved, every address judged and one of those very addresses connected to, in one place and with
nothing between: a name that answers differently the next time gains nothing. TLS and the Host header keep the
name, because only the opening of the socket is ours. Not covered: a private network behind public addresses, and
NAT64 prefixes that a network chose for itself.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool

from hansard.errors import FetchError, RefusedUrlError
from hansard.settings import Settings

_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, and the metadata service of one cloud
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's own control service behind a public-looking address
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# All public IPv6 lies in one block. Mapped and compatible IPv4, NAT64, unique-local, link-local, site-local and
# multicast lie outside of it; what is special inside of it is listed.
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4 hides an IPv4 address
        "3fff::/20",
    )
)
_MOST_ADDRESSES = 6  # of one name, tried in turn

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def allowed_address(address: str) -> bool:
    """Whether an address, written in numbers, is a public one; what cannot be read is not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _REFUSED_V4)
    return ip.scope_id is None and ip in _PUBLIC_V6 and not any(ip in network for network in _REFUSED_V6)


def check_url(url: str) -> None:
    """Refuse a URL that is not plain http or https with a host.

    Raises RefusedUrlError. The address is judged later, by the connection that uses it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise RefusedUrlError("the URL cannot be read; check its host and port") from None
    if parts.scheme not in ("http", "https"):
        raise RefusedUrlError(f"{public_name(url)} is neither an http nor an https URL")
    if not host:
        raise RefusedUrlError("the URL has no host")
    if re.search(r"[\x00-\x1f\x7f\\]", url):
        raise RefusedUrlError("the URL holds control characters or backslashes; percent-encode them")


def public_name(url: str) -> str:
    """A URL as it may be shown: scheme, host and last path element, without credentials, query or folders."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the URL"
    scheme = parts.scheme if re.fullmatch(r"[a-z][a-z0-9+.-]{1,15}", parts.scheme) else "…"
    if "@" in url.partition("//")[2].removeprefix(parts.netloc):
        return f"{scheme}://…"  # perhaps a password with a slash in it: then even the host is none
    host = f"[{host}]" if ":" in host else host
    folders, _, last = parts.path.partition(";")[0].rpartition("/")
    last = re.sub(r"[^\w.~%+,=()-]", "", last)[:80]
    if not host:
        return f"file:…/{last}" if scheme == "file" else f"{scheme}:…"
    return f"{scheme}://{host}{port}{'/…/' if folders else '/'}{last}"


def session(settings: Settings) -> requests.Session:
    """A session that reaches public addresses only (any address, with ALLOW_PRIVATE_URLS).

    It knows no proxy, no netrc, and follows no redirect: every hop is to be checked by `check_url` first.
    """
    # Its debug lines and its complaints about headers hold whole URLs.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    made = _Session()
    made.trust_env = False
    made.headers.update({"User-Agent": "hansard", "Accept-Encoding": "identity"})
    adapter = _GuardedAdapter(settings.allow_private_urls)
    made.mount("http://", adapter)
    made.mount("https://", adapter)
    return made


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """No target: requests would read a redirect's whole body, however large, before telling of it."""


class _GuardedAdapter(HTTPAdapter):
    """An adapter whose connections are opened by `_connect`."""

    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        self._connections = _connections(allow_private)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        assert isinstance(pool, HTTPConnectionPool)
        pool.ConnectionCls = self._connections[pool.scheme or "http"]
        return pool


def _connections(allow_private: bool) -> dict[str, type[HTTPConnection]]:
    """urllib3's two kinds of connection, opening their socket our way."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self._dns_host, self.port, self.timeout, allow_private)

    class Encrypted(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self._dns_host, self.port, self.timeout, allow_private)

    return {"http": Plain, "https": Encrypted}


def _connect(host: str, port: int, timeout: float | None, allow_private: bool) -> socket.socket:
    """A socket to the first address of a host that answers; `timeout` in seconds is for each address.

    Raises RefusedUrlError or FetchError for the name, OSError when no address answers.
    """
    failure = OSError("the host has no address")
    for family, address in resolve(host, port, allow_private)[:_MOST_ADDRESSES]:
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.connect(address)
        except OSError as error:
            connected.close()
            failure = error
        else:
            return connected
    raise failure


def resolve(host: str, port: int, allow_private: bool) -> list[_Address]:
    """The addresses of a host, all of them allowed: one refused address condemns the name.

    Raises RefusedUrlError, FetchError for a name that does not exist, OSError when the resolver fails.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise RefusedUrlError("the URL's host is not a name that can be looked up") from None
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise FetchError(f"the host {host} is not known; check the URL") from None
        raise
    addresses: list[_Address] = [(family, address) for family, _, _, _, address in found]
    if not allow_private and not all(allowed_address(str(address[0])) for _, address in addresses):
        raise RefusedUrlError(f"{host} leads to a private address, where this worker does not fetch")
    return addresses
