"""From what a caller sends to a file on disk: a URL, a data URI, base64, or a file in an allowed folder."""

from __future__ import annotations

import base64
import logging
import os
import re
import stat
import tempfile
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

from hansard.audio.download import download
from hansard.audio.guard import public_name
from hansard.errors import EmptyAudioError, FetchError, NotAudioError, RefusedUrlError, RequestError, TooLargeError
from hansard.settings import Settings
from hansard.transcript import Report

log = logging.getLogger(__name__)

_INLINE = "the audio data"  # what messages call a recording that came inside the request
_HEAD = 4096  # bytes by which a file's kind is judged
_LIKE_A_PATH = re.compile(r"(/|\./|\.\./|~)[^\s=]{0,255}")  # MP3 in base64 begins with a slash too, but is longer

_SOUND_STARTS = (b"RIFF", b"OggS", b"fLaC", b"ID3", b"FORM", b"caff", b".snd", b"#!AMR", b"#!SILK", b"NIST_1A")
_KINDS = {
    b"%PDF-": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"II*\x00": "a picture",
    b"MM\x00*": "a picture",
    b"PK\x03\x04": "a zip archive or an office document",
    b"PK\x05\x06": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\xd0\xcf\x11\xe0": "an office document",
    b"\x7fELF": "a program",
}
_PICTURE_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis")
_WEB_PAGE = re.compile(rb"<!doctype\s+html|<(html|head|body|script|meta)[\s>]", re.IGNORECASE)
_ADVICE = {
    "a web page": "check that the link is a direct download",
    "JSON": "it may be a service's error message",
    "a playlist": "give the link of the recording itself",
}


def fetch(source: str, folder: Path, settings: Settings, report: Report) -> Path:
    """The file that holds what `source` names or contains; a new one in `folder`, save for file: URLs.

    Raises RequestError for what is neither a URL nor data, RefusedUrlError, FetchError, TooLargeError,
    EmptyAudioError, NotAudioError, and whatever `report` raises. Sources are never shown, but by `public_name`.
    """
    try:
        name, path = _bring(source.strip(), folder, settings, report)
        _judge(path, name)
        log.info("%s: %d bytes", name, path.stat().st_size)
    except OSError as error:  # the worker's own disk: full, or gone
        raise FetchError(f"the recording could not be stored on the worker: {error.strerror}") from None
    report(1.0)
    return path


def _bring(source: str, folder: Path, settings: Settings, report: Report) -> tuple[str, Path]:
    """What a source may be called, and the file that now holds it."""
    scheme = _scheme(source)
    if scheme in ("http", "https"):
        name, path = public_name(source), _new_file(folder)
        download(source, path, settings, report)
    elif scheme == "file":
        name, path = public_name(source), _allowed_file(source, settings)
    elif scheme in ("data", ""):
        content = _from_data_uri(source, settings) if scheme else _from_bare_base64(source, settings)
        name, path = _INLINE, _new_file(folder)
        path.write_bytes(content)
    else:
        raise RefusedUrlError(_unknown_scheme(source, scheme))
    return name, path


