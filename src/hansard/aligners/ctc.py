"""Word times by CTC forced alignment, with WhisperX's table of models.

Each segment's sound goes through the model of its language together with a little of what lies around it: a window is
as long as the next step of a ladder of lengths, and a batch holds windows of one length. So nothing is padded (which
models that normalise over time would hear), no model needs an attention mask, and a word's times do not depend on
what else is in the batch. The path through the model's output is found by torchaudio's Viterbi, in C++.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hansard.aligners.acoustic import FIELD, STRIDE, WILDCARD, Acoustic
from hansard.aligners.alignment import Alignment
from hansard.aligners.spoken import Token, tokens
from hansard.errors import HansardError, OutOfMemoryError
from hansard.models import Models
from hansard.transcript import SAMPLE_RATE, UNSPACED, Audio, Float32, Report, Segment, Word
from hansard.vendors import give_back_memory, gpu_lost, no_room

log = logging.getLogger(__name__)

FRAMES_PER_SECOND = SAMPLE_RATE // STRIDE
LONGEST = 30 * FRAMES_PER_SECOND  # of a segment in one window; a longer segment has several, which overlap
CONTEXT = FRAMES_PER_SECOND // 2  # around them, at least, where the recording has so much
STEP = 2 * FRAMES_PER_SECOND  # windows are as long as a multiple of this
HOLD = FRAMES_PER_SECOND // 5  # for so long may a sound last, at most, after the model has heard it
LAST = 4  # frames that the last sound of a segment lasts, since nothing after it says when it ends
BATCH = 60 * SAMPLE_RATE  # samples
MOST_CELLS = 10**9  # bytes of a Viterbi, frames times states: half of it is ten minutes of dense speech

BLANK = 0  # the columns of a task's output: blank, two of wildcards, then the characters of its text
WILDCARDS = (1, 2)  # used in turn, since between two equal characters CTC wants a blank
CHARACTERS = 3

Ints = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Task:
    """A segment with something to align.

    `columns` are the model's columns of all that is said, `owners` the token that each belongs to (-1: a separator);
    the segment is `frames` long, from the sample `begin`.
    """

    place: int
    segment: Segment
    tokens: Sequence[Token]
    columns: Ints
    owners: Ints
    begin: int
    frames: int

    @property
    def characters(self) -> list[int]:
        """The model's columns that are needed, each once."""
        return sorted(set(self.columns.tolist()) - {WILDCARD})

    @property
    def targets(self) -> Ints:
        """What is said, as columns of the task's output."""
        wild = self.columns == WILDCARD
        return np.where(
            wild, WILDCARDS[0] + np.cumsum(wild) % 2, np.searchsorted(self.characters, self.columns) + CHARACTERS
        )

    def seconds(self, frame: int) -> float:
        """A frame's begin, within the segment."""
        return min(max(self.segment.start, (self.begin + int(frame) * STRIDE) / SAMPLE_RATE), self.segment.end)


@dataclass(frozen=True, slots=True)
class _Window:
    """A stretch of sound, in samples; of its output, `take` frames after the first `skip` are the task's."""

    task: _Task
    begin: int
    length: int
    skip: int
    take: int


class Ctc:
    """The aligner of one language: the model that ALIGN_MODELS names for it, else WhisperX's.

    Raises UnsupportedError for a language without one, ModelError where it cannot be had.
    """

    def __init__(self, language: str, models: Models) -> None:
        self._language = language
        self._acoustic = Acoustic(language, models)

    def align(self, audio: Audio, segments: Sequence[Segment], report: Report) -> Alignment:
        """The segments in their order, each from the start of its first word to the end of its last.

        A word is a token of the text as written; its score is the mean probability of its characters, None where the
        model knows none of them. A token without sound lies between its neighbours. A segment that cannot be aligned
        keeps its times, has no words, and is counted in a warning. Raises OutOfMemoryError when a single window does
        not fit, CancelledError when `report` does.
        """
        tasks = [
            task for place, segment in enumerate(segments) if (task := _or_none(self._task, audio, place, segment))
        ]
        aligned = [replace(segment, words=()) for segment in segments]
        run = _Run(self._acoustic, audio, report)
        for task, output in run.outputs(tasks):
            if words := _or_none(_words, task, output):
                aligned[task.place] = replace(task.segment, start=words[0].start, end=words[-1].end, words=words)
        return Alignment(tuple(aligned), (*run.warnings, *_unaligned(aligned)))

    def close(self) -> None:
        del self._acoustic

    def _task(self, audio: Audio, place: int, segment: Segment) -> _Task | None:
        """What there is to align in a segment; None where there is nothing, or not the sound for it."""
        found = tokens(segment.text, self._language)
        columns, owners = self._said(found)
        begin = round(max(0.0, segment.start) * SAMPLE_RATE)
        frames = (round(min(segment.end, audio.duration) * SAMPLE_RATE) - begin) // STRIDE
        if not 0 < len(columns) <= frames or frames * (2 * len(columns) + 1) > MOST_CELLS:
            return None
        return _Task(place, segment, found, columns, owners, begin, frames)

    def _said(self, found: Sequence[Token]) -> tuple[Ints, Ints]:
        """The columns of all that is said, and the token that each belongs to; a separator between words."""
        vocabulary = self._acoustic.vocabulary
        separator = None if self._language in UNSPACED else vocabulary.separator
        columns: list[int] = []
        owners: list[int] = []
        for owner, token in enumerate(found):
            for word in token.spoken:
                said = vocabulary.columns(word)
                if said and columns and separator is not None:
                    columns.append(separator)
                    owners.append(-1)
                columns += said
                owners += [owner] * len(said)
        return np.array(columns, dtype=np.int64), np.array(owners, dtype=np.int64)


