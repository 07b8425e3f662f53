"""Downloads over a real loopback server: progress, resuming, limits, retries, and no secret in any message."""

from __future__ import annotations

import gzip
import logging
import socket
import ssl
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests
import trustme

from hansard.audio import download as module
from hansard.audio.download import download
from hansard.errors import CancelledError, FetchError, HansardError, RefusedUrlError, TooLargeError
from hansard.settings import Settings
from loopback import Loopback

BODY = bytes(range(256)) * 1000  # 256 kB, no two neighbouring stretches alike
ETAG = '"one"'


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def server():
    with Loopback() as server:
        yield server


class Run:
    """One download as a test wants it; `told` is what it reported."""

    def __init__(self, folder):
        self.target = folder / "target"
        self.told: list[float] = []
        self.settings = {
            "allow_private_urls": True,
            "connect_timeout_s": 0.5,
            "read_timeout_s": 0.5,
            "download_retries": 1,
            "max_audio_mb": 1,
        }

    def __call__(self, url, report=None, **settings) -> bytes:
        report = report or self.told.append
        download(url, self.target, Settings(**{**self.settings, **settings}), report)
        return self.target.read_bytes()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def whole(player):
    player.answer(200, BODY, ETag=ETAG)


def breaking_once(*, ranges=True, mark=ETAG, status=206, body=BODY, new_mark=None, **extra):
    """Play half a body the first time and, when asked for the rest, the rest."""

    def play(player):
        half = len(BODY) // 2
        asked = player.headers["Range"]
        if player.first():
            player.answer(200, BODY[:half], ETag=mark, Content_Length=len(BODY))
        elif asked and ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {start}-{len(body) - 1}/{len(body)}"
            player.answer(status, body[start:], ETag=new_mark or mark, **{"Content_Range": span, **extra})
        else:
            player.answer(200, body, ETag=new_mark or mark)

    return play


def status_once(status, **headers):
    def play(player):
        if player.first():
            player.answer(status, **headers)
        else:
            whole(player)

    return play


class TestProgress:
    def test_bytes_arrive_and_are_reported(self, server, run):
        server.plays["/a"] = whole
        assert run(server.url("/a")) == BODY
        assert len(run.told) > 3
        assert run.told == sorted(run.told)
        assert 0 < run.told[0] < 0.5
        assert run.told[-2] < 1 == run.told[-1]

    @pytest.mark.parametrize("chunked", [True, False])
    def test_an_unknown_length_grows_below_one(self, server, run, chunked):
        def play(player):
            player.start(200, Transfer_Encoding="chunked" if chunked else None)
            for start in range(0, len(BODY), 64_000):
                part = BODY[start : start + 64_000]
                player.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            player.wfile.write(b"0\r\n\r\n" if chunked else b"")

        server.plays["/a"] = play
        assert run(server.url("/a")) == BODY
        assert len(set(run.told)) > 3
        assert run.told == sorted(run.told)
        assert max(run.told[:-1]) < 1 == run.told[-1]

    def test_a_retry_does_not_take_progress_back(self, server, run):
        server.plays["/a"] = breaking_once(ranges=False)
        assert run(server.url("/a")) == BODY
        assert run.told == sorted(run.told)

    def test_a_cancelled_job_stops_at_once(self, server, run):
        def play(player):
            player.start(200, Content_Length=len(BODY))
            player.wfile.write(BODY[:100_000])
            player.stall()

        def report(fraction):
            raise CancelledError("no longer wanted")

        server.plays["/a"] = play
        with pytest.raises(CancelledError):
            run(server.url("/a"), report)
        assert len(server.asked) == 1

    def test_a_cancelled_job_does_not_wait_for_a_retry(self, server, run):
        def report(fraction):
            raise CancelledError("no longer wanted")

        server.plays["/a"] = lambda player: player.answer(503, Retry_After=20)
        since = time.monotonic()
        with pytest.raises(CancelledError):
            run(server.url("/a"), report)
        assert time.monotonic() - since < 15


