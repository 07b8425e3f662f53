"""Canary: NVIDIA's model of 25 European languages, which also translates between each of them and English.

Speech is found first and cut into pieces of at most 30 s; they are written in batches. A second model in the same
archive says when each word was said, so that a piece becomes sentences with words and times. The language must be
named: Canary does not detect it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from hansard.audio.voice_activity import load_voice_activity
from hansard.batch import Batch
from hansard.errors import UnsupportedError
from hansard.models import Models, shown
from hansard.request import Request
from hansard.transcribers.attempts import SPEECH_SHARE, Attempt, Judge, written
from hansard.transcribers.canary_model import (
    LONGEST_S,
    Pair,
    Written,
    archive_in,
    installed,
    load,
)
from hansard.transcribers.capabilities import Can
from hansard.transcribers.guard import Limits, places
from hansard.transcribers.loading import check_compute_type, repository_of
from hansard.transcribers.pieces import LEAST_SEGMENT_S, Piece, gathered, pieces
from hansard.transcript import Audio, Report, Segment, Span, Transcription, Word

# fmt: off
LANGUAGES = frozenset(
    {
        "bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "hr", "hu", "it",
        "lt", "lv", "mt", "nl", "pl", "pt", "ro", "ru", "sk", "sl", "sv", "uk",
    }
)
# fmt: on
PIVOT = "en"  # one side of every translation
REPOSITORY = "nvidia/canary-1b-v2"

KIND = "nemo"  # as Models.kind names it
FILE = "canary-1b-v2.nemo"  # that a hub repository must have

GPU_BATCH = 16
CPU_BATCH = 4

LONGEST_PAUSE_S = 1.5  # within a piece


class Canary:
    """canary-1b-v2, or a folder under MODELS_DIR with the .nemo archive of a Canary that takes the same prompts."""

    can: ClassVar[Can] = Can(
        languages=LANGUAGES,
        needs_language=True,
        tasks=frozenset({"transcribe", "translate"}),
        options=frozenset({"batch_size", "beam_size", "vad_onset", "vad_offset", "target_language"}),
        always={"temperature": 0},
        word_times=True,
    )
    models: ClassVar[Mapping[str, tuple[str, ...]]] = {"canary-1b-v2": (REPOSITORY,), REPOSITORY: (REPOSITORY,)}

    @classmethod
    def takes(cls, name: str, models: Models) -> bool:
        """A folder of this kind."""
        return models.kind(name) == KIND

    @classmethod
    def check(cls, model: str, request: Request, models: Models) -> None:
        """Raises UnsupportedError for a translation that does not go to or from English, EngineMissingError,
        SettingsError for a wrong COMPUTE_TYPE, ModelError for weights out of reach.
        """
        pair_of(request, shown(model))
        installed()
        check_compute_type(models.settings, "Canary")
        if folder := models.check(repository_of(model, cls.models), holds=FILE):
            archive_in(folder, shown(model))

    def __init__(self, model: str, models: Models) -> None:
        settings = models.settings
        folder = models.get(repository_of(model, self.models))
        self._name = shown(model)
        self._limits = Limits.of(settings)
        self._batch_size = GPU_BATCH if settings.on_gpu else CPU_BATCH
        self._weights = load(folder, self._name, settings)
        self._voice_activity = load_voice_activity(settings.vad_method, "cuda" if settings.on_gpu else "cpu")

    def transcribe(
        self, audio: Audio, request: Request, report: Report, spans: Sequence[Span] | None = None
    ) -> Transcription:
        """Sentences with words in order of time, or one segment for each of `spans`; a translation has no words.

        Warnings say what the guard could not mend, and which words have no times. Raises UnsupportedError for a
        language that this one model does not have, OutOfMemoryError.
        """
        pair = self._pair(request)
        batch = Batch(request.batch_size or self._batch_size)
        activity = self._voice_activity(audio, lambda part: report(part * SPEECH_SHARE))
        found = pieces(audio, activity, request, spans, LONGEST_S, LONGEST_PAUSE_S)

        def work(todo: Sequence[Piece], _: Report) -> list[Written]:
            sounds = [audio.mono(piece.span.start, piece.span.end) for piece in todo]
            return self._weights.write(sounds, pair, request.beam_size)

        attempts, warnings = written(work, Judge(audio, activity, self._limits), batch, found, report)
        if not pair.translates and (request.align_output or request.wants_speakers):
            warnings += self._untimed(attempts)
        standing = [attempt for attempt in attempts if attempt.fault is None]
        return Transcription(
            gathered([(attempt.piece, segments(attempt.piece.span, attempt.written)) for attempt in standing], spans),
            pair.source,
            warnings=(*activity.warnings, *warnings),
        )

    def time_words(self, audio: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
        """The segments as they are: `transcribe` has timed their words already."""
        return tuple(segments)

    def close(self) -> None:
        self._weights.close()

    def _pair(self, request: Request) -> Pair:
        """The languages of a request, refused where this one model does not have them although other Canaries do."""
        pair = pair_of(request, self._name)
        for language in (pair.source, pair.target):
            if not self._weights.knows(language):
                raise UnsupportedError(f"model {self._name} does not know language {language}; take canary-1b-v2")
        return pair

    def _untimed(self, attempts: Sequence[Attempt[Written]]) -> list[str]:
        """The warning for words without times, which are not made up."""
        if not self._weights.times:
            return [f"model {self._name} has no model of word times in its archive: its words have no times"]
        spans = [attempt.piece.span for attempt in attempts if attempt.fault is None and not attempt.written.sentences]
        return [f"words could not be timed: {places(spans)}"] if spans else []


def pair_of(request: Request, name: str) -> Pair:
    """The language spoken and the one to write; the same for a transcript. Raises UnsupportedError."""
    if request.language is None:
        raise UnsupportedError(f"model {name} cannot detect the language; name it in language")
    target = (request.target_language or PIVOT) if request.task == "translate" else request.language
    if target not in LANGUAGES:
        known = ", ".join(sorted(LANGUAGES))
        raise UnsupportedError(f"model {name} does not write target_language {target}; it writes: {known}")
    if target != request.language and PIVOT not in (target, request.language):
        raise UnsupportedError(
            f"model {name} translates to and from English only, not from {request.language} to {target}"
        )
    return Pair(request.language, target)


def segments(span: Span, written: Written) -> list[Segment]:
    """The sentences of a piece as segments of the recording, in order of time and within the piece.

    A text without times is one segment, as long as its piece.
    """
    if not written.sentences:
        return [Segment(span.start, span.end, written.text)] if written.text else []
    found, before = [], span.start
    for sentence in written.sentences:
        words = []
        for word in sentence.words:
            before = min(max(before, span.start + word.start), span.end)
            words.append(Word(word.text, before, min(max(before, span.start + word.end), span.end)))
        start = words[0].start if words else max(before, span.start + sentence.start)
        start = min(start, span.end - LEAST_SEGMENT_S)
        end = max([span.start + sentence.end, start + LEAST_SEGMENT_S, *(word.end for word in words)])
        found.append(Segment(start, min(end, span.end), sentence.text, tuple(words)))
        before = max(before, start)
    return found
