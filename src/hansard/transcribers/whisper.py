"""Whisper: text in a hundred languages, through CTranslate2 and faster-whisper, batched and guarded.

Speech is found first and cut into chunks of at most 30 s (as whisperX does); the chunks are decoded in batches with
time tokens, so that a chunk gives phrases with times of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import ClassVar

from hansard.audio.speech import Activity, joined
from hansard.audio.voice_activity import load_voice_activity
from hansard.batch import Batch
from hansard.errors import UnsupportedError
from hansard.models import Models, shown
from hansard.request import Request
from hansard.transcribers.capabilities import OPTIONS, Can
from hansard.transcribers.guard import Limits, complaints
from hansard.transcribers.languages import MIXED
from hansard.transcribers.loading import repository_of
from hansard.transcribers.pieces import MIXED_PAUSE_S, MIXED_S, pieces, whole
from hansard.transcribers.whisper_decode import Attempt, Chunk, Decoding, Task, segments
from hansard.transcribers.whisper_language import decide, languages_of
from hansard.transcribers.whisper_model import WINDOW_S, Manner, WhisperWeights
from hansard.transcribers.whisper_words import time_words
from hansard.transcript import Audio, Report, Segment, Span, Transcription

log = logging.getLogger(__name__)

REPOSITORIES = {
    "tiny": "Systran/faster-whisper-tiny",
    "tiny.en": "Systran/faster-whisper-tiny.en",
    "base": "Systran/faster-whisper-base",
    "base.en": "Systran/faster-whisper-base.en",
    "small": "Systran/faster-whisper-small",
    "small.en": "Systran/faster-whisper-small.en",
    "medium": "Systran/faster-whisper-medium",
    "medium.en": "Systran/faster-whisper-medium.en",
    "large": "Systran/faster-whisper-large-v3",
    "large-v1": "Systran/faster-whisper-large-v1",
    "large-v2": "Systran/faster-whisper-large-v2",
    "large-v3": "Systran/faster-whisper-large-v3",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "faster-whisper-large-v3-russian": "bzikst/faster-whisper-large-v3-russian",
}
"""faster-whisper's own table (tests compare the two), and the Russian model that callers of a known worker name."""

# fmt: off
LANGUAGES = frozenset(
    {
        "af", "am", "ar", "as", "az", "ba", "be", "bg", "bn", "bo", "br", "bs", "ca", "cs", "cy", "da", "de",
        "el", "en", "es", "et", "eu", "fa", "fi", "fo", "fr", "gl", "gu", "ha", "haw", "he", "hi", "hr", "ht",
        "hu", "hy", "id", "is", "it", "ja", "jw", "ka", "kk", "km", "kn", "ko", "la", "lb", "ln", "lo", "lt",
        "lv", "mg", "mi", "mk", "ml", "mn", "mr", "ms", "mt", "my", "ne", "nl", "nn", "no", "oc", "pa", "pl",
        "ps", "pt", "ro", "ru", "sa", "sd", "si", "sk", "sl", "sn", "so", "sq", "sr", "su", "sv", "sw", "ta",
        "te", "tg", "th", "tk", "tl", "tr", "tt", "uk", "ur", "uz", "vi", "yi", "yo", "yue", "zh",
    }
)
# fmt: on

KIND = "whisper"  # as Models.kind names it
FILE = "model.bin"  # that a hub repository must have

GPU_BATCH = 16
CPU_BATCH = 4
BEAM_SIZE = 5

LONGEST_PAUSE_S = 3.0  # within a chunk: around longer silence Whisper leaves out words (errors 13, at 5 s 18 of 356)

SPEECH_SHARE = 0.1  # of the stage's time
LANGUAGE_SHARE = 0.05

PROMPT_TOO_LONG = (
    "prompt and hotwords are longer than the model can read: the last of the prompt, the first hotwords counted"
)


