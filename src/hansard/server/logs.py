"""The server's log: lines of text, or of JSON with LOG_JSON, with the ids of request and job, and without secrets.

It goes to standard error, and to LOG_FILE where that was given.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from typing import Any

from hansard.errors import SettingsError
from hansard.joblog import JOB_FIELD, redact, secrets_in_hand
from hansard.server import requests
from hansard.settings import Settings

FIELDS = "fields"
"""The attribute of a log record that holds what stands in a JSON line besides its text."""


class _Formatter(logging.Formatter):
    """A line of text: time, level, logger, request or job, message; a traceback follows."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(where)s%(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        about = [name for name in (requests.current.get(), getattr(record, JOB_FIELD, None)) if name]
        record.where = f"[{' '.join(about)}] " if about else ""
        return redact(super().format(record), (*self._secrets, *secrets_in_hand()))


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, tracebacks included."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": requests.current.get(),
            "job_id": getattr(record, JOB_FIELD, None),
            **getattr(record, FIELDS, {}),
            "traceback": self.formatException(record.exc_info) if record.exc_info else None,
        }
        secrets = (*self._secrets, *secrets_in_hand())
        return json.dumps(
            {
                name: redact(value, secrets) if isinstance(value, str) else value
                for name, value in told.items()
                if value is not None
            }
        )


def set_up(settings: Settings) -> None:
    """Have every line of this process written this way. Raises SettingsError where LOG_FILE cannot be."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if "log_file" in settings.model_fields_set:
        limit = int(settings.log_file_mb * 1_000_000)
        try:
            handlers.append(RotatingFileHandler(settings.log_file, maxBytes=limit, backupCount=1, encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"LOG_FILE cannot be written ({error.strerror}); name another file") from None
    formatter = (_JsonFormatter if settings.log_json else _Formatter)(settings.secrets())
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "httpx", "python_multipart"):  # they tell every step, with whole addresses
        logging.getLogger(name).setLevel(logging.WARNING)
