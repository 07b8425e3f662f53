"""One suite that judges every transcriber in the table; a backend whose engine is absent skips, saying why."""

from collections.abc import Iterator
from itertools import pairwise

import jiwer
import numpy as np
import pytest

from hansard.errors import CancelledError, EngineMissingError
from hansard.request import Request
from hansard.transcribers import TRANSCRIBERS, Transcriber
from hansard.transcribers.capabilities import OPTIONS
from hansard.transcript import Audio

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=list(TRANSCRIBERS))
def transcriber(request: pytest.FixtureRequest) -> Iterator[Transcriber]:
    try:
        backend = TRANSCRIBERS[request.param]()
    except EngineMissingError as error:
        pytest.skip(str(error))
    yield backend
    backend.close()


def ignore(_: float) -> None:
    """A report that nobody listens to."""


def test_capabilities_are_known_words(transcriber: Transcriber) -> None:
    assert transcriber.can.options <= OPTIONS
    assert transcriber.can.tasks <= {"transcribe", "translate"}
    assert "transcribe" in transcriber.can.tasks


def test_says_what_was_said(transcriber: Transcriber, speech: Audio, asked: Request, meeting_truth: list) -> None:
    heard = transcriber.transcribe(speech, asked, ignore)
    said = " ".join(turn["text"] for turn in meeting_truth)
    assert jiwer.wer(said, " ".join(segment.text.lower() for segment in heard.segments)) <= 0.1
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


def test_words_are_where_they_were_said(
    transcriber: Transcriber, speech: Audio, asked: Request, meeting_truth: list
) -> None:
    if not transcriber.can.word_times:
        pytest.skip("this backend gives no word times")
    words = [word for segment in transcriber.transcribe(speech, asked, ignore).segments for word in segment.words]
    for turn in meeting_truth:
        first, last = turn["text"].split()[0], turn["text"].split()[-1]
        assert any(word.text.lower() == first and abs(word.start - turn["start"]) < 0.25 for word in words)
        assert any(word.text.lower() == last and abs(word.end - turn["end"]) < 0.35 for word in words)


def test_segments_are_made_of_their_words(transcriber: Transcriber, speech: Audio, asked: Request) -> None:
    for segment in transcriber.transcribe(speech, asked, ignore).segments:
        if segment.words:
            assert segment.text.split() == [word.text for word in segment.words]


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
