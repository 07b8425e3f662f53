"""A service of Voxtral's on the loopback: it minds the exact shape of each call, and really hears what was sent.

A call that is not as Mistral's client or vLLM's protocol has it is noted in `violations` and answered 422. Otherwise
the next play of `script` is played, or, where there is none left, the sound is decoded and given to a small Whisper.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import soundfile

from hansard.models import Models
from hansard.request import parse
from hansard.settings import Settings
from hansard.transcribers.whisper import Whisper
from hansard.transcript import SAMPLE_RATE, Audio, Segment
from places import TINY
from served import Served

PATIENCE_S = 20.0  # no play lasts longer, whatever becomes of the test
KEY = "key-7b1f0c52e9"
TRANSCRIPTIONS, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"

BASE64 = {"type": "string", "pattern": "^[A-Za-z0-9+/]+=*$"}
SOUND = {
    "mistral": BASE64,
    "vllm": {
        "type": "object",
        "properties": {"data": BASE64, "format": {"enum": ["mp3", "wav"]}},
        "required": ["data", "format"],
        "additionalProperties": False,
    },
}
"""What a chat's `input_audio` is."""


def chat_schema(dialect: str) -> dict[str, Any]:
    """The body of a chat call: one user message of a sound and what to do with it."""
    sound = {"type": {"const": "input_audio"}, "input_audio": SOUND[dialect]}
    text = {"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}}
    content = [_object(sound), _object(text)]
    message = {
        "role": {"const": "user"},
        "content": {"type": "array", "prefixItems": content, "minItems": 2, "maxItems": 2},
    }
    return _object(
        {
            "model": {"type": "string", "minLength": 1},
            "messages": {"type": "array", "items": _object(message), "minItems": 1, "maxItems": 1},
            "temperature": {"type": "number", "minimum": 0, "maximum": 1},
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": 16_000},
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


class Asked(NamedTuple):
    """One call: its path and headers, its fields (or its JSON), and the file in it."""

    path: str
    headers: dict[str, str]
    fields: dict[str, Any]
    file: bytes


class Ear:
    """A small Whisper that hears files, the same one once; loaded when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whisper: Whisper | None = None
        self._known: dict[str, tuple[Segment, ...]] = {}

    def __call__(self, file: bytes) -> tuple[Segment, ...]:
        with self._lock:
            name = hashlib.sha256(file).hexdigest()
            if name not in self._known:
                samples, rate = soundfile.read(io.BytesIO(file), dtype="int16")
                assert rate == SAMPLE_RATE
                assert samples.ndim == 1
                self._known[name] = self._load().transcribe(Audio(samples[None]), ENGLISH, lambda _: None).segments
            return self._known[name]

    def _load(self) -> Whisper:
        if self._whisper is None:
            settings = Settings(models_dir=TINY, hf_hub_offline=True, device="cpu", vad_method="silero")
            self._whisper = Whisper("whisper-tiny-synthetic-ct2", Models(settings))
        return self._whisper


ENGLISH = parse({"audio": "data:,", "language": "en"})
ear = Ear()


class Player(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE_S
    server: VoxtralServer

    def do_POST(self) -> None:
        server, length = self.server, int(self.headers["Content-Length"])
        if server.stalls:
            server.stalled.set()
            server.over.wait(server.stalls.pop(0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client has left
            self.close_connection = True
            return
        try:
            asked = read(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            problems = list(wrong(asked, server))
        except (ValueError, KeyError, jsonschema.ValidationError) as error:
            asked, problems = None, [f"{self.path}: {error}"[:500]]
        with server.counted():
            if problems or asked is None:
                server.violations += problems
                self.answer(422, {"detail": [{"msg": problem} for problem in problems]})
            else:
                server.asked.append(asked)
                server.next_play()(self, asked)

    def answer(self, status: int, body: object = None, **headers: object) -> None:
        """A whole answer; what is not bytes is made JSON; underscores in header names stand for hyphens."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


Play = Callable[[Player, Asked], None]


def read(path: str, headers: dict[str, str], body: bytes) -> Asked:
    """A call as its parts. Raises ValueError or KeyError for what is none."""
    if path == CHAT:
        told = json.loads(body)
        sound = told["messages"][0]["content"][0]["input_audio"]
        data = sound["data"] if isinstance(sound, dict) else sound
        return Asked(path, headers, told, base64.b64decode(data, validate=True))
    message = message_from_bytes(b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
    fields: dict[str, Any] = {}
    for part in message.get_payload():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if filename := part.get_filename():
            fields[name] = (filename, part.get_content_type())
            file = content
        else:
            fields.setdefault(name, []).append(content.decode())
    return Asked(path, headers, fields, file)


def wrong(asked: Asked, server: VoxtralServer) -> Iterator[str]:
    """What is not as it should be in a call."""
    expected = f"Bearer {server.key}" if server.key else None
    if asked.headers.get("authorization") != expected:
        yield "Authorization is not the key's"
    if "cookie" in asked.headers:
        yield "a cookie"
    if asked.headers.get("accept") != "application/json":
        yield "Accept is not application/json"
    if asked.path == CHAT:
        if asked.headers["content-type"] != "application/json":
            yield "Content-Type is not application/json"
        jsonschema.validate(asked.fields, chat_schema(server.dialect))
    elif asked.path == TRANSCRIPTIONS:
        if not asked.headers["content-type"].startswith("multipart/form-data; boundary="):
            yield "Content-Type is not multipart/form-data"
        yield from wrong_fields(asked.fields)
    else:
        yield f"{asked.path} is no path of this service"


RULES: dict[str, Callable[[str], object]] = {
    "model": bool,
    "language": re.compile("[a-z]{2}").fullmatch,
    "temperature": lambda value: 0 <= float(value) <= 1,
    "timestamp_granularities": {"segment"}.__contains__,
    "context_bias": re.compile(r"[^,\s]+").fullmatch,
}


def wrong_fields(fields: dict[str, Any]) -> Iterator[str]:
    """What is not as it should be in the fields of a transcription."""
    if fields.get("file") != ("speech.flac", "audio/flac"):
        yield f"file is {fields.get('file')}"
    if ("language" in fields) == ("timestamp_granularities" in fields):
        yield "language and timestamp_granularities go without each other"
    for name, values in fields.items():
        if name == "file":
            continue
        if name not in RULES:
            yield f"{name} is no field"
        elif not all(RULES[name](value) for value in values):
            yield f"{name} is {values}"
        elif len(values) > (100 if name == "context_bias" else 1):
            yield f"{name} is given {len(values)} times"


@dataclass(eq=False)
class VoxtralServer(Served):
    """The service; `dialect` says whose answers it gives and whose chat it takes, `key` whom it lets in."""

    dialect: str = "mistral"
    key: str | None = KEY
    language: str | None = None  # that it tells with a transcription
    script: list[Play] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    most: int = 0  # calls at the same time
    stalls: list[float] = field(default_factory=list)  # seconds for which a call's body is not read, in turn

    def __post_init__(self) -> None:
        super().__init__(Player)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # so that a body waits to be read
        self.stalled = threading.Event()
        self._busy, self._lock = 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_play(self) -> Play:
        with self._lock:
            return self.script.pop(0) if self.script else hears

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
            self.most = max(self.most, self._busy)
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1


# Plays


def says(text: str, **more: Any) -> Play:
    """An answer with this text, in the server's dialect and of the call's kind; `more` goes into a transcription."""

    def play(player: Player, asked: Asked) -> None:
        model = asked.fields["model"]
        tokens = {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}
        if asked.path == CHAT:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop", **more}
            player.answer(200, {"id": "c", "model": model, "choices": [choice], "usage": tokens})
        elif player.server.dialect == "mistral":
            told = {"model": model[0], "text": text, "language": player.server.language, "segments": [], **more}
            player.answer(200, {**told, "usage": {**tokens, "prompt_audio_seconds": 3}})
        else:
            player.answer(200, {"text": text, "usage": {"type": "duration", "seconds": 3}, **more})

    return play


def hears(player: Player, asked: Asked) -> None:
    """What is really said in the file; phrases with times where they are asked for and the service has them."""
    phrases = ear(asked.file)
    timed = [
        {"text": f" {phrase.text}", "start": phrase.start, "end": phrase.end, "type": "transcription_segment"}
        for phrase in phrases
    ]
    wanted = player.server.dialect == "mistral" and "timestamp_granularities" in asked.fields
    says(" ".join(phrase.text for phrase in phrases), **({"segments": timed} if wanted else {}))(player, asked)


def status(code: int, body: object = None, **headers: object) -> Play:
    """An answer of this status."""
    return lambda player, asked: player.answer(code, body, **headers)


def hangs(player: Player, asked: Asked) -> None:
    """Nothing, until the test is over."""
    player.close_connection = True
    player.server.over.wait(PATIENCE_S)


def drips(player: Player, asked: Asked) -> None:
    """The beginning of an answer, and then a space now and then, until the test is over."""
    player.close_connection = True
    player.send_response(200)
    player.send_header("Content-Length", "100000")
    player.end_headers()
    while not player.server.over.wait(0.02):
        player.wfile.write(b" ")


def drops(player: Player, asked: Asked) -> None:
    """No answer: the connection is closed."""
    player.close_connection = True
    player.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def service(folder: Path, dialect: str) -> Iterator[Settings]:
    """A worker without any model whose service this is; every call must have been as it should be."""
    with VoxtralServer(dialect=dialect) as server:
        yield Settings(
            models_dir=folder,
            hf_hub_offline=True,
            device="cpu",
            vad_method="silero",
            voxtral_endpoint=server.url,
            voxtral_api_key=KEY,
        )
        assert server.violations == []
