"""The parts of a multipart/form-data body as they come: fields in memory, files on disk, counted and hashed on the way.

The grammar is python-multipart's. RFC 7578 forbids `filename*`, but some clients send nothing else: it is read where
there is no plain `filename`. Not covered: base64 parts, which it forbids too.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from hansard.errors import EmptyAudioError, RequestError, TooLargeError

MB = 10**6
TEXT_MB = 20  # of a request that are no file: RunPod takes as much, and known voices may come as data URIs
MOST_FIELDS = 1000
MOST_FILES = 4  # no endpoint takes more than one; strays are named in its error
BATCH = 2**18  # bytes that wait in memory for a thread to hash and write them
LONGEST_NAME = 100  # characters

_EXTENDED_NAME = re.compile(r";\s*filename\*\s*=\s*\"?([\w-]*)'[\w-]*'([^\s;\"]*)", re.ASCII | re.IGNORECASE)

TOO_MUCH_TEXT = f"besides its files a request has at most {TEXT_MB} MB; send the recording as a file part or a URL"
NOT_WELL_FORMED = "the body is not well-formed multipart/form-data; let your HTTP library build it"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that came with a request, alone in its folder; `size` in bytes, `name` the caller's, made harmless."""

    path: Path
    name: str
    size: int
    sha256: str

    def remove(self) -> None:
        """Remove it and its folder; twice is fine."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


class Parts:
    """The parts of one body, whose files get folders of their own in `folder`.

    `write` takes the body's bytes and `finish` gives what they held. Both raise RequestError for what is not well
    formed, TooLargeError above `max_audio_mb` MB of files or TEXT_MB of the rest; `finish` raises EmptyAudioError for a
    file without bytes. `hold` is told how many bytes stay in memory, and may raise. After any error `remove` takes away
    what was written.
    """

    def __init__(
        self, boundary: bytes, folder: Path, max_audio_mb: int, hold: Callable[[int], None] = lambda _: None
    ) -> None:
        self._folder, self._max_audio_mb, self._hold = folder, max_audio_mb, hold
        self._parser = _parser(boundary, self)
        self._fields: list[_Field] = []
        self._files: list[_File] = []
        self._part: _Field | _File | None = None
        self._header = (bytearray(), bytearray())
        self._disposition = ""
        self._text = 0
        self._sound = 0
        self._ended = False

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes; the disk is written to by a thread."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise RequestError(NOT_WELL_FORMED) from None
        await self._store(BATCH)

    async def finish(self) -> tuple[dict[str, list[str]], dict[str, Upload]]:
        """Fields and files by name, once the body has ended."""
        if not self._ended:
            raise RequestError("the body ends before its last part does; send it again")
        await self._store(0)
        uploads = {file.name: file.upload() for file in self._files}
        for name, upload in uploads.items():
            if upload.size == 0:
                raise EmptyAudioError(f"the file in {name} has no bytes; send the recording itself")
        fields: dict[str, list[str]] = {}
        for field in self._fields:
            fields.setdefault(field.name, []).append(field.text())
        return fields, uploads

    def remove(self) -> None:
        """Remove every file of this body."""
        for file in self._files:
            file.remove()

    async def _store(self, most_waiting: int) -> None:
        """Write what waits where it is more than this, or where the file has ended."""
        for file in self._files:
            if file.waiting > most_waiting or (file.ended and not file.closed):
                await asyncio.to_thread(file.store)

    # What the parser tells

    def on_part_begin(self) -> None:
        self._disposition = ""
        self._part = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value.decode("latin-1")
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if not options.get(b"name"):
            raise RequestError("a part of the body has no name; give every part one in its Content-Disposition")
        name = _utf8(options[b"name"], "the name of a field")
        title = options.get(b"filename", _extended_name(self._disposition))
        self._part = self._new_field(name) if title is None else self._new_file(name, title)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        match self._part:
            case _File():
                self._sound += end - start
                if self._sound > self._max_audio_mb * MB:
                    raise too_large(self._max_audio_mb)
            case _Field():
                self._text += end - start
                if self._text > TEXT_MB * MB:
                    raise TooLargeError(TOO_MUCH_TEXT)
                self._hold(end - start)
        if self._part is not None:
            self._part.add(data[start:end])

    def on_part_end(self) -> None:
        """A browser sends a nameless empty part for a file that nobody chose: that is no file."""
        if not isinstance(self._part, _File):
            return
        self._part.ended = True
        if not self._part.title and self._part.is_empty:
            self._files.remove(self._part)
            self._part.remove()

    def on_end(self) -> None:
        self._ended = True

    def _new_field(self, name: str) -> _Field:
        if len(self._fields) >= MOST_FIELDS:
            raise RequestError(f"a request has at most {MOST_FIELDS} fields")
        self._fields.append(field := _Field(name))
        return field

    def _new_file(self, name: str, title: bytes) -> _File:
        if any(file.name == name for file in self._files):
            raise RequestError(f"two files came as {name[:LONGEST_NAME]!r}; send one recording with each request")
        if len(self._files) >= MOST_FILES:
            raise RequestError(f"a request has at most {MOST_FILES} files")
        self._files.append(file := _File(name, harmless(title), self._folder))
        return file


class _Field:
    """A part that is no file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._value = bytearray()

    def add(self, data: bytes) -> None:
        self._value.extend(data)

    def text(self) -> str:
        return _utf8(self._value, f"the field {self.name[:LONGEST_NAME]!r}")


