"""What crosses between this server and the worker of an endpoint: a job's `input`, and the worker's answer.

The worker is this product's own (`src/handler.py`), of this or another version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hansard import envelope
from hansard.errors import HansardError, ServiceError, from_code
from hansard.request import Request
from hansard.transcript import Segment, Transcript, Turn, Word

LONGEST = 500  # characters of another program's words that are repeated

CODED = re.compile(r"([a-z_]+): (.+)", re.DOTALL)


def job_input(request: Request) -> dict[str, Any]:
    """A request as a job's `input`, in which its token is readable; formats are written here, from what comes back."""
    given = request.model_dump(mode="json", exclude_unset=True)
    if request.huggingface_access_token:
        given["huggingface_access_token"] = request.huggingface_access_token.get_secret_value()
    captions = request.task == "transcribe" and {"srt", "vtt"} & set(request.output_formats)
    given["align_output"] = request.align_output or bool(captions)  # captions are cut between words
    knows_turns = request.wants_speakers or request.channels == "separate" or request.segments is not None
    given["output_formats"] = ["rttm"] if knows_turns else []  # the one place of an answer that has the turns
    return given


def transcript(answer: object) -> Transcript:
    """The worker's answer as the engine's. Raises ServiceError for what is none, and the error that it holds."""
    if isinstance(answer, dict) and "error" in answer:
        raise failure(answer["error"])
    try:
        return _transcript(envelope.unpack(dict(answer)))  # type: ignore[call-overload]
    except (AttributeError, KeyError, TypeError, ValueError, OSError, EOFError):
        raise ServiceError(
            "the endpoint's answer is no transcript; deploy this product's worker behind RUNPOD_ENDPOINT_ID"
        ) from None


def failure(error: object) -> HansardError:
    """What a worker's `error` says: `code: sentence` of ours, or what the platform or another program says."""
    told = error if isinstance(error, str) else json.dumps(error)
    match = CODED.fullmatch(told)
    if match and (known := from_code(match[1], match[2])).code == match[1]:
        return known
    return ServiceError(f"the endpoint's worker failed: {_message(told)}")


def _message(told: str) -> str:
    """The message in the JSON that RunPod's own client makes of a crash, without its traceback; else the text."""
    with suppress(ValueError, TypeError, KeyError):
        told = str(json.loads(told)["error_message"])
    return told if len(told) <= LONGEST else told[:LONGEST] + "…"


def _transcript(answer: Mapping[str, Any]) -> Transcript:
    segments = answer["transcriptions"] if "transcriptions" in answer else answer["segments"]
    probability = answer.get("language_probability")
    return Transcript(
        segments=tuple(_segment(segment) for segment in segments),
        turns=_turns(answer.get("rttm", ""), answer.get("speakers", [])),
        language=str(answer.get("detected_language", "")),
        language_probability=None if probability is None else float(probability),
        duration=float(answer["duration"]),
        model=str(answer["model"]),
        timings={str(stage): float(seconds) for stage, seconds in answer["timings"].items()},
        warnings=tuple(str(warning) for warning in answer["warnings"]),
    )


def _segment(told: Mapping[str, Any]) -> Segment:
    return Segment(
        start=float(told["start"]),
        end=float(told["end"]),
        text=str(told.get("text", "")),  # turns alone have none
        words=tuple(_word(word) for word in told.get("words", [])),
        speaker=told.get("speaker"),
        language=told.get("language"),
        speaker_id=told.get("speaker_id"),
        similarity=told.get("similarity"),
    )


def _word(told: Mapping[str, Any]) -> Word:
    return Word(str(told["word"]), float(told["start"]), float(told["end"]), told.get("score"), told.get("speaker"))


def _turns(rttm: str, speakers: list[str]) -> tuple[Turn, ...]:
    """The turns of an RTTM file; labels have their spaces back."""
    labels = {"_".join(label.split()): label for label in speakers}
    rows = [line.split() for line in rttm.splitlines()]
    return tuple(
        Turn(float(row[3]), round(float(row[3]) + float(row[4]), 3), labels.get(row[7], row[7])) for row in rows
    )
