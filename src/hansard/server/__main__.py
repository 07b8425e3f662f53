"""Start the server: python -m hansard.server. Everything but where its variables come from is in the environment.

Exit code 0 after SIGTERM, 130 after Ctrl-C, 1 where it cannot start. Jobs that run when it ends are run again by the
next one.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hansard.errors import HansardError, RequestError, SettingsError
from hansard.models import Models
from hansard.plan import default_diarizer, default_transcriber
from hansard.server import access, logs
from hansard.server.access import is_loopback
from hansard.server.app import create_app
from hansard.server.protocol import Protocol
from hansard.settings import Settings, load

log = logging.getLogger("hansard.server")

KEEP_ALIVE_S = 75  # that an idle connection stays open: longer than proxies reuse theirs
GRACE_S = 10  # that answers in hand have when the server ends
BACKLOG = 2048  # connections that wait to be accepted
MOST_OPEN = 65_536  # files and connections, where the machine allows more: some programs walk through all of them
PROXIES = ["127.0.0.1", "::ffff:127.0.0.1", "::1"]  # whose X-Forwarded-For is believed: those on this machine
EVERY = "0.0.0.0"  # noqa: S104 - only with keys, or where that was asked for


def main() -> int:
    """The command; its exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn has its own, and again after it
    os.umask(0o077)  # what callers send and get is nobody else's, though STATE_DIR be open to all
    try:
        settings = load(options.env_file)
        logs.set_up(settings)
        return _serve(settings)
    except KeyboardInterrupt:
        return 130
    except HansardError as error:
        print(error, file=sys.stderr)
        return 1


def address(settings: Settings) -> str:
    """Where to listen. Raises SettingsError for an address that others reach where nobody needs a key."""
    is_open = not settings.api_keys and not settings.allow_anonymous
    host = settings.host_bind_address or ("127.0.0.1" if is_open else EVERY)
    if is_open and not is_loopback(host):
        raise SettingsError(
            f"HOST_BIND_ADDRESS {host} can be reached from elsewhere, and no key would be needed; "
            "set API_KEYS, or ALLOW_ANONYMOUS=true if anybody may call"
        )
    return host


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hansard.server",
        description="Serve recordings to who said what over HTTP. README lists its environment variables.",
    )
    parser.add_argument("--env-file", type=_file, metavar="FILE", help="says what the environment leaves open")
    return parser.parse_args()


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {name}")
    return Path(name)


def _serve(settings: Settings) -> int:
    """Run until a signal. Raises HansardError where it cannot start, KeyboardInterrupt for Ctrl-C."""
    access.check(settings)
    host = address(settings)
    _open_more()
    app = _Startup(create_app(settings))
    listener = _listen(host, settings.host_port)
    config = uvicorn.Config(
        app,
        http=Protocol,
        lifespan="on",
        forwarded_allow_ips=PROXIES,
        log_config=None,
        access_log=False,  # `requests` has it
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    _announce(settings, host, listener.getsockname()[1])
    try:
        uvicorn.Server(config).run([listener])
    except SystemExit:
        if app.error:
            raise app.error from None
        raise
    finally:
        listener.close()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port that is taken is told before an engine is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise SettingsError(f"cannot listen on HOST_BIND_ADDRESS {host}, HOST_PORT {port}: {error.strerror}") from None


def _open_more() -> None:
    """Allow as many connections at once as the machine does; the usual 1024 are soon used up by callers who wait."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _announce(settings: Settings, host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    log.info("listening on http://%s:%d (/docs describes the endpoints)", shown, port)
    log.info("jobs are done by %s", _engine(settings))
    if settings.api_keys:
        log.info("callers need a key; API_KEYS has %d", len(settings.api_keys))
    elif settings.allow_anonymous:
        log.warning(
            "anybody who reaches this server may call it, and callers see each other's jobs: "
            "ALLOW_ANONYMOUS is true and there are no API_KEYS"
        )
    else:
        log.info("no key is needed; set API_KEYS to be reached from other machines")


def _engine(settings: Settings) -> str:
    if settings.runpod_endpoint_id:
        return f"RunPod endpoint {settings.runpod_endpoint_id}"
    models = Models(settings)
    try:
        text, voices = default_transcriber(models), default_diarizer(models)
    except RequestError as error:
        raise SettingsError(f"DEFAULT_MODEL or DIARIZATION_MODEL cannot be used: {error.sentence}") from None
    return f"this machine: {text.model}, speakers by {voices.model}"


class _Startup:
    """The application; its own error at the start is kept, which says what to do: uvicorn would print a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.error: HansardError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            if message["type"] != "lifespan.startup.failed":
                await send(message)

        try:
            await self._app(scope, receive, tell)
        except HansardError as error:
            self.error = error
            await send({"type": "lifespan.startup.failed", "message": ""})


if __name__ == "__main__":
    sys.exit(main())
