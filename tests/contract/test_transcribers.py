"""One suite that judges every transcriber in the table; a backend whose engine is absent skips, saying why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jiwer
import numpy as np
import pytest

from hansard.audio.decode import decode
from hansard.errors import CancelledError, EngineMissingError
from hansard.models import Models
from hansard.request import Request, parse
from hansard.transcribers import TRANSCRIBERS, Transcriber
from hansard.transcribers.capabilities import OPTIONS
from hansard.transcript import Audio, Span
from subjects import SUBJECTS

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=list(TRANSCRIBERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def transcriber(name: str, asked: Request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    backend, subject = TRANSCRIBERS[name], SUBJECTS[name]
    with subject.world(tmp_path_factory.mktemp("world")) as settings:
        models = Models(settings)
        try:
            backend.check(subject.model, asked, models)
            made = backend(subject.model, models)
        except EngineMissingError as error:
            pytest.skip(str(error))
        yield made
        made.close()


@pytest.fixture
def understood(name: str) -> None:
    """For tests of the words themselves."""
    if not SUBJECTS[name].understands:
        pytest.skip("random weights understand nothing")


@pytest.fixture(scope="module")
def speech(name: str, tmp_path_factory: pytest.TempPathFactory) -> Audio:
    return decode(SUBJECTS[name].recording, tmp_path_factory.mktemp("speech"), ignore)


@pytest.fixture(scope="module")
def truth(name: str) -> list[dict[str, Any]]:
    """Its turns: speaker, start, end, text."""
    return list(json.loads(SUBJECTS[name].truth.read_text())["turns"])


@pytest.fixture(scope="module")
def asked() -> Request:
    return parse({"audio": "data:,", "language": "en"})


def plain(text: str) -> list[str]:
    """Words in lower case without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def ignore(_: float) -> None:
    """A report that nobody listens to."""


def test_capabilities_are_known_words(transcriber: Transcriber) -> None:
    assert transcriber.can.options <= OPTIONS
    assert transcriber.can.tasks <= {"transcribe", "translate"}
    assert "transcribe" in transcriber.can.tasks


@pytest.mark.usefixtures("understood")
def test_says_what_was_said(transcriber: Transcriber, speech: Audio, asked: Request, truth: list) -> None:
    heard = transcriber.transcribe(speech, asked, ignore)
    said = " ".join(word for turn in truth for word in plain(turn["text"]))
    assert jiwer.wer(said, " ".join(word for segment in heard.segments for word in plain(segment.text))) <= 0.1
    assert heard.language == "en"