class _File:
    """A file on its way to disk, under its field's name; `title` is what the caller calls it.

    Once it has `ended`, the next `store` closes it.
    """

    def __init__(self, name: str, title: str, folder: Path) -> None:
        self.name, self.title = name, title
        self._path = Path(tempfile.mkdtemp(prefix="upload-", dir=folder)) / "recording"
        self._file = self._path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._size = 0
        self._waiting: list[bytes] = []
        self.waiting = 0
        self.ended = False
        self._writing = threading.Lock()  # so that no thread writes to a file that is being closed

    @property
    def is_empty(self) -> bool:
        return self._size + self.waiting == 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def add(self, data: bytes) -> None:
        self._waiting.append(data)
        self.waiting += len(data)

    def store(self) -> None:
        """Hash and write what waits; a thread's work."""
        batch = memoryview(b"".join(self._waiting))
        self._waiting.clear()
        self.waiting = 0
        self._hash.update(batch)
        self._size += len(batch)
        with self._writing:
            while batch:  # a disk that is nearly full takes a part
                batch = batch[self._file.write(batch) :]
            if self.ended:
                self._file.close()

    def upload(self) -> Upload:
        """What it is now that it is closed."""
        return Upload(self._path, self.title, self._size, self._hash.hexdigest())

    def remove(self) -> None:
        with self._writing, suppress(OSError):
            self._file.close()
        shutil.rmtree(self._path.parent, ignore_errors=True)


def _extended_name(disposition: str) -> bytes | None:
    """The name in `filename*=UTF-8''%C3%A9.mp3`, as UTF-8; None where there is none."""
    found = _EXTENDED_NAME.search(disposition)
    if found is None:
        return None
    charset = "latin-1" if found[1].lower() == "iso-8859-1" else "utf-8"
    return unquote_to_bytes(found[2]).decode(charset, "replace").encode()


def too_large(max_audio_mb: int) -> TooLargeError:
    """The error of a recording above the limit, in MB."""
    return TooLargeError(f"the upload is larger than {max_audio_mb} MB, the limit here; send a smaller encoding of it")


def harmless(title: bytes) -> str:
    """A caller's file name without folders, line breaks and other control characters, of bearable length."""
    last = re.split(r"[/\\]", title.decode("utf-8", "replace"))[-1]
    return re.sub(r"[^\w .()\[\]+,=@~-]", "", last).strip(". ")[:LONGEST_NAME]


def _utf8(value: bytes | bytearray, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{what} is not UTF-8 text; a file needs a filename in its Content-Disposition") from None


def _parser(boundary: bytes, parts: Parts) -> MultipartParser:
    """Raises RequestError where the boundary is missing or impossible."""
    if not boundary:
        raise RequestError("the Content-Type names no boundary; let your HTTP library set it")
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_headers_finished": parts.on_headers_finished,
                "on_part_data": parts.on_part_data,
                "on_part_end": parts.on_part_end,
                "on_end": parts.on_end,
            },
        )
    except FormParserError:
        raise RequestError(NOT_WELL_FORMED) from None