class Whisper:
    """A CTranslate2 Whisper: one of the known names, a folder under MODELS_DIR, or a hub repository."""

    can: ClassVar[Can] = Can(
        languages=LANGUAGES,
        mixed_languages=True,
        tasks=frozenset({"transcribe", "translate"}),
        options=OPTIONS - {"target_language"},
        always={"target_language": "en"},
        word_times=True,
        needs_alignment=True,
    )
    models: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (repository,) for name, repository in REPOSITORIES.items()}

    @classmethod
    def takes(cls, name: str, models: Models) -> bool:
        """A folder of this kind, and any repository that is not on this machine."""
        return models.kind(name) == KIND or (models.is_repository(name) and models.find(name) is None)

    @classmethod
    def check(cls, model: str, request: Request, models: Models) -> None:
        """Raises ModelError for weights out of reach, or a repository of another kind, before it is downloaded."""
        models.check(repository_of(model, cls.models), holds=FILE)

    def __init__(self, model: str, models: Models) -> None:
        settings = models.settings
        folder = models.get(repository_of(model, self.models))
        self._name = model
        self._limits = Limits.of(settings)
        self._batch_size = GPU_BATCH if settings.on_gpu else CPU_BATCH
        self._weights = WhisperWeights(folder, shown(model), settings)
        self._voice_activity = load_voice_activity(settings.vad_method, "cuda" if settings.on_gpu else "cpu")

    def transcribe(
        self, audio: Audio, request: Request, report: Report, spans: Sequence[Span] | None = None
    ) -> Transcription:
        """Phrases in order of time, or one segment for each of `spans`; warnings say what the guard could not mend.

        Raises UnsupportedError for a language or task that this model does not have, OutOfMemoryError.
        """
        self._refuse(request)
        mixed = request.language == MIXED
        batch = Batch(request.batch_size or self._batch_size)
        activity = self._voice_activity(audio, lambda part: report(part * SPEECH_SHARE))
        chunks = _chunks(audio, activity, request, spans)
        spoken = decide(self._weights, audio, request, [chunk.span for chunk in chunks], batch)
        report(SPEECH_SHARE + LANGUAGE_SHARE)
        chunks = [replace(chunk, language=one) for chunk, one in zip(chunks, spoken.each, strict=True)]
        if mixed and spans is None:
            chunks = _joined(chunks)
        task, warnings = self._task(audio, activity, request, _progress(report, chunks))
        attempts = Decoding(self._weights, task, batch).decode(chunks, spoken.ready)
        report(1.0)
        log.info("%d chunks of speech, decoded %d at a time", len(chunks), batch.size)
        if batch.size < batch.asked:
            warnings = (*warnings, f"memory was short: chunks were decoded {batch.size} at a time, not {batch.asked}")
        found = self._segments(attempts, spans)
        return Transcription(
            tuple(found if mixed else (replace(segment, language=None) for segment in found)),
            spoken.language,
            spoken.probability,
            (
                *spoken.warnings,
                *activity.warnings,
                *warnings,
                *complaints((attempt.chunk.span, attempt.fault) for attempt in attempts),
            ),
        )

    def time_words(self, audio: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
        """The segments with words timed by Whisper's cross-attention; where Whisper writes no spaces, characters."""
        batch = Batch(self._batch_size)
        languages = languages_of(self._weights, audio, segments, batch)
        timed = time_words(self._weights, audio, segments, languages, batch, report)
        if batch.size < batch.asked:
            log.warning("memory was short: words were timed %d windows at a time, not %d", batch.size, batch.asked)
        report(1.0)
        return tuple(timed)

    def close(self) -> None:
        self._weights.close()

    def _refuse(self, request: Request) -> None:
        """Refuse what this one model cannot do although other Whispers can."""
        if not self._weights.multilingual and (request.task == "translate" or request.language not in (None, "en")):
            raise UnsupportedError(
                f"model {self._name} knows English only and does not translate; take one without .en"
            )
        if request.language not in (None, MIXED) and not self._weights.knows(request.language):
            raise UnsupportedError(f"model {self._name} does not know language {request.language}; take large-v3")

    def _task(
        self, audio: Audio, activity: Activity, request: Request, progress: Callable[[float], None]
    ) -> tuple[Task, tuple[str, ...]]:
        """What the decoding has to go by, and a warning where the prompt is too long for it."""
        context, left_out = self._weights.context(request.prompt, request.hotwords)
        task = Task(
            audio=audio,
            activity=activity,
            task="translate" if request.task == "translate" else "transcribe",
            context=context,
            manner=Manner(request.beam_size or BEAM_SIZE, request.temperature or 0.0),
            limits=self._limits,
            progress=progress,
        )
        return task, (PROMPT_TOO_LONG,) if left_out else ()

    def _segments(self, attempts: Sequence[Attempt], spans: Sequence[Span] | None) -> list[Segment]:
        """The phrases of all attempts in order of time, or those of each span as one segment."""
        if spans is None:
            return segments(attempts, self._weights.text)
        owned: dict[int, list[Attempt]] = {}
        for attempt in attempts:
            owned.setdefault(attempt.chunk.owner, []).append(attempt)
        return [whole(span, segments(owned.get(n, ()), self._weights.text)) for n, span in enumerate(spans)]


def _chunks(audio: Audio, activity: Activity, request: Request, spans: Sequence[Span] | None) -> list[Chunk]:
    """What is to be decoded, `owner` being the place among the given spans; languages are open."""
    mixed = request.language == MIXED and spans is None
    longest, pause = (MIXED_S, MIXED_PAUSE_S) if mixed else (WINDOW_S, LONGEST_PAUSE_S)
    return [Chunk(piece.span, "", piece.owner) for piece in pieces(audio, activity, request, spans, longest, pause)]


def _joined(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Neighbours of one language, joined up to 30 s."""
    return [
        Chunk(span, language)
        for language, some in groupby(chunks, key=lambda chunk: chunk.language)
        for span in joined((chunk.span for chunk in some), WINDOW_S, LONGEST_PAUSE_S)
    ]


def _progress(report: Report, chunks: Sequence[Chunk]) -> Callable[[float], None]:
    """Tells of the seconds of sound that are settled as a share of the stage."""
    total = sum(chunk.span.end - chunk.span.start for chunk in chunks)
    before = SPEECH_SHARE + LANGUAGE_SHARE
    return lambda settled: report(before + (1 - before) * min(1.0, settled / total))
