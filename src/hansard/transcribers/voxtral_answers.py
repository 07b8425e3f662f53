"""What a service's answers say: transcripts, and errors in the words of several kinds of server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_SAID = 200  # characters of a service's own words
CUT_OFF = ("length", "model_length")  # reasons for which a service ends a text before it is whole

_UNFIT = re.compile(r"\w+://\S+|(?<![\w.])/[\w.@-]+(?:/[\w.@-]*)+|\S{32,}")  # addresses, paths, keys and the like


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service makes of a piece: text, its language if told, phrases (start, end, text) in seconds of the piece.

    `ended` is false where the text was cut off.
    """

    text: str
    language: str | None = None
    phrases: tuple[tuple[float, float, str], ...] = ()
    ended: bool = True


def spoken(answer: Mapping[str, Any]) -> Answer:
    """Mistral's {text, language, segments, ...} or vLLM's {text, ...}. Raises ValueError."""
    text = answer.get("text")
    if not isinstance(text, str):
        raise ValueError("no text")  # noqa: TRY004 - it is the service's fault
    language = str(answer.get("language") or "").lower().partition("-")[0]
    return Answer(
        _clean(text).strip(),
        language if re.fullmatch("[a-z]{2,3}", language) else None,
        _phrases(answer.get("segments"), _clean(text)),
        answer.get("finish_reason") not in CUT_OFF,
    )


def chatted(answer: Mapping[str, Any]) -> Answer:
    """The first choice's message: a string, a list of parts, or null for none. Raises ValueError."""
    match answer:
        case {"choices": [{"message": {"content": content}, **choice}, *_]} if choice.get("finish_reason") != "error":
            parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
            texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
            if all(isinstance(text, str) for text in texts):
                text = _clean("".join(map(str, texts))).strip()
                return Answer(text, ended=choice.get("finish_reason") in ("stop", None))
    raise ValueError("no message")


def _phrases(segments: object, text: str) -> tuple[tuple[float, float, str], ...]:
    """The phrases of a text where they are whole and have times, else none."""
    phrases = []
    for segment in segments if isinstance(segments, list) else ():
        match segment:
            case {"start": int() | float() as start, "end": int() | float() as end, "text": str() as said}:
                said = _clean(said).strip()
                if said and math.isfinite(start) and math.isfinite(end):
                    phrases.append((float(start), float(end), said))
    same = "".join("".join(said for *_, said in phrases).split()) == "".join(text.split())
    return tuple(phrases) if same else ()


def _clean(text: str) -> str:
    """A text without halves of characters: JSON can hold them, UTF-8 cannot, and a byte-wise model may write one."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


# Errors


def object_of(answer: bytes) -> Mapping[str, Any] | None:
    """The JSON object that an answer is, or None."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def error_within(told: Mapping[str, Any] | None) -> int:
    """The status of an error that came with status 200, as vLLM 0.15 was seen to send; 200 where it is none."""
    if told is None or not (told.get("error") or told.get("object") == "error"):
        return 200
    within = told["error"] if isinstance(told.get("error"), dict) else told
    code = within.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 400


def said_of(told: Mapping[str, Any] | None, key: str | None) -> str:
    """What a service says of an error, short, without anything that may be a secret or an address.

    It is in `message` or `detail`, in `error` or not; a list holds one `msg` for each field.
    """
    words: Any = told
    for _ in range(4):
        if isinstance(words, list):
            words = "; ".join(str(one.get("msg", "")) if isinstance(one, dict) else str(one) for one in words)
        if not isinstance(words, dict):
            break
        words = next((words[name] for name in ("error", "message", "detail") if words.get(name)), "")
    text = _clean(words) if isinstance(words, str) else ""
    if key:
        text = text.replace(key, "***")
    return " ".join(_UNFIT.sub("***", text).split())[:LONGEST_SAID]