class TestRedirects:
    def test_a_chain_is_followed(self, server, run):
        hops = ["/1", server.url("/2?token=x"), "3", server.url("/4").removeprefix("http:"), "/é"]
        for number, hop in enumerate(hops):
            location = hop.encode().decode("latin-1")
            server.plays[f"/{number}"] = lambda player, to=location: player.answer(302, b"moved", Location=to)
        server.plays["/%C3%A9"] = whole
        assert run(server.url("/0")) == BODY

    def test_six_are_too_many(self, server, run):
        server.plays["/a"] = lambda player: player.answer(302, Location="/a")
        with pytest.raises(FetchError, match="more than 5 times"):
            run(server.url("/a"))
        assert len(server.asked) == 6

    @pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://host/a", "gopher://host:70/_x", "data:,x", "http://["])
    def test_none_leads_out_of_the_web(self, server, run, to):
        server.plays["/a"] = lambda player: player.answer(302, Location=to)
        with pytest.raises(RefusedUrlError):
            run(server.url("/a"))
        assert len(server.asked) == 1

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
    def test_none_leads_to_a_private_address(self, server, run, host, monkeypatch):
        """The first hop's name has a public address that a fake network brings here; the second is judged alone."""
        real_lookup, real_connect = socket.getaddrinfo, socket.socket.connect

        def lookup(name, *args, **kwargs):
            return real_lookup("93.184.216.34" if name == "public.test" else name, *args, **kwargs)

        def connect(self, address):
            return real_connect(self, ("127.0.0.1", *address[1:]) if address[0] == "93.184.216.34" else address)

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        monkeypatch.setattr(socket.socket, "connect", connect)
        server.plays["/a"] = lambda player: player.answer(302, Location=server.url("/b?token=swordfish", host))
        server.plays["/b"] = whole
        with pytest.raises(RefusedUrlError, match="private address"):
            run(server.url("/a", "public.test"), allow_private_urls=False)
        assert [asked.path for asked in server.asked] == ["/a"]

    def test_credentials_go_to_their_own_host_only(self, server, run):
        server.plays["/a"] = lambda player: player.answer(302, Location=server.url("/b", "localhost"))
        server.plays["/b"] = whole
        run(server.url("/a", "me:swordfish@127.0.0.1"))
        assert [asked.headers["Authorization"] is None for asked in server.asked] == [False, True]


