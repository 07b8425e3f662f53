"""A transcript as its users want it: the JSON answer, and captions, text, tables and speaker turns.

Pure. Text inside any line-based format is on one line and free of control characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from hansard.speakers.assign import pieces
from hansard.transcript import Segment, Transcript, Word

LINE = 42  # characters on a line of a caption, counted as Unicode code points
LINES = 2  # lines of a caption
CUE = 7_000  # milliseconds a caption stays

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # unpaired surrogates too: UTF-8 has no bytes for them
_PAUSE = tuple(".,;:?!…。、，．；：？！।॥؟،؛۔")
_CLOSING = "\"'”’»)]）」』】》"
# Han, kana and their punctuation are written without spaces between sentences; Korean and Thai use them there.
_SPACELESS = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff]")


class Cue(NamedTuple):
    """One caption: times in milliseconds, its lines, and who speaks (cleaned, empty where not known)."""

    start: int
    end: int
    rows: list[str]
    speaker: str


def to_result(transcript: Transcript, *, words: bool = False, task: str = "transcribe") -> dict[str, object]:
    """The JSON answer to a task: plain JSON types only, seconds to 3 decimals, scores to 4, text without outer spaces.

    What is not known is left out: a NaN score, a speaker that is None, `words` unless asked for. A time that is no
    number becomes the nearest one that is known: the segment's for a word, 0 or the recording's length for a segment.
    """
    duration = _seconds(transcript.duration, 0.0)
    speakers = _labels(transcript)
    segments = [_segment(segment, duration, words=words) for segment in transcript.segments]
    if task == "diarization":
        segments = [{key: value for key, value in segment.items() if key != "text"} for segment in segments]
    result = {
        "transcriptions" if task == "transcription" else "segments": segments,
        "detected_language": transcript.language or None,
        "language_probability": _score(transcript.language_probability),
        "duration": duration,
        "speakers": speakers or None,
        "model": transcript.model,
        "timings": {str(stage): _seconds(spent, 0.0) for stage, spent in transcript.timings.items()},
        "warnings": [str(warning) for warning in transcript.warnings],
    }
    return {key: value for key, value in result.items() if value is not None}


def lines(segments: Iterable[Mapping[str, Any]]) -> list[str]:
    """The segments of a JSON answer as lines to read: `[mm:ss] SPEAKER_00: text`, from an hour on `[h:mm:ss]`."""
    return [
        f"[{_clock(segment['start'])}] "
        + _spoken(_one_line(segment["text"]), segment.get("speaker_id") or segment.get("speaker"))
        for segment in segments
    ]


def _segment(segment: Segment, duration: float, *, words: bool) -> dict[str, object]:
    start, end = _seconds(segment.start, 0.0), _seconds(segment.end, duration)
    result: dict[str, object] = {"start": start, "end": end, "text": str(segment.text).strip()}
    if segment.speaker is not None:
        result["speaker"] = str(segment.speaker)
    if segment.speaker_id is not None:
        result["speaker_id"] = str(segment.speaker_id)
        result["similarity"] = _score(segment.similarity)
    if segment.language is not None:
        result["language"] = str(segment.language)
    if words:
        result["words"] = [_word(word, start, end) for word in segment.words]
    return result


def _word(word: Word, start: float, end: float) -> dict[str, object]:
    result: dict[str, object] = {
        "word": str(word.text).strip(),
        "start": _seconds(word.start, start),
        "end": _seconds(word.end, end),
    }
    score = _score(word.score)
    if score is not None:
        result["score"] = score
    if word.speaker is not None:
        result["speaker"] = str(word.speaker)
    return result


def _seconds(value: float, otherwise: float) -> float:
    """A time as JSON can hold it: a Python float, 3 decimals, never NaN, infinite or -0."""
    return round(float(value), 3) + 0.0 if math.isfinite(value) else otherwise


def _score(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4) + 0.0


def _labels(transcript: Transcript) -> list[str]:
    """The speakers' labels in the order in which they first speak."""
    return list(dict.fromkeys(str(s.speaker) for s in transcript.segments if s.speaker is not None))


def _name(segment: Segment) -> str | None:
    """Who speaks, as people want to read it."""
    return segment.speaker_id or segment.speaker


