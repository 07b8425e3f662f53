"""A transcript in the response formats of OpenAI's audio endpoints, and as the events of a stream.

Beyond the contract, in JSON: `warnings` (what had to be given up), `model`, each of the `output_formats` under its own
name, `timings` with `debug`, and in verbose_json the `speaker` of segments and words, and `similarity`. In text they
are a header. What an engine does not tell is neutral: in a verbose segment `tokens` is empty, and `avg_logprob` and
`no_speech_prob` are 0 where it was not Whisper's; a stream's last event has no `usage`, which would have to be in
tokens. Languages are codes, save the `language` of verbose_json, which is Whisper's English name.
"""

from __future__ import annotations

import json
import string
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, product
from typing import Any
from urllib.parse import quote

from fastapi import Response

from hansard import render
from hansard.server.language_names import name_of
from hansard.server.openai.form import TEXTS, Ask
from hansard.server.waiting import HEADERS
from hansard.transcript import Sureness, Transcript

UNKNOWN = "unknown"  # the speaker of a segment whose voice nobody told apart: the contract wants a text

LONGEST_WARNING = 500  # characters in a header, which proxies keep short


def respond(ask: Ask, transcript: Transcript) -> Response:
    """The whole response."""
    transcript = replace(transcript, warnings=(*ask.warnings, *transcript.warnings))
    if ask.stream:
        return Response("".join(_events(ask, transcript)), media_type="text/event-stream", headers=HEADERS)
    if ask.format in TEXTS:
        name = "txt" if ask.format == "text" else ask.format
        text = _bytes(render.FORMATS[name](transcript))
        return Response(text, media_type=render.MEDIA[name], headers=warned(transcript.warnings))
    body = _turns(ask, transcript) if ask.request.task == "diarization" else _BODIES[ask.format](ask, transcript)
    return Response(_bytes(json.dumps(body, ensure_ascii=False, allow_nan=False)), media_type="application/json")


def warned(warnings: Iterable[str]) -> dict[str, str]:
    """Warnings as a header, percent-encoded where a header cannot hold a character."""
    told = _bytes("; ".join(warnings)[:LONGEST_WARNING])
    return {"X-Warnings": quote(told, safe=" ,;:'()/=")} if told else {}


def _bytes(text: str) -> bytes:
    """A text as UTF-8, which has no bytes for half a surrogate pair."""
    return text.encode("utf-8", "replace")


# The shapes of JSON


def _short(ask: Ask, transcript: Transcript) -> dict[str, Any]:
    body: dict[str, Any] = {"text": plain(transcript), **_languages(ask, transcript)}
    return body | _words(ask, transcript) | _beside(ask, transcript)


def _languages(ask: Ask, transcript: Transcript) -> dict[str, Any]:
    """What is spoken; of a translation that would not be what is written."""
    if ask.request.task == "translate":
        return {}
    codes = [transcript.language, *(segment.language for segment in transcript.segments)]
    return {"languages": [{"code": code} for code in dict.fromkeys(codes) if code and code != "multi"]}


def _verbose(ask: Ask, transcript: Transcript) -> dict[str, Any]:
    translated = ask.request.task == "translate"
    body: dict[str, Any] = {
        "task": "translate" if translated else "transcribe",
        "language": name_of((ask.request.target_language or "en") if translated else transcript.language),
        "duration": _duration(transcript),
        "text": plain(transcript),
        **_languages(ask, transcript),
    }
    if ask.segments:
        pairs = zip(_told(transcript), transcript.segments, strict=True)
        body["segments"] = [_segment(number, told, one.sureness, ask) for number, (told, one) in enumerate(pairs)]
    return body | _words(ask, transcript) | _beside(ask, transcript)


def _diarized(ask: Ask, transcript: Transcript) -> dict[str, Any]:
    body = {
        "task": "translate" if ask.request.task == "translate" else "transcribe",
        "duration": _duration(transcript),
        "text": plain(transcript),
        "segments": _diarized_segments(ask, transcript),
    }
    return body | _words(ask, transcript) | _beside(ask, transcript)


_BODIES = {"json": _short, "verbose_json": _verbose, "diarized_json": _diarized}


def _turns(ask: Ask, transcript: Transcript) -> dict[str, Any]:
    """Who speaks when, without text; verbose with a line for each speaker."""
    told = [{"id": number, **_named(segment)} for number, segment in enumerate(_told(transcript))]
    for segment in told:
        segment.pop("text", None)
    names = dict.fromkeys(segment["speaker"] for segment in told if "speaker" in segment)
    body: dict[str, Any] = {"task": "diarization", "duration": _duration(transcript), "num_speakers": len(names)}
    if ask.format == "verbose_json":
        body["speakers"] = [_speaker(name, told) for name in names]
        body["timings"] = dict(transcript.timings)
    return body | {"segments": told} | _beside(ask, transcript)


