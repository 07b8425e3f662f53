"""A model hub on the loopback: as much of the hub's protocol as the real huggingface_hub client needs to download.

Spoken: a model's info with its files, the question whether they may be read, `resolve` by HEAD and GET with ranges,
and large files from another host without the token, all with the status and error codes of the real hub. Not spoken:
searching, uploading, trees, Xet, revisions other than main.

    with Hub({"Systran/faster-whisper-tiny": folder}, gated={...}, accounts={"hf_reader": {...}}) as hub:
        Settings(hf_endpoint=hub.url, hf_home=tmp_path)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from served import Served

PATIENCE_S = 60.0  # nothing is withheld longer, whatever becomes of the test
BLOCK = 1 << 16  # bytes sent between two pauses
LARGE = {".bin", ".safetensors"}  # suffixes of what the hub keeps on another host


class Asked(NamedTuple):
    """One request: `token` is what was sent as a credential, `range` the header of that name."""

    method: str
    path: str
    token: str | None
    range: str | None


@dataclass(frozen=True)
class Blob:
    """One file of a repository."""

    path: Path

    @cached_property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @property
    def large(self) -> bool:
        return self.path.suffix in LARGE

    @cached_property
    def name(self) -> str:
        """Git's hash of a small file, the content's of a large one."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


class Repository:
    """A folder, as the hub shows it."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.blobs = {path.relative_to(folder).as_posix(): Blob(path) for path in paths}

    @cached_property
    def revision(self) -> str:
        return hashlib.sha1(json.dumps({name: blob.name for name, blob in self.blobs.items()}).encode()).hexdigest()


class Hub(Served):
    """Serves folders as repositories; `accounts` maps each token to the gated ones whose terms it has accepted."""

    def __init__(
        self,
        repositories: Mapping[str, Path],
        gated: Collection[str] = (),
        accounts: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        super().__init__(Answering)
        self.repositories = {name: Repository(folder) for name, folder in repositories.items()}
        self.gated = gated
        self.accounts = accounts or {}
        self.log: list[Asked] = []
        self.broken: int | None = None  # the status that answers everything
        self.silent = False  # answers nothing at all
        self.pause_s = 0.0  # between blocks of a file
        self.sent = 0  # bytes of files
        self.inflated = 1  # how many times too large the info says that files are

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """Where large files lie: the same server under another name, which to a client is another host."""
        return f"http://localhost:{self.server_port}"

    def fetched(self) -> list[str]:
        """The paths of the file contents that were asked for."""
        return [asked.path for asked in self.log if asked.method == "GET" and not asked.path.startswith("/api/")]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed in mid-file is what some tests are about."""


class Answering(BaseHTTPRequestHandler):
    """One connection, one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self.close_connection = True
        path = unquote(urlsplit(self.path).path)
        self.server.log.append(Asked(self.command, path, self.token, self.headers.get("Range")))
        if self.server.silent:
            self.server.over.wait(PATIENCE_S)
        elif self.server.broken:
            self.answer(self.server.broken)
        elif path.startswith("/cdn/"):
            self.send_blob(next(blob for blob in self.all_blobs() if path == f"/cdn/{blob.name}"))
        else:
            self.route(path.strip("/").split("/"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def route(self, parts: list[str]) -> None:
        match parts:
            case ["api", "models", owner, name, *question] if self.exists(f"{owner}/{name}"):
                repository = f"{owner}/{name}"
                if question in ([], ["revision", "main"]):
                    self.send_info(repository)
                elif question == ["auth-check"] and self.may_read(repository):
                    self.answer(200, b"{}")
            case [owner, name, "resolve", revision, *file] if self.exists(f"{owner}/{name}"):
                if self.may_read(f"{owner}/{name}"):
                    self.resolve(self.server.repositories[f"{owner}/{name}"], revision, "/".join(file))

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def exists(self, repository: str) -> bool:
        """Is there such a repository? Where not, this was the answer; without a token it is a private one's, too."""
        if self.token is not None and self.token not in self.server.accounts:
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif repository not in self.server.repositories:
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        else:
            return True
        return False

    def may_read(self, repository: str) -> bool:
        """May the files be read? Where not, this was the answer."""
        accepted = self.server.accounts[self.token] if self.token else ()
        if repository not in self.server.gated or repository in accepted:
            return True
        message = f"Access to model {repository} is restricted."
        self.refuse(403 if self.token else 401, "GatedRepo", message)
        return False

    def send_info(self, name: str) -> None:
        repository = self.server.repositories[name]
        files: list[dict[str, Any]] = []
        for path, blob in repository.blobs.items():
            size = len(blob.content) * self.server.inflated
            stored = {"lfs": {"sha256": blob.name, "size": size, "pointerSize": 134}} if blob.large else {}
            files.append({"rfilename": path, "size": size, "blobId": blob.name[:40], **stored})
        gated = "manual" if name in self.server.gated else False
        info = {"id": name, "sha": repository.revision, "private": False, "gated": gated, "siblings": files, "tags": []}
        self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

    def resolve(self, repository: Repository, revision: str, file: str) -> None:
        blob = repository.blobs.get(file)
        if revision not in ("main", repository.revision):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif blob is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif blob.large:
            linked = {"X_Linked_ETag": f'"{blob.name}"', "X_Linked_Size": len(blob.content)}
            location = f"{self.server.elsewhere}/cdn/{blob.name}?Signature=secret-signature"
            self.answer(302, X_Repo_Commit=repository.revision, Location=location, **linked)
        else:
            self.send_blob(blob, X_Repo_Commit=repository.revision)

    def send_blob(self, blob: Blob, **headers: object) -> None:
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        size = len(blob.content)
        partial = {"Content_Range": f"bytes {first}-{size - 1}/{size}"} if asked else {}
        self.start(
            206 if asked else 200,
            **{"ETag": f'"{blob.name}"', "Content_Length": size - first, "Accept_Ranges": "bytes"},
            **partial,
            **headers,
        )
        if self.command == "HEAD":
            return
        for start in range(first, size, BLOCK):
            self.wfile.write(blob.content[start : start + BLOCK])
            self.server.sent += BLOCK
            self.server.over.wait(self.server.pause_s)

    def all_blobs(self) -> list[Blob]:
        return [blob for repository in self.server.repositories.values() for blob in repository.blobs.values()]

    def refuse(self, status: int, code: str | None = None, message: str | None = None) -> None:
        self.answer(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.start(status, **{"Content_Length": len(body), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