def _scheme(source: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", source)
    return match[1].lower() if match else ""


def _unknown_scheme(source: str, scheme: str) -> str:
    """The sentence for a scheme nobody serves; what stands before a lone colon may be a user's name: not shown."""
    what = f"{scheme}: URLs are" if source[len(scheme) :].startswith("://") else "this kind of source is"
    return f"{what} not fetched; give an http(s) URL, a data URI, base64, or a file: URL"


def _new_file(folder: Path) -> Path:
    """An empty file of its own: several recordings may share a job's folder."""
    descriptor, path = tempfile.mkstemp(prefix="audio-", dir=folder)
    os.close(descriptor)
    return Path(path)


def _refuse_above(size: int, name: str, settings: Settings) -> None:
    if size > settings.max_audio_mb * 10**6:
        raise TooLargeError(f"{name}: larger than {settings.max_audio_mb} MB, the limit here")


def data_uri(content: bytes, media_type: str = "application/octet-stream") -> str:
    """Content as a source that `fetch` reads."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _from_data_uri(source: str, settings: Settings) -> bytes:
    """The content of `data:[media type][;base64],content`; the media type is not believed, so not read."""
    header, comma, body = source.partition(",")
    if not comma:
        raise RequestError("the data URI has no comma between its media type and its data")
    if header.lower().rstrip().endswith(";base64"):
        return _from_base64(unquote(body) if "%" in body else body, settings)
    _refuse_above(len(body) - 2 * body.count("%"), _INLINE, settings)
    content = unquote_to_bytes(body)
    _refuse_above(len(content), _INLINE, settings)  # letters beyond ASCII grew
    return content


def _from_bare_base64(source: str, settings: Settings) -> bytes:
    """What base64 holds that comes without a word of explanation, and so may have been meant as a path."""
    if _LIKE_A_PATH.fullmatch(source):
        raise RequestError("the audio looks like a path; give an http(s) URL, base64, or a file: URL")
    return _from_base64(source, settings)


def _from_base64(text: str, settings: Settings) -> bytes:
    """What base64 of either alphabet holds; line breaks and missing padding are forgiven, nothing else is."""
    packed = "".join(text.split())
    bare = packed.rstrip("=")
    padding = len(packed) - len(bare)
    _refuse_above(len(bare) * 3 // 4, _INLINE, settings)
    if not re.fullmatch(r"[A-Za-z0-9+/]*|[A-Za-z0-9_-]*", bare):
        raise RequestError("the audio is neither a URL nor base64")
    if len(bare) % 4 == 1 or padding > 2 or (padding and len(packed) % 4):
        raise RequestError("the audio is base64 that was cut off: its length is impossible")
    return base64.b64decode(bare.replace("-", "+").replace("_", "/") + "=" * (-len(bare) % 4), validate=True)


def _allowed_file(source: str, settings: Settings) -> Path:
    """The real path of a file: URL, after all links, if it lies below AUDIO_ROOTS.

    Outside of them the answer is the same whether or not there is such a file.
    """
    path = _resolved(_split_file_url(source))
    roots = [root.resolve() for root in settings.audio_roots]
    if path is None or not any(path.is_relative_to(root) for root in roots):
        raise RefusedUrlError("the file: URL leads out of the folders that this worker may read (AUDIO_ROOTS)")
    try:
        status = path.stat()
    except OSError:
        raise FetchError(f"{public_name(source)}: there is no such file, or it may not be read") from None
    if not stat.S_ISREG(status.st_mode):
        raise FetchError(f"{public_name(source)} is not a file")
    _refuse_above(status.st_size, public_name(source), settings)
    return path


def _split_file_url(source: str) -> SplitResult:
    try:
        parts = urlsplit(source)
    except ValueError:
        raise RefusedUrlError("the file: URL cannot be read") from None
    if parts.netloc.lower() not in ("", "localhost") or not parts.path.startswith("/"):
        raise RefusedUrlError("a file: URL names no other machine and a whole path: file:///folder/recording.wav")
    return parts


def _resolved(parts: SplitResult) -> Path | None:
    """The path without links; None for one that cannot exist."""
    try:
        return Path(unquote(parts.path, errors="strict")).resolve()
    except (ValueError, OSError, RuntimeError):
        return None


def _judge(path: Path, name: str) -> None:
    """Refuse what is surely no recording, by its content alone; the decoder judges the rest.

    Raises EmptyAudioError, NotAudioError, FetchError.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        raise FetchError(f"{name}: it may not be read") from None
    if not head:
        raise EmptyAudioError(f"{name} holds no bytes at all")
    kind = _kind(head)
    if kind:
        advice = _ADVICE.get(kind, "")
        raise NotAudioError(f"{name} is {kind}, not a recording{'; ' if advice else ''}{advice}")


def _kind(head: bytes) -> str | None:
    """What the first bytes of a file show it to be, when that is surely not sound."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a picture"
    if head.startswith(_SOUND_STARTS):
        return None
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        return "a picture"
    if head[257:262] == b"ustar":
        return "a tar archive"
    known = next((kind for start, kind in _KINDS.items() if head.startswith(start)), None)
    return known or _kind_of_text(head)


def _kind_of_text(head: bytes) -> str | None:
    """Which kind of text this is; None when it is no text."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _WEB_PAGE.match(text) or (text[:1] == b"<" and _WEB_PAGE.search(text)):
        return "a web page"
    if text.startswith((b"#EXTM3U", b"[playlist]")) or re.search(rb"<(MPD|asx|playlist)[\s>]", text[:1024]):
        return "a playlist"
    if not _readable(head):
        return None
    if text.startswith(b"<"):
        return "a picture" if b"<svg" in text else "XML"
    return "JSON" if re.match(rb'\{\s*["}]|\[\s*[\[{"\]]', text) else "plain text"


def _readable(head: bytes) -> bool:
    """Whether these bytes are Unicode text without control characters; the last character may be cut."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if len(head) < _HEAD or error.start < len(head) - 4:
            return False
        text = head[: error.start].decode(encoding)
    return not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", text)
