"""No URL leads a download to a private address, whatever its name answers; TLS still checks the name."""

from __future__ import annotations

import logging
import socket
import ssl

import pytest
import requests
import trustme

from hansard.audio import guard
from hansard.errors import FetchError, RefusedUrlError
from hansard.settings import Settings
from loopback import Loopback

# fmt: off
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "99.255.255.255", "100.63.255.255", "100.128.0.1", "126.255.255.255",
    "128.0.0.1", "169.253.255.255", "169.255.0.1", "172.15.255.255", "172.32.0.1", "192.0.1.1", "192.167.255.255",
    "192.169.0.1", "198.17.255.255", "198.20.0.1", "203.0.112.1", "223.255.255.255", "2001:4860:4860::8888",
    "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:200::1", "2003::1",
]

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255",
    "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1",
    "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe",
    "::ffff:0:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "64:ff9b:1::a00:1", "100::1",
    "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1",
    "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1",
    "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "1.1.1", "0x7f000001", "2130706433",
    "localhost", "1.1.1.1/32",
]
# fmt: on


@pytest.fixture
def server():
    with Loopback() as server:
        server.plays["/a"] = lambda player: player.answer(200, b"here")
        yield server


def get(url: str, allow_private: bool = False) -> bytes:
    settings = Settings(allow_private_urls=allow_private)
    with guard.session(settings) as session:
        return session.get(url, timeout=(0.5, 0.5)).content


def answering(monkeypatch, name: str, *answers: list[str]) -> None:
    """Make a name resolve to each list of addresses in turn, then to the last one for ever."""
    real, left = socket.getaddrinfo, list(answers)

    def fake(host, port, *args, **kwargs):
        if host != name:
            return real(host, port, *args, **kwargs)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [found for address in addresses for found in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", fake)


def connections(monkeypatch) -> list[str]:
    """Refuse every connection, noting where it would have gone."""
    tried: list[str] = []

    def connect(self, address):
        tried.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address):
    assert guard.allowed_address(address)


@pytest.mark.parametrize("address", [*PRIVATE, ""])
def test_every_other_address_is_not(address):
    assert not guard.allowed_address(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "0", "[::1]"])
def test_the_loopback_is_refused_however_it_is_spelt(host, server):
    with pytest.raises(RefusedUrlError, match="private address"):
        get(server.url("/a", host))
    assert server.asked == []


def test_the_setting_lifts_the_address_check(server):
    assert get(server.url("/a"), allow_private=True) == b"here"


def test_an_ipv6_literal_works():
    with Loopback(address="::1") as server:
        server.plays["/a"] = lambda player: player.answer(200, b"six")
        assert get(server.url("/a", "[::1]"), allow_private=True) == b"six"
        assert server.asked[0].headers["Host"] == f"[::1]:{server.server_port}"


def test_one_private_address_condemns_the_name(monkeypatch):
    answering(monkeypatch, "mixed.test", ["93.184.216.34", "10.0.0.1"])
    tried = connections(monkeypatch)
    with pytest.raises(RefusedUrlError):
        get("http://mixed.test/a")
    assert tried == []


def test_the_checked_address_is_the_one_connected_to(monkeypatch):
    answering(monkeypatch, "rebind.test", ["93.184.216.34"], ["127.0.0.1"])
    tried = connections(monkeypatch)
    with pytest.raises(requests.ConnectionError):
        get("http://rebind.test/a")
    assert tried == ["93.184.216.34"]


def test_a_second_request_of_a_rebinding_name_is_refused(monkeypatch, server):
    answering(monkeypatch, "rebind.test", ["93.184.216.34"], ["127.0.0.1"])
    with monkeypatch.context() as patch:
        connections(patch)
        with pytest.raises(requests.ConnectionError):
            get(server.url("/a", "rebind.test"))
    with pytest.raises(RefusedUrlError):
        get(server.url("/a", "rebind.test"))
    assert server.asked == []


def test_the_host_header_keeps_the_name_and_the_next_address_is_tried(monkeypatch, server):
    answering(monkeypatch, "audio.test", ["127.0.0.2", "127.0.0.1"])
    assert get(server.url("/a", "audio.test"), allow_private=True) == b"here"
    assert server.asked[0].headers["Host"] == f"audio.test:{server.server_port}"


def test_an_unknown_name_says_so(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match=r"the host nowhere\.test is not known"):
        get("http://nowhere.test/a")