def _speaker(name: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    lengths = [turn["end"] - turn["start"] for turn in turns if turn.get("speaker") == name]
    return {"id": name, "speech_seconds": round(sum(lengths), 3), "segments": len(lengths)}


def _told(transcript: Transcript, *, words: bool = False) -> list[dict[str, Any]]:
    """The segments as numbers and text that JSON can hold."""
    segments: Any = render.to_result(transcript, words=words)["segments"]
    return list(segments)


def _duration(transcript: Transcript) -> float:
    duration: Any = render.to_result(replace(transcript, segments=()))["duration"]
    return float(duration)


def _named(segment: dict[str, Any]) -> dict[str, Any]:
    """A segment or a word whose speaker has the name that was recognised."""
    name = segment.get("speaker_id") or segment.get("speaker")
    kept = {key: value for key, value in segment.items() if key not in ("speaker_id", "words", "speaker")}
    return kept | ({"speaker": name} if name else {})


def _segment(number: int, told: dict[str, Any], sureness: Sureness | None, ask: Ask) -> dict[str, Any]:
    """A segment as Whisper tells it; where no engine tells how sure it was, that is 0."""
    sure = sureness or Sureness(ask.request.temperature or 0.0, 0.0, 0.0)
    text = _bytes(told["text"])
    return _named(told) | {
        "id": number,
        "seek": int(told["start"] * 100),
        "tokens": [],
        "temperature": sure.temperature,
        "avg_logprob": round(sure.logprob, 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": round(sure.no_speech, 4),
    }


def _words(ask: Ask, transcript: Transcript) -> dict[str, Any]:
    if not ask.words:
        return {}
    ids = {s.speaker: s.speaker_id for s in transcript.segments if s.speaker_id}
    words = [word for segment in _told(transcript, words=True) for word in segment["words"]]
    return {"words": [_named({**word, "speaker_id": ids.get(word.get("speaker"))}) for word in words]}


def _beside(ask: Ask, transcript: Transcript) -> dict[str, Any]:
    """What every answer in JSON ends with."""
    beside: dict[str, Any] = {
        "usage": {"type": "duration", "seconds": _duration(transcript)},
        "model": transcript.model,
        **{name: render.FORMATS[name](transcript) for name in ask.request.output_formats},
    }
    if ask.request.debug:
        beside["timings"] = dict(transcript.timings)
    if transcript.warnings:
        beside["warnings"] = list(transcript.warnings)
    return beside


# Speakers by letters


def _diarized_segments(ask: Ask, transcript: Transcript) -> list[dict[str, Any]]:
    names = letters(transcript, {sample.name for sample in ask.request.speaker_samples})
    return [
        {
            "type": "transcript.text.segment",
            "id": f"seg_{number}",
            "start": told["start"],
            "end": told["end"],
            "text": told["text"],
            "speaker": told.get("speaker_id") or names.get(told.get("speaker"), UNKNOWN),
        }
        for number, told in enumerate(_told(transcript))
    ]


def letters(transcript: Transcript, taken: set[str]) -> dict[str | None, str]:
    """A, B, ... Z, AA, ... for the speakers who were not recognised, as they first speak; no name that is `taken`."""
    free = (name for name in _alphabet() if name not in taken)
    unknown = [s.speaker for s in transcript.segments if s.speaker is not None and s.speaker_id is None]
    return {label: next(free) for label in dict.fromkeys(unknown)}


def _alphabet() -> Iterator[str]:
    for length in count(1):
        yield from map("".join, product(string.ascii_uppercase, repeat=length))


# Text


def plain(transcript: Transcript) -> str:
    """All that is said, on one line, without names."""
    nameless = tuple(replace(segment, speaker=None, speaker_id=None) for segment in transcript.segments)
    return render.FORMATS["txt"](replace(transcript, segments=nameless)).strip()


def _pieces(transcript: Transcript) -> Iterator[tuple[int, str]]:
    """`plain` in pieces, each with the number of its segment: joined they are the whole text."""
    whole, position = plain(transcript), 0
    for number, segment in enumerate(transcript.segments):
        text = plain(replace(transcript, segments=(segment,)))
        if text:
            end = position + whole[position : position + 1].isspace() + len(text)
            yield number, whole[position:end]
            position = end


def _events(ask: Ask, transcript: Transcript) -> Iterator[str]:
    """The stream: a delta for each segment, with speakers the segment itself, then the whole text."""
    diarized = _diarized_segments(ask, transcript) if ask.format == "diarized_json" else None
    for number, piece in _pieces(transcript):
        told = {"segment_id": diarized[number]["id"]} if diarized else {}
        yield _event({"type": "transcript.text.delta", "delta": piece, **told})
        if diarized:
            yield _event(diarized[number])
    whole = {key: value for key, value in _short(ask, transcript).items() if key != "usage"}
    yield _event({"type": "transcript.text.done", **whole})
    yield "data: [DONE]\n\n"


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told, allow_nan=False)}\n\n"  # ASCII: some clients break lines at U+2028