def _srt(transcript: Transcript) -> str:
    blocks = []
    for number, cue in enumerate(_cues(transcript, labelled=True), 1):
        # SubRip has no escapes: an arrow in the text would read as a line of times.
        text = "\n".join(cue.rows).replace("-->", "→")
        blocks.append(f"{number}\n{_stamp(cue.start, ',')} --> {_stamp(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    blocks = ["WEBVTT\n"]
    for cue in _cues(transcript, labelled=False):
        voice = f"<v {_escaped(cue.speaker)}>" if cue.speaker else ""
        text = voice + _escaped("\n".join(cue.rows))
        blocks.append(f"{_stamp(cue.start, '.')} --> {_stamp(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def _txt(transcript: Transcript) -> str:
    """One paragraph for each run of one speaker, a blank line between paragraphs."""
    said = [(_name(segment), text) for segment in transcript.segments if (text := _one_line(segment.text))]
    runs = groupby(said, key=itemgetter(0))
    return "\n".join(f"{_spoken(_joined([text for _, text in run]), speaker)}\n" for speaker, run in runs)


def _tsv(transcript: Transcript) -> str:
    """Whisper's table, times in whole milliseconds; with a column for the speaker where there are speakers."""
    labelled = bool(_labels(transcript))
    rows = ["start\tend\tspeaker\ttext\n" if labelled else "start\tend\ttext\n"]
    for segment in transcript.segments:
        speaker = [_one_line(_name(segment) or "")] if labelled else []
        times = [str(_milliseconds(segment.start)), str(_milliseconds(segment.end))]
        rows.append("\t".join([*times, *speaker, _one_line(segment.text)]) + "\n")
    return "".join(rows)


def _rttm(transcript: Transcript) -> str:
    """The speakers' turns for scoring tools; a turn of less than a millisecond is left out, they refuse it."""
    names = {segment.speaker: segment.speaker_id for segment in transcript.segments if segment.speaker_id}
    rows = []
    for turn in transcript.turns:
        start, end = _milliseconds(turn.start), _milliseconds(turn.end)
        speaker = "_".join(_one_line(names.get(turn.speaker, turn.speaker)).split()) or "<NA>"
        if end > start:
            times = f"{start / 1000:.3f} {(end - start) / 1000:.3f}"
            rows.append(f"SPEAKER recording 1 {times} <NA> <NA> {speaker} <NA> <NA>\n")
    return "".join(rows)


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "srt": _srt,
    "vtt": _vtt,
    "txt": _txt,
    "tsv": _tsv,
    "rttm": _rttm,
}
"""Every format of `request.OutputFormat`: its writer, from a transcript to the file's text."""

MEDIA = {
    "srt": "application/x-subrip; charset=utf-8",  # which, unlike text, has no charset that everybody takes for granted
    "vtt": "text/vtt; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
    "rttm": "text/plain; charset=utf-8",
}
"""The media type of each, as UTF-8."""


def _cues(transcript: Transcript, *, labelled: bool) -> list[Cue]:
    """The transcript as captions in order of their start; `labelled` ones begin with their speaker's name."""
    cues = [cue for segment in transcript.segments for cue in _captions(segment, labelled=labelled)]
    return sorted(cues, key=lambda cue: cue.start)


def _captions(segment: Segment, *, labelled: bool) -> Iterator[Cue]:
    """One caption, or several cut between words where one would stay too long or hold too much.

    Not covered: without words there is nothing to tell when to change, so one caption holds all the text, however
    long; and of a text without spaces one line, since only spaces and words show where a line may break.
    """
    text, speaker = _one_line(segment.text), _one_line(_name(segment) or "")
    label = f"{speaker}:" if labelled and speaker else ""
    rows = _wrapped([text], label)
    long = len(rows) > LINES or segment.end - segment.start > CUE / 1000
    if segment.words and long:
        yield from _split(segment, speaker, label)
    elif text:
        yield _cue(segment.start, segment.end, rows, speaker)


def _split(segment: Segment, speaker: str, label: str) -> Iterator[Cue]:
    # Words of no text would make captions of no text, or make one caption grow without end.
    texts = pieces(segment.text, segment.words)
    words = [(word, text) for word, text in zip(segment.words, map(_spaced, texts), strict=True) if text.strip()]
    start = 0
    while start < len(words):
        stop = start + 1
        while stop < len(words) and _fits(words[start : stop + 1], label):
            stop += 1
        if stop < len(words):
            stop = _after_punctuation(words, start, stop)
        rows = _wrapped([text for _, text in words[start:stop]], label)
        yield _cue(words[start][0].start, words[stop - 1][0].end, rows, speaker)
        start = stop


def _fits(words: Sequence[tuple[Word, str]], label: str) -> bool:
    short = words[-1][0].end - words[0][0].start <= CUE / 1000
    return short and len(_wrapped([text for _, text in words], label)) <= LINES


def _after_punctuation(words: Sequence[tuple[Word, str]], start: int, stop: int) -> int:
    """Where to end a full caption: after the last punctuation past its first third, else where it is full."""
    for end in range(stop, start + (stop - start) // 3, -1):
        if words[end - 1][1].rstrip(_CLOSING).endswith(_PAUSE):
            return end
    return stop


def _wrapped(texts: Iterable[str], label: str) -> list[str]:
    """Texts as lines, broken between texts and at their spaces; what is longer than a line by itself stays whole."""
    rows = [label]
    for token in (token for text in texts for token in re.findall(r" ?[^ ]+", text)):
        if rows == [label]:
            token = f" {token.strip()}" if label else token.strip()  # noqa: PLW2901
        if rows[-1] and len(rows[-1]) + len(token) > LINE:
            rows.append(token.strip())
        else:
            rows[-1] += token
    return rows


def _cue(start: float, end: float, rows: list[str], speaker: str) -> Cue:
    begin = _milliseconds(start)
    return Cue(begin, max(_milliseconds(end), begin + 1), rows, speaker)


def _milliseconds(seconds: float) -> int:
    """Whole milliseconds from the start of the recording; 0 for what is negative or no number."""
    return max(0, round(float(seconds) * 1000)) if math.isfinite(seconds) else 0


def _stamp(milliseconds: int, point: str) -> str:
    """`HH:MM:SS` and milliseconds after `point`; hours take as many digits as they need."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


def _spoken(text: str, speaker: str | None) -> str:
    name = _one_line(speaker or "")
    return f"{name}: {text}" if name else text


def _joined(texts: Sequence[str]) -> str:
    """Texts as one, with a space between two where their script uses spaces; none of them is empty."""
    parts = list(texts[:1])
    for before, after in pairwise(texts):
        tight = _SPACELESS.match(before[-1]) and _SPACELESS.match(after[0])
        parts += [after] if tight else [" ", after]
    return "".join(parts)


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split())


def _spaced(piece: str) -> str:
    """A piece of text on one line that still tells whether a space stood before it."""
    return " " * piece[:1].isspace() + _one_line(piece)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
