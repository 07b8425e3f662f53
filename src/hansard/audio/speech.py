"""Where somebody speaks, and where a recording may be cut.

`find_speech` gives sphinx its stretches. The rest works on an `Activity`, the probability of speech over time that
audio/voice_activity.py measures: stretches by hysteresis, neighbours joined, long speech cut where it is quietest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hansard.transcript import SAMPLE_RATE, Audio, Float32, Report, Span

BLOCK_S = 300.0
LONGEST_SPAN_S = 20.0
SHORTEST_PAUSE_MS = 300  # below this, words of one sentence are torn apart; 200 and 500 gave more word errors
PADDING_MS = 200

SPOKEN = 0.5  # probability above which somebody is taken to speak in a frame
CERTAINTY = 0.05  # probabilities of speech nearer than this say the same; the sound's energy decides then
SMOOTH_S = 0.1  # a cut needs a quiet stretch of about this length, not one quiet frame


@dataclass(frozen=True, slots=True)
class Activity:
    """The probability of speech over time, shape (frames,): frame i is the `step` seconds from `start + i * step`."""

    probability: Float32
    step: float
    start: float = 0.0
    warnings: tuple[str, ...] = ()

    def between(self, start: float, end: float) -> Float32:
        """The probabilities from one time to another, in seconds."""
        return self.probability[self.frame(start) : max(self.frame(end), self.frame(start) + 1)]

    def hears(self, span: Span, level: float) -> bool:
        """Is speech likelier than `level` at any moment of a span?"""
        return bool(self.between(span.start, span.end).max(initial=0.0) > level)

    def spoken(self, span: Span) -> float:
        """For how many seconds of a span somebody speaks."""
        return float(np.count_nonzero(self.between(span.start, span.end) > SPOKEN) * self.step)

    def frame(self, time: float) -> int:
        """The frame that a time lies in, at least 0; it may lie behind the last one."""
        return max(0, int((time - self.start) / self.step))


def find_speech(audio: Audio, onset: float, offset: float, report: Report) -> list[Span]:
    """Stretches of speech of at most 20 s, in order, without overlap: Silero's, as faster-whisper finds them.

    Speech begins where its probability rises above `onset` and ends where it falls below `offset`. The recording is
    read in blocks, so memory does not grow with its length; a block ends in a pause, so no word is cut by its edge.
    Speed: about 9 s for an hour of sound (measured on two cores).
    """
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(
        threshold=onset,
        neg_threshold=min(offset, onset),
        min_silence_duration_ms=SHORTEST_PAUSE_MS,
        speech_pad_ms=PADDING_MS,
        max_speech_duration_s=LONGEST_SPAN_S,
    )
    spans: list[Span] = []
    at = 0.0
    while at < audio.duration:
        report(at / audio.duration)
        end = min(at + BLOCK_S, audio.duration)
        found = [
            Span(at + stamp["start"] / SAMPLE_RATE, min(at + stamp["end"] / SAMPLE_RATE, end))
            for stamp in get_speech_timestamps(audio.mono(at, end), options)
        ]
        if end < audio.duration and found and found[-1].start > at:
            end = found.pop().start  # the last stretch may go on in the next block: read it there, whole
        spans += found
        at = end
    report(1.0)
    return spans


def speaks(probability: Float32, onset: float, offset: float) -> npt.NDArray[np.bool_]:
    """Whether somebody speaks in each frame, by hysteresis: begun above `onset`, ended below `offset`.

    Shape (frames,), in and out. Before the first frame nobody speaks.
    """
    decided = (probability > onset) | (probability < offset)
    last = np.maximum.accumulate(np.where(decided, np.arange(len(probability)), -1))
    begun: npt.NDArray[np.bool_] = (last >= 0) & (probability[last] > onset)
    return begun


def stretches(activity: Activity, onset: float, offset: float, duration: float) -> list[Span]:
    """The stretches of speech in a recording of `duration` seconds, in order, without overlap."""
    edges = np.diff(speaks(activity.probability, onset, min(offset, onset)).astype(np.int8), prepend=0, append=0)
    times = activity.start + activity.step * np.stack([np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)], axis=1)
    return [Span(a, b) for a, b in np.clip(times, 0.0, duration).tolist() if b > a]


def padded(spans: Sequence[Span], padding: float, duration: float) -> list[Span]:
    """The spans, in order, `padding` seconds longer at both ends, or up to the middle of a shorter pause."""
    middles = [(a.end + b.start) / 2 for a, b in pairwise(spans)]
    lowest, highest = [0.0, *middles], [*middles, duration]
    return [
        Span(max(span.start - padding, low), min(span.end + padding, high))
        for span, low, high in zip(spans, lowest, highest, strict=False)
    ]


def joined(spans: Iterable[Span], longest: float, gap: float) -> list[Span]:
    """Neighbours less than `gap` seconds apart joined, as long as no more than `longest` seconds come of it."""
    found: list[Span] = []
    for span in spans:
        if found and span.start - found[-1].end < gap and span.end - found[-1].start <= longest:
            found[-1] = Span(found[-1].start, span.end)
        else:
            found.append(span)
    return found


def cut(audio: Audio, activity: Activity, span: Span, longest: float) -> list[Span]:
    """A span in pieces of at most `longest` seconds, cut where speech is least likely, then where it is quietest.

    The first half of a piece is not searched: pieces are long enough to make sense of.
    """
    pieces = []
    while span.end - span.start > longest:
        # a rest of less than half a piece is avoided: it would be a few words without their sentence
        latest = min(span.start + longest, max(span.end - longest / 2, span.start + longest / 2 + activity.step))
        at = _quietest(audio, activity, Span(span.start + longest / 2, latest))
        pieces.append(Span(span.start, at))
        span = Span(at, span.end)
    return [*pieces, span]


def _quietest(audio: Audio, activity: Activity, span: Span) -> float:
    """The best time to cut within a span."""
    frames = max(1, int((span.end - span.start) / activity.step))
    sound = audio.mono(span.start, span.end)
    edges = np.linspace(0, len(sound), frames, endpoint=False).astype(int)
    energy = np.add.reduceat(np.append(np.square(sound), 0), edges)
    first = activity.frame(span.start)
    speech = activity.probability[np.clip(np.arange(first, first + frames), 0, len(activity.probability) - 1)]
    width = max(1, round(SMOOTH_S / activity.step))
    best = np.lexsort((_smoothed(energy, width), np.round(_smoothed(speech, width) / CERTAINTY)))[0]
    return span.start + (int(best) + 0.5) * activity.step


def _smoothed(values: Float32, width: int) -> Float32:
    """The mean over `width` neighbours, shape kept; the ends count as if they went on."""
    spread = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(spread, np.full(width, 1 / width, np.float32), mode="valid")
