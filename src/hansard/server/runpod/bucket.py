"""A bucket where a recording lies that is too large for a request to RunPod, until its job has ended.

Any storage that speaks S3. The worker is given an address that needs no key, for one object and for a day; who may
read the requests of the endpoint may use it too. Not covered: what a server that was killed leaves behind, of a job
that nobody runs again; a lifecycle rule of the bucket for `hansard/` removes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError as Interrupted
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hansard.errors import CancelledError, ServiceError, SettingsError
from hansard.settings import Settings

FOLDER = "hansard"
READABLE_S = 24 * 3600  # RunPod forgets a job that has waited for longer
PART_BYTES = 16 * 2**20  # of a recording, sent and if need be sent again as one
PARTS_AT_ONCE = 4  # of one recording
CONNECTIONS = 20  # to the storage

NEEDED = ("bucket_endpoint_url", "bucket_name", "bucket_access_key_id", "bucket_secret_access_key")

ACCESS = "correct BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY, whose key must write, read and delete there"
REFUSALS = {
    "NoSuchBucket": "there is no such bucket; correct BUCKET_NAME",
    "InvalidBucketName": "that is no name of a bucket; correct BUCKET_NAME",
    "AuthorizationHeaderMalformed": "the bucket is not there; correct BUCKET_REGION",
    "PermanentRedirect": "the bucket is not there; correct BUCKET_REGION or BUCKET_ENDPOINT_URL",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}
"""What some of the storage's codes mean; others go by their status."""


def is_given(settings: Settings) -> bool:
    """Is there a bucket? Raises SettingsError naming what its settings lack."""
    missing = [name.upper() for name in NEEDED if not _value(settings, name)]
    if len(missing) == len(NEEDED):
        return False
    if missing:
        raise SettingsError(f"a bucket needs {', '.join(missing)} too; or leave out all of BUCKET_")
    parts = urlsplit(_value(settings, "bucket_endpoint_url"))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError("BUCKET_ENDPOINT_URL must be an http(s) address without a query")
    return True


class Bucket:
    """The bucket of the settings; its methods wait for the network, and may be called from any thread.

    Raises SettingsError where the client of the storage cannot use them.
    """

    def __init__(self, settings: Settings) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._name = _value(settings, "bucket_name")
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE
        )
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},  # storages on one's own machine have no names for buckets
            retries={"mode": "standard"},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=CONNECTIONS,
            request_checksum_calculation="when_required",  # other checksums are not known to every storage
            response_checksum_validation="when_required",
        )
        try:
            self._client: Any = boto3.Session(
                _value(settings, "bucket_access_key_id"), _value(settings, "bucket_secret_access_key")
            ).client(
                "s3",
                region_name=settings.bucket_region.strip(),
                endpoint_url=_value(settings, "bucket_endpoint_url"),
                config=config,
            )
        except (BotoCoreError, ValueError) as error:
            raise SettingsError(
                f"BUCKET_ENDPOINT_URL or BUCKET_REGION cannot be used ({type(error).__name__})"
            ) from None

    def put(self, job_id: str, recording: Path, stop: threading.Event) -> None:
        """Copy a job's recording there, in place of what is there of it; in parts, so that memory holds little.

        Raises ServiceError, and CancelledError soon after `stop` is set; then nothing new is there.
        """
        with _told():
            _go_on(stop)(0)
            self._client.upload_file(
                str(recording), self._name, _key(job_id), Callback=_go_on(stop), Config=self._transfer
            )

    def address(self, job_id: str) -> str:
        """Where the recording can be read without a key. Raises ServiceError."""
        asked = {"Bucket": self._name, "Key": _key(job_id)}
        with _told():
            return str(self._client.generate_presigned_url("get_object", Params=asked, ExpiresIn=READABLE_S))

    def remove(self, job_id: str) -> None:
        """Have nothing of a job there, whether or not there was. Raises ServiceError."""
        with _told():
            self._client.delete_object(Bucket=self._name, Key=_key(job_id))


def _value(settings: Settings, name: str) -> str:
    given = getattr(settings, name)
    text = given.get_secret_value() if name == "bucket_secret_access_key" and given else given
    return (text or "").strip()


def _key(job_id: str) -> str:
    return f"{FOLDER}/{job_id}"


def _go_on(stop: threading.Event) -> Callable[[int], None]:
    """What is called with every few bytes that are sent. The client hands on this one kind of error at once."""

    def look(_: int) -> None:
        if stop.is_set():
            raise Interrupted

    return look


@contextmanager
def _told() -> Iterator[None]:
    """The storage's refusals and the client's errors as errors of ours, which hold neither keys nor signatures."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except Interrupted:
        raise CancelledError("the job was cancelled while its recording was sent") from None
    except (BotoCoreError, ClientError, Boto3Error) as error:
        # An upload's error is the client's own, made of the storage's.
        refused = error if isinstance(error, ClientError) else error.__context__
        if isinstance(refused, ClientError):
            raise _refusal(refused.response) from None
        raise ServiceError(
            f"the storage of recordings cannot be reached ({type(error).__name__}); "
            "try again later, or correct BUCKET_ENDPOINT_URL"
        ) from None


def _refusal(response: Any) -> ServiceError:
    """The error for what the storage answered; its own words may hold the key's name, so they are not repeated."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    what = REFUSALS.get(code)
    if what is None and status in (401, 403):
        what = f"access is denied; {ACCESS}"
    if what is None and status == 404:
        what = "there is no such bucket there; correct BUCKET_NAME or BUCKET_ENDPOINT_URL"
    return ServiceError(f"the storage refuses the recording: {what or f'it answers {status}; try again later'}")
