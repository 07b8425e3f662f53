"""What a server's refusal says of another try: whether it may go better, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Response

TOO_MANY = 429
_PASSING = frozenset((408, 425, TOO_MANY))


def passes(status: int) -> bool:
    """May the same question be answered otherwise in a moment?"""
    return status >= 500 or status in _PASSING


def retry_after(response: Response) -> float:
    """Seconds that the server asks to wait, given as a number or as a date; 0 when it does not."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, IndexError, TypeError, OverflowError):
        return 0.0
