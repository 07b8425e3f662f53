"""PocketSphinx: English words with times on any machine, its model riding in the package.

It is the floor that keeps the product whole without a GPU and without a model hub, not a rival of Whisper: word
error is 20-30 % on clear read speech (tests/bench). It writes lower-case words without punctuation.

PocketSphinx holds Python's global lock while it decodes, so chunks are decoded in processes of their own: the
diarizer beside it keeps running and every core is used. Each chunk is decoded whole, because cepstral mean
normalisation over the whole chunk makes a third fewer errors than over a stream (0.25 against 0.35 measured).
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ClassVar

import numpy as np

from hansard.audio.speech import LONGEST_SPAN_S, cut, find_speech
from hansard.audio.voice_activity import Silero
from hansard.errors import CrashedError, EngineMissingError
from hansard.models import Models
from hansard.orphan import leave_with
from hansard.request import Request
from hansard.transcribers.capabilities import Can
from hansard.transcript import SAMPLE_RATE, Audio, Report, Segment, Span, Transcription, Word

log = logging.getLogger(__name__)

FRAMES_PER_SECOND = 100
MAX_PROCESSES = 8  # each holds a model of about 100 MB
SHORTEST_S = 0.1  # of sound that anything is decoded in: the shortest words last about so long
FIND_SPEECH_SHARE = 0.05  # of the stage's time: 0.9 of 20 s for six minutes of sound on two cores


class Sphinx:
    """PocketSphinx with its own US English model."""

    can: ClassVar[Can] = Can(
        languages=frozenset({"en"}),
        options=frozenset({"batch_size", "vad_onset", "vad_offset"}),
        always={"temperature": 0},
        word_times=True,
    )
    models: ClassVar[Mapping[str, tuple[str, ...]]] = {"sphinx": ()}

    @classmethod
    def takes(cls, name: str, models: Models) -> bool:
        """None: its one model has a name."""
        return False

    @classmethod
    def check(cls, model: str, request: Request, models: Models) -> None:
        """Raises EngineMissingError where PocketSphinx is not installed."""
        if importlib.util.find_spec("pocketsphinx") is None:
            raise EngineMissingError("model sphinx needs pocketsphinx: install builder/requirements-embedded.txt")

    def __init__(self, model: str, models: Models) -> None:
        self._processes = min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")  # never fork: torch's threads run in this process
        pool = ProcessPoolExecutor(self._processes, mp_context=spawn, initializer=_load, initargs=(os.getpid(),))
        pool.submit(os.getpid).result()  # existing means ready
        return pool

    def transcribe(
        self, audio: Audio, request: Request, report: Report, spans: Sequence[Span] | None = None
    ) -> Transcription:
        """English words of one channel; the language is not detected, since only one is known.

        A given span of more than 20 s is decoded in parts and comes back as one segment; one in which Silero hears no
        speech at all is not decoded, for the decoder hears words in silence.
        """
        parts = _parts(audio, request, lambda part: report(part * FIND_SPEECH_SHARE), spans)
        pieces = [piece for part in parts for piece in part]
        decoded: list[Segment] = []
        try:
            at_once = min(request.batch_size or self._processes, self._processes)
            for done, segment in enumerate(self._decode_all(audio, pieces, at_once), start=1):
                decoded.append(segment)
                report(FIND_SPEECH_SHARE + (1 - FIND_SPEECH_SHARE) * done / len(pieces))
        except BrokenProcessPool:
            self._pool = self._start()
            raise CrashedError("a process of the speech recogniser died; send the job again") from None
        if spans is None:
            segments = [segment for segment in decoded if segment.words]
        else:
            rest = iter(decoded)
            segments = [_joined(span, [next(rest) for _ in part]) for span, part in zip(spans, parts, strict=True)]
        warnings = () if request.language else ("the language was not detected: model sphinx knows English only",)
        return Transcription(segments=tuple(segments), language="en", warnings=warnings)

    def time_words(self, audio: Audio, segments: Sequence[Segment], report: Report) -> tuple[Segment, ...]:
        """The segments as they are: `transcribe` has timed their words already."""
        return tuple(segments)

    def _decode_all(self, audio: Audio, spans: list[Span], at_once: int) -> Iterator[Segment]:
        """Each span's segment, in order; `at_once` spans of sound are with the processes at a time."""
        waiting: deque[tuple[Span, Future[list[tuple[str, int, int, float]]]]] = deque()
        try:
            for span in spans:
                samples = audio.samples[0, round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)]
                waiting.append((span, self._pool.submit(_decode, np.ascontiguousarray(samples).tobytes())))
                if len(waiting) >= at_once:
                    yield _segment(*_next(waiting))
            while waiting:
                yield _segment(*_next(waiting))
        finally:
            for _, future in waiting:
                future.cancel()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


Found = list[tuple[str, int, int, float]]  # word, first and last frame, score


def _next(waiting: deque[tuple[Span, Future[Found]]]) -> tuple[Span, Found]:
    span, future = waiting.popleft()
    return span, future.result()


def _segment(span: Span, found: Found) -> Segment:
    words = tuple(
        Word(
            text=text,
            start=min(span.start + first / FRAMES_PER_SECOND, span.end),
            end=min(span.start + (last + 1) / FRAMES_PER_SECOND, span.end),
            score=min(max(score, 0.0), 1.0),
        )
        for text, first, last, score in found
    )
    if not words:
        return Segment(span.start, span.end, "")
    return Segment(words[0].start, words[-1].end, " ".join(word.text for word in words), words)


def _parts(audio: Audio, request: Request, report: Report, spans: Sequence[Span] | None) -> list[list[Span]]:
    """What to decode: stretches of speech, or each given span, cut where it is too long; of a silent one nothing."""
    if spans is None:
        return [[span] for span in find_speech(audio, request.vad_onset, request.vad_offset, report)]
    inside = [Span(max(0.0, span.start), min(span.end, audio.duration)) for span in spans]
    activity = Silero()(audio, report)
    return [
        cut(audio, activity, span, LONGEST_SPAN_S)
        if span.end > span.start and activity.hears(span, request.vad_offset)
        else []
        for span in inside
    ]


def _joined(span: Span, pieces: Sequence[Segment]) -> Segment:
    """One segment of a given span: what was heard in all its pieces."""
    words = tuple(word for piece in pieces for word in piece.words)
    return Segment(span.start, span.end, " ".join(word.text for word in words), words)


_decoder: Any = None  # one per decoding process


def _load(parent: int) -> None:
    """Prepare a decoding process: load the model, and leave when the process that asked for it is gone."""
    leave_with(parent)
    _renew()


def _renew() -> None:
    global _decoder  # noqa: PLW0603 - the process exists for this one object
    from pocketsphinx import Decoder

    _decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")


def _decode(pcm: bytes) -> Found:
    """Words of one chunk of int16 sound; fillers such as <sil> and [NOISE] are left out."""
    if len(pcm) < SHORTEST_S * SAMPLE_RATE * 2:
        return []
    try:
        return _recognised(pcm)
    except Exception:
        _renew()  # this one may be in the midst of an utterance for ever, and later jobs want one that works
        raise


def _recognised(pcm: bytes) -> Found:
    _decoder.reinit_feat()  # or what an earlier job sounded like would change this one's words
    _decoder.start_utt()
    try:
        _decoder.process_raw(pcm, full_utt=True)
    finally:
        _decoder.end_utt()
    return [
        (re.sub(r"\(\d+\)$", "", part.word), part.start_frame, part.end_frame, part.prob)
        for part in _decoder.seg() or ()  # None where not even a first frame was heard
        if part.word[0] not in "<[+"
    ]
