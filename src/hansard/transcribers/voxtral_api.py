"""Voxtral behind a service: Mistral's own, or any server that speaks OpenAI's language, such as vLLM.

Speech is found here and cut into pieces; each is sent by itself, several at once, and judged by the guard. Two kinds
of call, two backends: transcriptions, made for the purpose, and chat, which also reads a prompt. The fields are those
of Mistral's Python client and of vLLM's protocol, both as published in 2026; neither service itself was asked here.
"""

from __future__ import annotations

import base64
import math
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from hansard.audio.encode import FLAC, MP3, Format, encode
from hansard.audio.voice_activity import load_voice_activity
from hansard.errors import ModelError, UnsupportedError
from hansard.models import Models
from hansard.request import Request
from hansard.transcribers.attempts import Attempt, Judge, better
from hansard.transcribers.capabilities import Can
from hansard.transcribers.guard import Limits, complaints
from hansard.transcribers.languages import MIXED, Written, doubts, of_texts
from hansard.transcribers.pieces import LEAST_SEGMENT_S, SHORTEST_S, Piece, gathered, pieces
from hansard.transcribers.voxtral_answers import Answer, chatted, spoken
from hansard.transcribers.voxtral_service import Endpoint, Service, check_access, placed, side_by_side
from hansard.transcript import SAMPLE_RATE, Audio, Report, Segment, Span, Transcription

# fmt: off
LANGUAGES = {
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pt": "Portuguese", "ru": "Russian", "zh": "Chinese",
}
# fmt: on
"""Languages that Mistral names for Voxtral Transcribe 2; later models know more, so no language is refused."""

_NAME = re.compile(r"voxtral-[\w.-]*\w")

LONGEST_S = 30.0  # of a piece that is found here
LONGEST_PAUSE_S = 2.0  # within such a piece
MIXED_S, MIXED_PAUSE_S = 15.0, 0.5  # the same where languages are mixed: each piece has one
LONGEST_SPAN_S = 300.0  # of a given span; vLLM refuses more than 600 s and 25 MB, and these are 10 MB at most
LONGEST_CHAT_S = 120.0  # the same in a chat: 12.5 tokens of sound and 30 of text a second, in a context of 8192
LEAST_SENT_S = 1.0  # with silence behind what is shorter, as some services refuse it

AT_ONCE = 4
MOST_AT_ONCE = 16
SPEECH_SHARE = 0.1  # of the stage's time

MOST_TERMS = 100  # that Mistral's service takes in context_bias
TOKENS_PER_SECOND = 30  # no speech needs more, in any script; what does is a loop, and would go on for minutes
MORE_TOKENS = 100


@dataclass(frozen=True, slots=True)
class _Task:
    """What all pieces of a job have in common."""

    judge: Judge
    request: Request
    service: Service


