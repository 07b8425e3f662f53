"""Fits an answer into what the platform takes: never a lost result, each thing given up said in a warning.

Platforms refuse a body over their limit (RunPod: 400 on job-done above about 10 MB, after which the caller sees an
empty success), so the encoded bytes are measured here, before the answer is handed over.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

from hansard.errors import ResultTooLargeError

Result = dict[str, Any]

LISTS = ("segments", "transcriptions")
"""Where an answer holds what was said; each answer has one of them."""


def encoded(result: Result) -> bytes:
    """The answer as the platform's client will send it. Raises ValueError for NaN, TypeError for anything not JSON."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False).encode()


def fit(result: Result, limit: int) -> Result:
    """The answer in at most `limit` bytes of JSON.

    Over the limit, first words are left out, then the segments are packed into `segments_gz` (base64 of gzip of the
    JSON list, with `segments_count` beside it); transcriptions likewise, under their name. Raises ResultTooLargeError
    when that is not enough.
    """
    for shrink in (_as_it_is, _without_words, _packed):
        result = shrink(result, limit)
        size = len(encoded(result))
        if size <= limit:
            return result
    raise ResultTooLargeError(
        f"the answer is {_mb(size)} even without words and packed, the limit is {_mb(limit)}; "
        "send the recording in parts, or ask for fewer output_formats"
    )


def unpack(result: Result) -> Result:
    """An answer as it was before its segments were packed, without the warning that they are."""
    for name in LISTS:
        packed = result.get(f"{name}_gz")
        if packed is not None:
            rest = {key: value for key, value in result.items() if key not in (f"{name}_gz", f"{name}_count")}
            told = [warning for warning in rest["warnings"] if not str(warning).startswith(_packing(name))]
            return {name: json.loads(gzip.decompress(base64.b64decode(packed))), **rest, "warnings": told}
    return result


def _packing(name: str) -> str:
    """How the warning of packed segments begins."""
    return f"{name} were packed into {name}_gz"


def _name(result: Result) -> str:
    return next(name for name in LISTS if name in result)


def _as_it_is(result: Result, limit: int) -> Result:
    return result


def _without_words(result: Result, limit: int) -> Result:
    name = _name(result)
    if not any("words" in segment for segment in result[name]):
        return result
    bare = [{key: value for key, value in segment.items() if key != "words"} for segment in result[name]]
    return _warned({**result, name: bare}, f"words were left out to fit the answer into {_mb(limit)}")


def _packed(result: Result, limit: int) -> Result:
    name = _name(result)
    segments = json.dumps(result[name], ensure_ascii=False, allow_nan=False).encode()
    rest = {key: value for key, value in result.items() if key != name}
    rest[f"{name}_gz"] = base64.b64encode(gzip.compress(segments)).decode()
    rest[f"{name}_count"] = len(result[name])
    return _warned(rest, f"{_packing(name)} (gzip, base64) to fit the answer into {_mb(limit)}")


def _warned(result: Result, warning: str) -> Result:
    return {**result, "warnings": [*result["warnings"], warning]}


def _mb(size: int) -> str:
    return f"{size / 1_000_000:.3g} MB"