def test_proxies_and_netrc_of_the_environment_are_ignored(monkeypatch, server, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password swordfish\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert get(server.url("/a"), allow_private=True) == b"here"
    assert server.asked[0].headers["Authorization"] is None


def test_the_session_follows_no_redirect_and_reads_none_of_its_body(server):
    def play(player):
        player.start(302, Location="/a", Content_Length=10**9)
        player.stall()

    server.plays["/redirect"] = play
    settings = Settings(allow_private_urls=True)
    with (
        guard.session(settings) as session,
        session.get(server.url("/redirect"), stream=True, timeout=(0.5, 0.5)) as response,
    ):
        assert response.status_code == 302


def test_urllib3_does_not_log_urls(server, caplog):
    def play(player):
        player.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nno colon here\r\n\r\n")

    server.plays["/odd"] = play
    with caplog.at_level(logging.DEBUG):
        get(server.url("/odd?token=swordfish"), allow_private=True)
    assert "swordfish" not in caplog.text


class TestTls:
    """A certificate for `audio.test`, a name that leads to the loopback."""

    @pytest.fixture
    def authority(self):
        return trustme.CA()

    @pytest.fixture
    def secure(self, authority, monkeypatch, tmp_path):
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", str(tmp_path / "ca.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("audio.test").configure_cert(context)
        self.names: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        with Loopback(context) as server:
            server.plays["/a"] = lambda player: player.answer(200, b"secret")
            yield server

    def test_the_name_is_verified_at_the_pinned_address(self, secure, monkeypatch):
        answering(monkeypatch, "audio.test", ["127.0.0.1"])
        assert get(secure.url("/a", "audio.test"), allow_private=True) == b"secret"
        assert self.names == ["audio.test"]
        assert secure.asked[0].headers["Host"] == f"audio.test:{secure.server_port}"

    @pytest.mark.parametrize("host", ["other.test", "127.0.0.1"])
    def test_another_name_is_not_accepted(self, secure, monkeypatch, host):
        answering(monkeypatch, "other.test", ["127.0.0.1"])
        with pytest.raises(requests.exceptions.SSLError, match="mismatch"):
            get(secure.url("/a", host), allow_private=True)
        assert secure.asked == []

    def test_an_unknown_authority_is_not_accepted(self, secure, monkeypatch, tmp_path):
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        answering(monkeypatch, "audio.test", ["127.0.0.1"])
        with pytest.raises(requests.exceptions.SSLError, match="verify failed"):
            get(secure.url("/a", "audio.test"), allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a",
        "file:///etc/passwd",
        "gopher://host/",
        "//host/a",
        "http://",
        "http:///a",
        "https://host:port/a",
        "http://[::1/a",
        "http://host:99999/a",
        "http://good\\@evil/a",
        "http://host/a\r\nX: y",
        "",
    ],
)
def test_what_is_not_a_plain_web_url_is_refused(url):
    with pytest.raises(RefusedUrlError):
        guard.check_url(url)


@pytest.mark.parametrize("url", ["http://h/a b.mp3", "HTTPS://H:8443/ü?x=1#f", "http://u:p@h", "http://[2606::1]/a"])
def test_plain_web_urls_pass(url):
    guard.check_url(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/talk.mp3", "https://host/talk.mp3"),
        ("HTTPS://Host:8443/secret/talk.mp3?token=secret#secret", "https://host:8443/…/talk.mp3"),
        ("https://me:secret@host/talk.mp3", "https://host/talk.mp3"),
        ("https://me:se/cret@host/talk.mp3", "the URL"),
        ("https://me:1/secret@host", "https://…"),
        ("https://me:1?secret@host", "https://…"),
        ("https:me:secret@host", "https:…"),
        ("https://host/talk.mp3;jwt=secret", "https://host/talk.mp3"),
        ("https://[2606::1]:80/secret/", "https://[2606::1]:80/…/"),
        ("https://host", "https://host/"),
        ("https://host/\x1b[31m\n", "https://host/31m"),
        ("file:///home/secret/talk.wav", "file:…/talk.wav"),
        ("https://host:secret/a", "the URL"),
        ("secret", "…:…"),
        ("a-very-long-secret-key://x", "…://x/"),
    ],
)
def test_the_public_name_holds_no_secret(url, name):
    assert guard.public_name(url) == name


def test_a_long_name_is_cut():
    assert len(guard.public_name("https://host/" + "a" * 5000)) < 120