def test_times_are_in_order_and_inside_the_recording(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    segments = transcriber.transcribe(speech, asked, ignore).segments
    assert segments
    for before, after in pairwise(segments):
        assert before.start <= after.start
    for segment in segments:
        assert 0 <= segment.start < segment.end <= speech.duration
        for word in segment.words:
            assert segment.start - 1e-6 <= word.start <= word.end <= segment.end + 1e-6
            assert word.score is None or 0 <= word.score <= 1


@pytest.mark.usefixtures("understood")
def test_words_are_where_they_were_said(transcriber: Transcriber, speech: Audio, asked: Request, truth: list) -> None:
    """Four first words of five, and four last words of five, within a third of a second."""
    if not transcriber.can.word_times:
        pytest.skip("this backend gives no word times")
    segments = transcriber.time_words(speech, transcriber.transcribe(speech, asked, ignore).segments, ignore)
    words = [(plain(word.text), word) for segment in segments for word in segment.words]
    begun = ended = 0
    for turn in truth:
        first, *_, last = plain(turn["text"])
        begun += any(text == [first] and abs(word.start - turn["start"]) < 0.3 for text, word in words)
        ended += any(text == [last] and abs(word.end - turn["end"]) < 0.35 for text, word in words)
    assert min(begun, ended) >= 0.8 * len(truth)


def test_segments_are_made_of_their_words(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    if not transcriber.can.word_times:
        pytest.skip("this backend gives no word times")
    segments = transcriber.transcribe(speech, asked, ignore).segments
    timed = transcriber.time_words(speech, segments, ignore)
    assert [segment.text for segment in timed] == [segment.text for segment in segments]
    for segment in timed:
        assert segment.text.split() == [word.text for word in segment.words]
        assert all(segment.start - 1e-6 <= w.start <= w.end <= segment.end + 1e-6 for w in segment.words)
        assert all(one.start <= other.start for one, other in pairwise(segment.words))


def test_silence_gives_no_words(transcriber: Transcriber, no_speech: Audio, asked: Request) -> None:
    assert transcriber.transcribe(no_speech, asked, ignore).segments == ()


def test_reports_progress_that_ends_at_one(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    seen: list[float] = []
    transcriber.transcribe(speech, asked, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    assert len(seen) >= 3


def test_an_earlier_recording_changes_nothing(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    """Whatever a warm worker heard before, the same recording gives the same words, times and scores."""
    first = transcriber.transcribe(speech, asked, ignore)
    louder = Audio((speech.samples[:, ::-1] // 3).astype(np.int16))
    transcriber.transcribe(louder, asked, ignore)
    assert transcriber.transcribe(speech, asked, ignore) == first


def test_stops_when_told_and_works_again(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        transcriber.transcribe(speech, asked, stop)
    assert transcriber.transcribe(speech, asked, ignore).segments


def test_a_channel_of_a_stereo_recording_is_heard_alone(
    transcriber: Transcriber, speech: Audio, asked: Request
) -> None:
    stereo = Audio(np.vstack([np.zeros_like(speech.samples), speech.samples]))
    assert transcriber.transcribe(stereo.channel(0), asked, ignore).segments == ()
    assert transcriber.transcribe(stereo.channel(1), asked, ignore).segments


# Given stretches


@pytest.mark.usefixtures("understood")
def test_each_given_stretch_has_its_text_in_the_order_given(
    transcriber: Transcriber, speech: Audio, asked: Request, truth: list
) -> None:
    order = list(range(len(truth)))[::-1]
    spans = [Span(max(0, truth[at]["start"] - 0.1), truth[at]["end"] + 0.1) for at in order]
    segments = transcriber.transcribe(speech, asked, ignore, spans).segments
    assert len(segments) == len(spans)
    right = sum(
        jiwer.wer(" ".join(plain(truth[at]["text"])), " ".join(plain(segment.text))) <= 0.35
        for at, segment in zip(order, segments, strict=True)
    )
    assert right >= 0.75 * len(truth)
    for span, segment in zip(spans, segments, strict=True):
        assert span.start - 1e-6 <= segment.start <= segment.end <= span.end + 1e-6


def test_a_stretch_of_silence_has_an_empty_text(
    name: str, transcriber: Transcriber, speech: Audio, asked: Request
) -> None:
    quiet = Audio(np.hstack([speech.samples, np.zeros((1, 32_000), np.int16)]))
    end = speech.duration
    silent, spoken = transcriber.transcribe(quiet, asked, ignore, [Span(end, end + 2), Span(0, end)]).segments
    assert silent.text == ""
    assert len(plain(spoken.text)) > (30 if SUBJECTS[name].understands else 0)


def test_the_shortest_of_stretches_are_segments_too(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    begin = 1.5
    spans = [Span(begin, begin + length) for length in (0.0, 1e-5, 0.015, 0.05, 0.1, 4.0)]
    spans += [Span(0.0, 0.0), Span(speech.duration - 0.01, speech.duration)]
    segments = transcriber.transcribe(speech, asked, ignore, spans).segments
    assert [(segment.start, segment.end) for segment in segments] == [(span.start, span.end) for span in spans]
    assert len(transcriber.time_words(speech, segments, ignore)) == len(spans)
    assert segments[5].text
    assert transcriber.transcribe(speech, asked, ignore).segments


def test_no_stretches_no_segments(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    assert transcriber.transcribe(speech, asked, ignore, []).segments == ()
