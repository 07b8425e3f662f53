"""What crosses between this server and the worker of an endpoint: a job's `input`, and the worker's answer.

The worker is this product's own (`src/handler.py`), of this or another version.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hansard import envelope
from hansard.errors import HansardError, ServiceError, from_code
from hansard.joblog import redact
from hansard.request import Request
from hansard.settings import Settings
from hansard.transcript import Segment, Transcript, Turn, Word

LONGEST = 500  # characters of another program's words that are repeated

CODED = re.compile(r"([a-z_]+): (.+)", re.DOTALL)


def job_input(request: Request, settings: Settings) -> dict[str, Any]:
    """A request as a job's `input`, in which its token is readable; formats are written here, from what comes back.

    What the caller leaves open the server's own settings say, as they do for the engine of this machine.
    """
    given = request.model_dump(mode="json", exclude_unset=True)
    if request.huggingface_access_token:
        given["huggingface_access_token"] = request.huggingface_access_token.get_secret_value()
    if model := model_of(request, settings):
        given["model"] = model
    given["align_output"] = wants_words(request)
    knows_turns = request.wants_speakers or request.channels == "separate" or request.segments is not None
    given["output_formats"] = ["rttm"] if knows_turns else []  # the one place of an answer that has the turns
    return given


def model_of(request: Request, settings: Settings) -> str | None:
    """What the worker is asked to use; None leaves it to the endpoint."""
    turns_alone = request.task == "diarization"
    return request.model or (settings.diarization_model if turns_alone else settings.default_model)


def wants_words(request: Request) -> bool:
    """Must the answer have words? Captions, now or asked for later, are cut between them, as are speakers' parts."""
    if request.task in ("translate", "diarization"):
        return False
    return request.align_output or request.wants_speakers or bool({"srt", "vtt"} & set(request.output_formats))


def transcript(answer: object, secrets: Iterable[str] = ()) -> Transcript:
    """The worker's answer as the engine's. Raises ServiceError for what is none, and the error that it holds."""
    if isinstance(answer, dict) and answer.get("error"):
        raise failure(answer["error"], secrets)
    try:
        return _transcript(envelope.unpack(dict(answer)))  # type: ignore[call-overload]
    except (AttributeError, LookupError, TypeError, ValueError, OSError, EOFError, zlib.error):
        raise ServiceError(
            "the endpoint's answer is no transcript; deploy this product's worker behind RUNPOD_ENDPOINT_ID"
        ) from None


def failure(error: object, secrets: Iterable[str] = ()) -> HansardError:
    """What a worker's `error` says: a code and a sentence of ours, or what the platform or another program says."""
    told = error if isinstance(error, str) else json.dumps(error)
    code, sentence = _coded(error)
    if (known := from_code(code, shown(sentence, secrets))).code == code:
        return known
    return ServiceError(f"the endpoint's worker failed: {shown(_message(told), secrets)}")


def shown(text: str, secrets: Iterable[str]) -> str:
    """Another program's words as a sentence may repeat them: without secrets, and not too many."""
    clean = redact(text, secrets)  # before it is cut: half a key is none that would be found
    return clean if len(clean) <= LONGEST else clean[:LONGEST] + "…"


def _coded(error: object) -> tuple[str, str]:
    """A code and what it says, as `code: sentence` or as an object of both; empty where it is neither."""
    match error:
        case {"code": str(code), "message": str(sentence)}:
            return code, sentence
        case str(told) if match := CODED.fullmatch(told):
            return match[1], match[2]
    return "", ""


def _message(told: str) -> str:
    """The message in the JSON that RunPod's own client makes of a crash, without its traceback; else the text."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(told)["error_message"])
    return told


def _transcript(answer: Mapping[str, Any]) -> Transcript:
    told = answer["transcriptions"] if "transcriptions" in answer else answer["segments"]
    segments = tuple(_segment(segment) for segment in told)
    probability = answer.get("language_probability")
    return Transcript(
        segments=segments,
        turns=_turns(answer.get("rttm", ""), segments),
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
        text=str(told.get("text") or ""),  # turns alone have none
        words=tuple(_word(word) for word in told.get("words", [])),
        speaker=told.get("speaker"),
        language=told.get("language"),
        speaker_id=told.get("speaker_id"),
        similarity=told.get("similarity"),
    )


def _word(told: Mapping[str, Any]) -> Word:
    return Word(str(told["word"]), float(told["start"]), float(told["end"]), told.get("score"), told.get("speaker"))


def _turns(rttm: str, segments: Sequence[Segment]) -> tuple[Turn, ...]:
    """The turns of an RTTM file; known voices stand in it by their names, and all without spaces."""
    spoken = [(segment.speaker, segment.speaker_id) for segment in segments if segment.speaker]
    labels = {_joined(label): label for label, _ in spoken} | {_joined(name): label for label, name in spoken if name}
    rows = [line.split() for line in rttm.splitlines()]
    return tuple(
        Turn(float(row[3]), round(float(row[3]) + float(row[4]), 3), labels.get(row[7], row[7])) for row in rows
    )


def _joined(label: str) -> str:
    return "_".join(label.split())