class TestResuming:
    def test_a_dropped_download_goes_on_where_it_stopped(self, server, run):
        server.plays["/a"] = breaking_once()
        assert run(server.url("/a")) == BODY
        again = server.asked[1].headers
        assert again["Range"] == f"bytes={len(BODY) // 2}-"
        assert again["If-Range"] == ETAG
        assert run.told == sorted(run.told)

    def test_the_date_of_the_last_change_serves_too(self, server, run):
        date = "Wed, 21 Oct 2015 07:28:00 GMT"

        def play(player):
            start = len(BODY) // 2
            if player.first():
                player.answer(200, BODY[:start], Content_Length=len(BODY), ETag='W/"weak"', Last_Modified=date)
            else:
                span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
                player.answer(206, BODY[start:], Content_Range=span, ETag='W/"weak"', Last_Modified=date)

        server.plays["/a"] = play
        assert run(server.url("/a")) == BODY
        assert server.asked[1].headers["If-Range"] == date

    @pytest.mark.parametrize("mark", [None, 'W/"weak"'])
    def test_without_a_mark_it_starts_over(self, server, run, mark):
        server.plays["/a"] = breaking_once(mark=mark)
        assert run(server.url("/a")) == BODY
        assert server.asked[1].headers["Range"] is None

    def test_a_server_that_ignores_ranges_sends_all_again(self, server, run):
        server.plays["/a"] = breaking_once(ranges=False)
        assert run(server.url("/a")) == BODY
        assert server.asked[1].headers["Range"]

    def test_a_changed_recording_is_taken_whole(self, server, run):
        other = BODY[::-1][: len(BODY) // 4]
        server.plays["/a"] = breaking_once(ranges=False, body=other, new_mark='"two"')
        assert run(server.url("/a")) == other

    @pytest.mark.parametrize(
        "wrong",
        [
            {"new_mark": '"two"'},
            {"Content_Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"},
            {"Content_Range": None},
            {"status": 416},
        ],
    )
    def test_a_part_that_does_not_fit_makes_it_start_over(self, server, run, wrong):
        server.plays["/a"] = breaking_once(**wrong)
        assert run(server.url("/a"), download_retries=2) == BODY
        assert [bool(asked.headers["Range"]) for asked in server.asked] == [False, True, False]

    def test_parts_of_parts_are_collected(self, server, run):
        def play(player):
            start = int((player.headers["Range"] or "bytes=0-")[6:-1])
            part = BODY[start : start + 100_000]
            if start:
                span = f"bytes {start}-{start + len(part) - 1}/{len(BODY)}"
                player.answer(206, part, ETag=ETAG, Content_Range=span)
            else:
                player.answer(200, part, ETag=ETAG, Content_Length=len(BODY))

        server.plays["/a"] = play
        assert run(server.url("/a"), download_retries=2) == BODY

    def test_a_body_that_stays_short_is_an_error(self, server, run):
        server.plays["/a"] = lambda player: player.answer(200, BODY[:1000], Content_Length=len(BODY))
        with pytest.raises(FetchError, match="2 tries: the connection failed"):
            run(server.url("/a"))

    def test_a_chunked_body_cut_off_is_an_error(self, server, run):
        def play(player):
            player.start(200, Transfer_Encoding="chunked")
            player.wfile.write(b"3e8\r\n" + BODY[:500])

        server.plays["/a"] = play
        with pytest.raises(FetchError, match="the connection failed"):
            run(server.url("/a"))


class TestRetries:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_passing_failure_is_tried_again(self, server, run, status):
        server.plays["/a"] = status_once(status)
        assert run(server.url("/a")) == BODY

    def test_a_failure_that_stays_is_told(self, server, run):
        server.plays["/a"] = lambda player: player.answer(503)
        with pytest.raises(FetchError, match="in 3 tries: the server answered 503"):
            run(server.url("/a"), download_retries=2)
        assert len(server.asked) == 3

    @pytest.mark.parametrize(
        ("status", "meaning"),
        [
            (400, "400"),
            (401, "login"),
            (403, "expired"),
            (404, "nothing"),
            (410, "removed"),
            (418, "418"),
            (304, "304"),
        ],
    )
    def test_a_lasting_failure_is_told_at_once(self, server, run, status, meaning):
        server.plays["/a"] = lambda player: player.answer(status)
        with pytest.raises(FetchError, match=meaning):
            run(server.url("/a"))
        assert len(server.asked) == 1

    @pytest.mark.parametrize("as_date", [False, True])
    def test_the_server_says_when(self, server, run, as_date):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        server.plays["/a"] = status_once(503, Retry_After=date if as_date else 1)
        since = time.monotonic()
        assert run(server.url("/a")) == BODY
        assert 0.9 < time.monotonic() - since < 15

    @pytest.mark.parametrize("value", ["86400", "Wed, 21 Oct 2199 07:28:00 GMT"])
    def test_but_not_how_long_for_ever(self, server, run, monkeypatch, value):
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.05)
        server.plays["/a"] = status_once(429, Retry_After=value)
        assert run(server.url("/a")) == BODY

    @pytest.mark.parametrize("value", ["soon", "-5", "1e9", "²", "Wed, 21 Oct 2015 07:28:00 GMT"])
    def test_nonsense_is_not_waited_for(self, server, run, value):
        server.plays["/a"] = status_once(503, Retry_After=value.encode().decode("latin-1"))
        since = time.monotonic()
        assert run(server.url("/a")) == BODY
        assert time.monotonic() - since < 15

    def test_a_stall_is_broken_off_and_resumed(self, server, run):
        resume = breaking_once()

        def play(player):
            if player.first():
                player.start(200, ETag=ETAG, Content_Length=len(BODY))
                player.wfile.write(BODY[:1000])
                player.stall()
            else:
                resume(player)

        server.plays["/a"] = play
        assert run(server.url("/a")) == BODY
        assert server.asked[1].headers["Range"] == "bytes=1000-"

    def test_silence_is_told(self, server, run):
        server.plays["/a"] = lambda player: player.stall()
        with pytest.raises(FetchError, match="did not answer in time"):
            run(server.url("/a"))

    def test_a_closed_port_is_told(self, run):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(FetchError, match="the connection failed"):
            run(f"http://127.0.0.1:{port}/a")

    def test_a_drip_is_not_waited_for(self, server, run):
        def play(player):
            player.start(200, Content_Length=len(BODY))
            while not player.server.over.wait(0.05):
                player.wfile.write(b"x")

        server.plays["/a"] = play
        with pytest.raises(FetchError, match="too slowly"):
            run(server.url("/a"))

    def test_a_bad_certificate_is_told_at_once(self, run):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        since = time.monotonic()
        with Loopback(context) as server, pytest.raises(FetchError, match="certificate cannot be trusted"):
            run(server.url("/a"), download_retries=20)
        assert time.monotonic() - since < 15


