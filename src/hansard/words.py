"""When each word was said: an aligner for each language heard, the model's own times where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hansard.aligners import Aligner
from hansard.errors import EngineMissingError, ModelError, OutOfMemoryError, UnsupportedError
from hansard.transcript import Audio, Report, Segment, Transcription

Own = Callable[[Audio, Sequence[Segment], Report], tuple[Segment, ...]]
"""A transcriber's own word times, `Transcriber.time_words`."""


def time_words(
    audio: Audio, text: Transcription, aligner_for: Callable[[str], Aligner], own: Own, report: Report
) -> Transcription:
    """The same text with words and their times; segments keep their order.

    `aligner_for` gives the aligner of a language. Where there is none (UnsupportedError, EngineMissingError,
    ModelError) or it needs too much memory, the words of that language get the transcriber's `own` times, and a
    warning says so; a transcriber without such times leaves them without words.
    """
    segments = list(text.segments)
    warnings = list(text.warnings)
    languages: dict[str, list[int]] = {}
    for index, segment in enumerate(segments):
        if segment.text.strip() and not segment.words:
            languages.setdefault(segment.language or text.language, []).append(index)
    total = sum(map(len, languages.values()))
    done = 0
    for language, indices in languages.items():
        first, share = done / total, len(indices) / total

        def part(fraction: float, first: float = first, share: float = share) -> None:
            report(first + share * fraction)

        chosen = [segments[index] for index in indices]
        try:
            alignment = aligner_for(language).align(audio, chosen, part)
        except (UnsupportedError, EngineMissingError, ModelError, OutOfMemoryError) as error:
            told = own(audio, [replace(segment, language=language) for segment in chosen], part)
            timed = tuple(replace(new, language=old.language) for new, old in zip(told, chosen, strict=True))
            less = "are the model's own, less exact" if any(new.words for new in timed) else "are missing"
            warnings.append(f"word times of language {language} {less}: {error.sentence}")
        else:
            timed = alignment.segments
            warnings += alignment.warnings
        for index, segment in zip(indices, timed, strict=True):
            segments[index] = segment
        done += len(indices)
    return replace(text, segments=tuple(segments), warnings=tuple(warnings))
