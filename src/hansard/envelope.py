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


def encoded(result: Result) -> bytes:
    """The answer as the platform's client will send it. Raises ValueError for NaN, TypeError for anything not JSON."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False).encode()


def fit(result: Result, limit: int) -> Result:
    """The answer in at most `limit` bytes of JSON.

    Over the limit, first words are left out, then the segments are packed into `segments_gz` (base64 of gzip of the
    JSON list, with `segments_count` beside it). Raises ResultTooLargeError when that is not enough.
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
    """An answer as it was before its segments were packed."""
    if "segments_gz" not in result:
        return result
    rest = {key: value for key, value in result.items() if key not in ("segments_gz", "segments_count")}
    return {"segments": json.loads(gzip.decompress(base64.b64decode(result["segments_gz"]))), **rest}


def _as_it_is(result: Result, limit: int) -> Result:
    return result


def _without_words(result: Result, limit: int) -> Result:
    if not any("words" in segment for segment in result["segments"]):
        return result
    bare = [{key: value for key, value in segment.items() if key != "words"} for segment in result["segments"]]
    return _warned({**result, "segments": bare}, f"words were left out to fit the answer into {_mb(limit)}")


def _packed(result: Result, limit: int) -> Result:
    segments = json.dumps(result["segments"], ensure_ascii=False, allow_nan=False).encode()
    rest = {key: value for key, value in result.items() if key != "segments"}
    rest["segments_gz"] = base64.b64encode(gzip.compress(segments)).decode()
    rest["segments_count"] = len(result["segments"])
    return _warned(rest, f"segments were packed into segments_gz (gzip, base64) to fit the answer into {_mb(limit)}")


def _warned(result: Result, warning: str) -> Result:
    return {**result, "warnings": [*result["warnings"], warning]}


def _mb(size: int) -> str:
    return f"{size / 1_000_000:.3g} MB"