class _Voxtral(ABC):
    """What both kinds of call share: everything but the call itself."""

    can: ClassVar[Can]
    longest_span_s: ClassVar[float]

    @classmethod
    def check(cls, model: str, request: Request, models: Models) -> None:
        """Return when nothing is known that would keep the service from this job; the service is not asked.

        Raises ModelError where a folder of this name lies half-made, SettingsError for an address or a key that cannot
        be used, TokenMissingError for a missing key, UnsupportedError for what this service does not take.
        """
        if os.path.lexists(models.settings.models_dir / model):
            raise ModelError(f"the folder {model} under MODELS_DIR holds no whole model; complete or remove it")
        cls._refuse(model, request, check_access(models.settings))

    @classmethod
    @abstractmethod
    def _refuse(cls, model: str, request: Request, endpoint: Endpoint) -> None:
        """Raises UnsupportedError for what this kind of call, or this service, cannot do."""

    @abstractmethod
    def _ask(self, task: _Task, span: Span) -> Answer:
        """One call."""

    def __init__(self, model: str, models: Models) -> None:
        settings = models.settings
        self._model, self._settings = model, settings
        self._endpoint = check_access(settings)
        self._limits = Limits.of(settings)
        # torch only where VAD_METHOD asks for it: a setting that is overruled in silence would be worse than its cost
        self._voice_activity = load_voice_activity(settings.vad_method, "cuda" if settings.on_gpu else "cpu")

    def transcribe(
        self, audio: Audio, request: Request, report: Report, spans: Sequence[Span] | None = None
    ) -> Transcription:
        """Pieces of speech in order of time, or one segment for each of `spans`; warnings hold what the guard found.

        The language's probability is the share of the speech that is in it where the service tells languages, else
        that of the text's. Raises ServiceError, TokenRefusedError, TokenMissingError, ModelMissingError, each with the
        place of the piece that failed, and whatever `report` raises, which is asked twice a second or more.
        """
        activity = self._voice_activity(audio, lambda part: report(part * SPEECH_SHARE))
        longest, pause = (MIXED_S, MIXED_PAUSE_S) if request.language == MIXED else (LONGEST_S, LONGEST_PAUSE_S)
        found = pieces(audio, activity, request, spans, longest if spans is None else self.longest_span_s, pause)
        wanted = request.batch_size or AT_ONCE
        at_once = min(wanted, MOST_AT_ONCE)
        stop = threading.Event()
        task = _Task(Judge(audio, activity, self._limits), request, Service(self._settings, at_once, stop))
        calls = [placed(partial(self._hear, task, piece), where) for piece, where in _counted(found, spans)]
        lengths = [piece.length for piece in found]
        try:
            heard = side_by_side(calls, lengths, at_once, lambda part: report(SPEECH_SHARE + (1 - SPEECH_SHARE) * part))
        finally:
            stop.set()
            task.service.close()
        limited = (f"no more than {at_once} pieces are sent at once, not {wanted}",) if wanted > at_once else ()
        return _transcription([one for some in heard for one in some], request, spans, (*activity.warnings, *limited))

    def time_words(self, audio: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
        """The segments as they are: the service tells no times of words."""
        report(1.0)
        return tuple(segments)

    def close(self) -> None:  # noqa: B027 - whichever the call
        """Nothing is held between two jobs."""

    def _hear(self, task: _Task, piece: Piece) -> list[Attempt[Answer]]:
        """What is said in a piece; where that cannot be right, what is said in its halves, if any of it can."""
        whole = task.judge.judged(piece, self._answer(task, piece))
        return better([task.judge.judged(part, self._answer(task, part)) for part in task.judge.halves(whole)], whole)

    def _answer(self, task: _Task, piece: Piece) -> Answer:
        return self._ask(task, piece.span) if piece.length >= SHORTEST_S else Answer("")


class VoxtralTranscriptions(_Voxtral):
    """A model behind POST {VOXTRAL_ENDPOINT}/audio/transcriptions: every `voxtral-` name that is not of the chat."""

    can: ClassVar[Can] = Can(
        languages=None,
        mixed_languages=True,
        options=frozenset(
            {"hotwords", "temperature", "batch_size", "vad_onset", "vad_offset", "language_detection_min_prob"}
        ),
        needs_alignment=True,
    )
    models: ClassVar[Mapping[str, tuple[str, ...]]] = {"voxtral-mini-latest": ()}
    longest_span_s: ClassVar[float] = LONGEST_SPAN_S

    @classmethod
    def takes(cls, name: str, models: Models) -> bool:
        """Any `voxtral-` name that is not on this machine, but for those that only chat."""
        return _is_remote(name, models) and not _chats(name)

    @classmethod
    def _refuse(cls, model: str, request: Request, endpoint: Endpoint) -> None:
        if request.language not in (None, MIXED) and len(request.language) != 2:
            raise UnsupportedError(
                f"model {model} takes languages of two letters only, not {request.language}; leave out language"
            )
        if request.hotwords and not endpoint.mistral:  # vLLM reads over the field without a word
            raise UnsupportedError(f"model {model} takes hotwords only from Mistral's own service; leave out hotwords")
        if request.hotwords and len(_terms(request.hotwords)) > MOST_TERMS:
            raise UnsupportedError(f"model {model} takes at most {MOST_TERMS} words in hotwords")

    def _ask(self, task: _Task, span: Span) -> Answer:
        request = task.request
        data: dict[str, Any] = {"model": self._model}
        if request.language not in (None, MIXED):
            data["language"] = request.language
        else:  # beside a language, Mistral's service was seen to answer with no text; vLLM reads over this field
            data["timestamp_granularities"] = "segment"
        if request.temperature is not None:
            data["temperature"] = str(request.temperature)
        if request.hotwords:
            data["context_bias"] = _terms(request.hotwords)  # one field for each
        # FLAC, which every server reads: users report that vLLM 0.15 refuses MP3 here
        file = (FLAC.file_name, _sound(task.judge.audio, span, FLAC), FLAC.media_type)
        return task.service.ask("/audio/transcriptions", self._model, {"data": data, "files": {"file": file}}, spoken)


class VoxtralChat(_Voxtral):
    """A model behind POST {VOXTRAL_ENDPOINT}/chat/completions that is told to transcribe: `voxtral-small` names."""

    can: ClassVar[Can] = Can(
        languages=None,
        mixed_languages=True,
        options=VoxtralTranscriptions.can.options | {"prompt"},
        needs_alignment=True,
    )
    models: ClassVar[Mapping[str, tuple[str, ...]]] = {"voxtral-small-latest": ()}
    longest_span_s: ClassVar[float] = LONGEST_CHAT_S

    @classmethod
    def takes(cls, name: str, models: Models) -> bool:
        """Any `voxtral-small` name that is not on this machine and not made for transcription."""
        return _is_remote(name, models) and _chats(name)

    @classmethod
    def _refuse(cls, model: str, request: Request, endpoint: Endpoint) -> None:
        """Nothing: language, prompt and hotwords are said in words."""

    def _ask(self, task: _Task, span: Span) -> Answer:
        sound = base64.b64encode(_sound(task.judge.audio, span, MP3)).decode()
        # Mistral documents a string; vLLM holds to OpenAI's object, whose format is wav or mp3 and nothing else
        told = sound if self._endpoint.mistral else {"data": sound, "format": "mp3"}
        content = [
            {"type": "input_audio", "input_audio": told},
            {"type": "text", "text": instruction(task.request)},
        ]
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "temperature": task.request.temperature or 0.0,
            "max_tokens": MORE_TOKENS + math.ceil(TOKENS_PER_SECOND * (span.end - span.start)),
        }
        return task.service.ask("/chat/completions", self._model, {"json": body}, chatted)


