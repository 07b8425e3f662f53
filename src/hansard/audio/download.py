"""A recording from an http(s) URL into a file: checked at every hop, bounded in size, resumed where it broke off."""

from __future__ import annotations

import logging
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import requests
import urllib3

from hansard.audio import guard
from hansard.errors import FetchError, RefusedUrlError, TooLargeError
from hansard.retries import passes, retry_after
from hansard.settings import Settings
from hansard.transcript import Report

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.5  # before the first retry, doubled for each one after it
LONGEST_WAIT_S = 30.0  # bounds a server's Retry-After too
_HEARTBEAT_S = 0.2  # between the reports of a wait, so that a cancelled job does not sit it out
_MOST_REDIRECTS = 5
_CHUNK = 65_536  # bytes
SLOWEST = 4_000  # bytes/s over the whole transfer: half of telephone speech
_GUESS = 10_000_000  # bytes: half-way, where the server does not tell the length

_MEANINGS = {
    401: "the server asks for a login (401); give a link that needs none",
    403: "the server refuses access (403); the link may have expired or not be public",
    404: "there is nothing at this address (404); check the link",
    407: "a proxy asks for a login (407)",
    410: "the recording has been removed (410)",
    416: "the server cannot send the recording in parts (416)",
    451: "the recording is blocked for legal reasons (451)",
}


class _BrokenError(Exception):
    """An attempt failed in a way the next may not; `after` is the number of seconds the server asked for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is on disk: bytes, and the mark (ETag or date) by which the server knows the same recording again."""

    size: int = 0
    mark: str = ""

    def headers(self) -> dict[str, str]:
        """The question for the rest; without a mark the whole is asked for, as the rest might be another's."""
        return {"Range": f"bytes={self.size}-", "If-Range": self.mark} if self.size and self.mark else {}


def download(url: str, target: Path, settings: Settings, report: Report) -> None:
    """Write what an http(s) URL gives to `target`.

    Raises FetchError, RefusedUrlError, TooLargeError, and whatever `report` raises; then `target` may hold a part.
    """
    _Download(url, target, settings, report).run()


class _Download:
    def __init__(self, url: str, target: Path, settings: Settings, report: Report) -> None:
        self._url = url
        self._target = target
        self._settings = settings
        self._report = report
        self._name = guard.public_name(url)
        self._kept = _Kept()
        self._told = 0.0

    def run(self) -> None:
        retries = self._settings.download_retries
        for attempt in range(retries + 1):
            try:
                self._attempt()
            except _BrokenError as broken:
                reason, after = broken.reason, max(broken.after, FIRST_WAIT_S * 2**attempt)
            else:
                self._tell(1.0)
                return
            if attempt < retries:
                log.warning("%s: %s; %d bytes kept, trying again", self._name, reason, self._kept.size)
                self._wait(min(after, LONGEST_WAIT_S))
        raise FetchError(f"{self._name} could not be downloaded in {retries + 1} tries: {reason}")

    def _attempt(self) -> None:
        """One request and its body; vendors' exceptions hold URLs, so none of them leaves here, not even as a cause."""
        try:
            with guard.session(self._settings) as session, self._request(session) as response:
                self._receive(response)
        except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationParseError):
            raise RefusedUrlError(f"{self._name} is not a URL that can be read") from None
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise _BrokenError("the server did not answer in time") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _certificate_refused(error):
                raise FetchError(f"{self._name}: the server's certificate cannot be trusted") from None
            raise _BrokenError("the connection failed") from None

    def _request(self, session: requests.Session) -> requests.Response:
        """The answer at the end of the redirects."""
        url = self._url
        times = (self._settings.connect_timeout_s, self._settings.read_timeout_s)
        for _ in range(_MOST_REDIRECTS + 1):
            guard.check_url(url)
            response = session.get(url, headers=self._kept.headers(), stream=True, timeout=times)
            if not response.is_redirect:
                return response
            response.close()
            # Headers arrive as Latin-1 although servers write UTF-8.
            location = response.headers["Location"].encode("latin-1").decode("utf-8", "replace")
            url = _join(url, location)
        raise FetchError(f"{self._name} redirects more than {_MOST_REDIRECTS} times")

    def _receive(self, response: requests.Response) -> None:
        """Append the body to what is kept, or start over with it; notes what is on disk however it ends."""
        start = self._start(response)
        encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        length = _length(response)
        self._refuse_above(start + (length or 0))
        mark = "" if encoded else _mark(response)
        size, since = start, time.monotonic()
        self._kept = _Kept(size, mark)
        with self._target.open("ab" if start else "wb") as file:
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                size += len(chunk)
                self._refuse_above(size)
                file.write(chunk)
                self._kept = _Kept(size, mark)
                self._refuse_crawling(response.raw.tell(), time.monotonic() - since)
                self._tell(_fraction(start + response.raw.tell(), start + length if length else None))
        if not encoded and size < _total(response):
            raise _BrokenError("the server sent only a part")

    def _start(self, response: requests.Response) -> int:
        """The byte at which the body belongs; a part that does not fit what is kept makes us start over.

        Raises FetchError for a status that will stay, _BrokenError for one that may pass.
        """
        status = response.status_code
        if status == 206 and _continues(response, self._kept):
            return self._kept.size
        if status == 206 or (status == 416 and self._kept.size):
            self._kept = _Kept()
            raise _BrokenError("the recording changed while it was downloaded")
        if passes(status):
            raise _BrokenError(f"the server answered {status}", retry_after(response))
        if not response.ok or status >= 300:
            raise FetchError(f"{self._name}: {_MEANINGS.get(status, f'the server answered {status}')}")
        return 0

    def _refuse_above(self, size: int) -> None:
        if size > self._settings.max_audio_mb * 10**6:
            raise TooLargeError(f"the recording is larger than {self._settings.max_audio_mb} MB, the limit here")

    def _refuse_crawling(self, received: int, seconds: float) -> None:
        """A byte now and then would satisfy the read time limit for ever."""
        if seconds > 2 * self._settings.read_timeout_s + received / SLOWEST:
            raise FetchError(f"{self._name} comes too slowly: {received} bytes in {seconds:.0f} s")

    def _tell(self, fraction: float) -> None:
        """Report progress; starting over does not take it back."""
        self._told = max(self._told, fraction)
        self._report(self._told)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._tell(0.0)
            time.sleep(min(left, _HEARTBEAT_S))


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise RefusedUrlError(f"{guard.public_name(url)} redirects to a URL that cannot be read") from None


def _length(response: requests.Response) -> int | None:
    """Bytes that this body has on the wire, where the server tells."""
    remaining: int | None = response.raw.length_remaining
    return remaining


def _total(response: requests.Response) -> int:
    """Bytes of the whole recording when this is a part of it, else 0."""
    match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return int(match[1]) if match and response.status_code == 206 else 0


def _mark(response: requests.Response) -> str:
    """A strong ETag, else the date of the last change, else nothing: a weak ETag does not vouch for bytes."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _continues(response: requests.Response, kept: _Kept) -> bool:
    """Whether a partial answer goes on where the file ends, in the same recording."""
    begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    same = _mark(response) in ("", kept.mark)
    return bool(kept.headers()) and begins is not None and int(begins[1]) == kept.size and same


def _fraction(received: int, total: int | None) -> float:
    """Progress below 1 by bytes on the wire; of an unknown total a guess that always grows."""
    return min(received / total, 0.999) if total else received / (received + _GUESS)


def _certificate_refused(error: BaseException | None) -> bool:
    """Whether a failed verification lies under an exception: trying again would not help."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__context__
    return False
