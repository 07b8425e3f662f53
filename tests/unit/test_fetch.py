"""Every way of giving a recording ends in a file or in one clear refusal."""

from __future__ import annotations

import base64
import io
import logging
import os
import random
import traceback
import wave
import zipfile

import pytest

from hansard.audio.fetch import fetch
from hansard.errors import (
    CancelledError,
    EmptyAudioError,
    FetchError,
    HansardError,
    NotAudioError,
    RefusedUrlError,
    RequestError,
    TooLargeError,
)
from hansard.settings import Settings
from loopback import Loopback


def _wav(frames: bytes = bytes(range(256)) * 4) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(frames)
    return buffer.getvalue()


WAV = _wav()
BASE64 = base64.b64encode(WAV).decode()


@pytest.fixture
def roots(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    return allowed


@pytest.fixture
def get(tmp_path, roots):
    folder = tmp_path / "job"
    folder.mkdir()
    settings = Settings(
        allow_private_urls=True,
        connect_timeout_s=0.5,
        read_timeout_s=0.3,
        download_retries=0,
        max_audio_mb=1,
        audio_roots=(tmp_path / "absent", roots),
    )

    def run(source, report=lambda fraction: None):
        return fetch(source, folder, settings, report)

    return run


@pytest.fixture
def server():
    with Loopback() as server:
        yield server


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("talk.wav", WAV)
    return buffer.getvalue()


class TestUrls:
    def test_a_url_is_downloaded_whatever_it_is_called(self, get, server, tmp_path):
        server.plays["/page.html"] = lambda player: player.answer(200, WAV, Content_Type="text/html")
        told = []
        path = get(f"  {server.url('/page.html').replace('http', 'HTTP')}\n", told.append)
        assert path.read_bytes() == WAV
        assert path.parent == tmp_path / "job"
        assert told[-1] == 1.0

    def test_several_recordings_share_a_folder(self, get, server):
        server.plays["/a"] = lambda player: player.answer(200, WAV)
        server.plays["/b"] = lambda player: player.answer(200, WAV + b"b")
        one, two = get(server.url("/a")), get(server.url("/b"))
        assert (one.read_bytes(), two.read_bytes()) == (WAV, WAV + b"b")

    def test_a_web_page_is_told_from_a_recording(self, get, server):
        page = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
        server.plays["/talk.mp3"] = lambda player: player.answer(200, page, Content_Type="audio/mpeg")
        with pytest.raises(NotAudioError) as caught:
            get(server.url("/talk.mp3"))
        assert caught.value.sentence == (
            f"{server.url('/talk.mp3')} is a web page, not a recording; check that the link is a direct download"
        )

    def test_nothing_at_all_is_told(self, get, server):
        server.plays["/a"] = lambda player: player.answer(204)
        with pytest.raises(EmptyAudioError):
            get(server.url("/a"))

    @pytest.mark.parametrize("source", ["ftp://h/a", "s3://bucket/key", "gopher://h/", "FTP://h/a", "ws://h/"])
    def test_another_scheme_is_refused_by_name(self, get, source):
        with pytest.raises(RefusedUrlError, match=f"^url_refused: {source.partition(':')[0].lower()}: URLs are not"):
            get(source)

    @pytest.mark.parametrize("source", ["me:swordfish", "C:\\talk.wav", "blob:https://h/1", "javascript:alert(1)"])
    def test_another_kind_of_source_is_refused_without_repeating_it(self, get, source):
        with pytest.raises(RefusedUrlError, match="this kind of source is not fetched"):
            get(source)

    def test_a_cancelled_job_stops(self, get):
        def report(fraction):
            raise CancelledError("no longer wanted")

        with pytest.raises(CancelledError):
            get(BASE64, report)


class TestInline:
    @pytest.mark.parametrize(
        "source",
        [
            BASE64,
            BASE64.rstrip("="),
            f"\n{BASE64} \n",
            "\r\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
            base64.urlsafe_b64encode(WAV).decode(),
            base64.urlsafe_b64encode(WAV).decode().rstrip("="),
            f"data:audio/wav;base64,{BASE64}",
            f"DATA:Audio/WAV;Codecs=1;BASE64,{BASE64}",
            f"data:;base64,{BASE64}",
            f"data:text/html;base64,{BASE64}",
            f"data:audio/wav;base64,{BASE64.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
            "data:audio/wav," + "".join(f"%{byte:02x}" for byte in WAV),
        ],
    )
    def test_the_same_bytes_come_out(self, get, source):
        assert get(source).read_bytes() == WAV

    def test_both_alphabets_differ_in_this_recording(self):
        assert {"+", "/"} & set(BASE64), "the tests above would not tell the alphabets apart"

    @pytest.mark.parametrize(
        "source",
        [
            "hello world!",
            "talk.wav",
            "../talk.wav",
            "-_-_+/+/",
            BASE64[:-1] + "*",
            BASE64[:40] + "=" + BASE64[40:],
            BASE64.rstrip("=") + "====",
            "AAAAA",
            "AAAA=",
            "AAA==",
            "ÄÄÄÄ",
            "data:audio/wav;base64",
            "data:audio/wav;base64,not base64!",
        ],
    )
    def test_what_is_not_base64_is_refused(self, get, source):
        with pytest.raises(RequestError):
            get(source)

    @pytest.mark.parametrize(
        "source", ["/runpod-volume/talk", "/etc/passwd", "./talk", "~/talk", "../a", "/data/a.wav"]
    )
    def test_a_bare_path_is_recognised(self, get, source):
        with pytest.raises(RequestError, match="looks like a path"):
            get(source)

    def test_mp3_in_base64_begins_like_a_path_and_passes(self, get):
        frames = b"\xff\xfb\x90\x00" * 300
        source = base64.b64encode(frames).decode()
        assert source.startswith("//")
        assert get(source).read_bytes() == frames

    @pytest.mark.parametrize("source", ["data:,", "data:audio/wav;base64,", "   "])
    def test_nothing_is_empty(self, get, source):
        with pytest.raises(EmptyAudioError):
            get(source)

    def test_the_limit_itself_fits(self, get):
        assert get(base64.b64encode(b"\x00" * 10**6).decode()).stat().st_size == 10**6

    @pytest.mark.parametrize(
        "source",
        [
            base64.b64encode(bytes(10**6 + 1)).decode(),
            "data:audio/wav;base64," + base64.b64encode(bytes(10**6 + 1)).decode(),
            "data:audio/wav," + "%00" * (10**6 + 1),
            "data:audio/wav," + "é" * (6 * 10**5),
        ],
        ids=["base64", "data base64", "data percent", "data beyond ASCII"],
    )
    def test_more_is_too_large(self, get, source):
        with pytest.raises(TooLargeError, match="larger than 1 MB"):
            get(source)

    def test_too_much_is_refused_before_it_is_decoded(self, get):
        with pytest.raises(TooLargeError):
            get("!" * (2 * 10**6))


class TestFiles:
    @pytest.fixture
    def talk(self, roots):
        path = roots / "my talk é.wav"
        path.write_bytes(WAV)
        return path

    @pytest.mark.parametrize("start", ["file://", "FILE://localhost", "file:"])
    def test_a_file_of_an_allowed_folder_is_used_where_it_lies(self, get, talk, start):
        assert get(start + talk.as_uri().removeprefix("file://")) == talk.resolve()

    def test_links_inside_lead_to_the_real_file(self, get, talk, roots):
        (roots / "link").symlink_to(talk.name)
        assert get((roots / "link").as_uri()) == talk.resolve()

    def test_a_root_may_itself_be_a_link(self, talk, roots, tmp_path):
        (tmp_path / "alias").symlink_to(roots)
        settings = Settings(audio_roots=(tmp_path / "alias",))
        url = (tmp_path / "alias" / talk.name).as_uri()
        assert fetch(url, tmp_path, settings, lambda fraction: None) == talk.resolve()

    @pytest.mark.parametrize(
        "way",
        [
            "secret.wav",
            "absent.wav",
            "allowed/../secret.wav",
            "allowed/%2e%2e/secret.wav",
            "allowed/out",
            "allowed/out-to-nowhere",
            "allowed/loop",
            "allowed/%00",
            "allowed/%ff",
            "allowedly/a",
        ],
    )
    def test_whatever_lies_outside_gets_one_and_the_same_answer(self, get, roots, tmp_path, way):
        (tmp_path / "secret.wav").write_bytes(WAV)
        (tmp_path / "allowedly").mkdir()
        (tmp_path / "allowedly" / "a").write_bytes(WAV)
        (roots / "out").symlink_to(tmp_path / "secret.wav")
        (roots / "out-to-nowhere").symlink_to(tmp_path / "nowhere")
        (roots / "loop").symlink_to("loop")
        with pytest.raises(RefusedUrlError) as caught:
            get(f"file://{tmp_path}/{way}")
        assert caught.value.sentence == (
            "the file: URL leads out of the folders that this worker may read (AUDIO_ROOTS)"
        )

    @pytest.mark.parametrize(
        "source", ["file://host/a.wav", "file://me:x@localhost/a", "file:a.wav", "file:", "file://["]
    )
    def test_another_machine_or_half_a_path_is_refused(self, get, source):
        with pytest.raises(RefusedUrlError, match="file: URL"):
            get(source)

    def test_no_such_file(self, get, roots):
        with pytest.raises(FetchError, match=r"^fetch_failed: file:…/absent\.wav: there is no such file"):
            get((roots / "absent.wav").as_uri())

    def test_only_regular_files(self, get, roots):
        os.mkfifo(roots / "pipe")
        for name in ("pipe", ""):
            with pytest.raises(FetchError, match="is not a file"):
                get((roots / name).as_uri())

    def test_the_limits_hold_for_files_too(self, get, roots):
        (roots / "large.wav").write_bytes(bytes(10**6 + 1))
        (roots / "empty.wav").touch()
        (roots / "text.wav").write_text("hello")
        for name, error in (("large", TooLargeError), ("empty", EmptyAudioError), ("text", NotAudioError)):
            with pytest.raises(error) as caught:
                get((roots / f"{name}.wav").as_uri())
            assert str(roots) not in str(caught.value)

    def test_nothing_is_allowed_without_roots(self, talk, tmp_path):
        with pytest.raises(RefusedUrlError):
            fetch(talk.as_uri(), tmp_path, Settings(audio_roots=()), lambda fraction: None)


NOT_AUDIO = {
    "a web page": [
        b"<html><body>",
        b"\xef\xbb\xbf  <!doctype HTML>",
        b"<!-- x --><html lang=de>",
        b'<?xml version="1.0"?><html xmlns="x">',
        b"<!DOCTYPE html><title>\xe9 in Latin-1",
    ],
    "JSON": [b'{"error": "expired"}', b"[]", b'[{"a": 1}]', b'{ "long": "' + b"x" * 9000],
    "XML": [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", b"<rss version='2'>"],
    "plain text": [
        b"Not Found",
        "größer".encode(),
        b"\xff\xfe" + "hello".encode("utf-16-le"),
        b"x" * 4095 + b"\xc3\xa9",
    ],
    "a playlist": [
        b"#EXTM3U\n#EXT-X-VERSION:3\n",
        b"[playlist]\nFile1=http://h/a",
        b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'>",
    ],
    "a PDF document": [b"%PDF-1.7\n%\xe2\xe3"],
    "a picture": [
        b"\x89PNG\r\n\x1a\n\x00",
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        b"GIF89a\x01\x00",
        b"RIFF\x10\x00\x00\x00WEBPVP8 ",
        b"\x00\x00\x00\x18ftypheic\x00\x00",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    "a zip archive or an office document": [_zip()],
    "a gzip archive": [b"\x1f\x8b\x08\x00\x00"],
    "a tar archive": [b"talk.wav".ljust(257, b"\x00") + b"ustar\x0000"],
}


@pytest.mark.parametrize(("kind", "content"), [(kind, content) for kind, many in NOT_AUDIO.items() for content in many])
def test_what_is_surely_no_recording_is_named(get, kind, content):
    with pytest.raises(NotAudioError) as caught:
        get(f"data:audio/wav;base64,{base64.b64encode(content).decode()}")
    assert f" is {kind}, not a recording" in caught.value.sentence


@pytest.mark.parametrize(
    "content",
    [
        WAV,
        b"ID3\x04\x00\x00\x00\x00\x00\x00",
        b"\xff\xfb\x90\x64\x00",
        b"\xff\xf1\x50\x80",
        b"OggS\x00\x02",
        b"fLaC\x00\x00\x00\x22",
        b"\x00\x00\x00\x20ftypM4A \x00",
        b"\x00\x00\x00\x20ftypisom\x00",
        b"\x1aE\xdf\xa3\x01",
        b"#!AMR\n<",
        b"FORM\x00\x00\x00\x00AIFF",
        b"caff\x00\x01",
        b".snd\x00\x00",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        b"NIST_1A\n   1024\n",
        bytes(5000),
        b"\x7f\x80" * 3000,
        random.Random(1).randbytes(5000),
    ],
)
def test_everything_else_is_left_to_the_decoder(get, content):
    assert get(f"data:;base64,{base64.b64encode(content).decode()}").read_bytes() == content


def test_no_message_log_or_traceback_holds_a_secret(get, server, roots, caplog):
    (roots / "swordfish").mkdir()
    server.plays["/swordfish/page"] = lambda player: player.answer(200, b"<html>")
    server.plays["/swordfish/ok"] = lambda player: player.answer(200, WAV)
    secret = "?token=swordfish"
    sources = [
        server.url("/swordfish/page", "swordfish:swordfish@127.0.0.1") + secret,
        f"ftp://swordfish:swordfish@h/swordfish{secret}",
        f"file://{roots}/swordfish/a{secret}",
        f"file:///swordfish/a{secret}",
        "file://swordfish@h/a",
        "swordfish:swordfish@h/a",
        "/swordfish/a",
        "http://swordfish:swordfish@[::1/a",
        "data:swordfish",
        "swordfish!",
    ]
    with caplog.at_level(logging.DEBUG):
        for source in sources:
            with pytest.raises(HansardError) as caught:
                get(source)
            shown = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value)
            assert "swordfish" not in shown, source
            assert str(roots) not in shown
        get(server.url("/swordfish/ok") + secret)
    assert "/…/ok" in caplog.text
    assert "swordfish" not in caplog.text