class TestSize:
    def test_the_limit_itself_fits(self, server, run):
        server.plays["/a"] = lambda player: player.answer(200, bytes(10**6))
        assert len(run(server.url("/a"))) == 10**6

    def test_the_header_is_enough_to_refuse(self, server, run):
        def play(player):
            player.start(200, Content_Length=10**6 + 1)
            player.stall()

        server.plays["/a"] = play
        with pytest.raises(TooLargeError, match="larger than 1 MB"):
            run(server.url("/a"))
        assert not run.target.exists()

    def test_a_stream_is_counted(self, server, run):
        def play(player):
            player.start(200)
            for _ in range(100):
                player.wfile.write(bytes(10**6))

        server.plays["/a"] = play
        with pytest.raises(TooLargeError):
            run(server.url("/a"))
        assert run.target.stat().st_size <= 10**6

    def test_a_resumed_download_is_counted_whole(self, server, run):
        server.plays["/a"] = breaking_once(body=bytes(10**6 + 1))
        with pytest.raises(TooLargeError):
            run(server.url("/a"))

    def test_a_compressed_body_is_counted_unpacked(self, server, run):
        bomb = gzip.compress(bytes(50 * 10**6))
        server.plays["/a"] = lambda player: player.answer(200, bomb, Content_Encoding="gzip")
        with pytest.raises(TooLargeError):
            run(server.url("/a"))
        assert run.target.stat().st_size <= 10**6

    def test_a_compressed_body_is_unpacked_though_none_was_asked_for(self, server, run):
        server.plays["/a"] = lambda player: player.answer(200, gzip.compress(BODY), Content_Encoding="gzip")
        assert run(server.url("/a")) == BODY
        assert server.asked[0].headers["Accept-Encoding"] == "identity"
        assert run.told == sorted(run.told)

    def test_a_compressed_body_is_not_resumed(self, server, run):
        packed = gzip.compress(BODY)

        def play(player):
            sent = packed[:200] if player.first() else packed
            player.answer(200, sent, Content_Encoding="gzip", ETag=ETAG, Content_Length=len(packed))

        server.plays["/a"] = play
        assert run(server.url("/a")) == BODY
        assert server.asked[1].headers["Range"] is None


def failing_ways(server):
    yield server.url("/missing")
    yield server.url("/broken")
    yield server.url("/silent")
    yield server.url("/large")
    yield server.url("/around")
    yield server.url("/away")
    yield "http://127.0.0.1:1/folder"
    yield "http://" + "a" * 70 + ".test/folder"
    yield "http://%zz/folder"


def test_no_message_log_or_traceback_holds_a_secret(server, run, caplog):
    server.plays["/missing"] = lambda player: player.answer(404)
    server.plays["/broken"] = lambda player: player.answer(200, b"x", Content_Length=5)
    server.plays["/silent"] = lambda player: player.stall()
    server.plays["/large"] = lambda player: player.answer(200, Content_Length=10**9)
    server.plays["/around"] = lambda player: player.answer(302, Location="/around?token=swordfish")
    server.plays["/away"] = lambda player: player.answer(302, Location="ftp://swordfish:swordfish@h/?swordfish")
    for url in failing_ways(server):
        secret = url.replace("://", "://swordfish:swordfish@") + "?token=swordfish#swordfish"
        with caplog.at_level(logging.DEBUG), pytest.raises(HansardError) as caught:
            run(secret)
        shown = "".join(traceback.format_exception(caught.value)) + str(caught.value) + repr(caught.value)
        assert "swordfish" not in shown, url
        assert str(run.target) not in str(caught.value)
    assert "trying again" in caplog.text
    assert "swordfish" not in caplog.text


def test_a_secure_download_works(run, monkeypatch, tmp_path):
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", str(tmp_path / "ca.pem"))
    with Loopback(context) as server:
        server.plays["/a"] = whole
        assert run(server.url("/a")) == BODY