def instruction(request: Request) -> str:
    """What a chat model is told to do with a recording."""
    told = [
        "Transcribe this recording word for word, in the language that is spoken in it.",
        "Answer with the transcript alone: no translation, no comment, no names of speakers, no times.",
        "If nobody speaks, answer with nothing.",
    ]
    if request.language not in (None, MIXED):
        name = LANGUAGES.get(request.language)
        told.append(f"The language is {name}." if name else f"The language is that of ISO code {request.language}.")
    if request.prompt:
        told.append(f"Follow the style and the spelling of this text, but do not repeat it: {request.prompt}")
    if request.hotwords:
        told.append(f"These words may be said: {request.hotwords}")
    return "\n".join(told)


def _sound(audio: Audio, span: Span, format: Format) -> bytes:
    """A stretch as a file of LEAST_SENT_S seconds or more."""
    samples = audio.samples[:1, round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)]
    lacking = round(LEAST_SENT_S * SAMPLE_RATE) - samples.shape[1]
    if lacking <= 0:
        return encode(audio, span, format)
    return encode(Audio(np.pad(samples, ((0, 0), (0, lacking)))), Span(0.0, LEAST_SENT_S), format)


def _is_remote(name: str, models: Models) -> bool:
    """Is it a service's model? Not where there is a folder of this name, whole or not: its sound is to stay here."""
    if not _NAME.fullmatch(name) or models.find(name) is not None:
        return False
    return not os.path.lexists(models.settings.models_dir / name)


def _chats(name: str) -> bool:
    return name.startswith("voxtral-small") and "transcribe" not in name


def _terms(hotwords: str) -> list[str]:
    """The words of a list, each once: the service takes neither spaces nor commas in one."""
    return list(dict.fromkeys(re.findall(r"[^\s,]+", hotwords)))


def _counted(found: Sequence[Piece], spans: Sequence[Span] | None) -> list[tuple[Piece, str]]:
    """The pieces, each with its place for an error: its number, of the given spans if there are any, and its times."""
    total = len(found if spans is None else spans)
    return [
        (piece, f"segment {(at if spans is None else piece.owner) + 1} of {total} ({_times(piece.span)})")
        for at, piece in enumerate(found)
    ]


def _times(span: Span) -> str:
    return "-".join(f"{int(at) // 60}:{int(at) % 60:02d}" for at in (span.start, span.end))


# Answers of a whole job


def _transcription(
    heard: Sequence[Attempt[Answer]], request: Request, spans: Sequence[Span] | None, warnings: Sequence[str]
) -> Transcription:
    spoken = [one for one in heard if one.fault is None]
    written = _languages(request, spoken)
    found = [(one.piece, _segments(one, language)) for one, language in zip(spoken, written.each, strict=True)]
    segments = gathered(found, spans)
    if request.language != MIXED:
        segments = tuple(replace(segment, language=None) for segment in segments)
    told = (*written.warnings, *warnings, *complaints((one.piece.span, one.fault) for one in heard))
    return Transcription(segments, written.language, written.probability, told)


def _languages(request: Request, spoken: Sequence[Attempt[Answer]]) -> Written:
    """The language of each text: as the job says, as the service says if it says it of all, or by the texts."""
    told = [one.written.language for one in spoken if one.written.language]
    if request.language not in (None, MIXED) or not spoken or len(told) < len(spoken):
        return of_texts(request, [one.written.text for one in spoken])
    seconds: dict[str, float] = {}
    for one, language in zip(spoken, told, strict=True):
        seconds[language] = seconds.get(language, 0.0) + one.piece.length
    language = max(seconds, key=lambda one: seconds[one])
    share = seconds[language] / sum(seconds.values())
    return Written(tuple(told), language, share, doubts(language, share, request.language_detection_min_prob))


def _segments(heard: Attempt[Answer], language: str) -> list[Segment]:
    """The phrases of an answer, or all of it, as segments of the recording, within the piece and in order."""
    span, found = heard.piece.span, []
    begin = span.start
    for start, end, text in heard.written.phrases:
        begin = min(max(begin, span.start + start), span.end - LEAST_SEGMENT_S)
        stop = min(max(span.start + end, begin + LEAST_SEGMENT_S), span.end)
        found.append(Segment(begin, stop, text, language=language))
    return found or [Segment(span.start, span.end, heard.written.text, language=language)]