class _Run:
    """One recording's way through a model: windows in batches, longest first; smaller ones when memory runs out."""

    def __init__(self, acoustic: Acoustic, audio: Audio, report: Report) -> None:
        self._acoustic = acoustic
        self._audio = audio
        self._report = report
        self._most = BATCH  # samples
        self.warnings: tuple[str, ...] = ()

    def outputs(self, tasks: Sequence[_Task]) -> Iterator[tuple[_Task, Any]]:
        """Each task with its output: log-probabilities of blank, two wildcards and the characters of its text.

        That is a tensor of shape (frames, columns). Tasks come in the order in which they are done.
        """
        windows = [window for task in tasks for window in _windows(task, self._audio.samples.shape[1])]
        windows.sort(key=lambda window: window.length, reverse=True)
        total = sum(window.length for window in windows)
        missing = Counter(window.task.place for window in windows)
        parts: dict[int, list[tuple[int, Any]]] = defaultdict(list)
        while windows:
            for window, output in self._next_batch(windows):
                place = window.task.place
                parts[place].append((window.begin, output))
                missing[place] -= 1
                if not missing[place]:
                    yield window.task, _joined(parts.pop(place))
            self._report(1 - sum(window.length for window in windows) / total)

    def _next_batch(self, windows: list[_Window]) -> list[tuple[_Window, Any]]:
        """Take the first windows away, as many as fit, with the output of each."""
        length = windows[0].length
        count = max(1, self._most // length)
        batch = [window for window in windows[:count] if window.length == length]
        sound = np.stack([self._sound(window) for window in batch])
        full = False
        try:
            outputs = self._acoustic(sound)
        except OutOfMemoryError:
            if len(batch) == 1:
                raise
            self._most = len(batch) // 2 * length
            seconds = self._most / SAMPLE_RATE
            self.warnings = (f"memory ran out while words were aligned: batches of {seconds:.0f} s were used",)
            full = True
        if full:
            give_back_memory()  # here, where the error no longer holds what the batch had made
            return []
        del windows[: len(batch)]
        best = self._acoustic.best_character(outputs)
        return [(window, self._compact(window, *pair)) for window, *pair in zip(batch, outputs, best, strict=True)]

    def _sound(self, window: _Window) -> Float32:
        return self._audio.mono(window.begin / SAMPLE_RATE, (window.begin + window.length) / SAMPLE_RATE)

    def _compact(self, window: _Window, output: Any, best: Any) -> Any:
        """Of a window's output what its task needs, since a Chinese model has 3,500 columns; in main memory."""
        import torch

        columns = [self._acoustic.vocabulary.blank, *window.task.characters]
        frames = slice(window.skip, window.skip + window.take)
        wild = best[frames, None]
        characters = output[frames, columns]
        return torch.cat([characters[:, :1], wild, wild, characters[:, 1:]], dim=1).cpu()


def _or_none(work: Callable[..., T | None], *given: Any) -> T | None:
    """What a step makes of one segment; None where it fails for a reason that says nothing about the other segments."""
    try:
        return work(*given)
    except Exception as error:
        if isinstance(error, HansardError) or no_room(error) or gpu_lost(error):
            raise
        log.warning("a segment cannot be aligned for an unexpected reason", exc_info=True)
        return None


def _windows(task: _Task, samples: int) -> Iterator[_Window]:
    """The windows of a segment, within a recording of so many samples; none for a recording under one frame."""
    count = -(-task.frames // LONGEST)
    cuts = [round(task.frames * cut / count) for cut in range(count + 1)]
    for first, end in pairwise(cuts):
        begin, take = task.begin + first * STRIDE, end - first
        frames = -(-(take + 2 * CONTEXT) // STEP) * STEP
        length = frames * STRIDE + FIELD - STRIDE
        over = begin + length - samples  # what must lie before the segment, since the recording ends here
        skip = min(max((frames - take) // 2, -(-over // STRIDE)), begin // STRIDE)
        begin -= skip * STRIDE
        length = min(length, samples - begin)
        take = min(take, (length - FIELD) // STRIDE + 1 - skip)
        if take > 0:
            yield _Window(task, begin, length, skip, take)


def _joined(parts: list[tuple[int, Any]]) -> Any:
    import torch

    return torch.cat([output for _, output in sorted(parts, key=lambda part: part[0])])


def _words(task: _Task, output: Any) -> tuple[Word, ...]:
    """The words of a task by the best path through its output; none where no path is possible."""
    path = _path(output, task.targets)
    if path is None:
        return ()
    starts, stops, scores = path
    ends = _ends(task, starts, stops)
    known = np.where(task.columns == WILDCARD, np.nan, scores)
    words: list[Word | None] = [None] * len(task.tokens)
    for owner in np.unique(task.owners[task.owners >= 0]):
        own = np.flatnonzero(task.owners == owner)
        score = known[own][~np.isnan(known[own])]
        words[owner] = Word(
            task.tokens[owner].text,
            task.seconds(starts[own[0]]),
            task.seconds(ends[own[-1]]),
            float(score.mean()) if len(score) else None,
        )
    return _filled(task, words)


def _ends(task: _Task, starts: Ints, stops: Ints) -> Ints:
    """The frame after the last of each sound: it lasts until the next begins, or the separator after it ends.

    WhisperX lets a word end where the separator begins and the last one where its last sound is heard, which is 20 and
    75 ms too early on the clips of tests/models.
    """
    separated = np.append(task.owners[1:] < 0, False)
    following = np.append(np.where(separated[:-1], stops[1:], starts[1:]), stops[-1] + LAST)
    ends: Ints = np.minimum(following, stops + HOLD)
    return ends


def _path(output: Any, targets: Ints) -> tuple[Ints, Ints, npt.NDArray[np.float64]] | None:
    """First frame, frame after the last, and mean probability of each target; None where they do not fit.

    The operator is called without torchaudio's wrapper, which only warns that release 2.9 was to remove it (it did
    not, as of 2.11).
    """
    import torch
    import torchaudio  # noqa: F401 - brings the operator

    repeats = int((targets[1:] == targets[:-1]).sum())
    if len(output) < len(targets) + repeats or not torch.isfinite(output).all():
        return None
    lengths = [torch.tensor([count]) for count in (len(output), len(targets))]
    path, scores = torch.ops.torchaudio.forced_align(output[None], torch.from_numpy(targets)[None], *lengths, BLANK)
    labels, probabilities = path[0].numpy(), scores[0].exp().numpy()
    begins = np.flatnonzero(np.diff(labels, prepend=-1))
    stops = np.append(begins[1:], len(labels))
    means = np.add.reduceat(probabilities, begins) / (stops - begins)
    heard = labels[begins] != BLANK
    return begins[heard], stops[heard], means[heard]


def _filled(task: _Task, words: list[Word | None]) -> tuple[Word, ...]:
    """The words of all tokens: those without sound share the time between their neighbours."""
    filled: list[Word] = []
    for place, token in enumerate(task.tokens):
        word = words[place]
        if word is None:
            following = next((later for later in words[place:] if later), None)
            count = next((more for more, later in enumerate(words[place:]) if later), len(words) - place)
            start = filled[-1].end if filled else task.segment.start
            end = following.start if following else task.segment.end
            word = Word(token.text, start, start + (max(end, start) - start) / count)
        filled.append(word)
    return tuple(filled)


def _unaligned(segments: Sequence[Segment]) -> tuple[str, ...]:
    """The warning that counts the segments with text and no words."""
    failed = [segment for segment in segments if segment.text.strip() and not segment.words]
    if not failed:
        return ()
    return (
        f"{len(failed)} of {len(segments)} segments could not be aligned and have no word times; "
        f"the first begins at {min(segment.start for segment in failed):.1f} s",
    )
