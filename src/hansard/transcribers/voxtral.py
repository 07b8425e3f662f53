"""Voxtral: Mistral's open weights, a Whisper encoder that a language model listens to, in eight languages.

Speech is found first and cut into pieces of at most 30 s, what the encoder hears at once; they are transcribed in
batches. The weights give neither times nor a language nor how sure they are: each piece becomes a segment, an aligner
times its words, and the language is told from the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from hansard.audio.voice_activity import load_voice_activity
from hansard.batch import Batch
from hansard.models import Models, shown
from hansard.request import Request
from hansard.transcribers.attempts import SPEECH_SHARE, Attempt, Judge, written
from hansard.transcribers.capabilities import Can
from hansard.transcribers.guard import Limits
from hansard.transcribers.languages import MIXED, of_texts
from hansard.transcribers.loading import check_compute_type, repository_of
from hansard.transcribers.pieces import MIXED_PAUSE_S, MIXED_S, Piece, gathered, pieces
from hansard.transcribers.voxtral_model import (
    BLOCK_S,
    KIND,
    Manner,
    Written,
    check_folder,
    installed,
    load,
)
from hansard.transcript import Audio, Report, Segment, Span, Transcription

LANGUAGES = frozenset({"de", "en", "es", "fr", "hi", "it", "nl", "pt"})
REPOSITORIES = ("mistralai/Voxtral-Mini-3B-2507", "mistralai/Voxtral-Small-24B-2507")

FILE = "tekken.json"  # that a hub repository must have

GPU_BATCH = 32
CPU_BATCH = 4

LONGEST_S = BLOCK_S - 0.01  # so that rounding to samples begins no second block
LONGEST_PAUSE_S = 1.5  # within a piece: people read it as one segment

COLDEST = 1e-3  # temperatures below differ from 0 by nothing but overflows


class Voxtral:
    """A Voxtral of 2507: one of the two published, or a folder under MODELS_DIR."""

    can: ClassVar[Can] = Can(
        languages=LANGUAGES,
        mixed_languages=True,
        options=frozenset({"temperature", "batch_size", "vad_onset", "vad_offset", "language_detection_min_prob"}),
        needs_alignment=True,
    )
    models: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (repository,)
        for repository in REPOSITORIES
        for bare in (repository.partition("/")[2],)
        for name in (repository, bare, bare.lower())
    }

    @classmethod
    def takes(cls, name: str, models: Models) -> bool:
        """A folder of this kind."""
        return models.kind(name) == KIND

    @classmethod
    def check(cls, model: str, request: Request, models: Models) -> None:
        """Raises ModelError for weights out of reach, EngineMissingError, SettingsError for a wrong COMPUTE_TYPE."""
        installed()
        check_compute_type(models.settings, "Voxtral")
        if folder := models.check(repository_of(model, cls.models), holds=FILE):
            check_folder(folder, shown(model))

    def __init__(self, model: str, models: Models) -> None:
        settings = models.settings
        folder = models.get(repository_of(model, self.models))
        self._limits = Limits.of(settings)
        self._batch_size = GPU_BATCH if settings.on_gpu else CPU_BATCH
        self._weights = load(folder, shown(model), settings)
        self._voice_activity = load_voice_activity(settings.vad_method, "cuda" if settings.on_gpu else "cpu")

    def transcribe(
        self, audio: Audio, request: Request, report: Report, spans: Sequence[Span] | None = None
    ) -> Transcription:
        """One segment for each piece of speech or of `spans`; warnings say what the guard could not mend.

        Raises OutOfMemoryError.
        """
        mixed = request.language == MIXED
        warmth = request.temperature or 0.0
        manner = Manner(None if mixed else request.language, warmth if warmth >= COLDEST else 0.0)
        batch, warnings = self._batch(request, manner)
        activity = self._voice_activity(audio, lambda part: report(part * SPEECH_SHARE))
        longest, pause = (MIXED_S, MIXED_PAUSE_S) if mixed and spans is None else (LONGEST_S, LONGEST_PAUSE_S)
        found = pieces(audio, activity, request, spans, longest, pause)

        def work(todo: Sequence[Piece], part: Report) -> list[Written]:
            return self._weights.texts([audio.mono(p.span.start, p.span.end) for p in todo], manner, part)

        attempts, told = written(work, Judge(audio, activity, self._limits), batch, found, report)
        standing = [attempt for attempt in attempts if attempt.fault is None]
        spoken = of_texts(request, [attempt.written.text for attempt in standing], LANGUAGES)
        phrases = [(a.piece, [_segment(a, one)]) for a, one in zip(standing, spoken.each, strict=True)]
        segments = gathered(phrases, spans)
        return Transcription(
            segments if mixed else tuple(replace(segment, language=None) for segment in segments),
            spoken.language,
            spoken.probability,
            (*spoken.warnings, *activity.warnings, *warnings, *told),
        )

    def time_words(self, audio: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
        """The segments as they are: these weights have no idea of times."""
        return tuple(segments)

    def close(self) -> None:
        self._weights.close()

    def _batch(self, request: Request, manner: Manner) -> tuple[Batch, list[str]]:
        """How many pieces go into one call, and a warning where VOXTRAL_MAX_TOKENS allows fewer than were asked for."""
        fit = self._weights.budget(manner.language).at_once(LONGEST_S)
        asked = request.batch_size or min(fit, self._batch_size)
        if asked <= fit:
            return Batch(asked), []
        return Batch(fit), [f"VOXTRAL_MAX_TOKENS allows {fit} pieces at a time, not {asked}"]


def _segment(attempt: Attempt[Written], language: str) -> Segment:
    span = attempt.piece.span
    return Segment(span.start, span.end, attempt.written.text, language=language)
