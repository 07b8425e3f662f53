"""Voxtral behind a service: what is sent, what becomes of each answer, and that the key is seen nowhere else."""

from __future__ import annotations

import io
import logging
import ssl
import threading
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
import trustme

from hansard.errors import (
    CancelledError,
    HansardError,
    ModelMissingError,
    ServiceError,
    SettingsError,
    TokenMissingError,
    TokenRefusedError,
    UnsupportedError,
)
from hansard.models import Models
from hansard.plan import check
from hansard.request import Request, parse
from hansard.settings import Settings
from hansard.transcribers import voxtral_http, voxtral_service
from hansard.transcribers.voxtral_api import VoxtralChat, VoxtralTranscriptions
from hansard.transcribers.voxtral_pace import FIRST_PATIENCE_S, Pace
from hansard.transcribers.voxtral_pace import PATIENCE_S as LONGEST_REFUSED_S
from hansard.transcribers.voxtral_service import Endpoint, Service
from hansard.transcript import SAMPLE_RATE, Audio, Span, Transcription
from places import CLIPS
from voxtral_server import KEY, PATIENCE_S, Asked, Play, Player, VoxtralServer, drips, drops, hangs, says, status

pytestmark = pytest.mark.timeout(60)

SPANS = [Span(0.4, 3.0), Span(4.0, 7.5), Span(8.0, 12.0)]
MINI, SMALL = "voxtral-mini-latest", "voxtral-small-latest"
BOTH = pytest.mark.parametrize("backend", [VoxtralTranscriptions, VoxtralChat])

Backend = type[VoxtralTranscriptions] | type[VoxtralChat]


@pytest.fixture
def server() -> Iterator[VoxtralServer]:
    with VoxtralServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, in seconds without the jitter; none is waited for, and no other time goes by."""
    waited: list[float] = []
    monkeypatch.setattr(voxtral_service, "jitter", lambda: 0.0)
    monkeypatch.setattr(Service, "_now", lambda self: sum(waited))
    monkeypatch.setattr(Service, "_wait", lambda self, seconds: waited.append(seconds))
    return waited


@pytest.fixture
def mistral(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback is taken for Mistral's own service."""
    monkeypatch.setattr(voxtral_service, "MISTRAL", "127.0.0.1")


@pytest.fixture(scope="module")
def audio() -> Audio:
    samples, _ = soundfile.read(CLIPS / "meeting_en_2voices.flac", dtype="int16")
    return Audio(samples[None, : 20 * SAMPLE_RATE])


def settings_for(server: VoxtralServer, **more: Any) -> Settings:
    given = {"voxtral_endpoint": server.url, "voxtral_api_key": KEY, "vad_method": "silero", "device": "cpu", **more}
    return Settings(models_dir=Path("/nonexistent"), hf_hub_offline=True, **given)


def load(server: VoxtralServer, backend: Backend = VoxtralTranscriptions, **settings: Any) -> Any:
    return backend(next(iter(backend.models)), Models(settings_for(server, **settings)))


def ask(**fields: Any) -> Request:
    return parse({"audio": "data:,", **fields})


def ignore(_: float) -> None:
    """A report that nobody listens to."""


def hear(server: VoxtralServer, audio: Audio, spans: list[Span] | None = SPANS[:1], **fields: Any) -> Transcription:
    heard: Transcription = load(server).transcribe(audio, ask(**fields), ignore, spans)
    return heard


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("voxtral")]


def seconds(asked: Asked) -> float:
    """The length of the sound in a call; FLAC says it in its 42 first bytes."""
    return (int.from_bytes(asked.file[18:26], "big") & ((1 << 36) - 1)) / SAMPLE_RATE


# Names and refusals


@pytest.mark.parametrize(
    ("name", "taker"),
    [
        ("voxtral-mini-latest", VoxtralTranscriptions),
        ("voxtral-mini-2602", VoxtralTranscriptions),
        ("voxtral-mini-transcribe-3", VoxtralTranscriptions),
        ("voxtral-small-transcribe-3-0", VoxtralTranscriptions),
        ("voxtral-small-2507", VoxtralChat),
        ("voxtral-small-latest", VoxtralChat),
        ("mistralai/Voxtral-Mini-3B-2507", None),
        ("whisper-1", None),
    ],
)
def test_a_name_has_one_taker(server: VoxtralServer, name: str, taker: Backend | None) -> None:
    models = Models(settings_for(server))
    takers = [backend for backend in (VoxtralTranscriptions, VoxtralChat) if backend.takes(name, models)]
    assert takers == ([taker] if taker else [])


@BOTH
def test_a_model_on_this_machine_is_not_taken(server: VoxtralServer, tmp_path: Path, backend: Backend) -> None:
    for name in ("voxtral-mini-mine", "voxtral-small-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        settings = settings_for(server).model_copy(update={"models_dir": tmp_path})
        assert not backend.takes(name, Models(settings))


@BOTH
@pytest.mark.parametrize("what", ["empty", "no weights", "a link that leads nowhere"])
def test_sound_for_a_broken_folder_stays_here(
    server: VoxtralServer, tmp_path: Path, backend: Backend, what: str
) -> None:
    name = "voxtral-small-mine" if backend is VoxtralChat else "voxtral-mini-mine"
    settings = settings_for(server).model_copy(update={"models_dir": tmp_path})
    assert backend.takes(name, Models(settings))
    if what == "a link that leads nowhere":
        (tmp_path / name).symlink_to(tmp_path / "gone")
    else:
        (tmp_path / name).mkdir()
    if what == "no weights":
        (tmp_path / name / "config.json").write_text('{"architectures": ["VoxtralForConditionalGeneration"]}')
    assert not backend.takes(name, Models(settings))
    with pytest.raises(ModelMissingError, match="is not known"):
        check(ask(model=name), settings)


@BOTH
def test_a_name_that_no_disk_takes_is_a_name(server: VoxtralServer, backend: Backend) -> None:
    name = ("voxtral-small-" if backend is VoxtralChat else "voxtral-") + "x" * 5000
    assert backend.takes(name, Models(settings_for(server)))


@BOTH
@pytest.mark.parametrize("address", ["https://api.mistral.ai/v1", "https://API.Mistral.ai/v1/", "https://mistral.ai"])
def test_mistral_is_not_asked_without_a_key(server: VoxtralServer, backend: Backend, address: str) -> None:
    models = Models(settings_for(server, voxtral_endpoint=address, voxtral_api_key=None))
    with pytest.raises(TokenMissingError, match="VOXTRAL_API_KEY"):
        backend.check(MINI, ask(), models)
    backend.check(MINI, ask(), Models(settings_for(server, voxtral_endpoint=address)))


@BOTH
@pytest.mark.parametrize(
    "address",
    [
        *("", "api.mistral.ai/v1", "file:///etc", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1/v1"),
        *("http://user:secret-1@host/v1", "https://host/v1?key=secret-1", "https://host/v1#secret-1"),
    ],
)
def test_an_address_that_is_none_is_refused(server: VoxtralServer, backend: Backend, address: str) -> None:
    models = Models(settings_for(server, voxtral_endpoint=address))
    for use in (lambda: backend.check(MINI, ask(), models), lambda: backend(MINI, models)):
        with pytest.raises(SettingsError, match="VOXTRAL_ENDPOINT") as told:
            use()
        assert "secret-1" not in str(told.value)


@pytest.mark.parametrize(
    "address", ["http://mistral.ai.example.org/v1", "http://notmistral.ai/v1", "http://[::1]:1/v1"]
)
def test_others_are_not_taken_for_mistral(server: VoxtralServer, address: str) -> None:
    assert not Endpoint.of(settings_for(server, voxtral_endpoint=address)).mistral


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ"])
def test_a_key_that_is_none_is_refused(server: VoxtralServer, key: str) -> None:
    with pytest.raises(SettingsError, match="VOXTRAL_API_KEY") as told:
        VoxtralTranscriptions.check(MINI, ask(), Models(settings_for(server, voxtral_api_key=key)))
    assert key not in "".join(traceback.format_exception(told.value))


def test_languages_are_of_two_letters(server: VoxtralServer) -> None:
    models = Models(settings_for(server))
    with pytest.raises(UnsupportedError, match="two letters only, not yue"):
        VoxtralTranscriptions.check(MINI, ask(language="yue"), models)
    VoxtralTranscriptions.check(MINI, ask(language="multi"), models)
    VoxtralChat.check(SMALL, ask(language="yue"), models)


def test_hotwords_go_to_mistral_only(server: VoxtralServer) -> None:
    own = Models(settings_for(server, voxtral_endpoint="https://api.mistral.ai/v1"))
    VoxtralTranscriptions.check(MINI, ask(hotwords="Hansard"), own)
    VoxtralChat.check(SMALL, ask(hotwords="Hansard"), Models(settings_for(server)))
    with pytest.raises(UnsupportedError, match="hotwords"):
        VoxtralTranscriptions.check(MINI, ask(hotwords="Hansard"), Models(settings_for(server)))
    with pytest.raises(UnsupportedError, match="at most 100"):
        VoxtralTranscriptions.check(MINI, ask(hotwords=" ".join(f"word{n}" for n in range(101))), own)


# What is sent


def test_times_are_asked_for_only_without_a_language(server: VoxtralServer, audio: Audio) -> None:
    for language in ("fr", None, "multi"):
        server.script.append(says("bonjour à tous"))
        hear(server, audio, language=language)
    one, two, three = (asked.fields for asked in server.asked)
    assert one == {"model": [MINI], "language": ["fr"], "file": ("speech.flac", "audio/flac")}
    assert two == three == {"model": [MINI], "timestamp_granularities": ["segment"], "file": one["file"]}


@pytest.mark.usefixtures("mistral")
def test_temperature_and_hotwords_are_sent(server: VoxtralServer, audio: Audio) -> None:
    server.script.append(says("good morning"))
    hear(server, audio, language="en", temperature=0.3, hotwords="Jane Doe, Hansard  Doe,PyAV")
    assert server.asked[0].fields["temperature"] == ["0.3"]
    assert server.asked[0].fields["context_bias"] == ["Jane", "Doe", "Hansard", "PyAV"]


def test_a_chat_is_told_language_prompt_and_hotwords(server: VoxtralServer, audio: Audio) -> None:
    server.dialect = "vllm"
    server.script += [says("bonjour"), says("dzień dobry"), says("good morning")]
    chat = load(server, VoxtralChat)
    chat.transcribe(audio, ask(language="fr", prompt="Procès-verbal.", hotwords="Hansard"), ignore, SPANS[:1])
    chat.transcribe(audio, ask(language="pl", temperature=0.7), ignore, SPANS[:1])
    chat.transcribe(audio, ask(), ignore, SPANS[:1])
    told = [asked.fields["messages"][0]["content"][1]["text"] for asked in server.asked]
    assert all("word for word" in text for text in told)
    assert "language is French" in told[0]
    assert "Procès-verbal." in told[0]
    assert "Hansard" in told[0]
    assert "ISO code pl" in told[1]
    assert "The language is" not in told[2]
    assert [asked.fields["temperature"] for asked in server.asked] == [0, 0.7, 0]
    assert 100 < server.asked[0].fields["max_tokens"] < 200
    assert {asked.fields["model"] for asked in server.asked} == {SMALL}


@pytest.mark.usefixtures("mistral")
def test_mistral_is_sent_the_sound_of_a_chat_as_a_string(server: VoxtralServer, audio: Audio) -> None:
    server.script.append(says("good morning"))
    assert load(server, VoxtralChat).transcribe(audio, ask(), ignore, SPANS[:1]).segments[0].text == "good morning"


def test_without_a_key_none_is_sent(server: VoxtralServer, audio: Audio) -> None:
    server.key, server.script = None, [says("good morning")]
    load(server, voxtral_api_key=None).transcribe(audio, ask(), ignore, SPANS[:1])
    assert "authorization" not in server.asked[0].headers


def test_the_environment_and_cookies_change_nothing(
    server: VoxtralServer, audio: Audio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    answer = {"text": "good morning"}
    server.script = [status(200, answer, Set_Cookie="session=1; Path=/") for _ in SPANS]
    assert len(load(server).transcribe(audio, ask(batch_size=1), ignore, SPANS).segments) == 3


def test_the_shortest_stretches_are_not_sent(server: VoxtralServer, audio: Audio) -> None:
    server.script = [says("good morning")]
    heard = hear(server, audio, [Span(1.0, 1.0 + 1e-5), Span(1.0, 1.09), Span(1.0, 3.0)])
    assert [segment.text for segment in heard.segments] == ["", "", "good morning"]
    assert len(server.asked) == 1


def test_long_stretches_are_sent_in_pieces(server: VoxtralServer, audio: Audio) -> None:
    long = Audio(np.tile(audio.samples, 16))  # 320 s
    answers = [says("we begin with the minutes"), says("and end with the budget")]
    server.script = list(answers)
    [segment] = hear(server, long, [Span(0, long.duration)], batch_size=1).segments
    assert segment.text == "we begin with the minutes and end with the budget"
    assert max(map(seconds, server.asked)) <= 300
    server.asked.clear()
    server.script = [says("we begin with the minutes") for _ in range(100)]
    hear(server, long, None)
    assert max(map(seconds, server.asked)) <= 30


@BOTH
def test_short_stretches_are_sent_with_silence_behind_them(
    server: VoxtralServer, audio: Audio, backend: Backend
) -> None:
    server.dialect = "vllm"
    server.script = [says("good", segments=[{"start": 0.2, "end": 0.9, "text": "good"}])]
    [segment] = load(server, backend).transcribe(audio, ask(), ignore, [Span(1.0, 1.4)]).segments
    assert (segment.start, segment.end, segment.text) == (1.0, 1.4, "good")
    samples, _ = soundfile.read(io.BytesIO(server.asked[0].file), dtype="int16")
    assert len(samples) / SAMPLE_RATE == pytest.approx(1.0, abs=0.01)
    if backend is VoxtralTranscriptions:
        said = audio.samples[0, SAMPLE_RATE : SAMPLE_RATE * 14 // 10]
        assert np.array_equal(samples, np.pad(said, (0, SAMPLE_RATE - len(said))))


def test_phrases_of_a_short_stretch_lie_in_it(server: VoxtralServer, audio: Audio) -> None:
    told = [{"start": 0.1, "end": 0.5, "text": "good"}, {"start": 0.6, "end": 1.0, "text": "morning"}]
    server.script = [says("good morning", segments=told)]
    part = Audio(audio.samples[:, 17 * SAMPLE_RATE // 16 : 24 * SAMPLE_RATE // 16])
    for segment in hear(server, part, None).segments:
        assert 0 <= segment.start < segment.end <= part.duration
    assert seconds(server.asked[0]) == 1.0


def test_pieces_of_a_chat_fit_a_small_context(server: VoxtralServer, audio: Audio) -> None:
    server.dialect = "vllm"
    server.script = [says(text) for text in ("we begin", "we go on", "we end")]
    long = Audio(np.tile(audio.samples, 12))  # 240 s
    [segment] = load(server, VoxtralChat).transcribe(long, ask(), ignore, [Span(0, 240)]).segments
    assert len(segment.text.split()) == 7
    for asked in server.asked:
        samples, _ = soundfile.read(io.BytesIO(asked.file), dtype="int16")
        assert 12.5 * len(samples) / SAMPLE_RATE + asked.fields["max_tokens"] < 8192 - 1000


def test_a_body_may_take_longer_than_connecting(server: VoxtralServer, audio: Audio, pauses: list[float]) -> None:
    long = Audio(np.tile(audio.samples, 15))  # 300 s, more than the system keeps
    server.stalls, server.script = [1.0], [says("good morning")]
    backend = load(server, connect_timeout_s=0.3)
    assert backend.transcribe(long, ask(), ignore, [Span(0, 300)]).segments[0].text == "good morning"
    assert pauses == []


def test_a_body_takes_no_longer_than_a_call_may(
    server: VoxtralServer, audio: Audio, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try has little time, the second has enough."""
    monkeypatch.setattr(Service, "_wait", lambda self, seconds: setattr(self._wire, "_total_s", 30.0))
    long = Audio(np.tile(audio.samples, 15))
    server.stalls, server.script = [PATIENCE_S], [says("good morning")]
    backend = load(server, voxtral_timeout_s=0.5)
    assert backend.transcribe(long, ask(), ignore, [Span(0, 300)]).segments[0].text == "good morning"
    assert "did not take the sound within 0.5 s; asked again" in caplog.text


# Answers


@BOTH
@pytest.mark.parametrize(
    ("said", "text"),
    [("good \ud83d morning", "good morning"), ("\ude00good", "good"), ("good\ud83d", "good"), ("😀 good", "😀 good")],
)
def test_half_characters_are_left_out(
    server: VoxtralServer, audio: Audio, backend: Backend, said: str, text: str
) -> None:
    server.dialect, server.script = "vllm", [says(said)]
    [segment] = load(server, backend).transcribe(audio, ask(), ignore, SPANS[:1]).segments
    assert " ".join(segment.text.split()) == text


def test_phrases_with_half_characters_are_still_the_text(server: VoxtralServer, audio: Audio) -> None:
    told = [{"start": 0.1, "end": 1, "text": "good \ud83d"}, {"start": 1, "end": 2, "text": "morning"}]
    server.script = [says("good \ud83d morning", segments=told)]
    segments = hear(server, Audio(audio.samples[:, : 3 * SAMPLE_RATE]), None).segments
    assert [segment.text for segment in segments] == ["good", "morning"]


def test_a_character_in_two_parts_of_a_message_is_one(server: VoxtralServer, audio: Audio) -> None:
    server.dialect = "vllm"
    content = [{"type": "text", "text": "good \ud83d"}, {"type": "text", "text": "\ude00"}]
    server.script = [status(200, {"choices": [{"message": {"content": content}}]})]
    [segment] = load(server, VoxtralChat).transcribe(audio, ask(), ignore, SPANS[:1]).segments
    assert segment.text == "good 😀"


def test_an_error_with_half_characters_is_told(server: VoxtralServer, audio: Audio) -> None:
    server.script = [status(400, {"message": "bad \ud83d file"})]
    with pytest.raises(ServiceError, match='with 400: "bad file"'):
        hear(server, audio)


def test_phrases_of_the_service_lie_in_their_piece(server: VoxtralServer, audio: Audio) -> None:
    times = [(-1.0, 0.5, " Good"), (0.7, 1.2, " morning"), (0.6, 0.6, " every"), (9.0, 99.0, "one")]
    told = [{"start": a, "end": b, "text": text, "type": "transcription_segment"} for a, b, text in times]
    server.script = [says("Good morning everyone", segments=told)]
    part = Audio(audio.samples[:, : 3 * SAMPLE_RATE])
    segments = hear(server, part, None).segments
    assert [segment.text for segment in segments] == ["Good", "morning", "every", "one"]
    assert segments[1].start == pytest.approx(segments[0].start + 0.7)
    for segment in segments:
        assert segments[0].start <= segment.start < segment.end <= part.duration
    assert all(one.start <= two.start for one, two in pairwise(segments))


@pytest.mark.parametrize(
    "segments",
    [
        *(None, [], "none", [{"start": 0, "end": 1}], [{"start": 0, "end": 1, "text": "Good"}]),
        *([{"start": start, "end": 1, "text": "Good morning"}] for start in (float("nan"), "0", None)),
    ],
)
def test_phrases_that_are_not_the_text_are_left_out(server: VoxtralServer, audio: Audio, segments: object) -> None:
    server.script = [says("Good morning", segments=segments)]
    [segment] = hear(server, Audio(audio.samples[:, : 3 * SAMPLE_RATE]), None).segments
    assert segment.text == "Good morning"


def test_vllm_answers_with_no_more_than_a_text(server: VoxtralServer, audio: Audio) -> None:
    server.dialect, server.script = "vllm", [says("Guten Morgen zusammen, wir beginnen mit dem Protokoll")]
    heard = hear(server, audio)
    assert [segment.text for segment in heard.segments] == ["Guten Morgen zusammen, wir beginnen mit dem Protokoll"]
    assert heard.language == "de"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (" good morning\n", "good morning"),
        ([{"type": "text", "text": "good "}, {"type": "text", "text": "morning"}], "good morning"),
        ([{"type": "thinking", "thinking": []}, {"type": "text", "text": "good"}], "good"),
        (None, ""),
    ],
)
def test_a_chat_answers_in_several_ways(server: VoxtralServer, audio: Audio, content: object, text: str) -> None:
    server.dialect = "vllm"
    server.script = [status(200, {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})]
    chat = load(server, VoxtralChat)
    assert chat.transcribe(audio, ask(), ignore, [Span(1, 1.2)]).segments[0].text == text


def test_the_service_may_tell_the_language(server: VoxtralServer, audio: Audio) -> None:
    told = [says("a", language="pl"), says("b", language="uk-UA"), says("c", language="pl")]
    server.script = list(told)
    heard = hear(server, audio, SPANS, batch_size=1, language_detection_min_prob=0.9)
    assert (heard.language, heard.language_probability) == ("pl", pytest.approx(6.6 / 10.1))
    assert "taken for pl" in " ".join(heard.warnings)
    assert {segment.language for segment in heard.segments} == {None}
    server.script = list(told)
    heard = hear(server, audio, SPANS, batch_size=1, language="multi")
    assert [segment.language for segment in heard.segments] == ["pl", "uk", "pl"]


def test_a_language_given_stands(server: VoxtralServer, audio: Audio) -> None:
    server.script = [says("Good morning everybody", language="en")]
    heard = hear(server, audio, language="fr")
    assert (heard.language, heard.language_probability) == ("fr", None)


def test_silence_asks_nothing(server: VoxtralServer, audio: Audio) -> None:
    heard = hear(server, Audio(audio.samples[:, :SAMPLE_RATE] * 0), None)
    assert (heard.segments, server.asked) == ((), [])


# The guard


LOOP = "and so on " * 40


def test_a_loop_is_asked_for_again_in_parts(server: VoxtralServer, audio: Audio) -> None:
    server.script = [says(LOOP), says("we begin"), says("with the minutes")]
    heard = hear(server, audio, SPANS[2:])
    assert [segment.text for segment in heard.segments] == ["we begin with the minutes"]
    whole, *parts = map(seconds, server.asked)
    assert sum(parts) == pytest.approx(whole, abs=0.01)
    assert not [warning for warning in heard.warnings if "repeated" in warning]


def test_what_stays_a_loop_is_left_out_and_told(server: VoxtralServer, audio: Audio) -> None:
    server.script = [says(LOOP) for _ in range(3)]
    heard = hear(server, audio, SPANS[2:])
    assert heard.segments[0].text == ""
    assert "the model repeated itself; these words were left out: 8.0-12.0 s" in heard.warnings


def test_speech_without_words_is_asked_for_again_and_told(server: VoxtralServer, audio: Audio) -> None:
    server.script = [says("") for _ in range(3)]
    heard = hear(server, audio, SPANS[2:])
    assert heard.segments[0].text == ""
    assert "somebody speaks and no words were recognised: 8.0-12.0 s" in heard.warnings
    assert len(server.asked) == 3


@pytest.mark.parametrize("reason", ["length", "model_length", "content_filter", "tool_calls"])
def test_a_text_that_was_cut_off_is_asked_for_again(server: VoxtralServer, audio: Audio, reason: str) -> None:
    server.dialect = "vllm"
    server.script = [says("we begin with", finish_reason=reason), says("we begin"), says("with the minutes")]
    [segment] = load(server, VoxtralChat).transcribe(audio, ask(), ignore, SPANS[2:]).segments
    assert segment.text == "we begin with the minutes"


@pytest.mark.parametrize("reason", ["stop", None])
def test_a_text_that_came_to_its_end_stands(server: VoxtralServer, audio: Audio, reason: str | None) -> None:
    server.dialect, server.script = "vllm", [says("we begin", finish_reason=reason)]
    [segment] = load(server, VoxtralChat).transcribe(audio, ask(), ignore, SPANS[2:]).segments
    assert segment.text == "we begin"


# Errors


SPEAKING = f"bad {KEY} at http://127.0.0.1/x in /srv/models/v.py"


def assert_secret(error: HansardError, caplog: pytest.LogCaptureFixture) -> None:
    """The key is in nothing that may be shown, the address in nothing of ours."""
    told = "".join(traceback.format_exception(error)) + error.sentence
    assert KEY not in told + caplog.text
    assert "127.0.0.1" not in told + "".join(str(line) for line in caplog.record_tuples if "hansard" in line[0])


@BOTH
@pytest.mark.parametrize(
    ("play", "error", "words"),
    [
        (status(401, {"message": f"Unauthorized {KEY}"}), TokenRefusedError, "correct VOXTRAL_API_KEY"),
        (
            status(403, {"message": f"Your subscription {KEY} has no access"}),
            TokenRefusedError,
            r"does not let this key use model 'voxtral-.*-latest': \"Your subscription \*\*\* has no access\"; name",
        ),
        (status(403, b"no"), TokenRefusedError, "use model 'voxtral-.*-latest'; name"),
        (status(404, {"detail": "Not Found"}), ModelMissingError, "has no model 'voxtral-"),
        (status(400, {"object": "error", "message": "Invalid model: x"}), ModelMissingError, "has no model 'voxtral-"),
        (status(413, b"<html>too large</html>"), ServiceError, "no piece as large"),
        (status(302, b"", Location="http://127.0.0.1:1/v1"), ServiceError, "redirect, which is not followed"),
        (status(402, {"error": "pay first"}), ServiceError, 'with 402: "pay first"'),
        (status(418, b"\xff"), ServiceError, "with 418$"),
        (status(400, {"error": {"message": SPEAKING}}), ServiceError, r'with 400: "bad \*\*\* at \*\*\* in \*\*\*"'),
        (status(422, {"message": {"detail": [{"msg": "no file"}, {"msg": "nor url"}]}}), ServiceError, "file; nor url"),
        (status(422, {"detail": [{"msg": "x y " * 500}]}), ServiceError, r'with 422: "[x y]{190,200}"'),
        (status(200, {"error": {"message": "cannot read MP3", "code": 400}}), ServiceError, "cannot read MP3"),
        (status(200, {"error": "cannot read MP3"}), ServiceError, 'with 400: "cannot read MP3"'),
        (
            status(200, {"object": "error", "message": "Invalid model: x", "code": 400}),
            ModelMissingError,
            "has no model",
        ),
    ],
)
def test_a_refusal_is_told_with_its_place(
    server: VoxtralServer,
    audio: Audio,
    caplog: pytest.LogCaptureFixture,
    backend: Backend,
    *,
    play: Play,
    error: type[HansardError],
    words: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.dialect, server.script = "vllm", [says("one two"), play]
    with pytest.raises(error, match=r"segment 2 of 3 \(0:04-0:07\): .*VOXTRAL_ENDPOINT") as told:
        load(server, backend).transcribe(audio, ask(batch_size=1), ignore, SPANS)
    assert type(told.value) is error
    told.match(words)
    assert_secret(told.value, caplog)


def test_a_service_that_wants_a_key_says_so(server: VoxtralServer, audio: Audio) -> None:
    server.key, server.script = None, [status(401, {})]
    with pytest.raises(TokenMissingError, match="set VOXTRAL_API_KEY"):
        load(server, voxtral_api_key=None).transcribe(audio, ask(), ignore, SPANS)


def test_the_place_of_what_is_found_is_told_too(server: VoxtralServer, audio: Audio) -> None:
    server.script = [status(413, {})]
    with pytest.raises(ServiceError, match=r"segment 1 of 1 \(0:00-0:20\): the service"):
        hear(server, audio, None)


@BOTH
def test_what_may_pass_is_asked_again(
    server: VoxtralServer, audio: Audio, pauses: list[float], caplog: pytest.LogCaptureFixture, backend: Backend
) -> None:
    server.dialect = "vllm"
    server.script = [status(500, {}), status(429, {}, Retry_After=7), status(200, b'{"text": "go'), drops]
    server.script.append(says("good morning"))
    [segment] = load(server, backend).transcribe(audio, ask(), ignore, SPANS[:1]).segments
    assert segment.text == "good morning"
    assert pauses == [1.0, 7.0, 2.0, 4.0]  # that it was busy is none of its five failures
    assert "answers 429; asked again in 7 s" in caplog.text


@BOTH
@pytest.mark.parametrize(
    ("play", "words"),
    [
        (status(503, {"message": KEY}), "answers 503, 5 times"),
        (drops, "could not be reached or broke off its answer, 5 times"),
        (status(200, b"<html>hello</html>"), "something that is no transcript, 5 times"),
        (status(200, {"error": {"message": "busy", "code": 503}}), "answers 503, 5 times"),
        (status(200, ["text"]), "something that is no transcript, 5 times"),
        (status(200, {"text": None, "choices": []}), "something that is no transcript, 5 times"),
        (status(200, {"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}), "no transcript, 5 times"),
        (status(200, b'{"text": "x"}', Content_Length=100, Connection="close"), "broke off its answer, 5 times"),
    ],
)
def test_what_does_not_pass_fails_the_job(
    server: VoxtralServer,
    audio: Audio,
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
    backend: Backend,
    *,
    play: Play,
    words: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.dialect, server.script = "vllm", [play] * 5
    with pytest.raises(ServiceError, match=rf"segment 1 of 1 \(0:00-0:03\): the service behind.* {words}") as told:
        load(server, backend).transcribe(audio, ask(), ignore, SPANS[:1])
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert len(server.asked) == 5
    assert_secret(told.value, caplog)


def test_nobody_listens(server: VoxtralServer, audio: Audio, pauses: list[float]) -> None:
    backend = load(server, voxtral_endpoint="http://127.0.0.1:9/v1")
    with pytest.raises(ServiceError, match="could not be reached"):
        backend.transcribe(audio, ask(), ignore, SPANS[:1])
    assert len(pauses) == 4


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[VoxtralServer, Path]]:
    """The service behind TLS, and the certificate of the authority that vouches for it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    served = VoxtralServer()
    served.socket = context.wrap_socket(served.socket, server_side=True)
    with served:
        yield served, tmp_path / "ca.pem"


def test_a_service_behind_tls_is_heard(
    encrypted: tuple[VoxtralServer, Path], audio: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, authority = encrypted
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", str(authority))
    server.script = [says("good morning")]
    backend = load(server, voxtral_endpoint=server.url.replace("http:", "https:"))
    assert backend.transcribe(audio, ask(), ignore, SPANS[:1]).segments[0].text == "good morning"


def test_a_certificate_that_is_not_trusted_is_not_asked_again(
    encrypted: tuple[VoxtralServer, Path], audio: Audio, pauses: list[float]
) -> None:
    server, _ = encrypted
    backend = load(server, voxtral_endpoint=server.url.replace("http:", "https:"))
    with pytest.raises(ServiceError, match="cannot be trusted"):
        backend.transcribe(audio, ask(), ignore, SPANS[:1])
    assert (pauses, server.asked) == ([], [])


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        *(("0", 1), ("12", 12), ("86400", 60), ("soon", 1), ("-5", 1), ("²", 1)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 1),
        ("Fri, 99 Dec 9999 23:59:59 GMT", 1),
    ],
)
def test_retry_after_is_heeded_within_reason(
    server: VoxtralServer, audio: Audio, pauses: list[float], value: str, pause: float
) -> None:
    server.script = [status(429, {}, Retry_After=value), says("good morning")]
    hear(server, audio)
    assert pauses == [pause]


@pytest.mark.parametrize("play", [hangs, drips])
def test_a_call_takes_no_longer_than_it_may(
    server: VoxtralServer, audio: Audio, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, play: Play
) -> None:
    """The first try has little time, the second has enough."""
    monkeypatch.setattr(Service, "_wait", lambda self, seconds: setattr(self._wire, "_total_s", 30.0))
    server.script = [play, says("good morning")]
    backend = load(server, voxtral_timeout_s=0.3)
    assert backend.transcribe(audio, ask(), ignore, SPANS[:1]).segments[0].text == "good morning"
    assert "did not answer within 0.3 s; asked again" in caplog.text


def test_an_answer_in_chunks_is_read(server: VoxtralServer, audio: Audio) -> None:
    def play(player: Player, asked: Asked) -> None:
        player.send_response(200)
        player.send_header("Transfer-Encoding", "chunked")
        player.end_headers()
        for part in (b'{"text": "good', b' morning"}', b""):
            player.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    server.script = [play]
    assert hear(server, audio).segments[0].text == "good morning"


def test_an_answer_without_end_is_not_read_to_its_end(
    server: VoxtralServer, audio: Audio, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voxtral_http, "LARGEST_ANSWER", 1000)
    server.script = [says("x" * 2000), says("good morning")]
    assert hear(server, audio).segments[0].text == "good morning"


# A service with too much to do


def test_refusals_are_waited_for_while_calls_come_through(
    server: VoxtralServer, audio: Audio, pauses: list[float]
) -> None:
    busy = status(429, {"message": "Rate limit exceeded"})
    server.script = [says("good"), *[busy] * 12, says("morning"), *[busy] * 12, says("everyone")]
    heard = hear(server, audio, SPANS, batch_size=1)
    assert [segment.text for segment in heard.segments] == ["good", "morning", "everyone"]
    assert pauses == 2 * [1, 2, 4, 8, 16, *[30] * 7]


def test_refusals_are_not_waited_for_without_end(server: VoxtralServer, audio: Audio, pauses: list[float]) -> None:
    server.script = [says("good"), *[status(200, {"error": {"message": "wait", "code": 429}})] * 100]
    with pytest.raises(ServiceError, match=r"segment 2 of 3 .* answers 429, 5 times"):
        hear(server, audio, SPANS, batch_size=1)
    assert LONGEST_REFUSED_S < sum(pauses) < LONGEST_REFUSED_S + 5 * 31


def test_a_service_that_lets_nothing_through_is_waited_for_a_minute(
    server: VoxtralServer, audio: Audio, pauses: list[float]
) -> None:
    server.script = [status(429, {})] * 20
    with pytest.raises(ServiceError, match="answers 429"):
        hear(server, audio)
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert 60 < sum(pauses) < 300


def test_other_failures_count_whatever_comes_through(server: VoxtralServer, audio: Audio, pauses: list[float]) -> None:
    server.script = [says("good"), *[status(503, {})] * 5]
    with pytest.raises(ServiceError, match="answers 503, 5 times"):
        hear(server, audio, SPANS, batch_size=1)
    assert pauses == [1, 2, 4, 8]


def test_pauses_are_a_little_longer_for_each_thread(
    server: VoxtralServer, audio: Audio, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voxtral_service, "jitter", lambda: 0.25)
    server.script = [status(429, {}), status(500, {}), says("good morning")]
    hear(server, audio)
    assert pauses == [1.25, 1.25]


def test_a_refusal_makes_all_threads_wait(server: VoxtralServer, audio: Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call is refused; the other is answered after that, and the third has to wait as long as the first."""
    both, refused, waited = threading.Barrier(2, timeout=PATIENCE_S), threading.Event(), dict[str, float]()

    def wait(_: Service, seconds: float) -> None:
        waited[threading.current_thread().name] = seconds
        refused.set()
        both.wait()

    def answers_later(player: Player, asked: Asked) -> None:
        refused.wait(PATIENCE_S)
        says("good morning")(player, asked)

    monkeypatch.setattr(voxtral_service, "jitter", lambda: 0.0)
    monkeypatch.setattr(Service, "_now", lambda self: 31.0 * (len(waited) == 2))
    monkeypatch.setattr(Service, "_wait", wait)
    server.script = [status(429, {}, Retry_After=30), answers_later]
    server.script += [says("good morning"), says("good morning")]
    assert len(hear(server, audio, SPANS, batch_size=2).segments) == 3
    assert list(waited.values()) == [30, 30]


def test_refusals_of_one_moment_are_one() -> None:
    pace = Pace()
    assert [pace.refused(0.0, 0.1, 0.0) for _ in range(4)] == [False] * 4
    assert pace.left(0.1) == pytest.approx(1.0)
    pace.refused(1.1, 1.2, 0.0)
    assert pace.left(1.2) == pytest.approx(2.0)
    pace.refused(1.1, 1.2, 20.0)
    assert pace.left(1.2) == pytest.approx(20.0)
    pace.answered(22.0)
    pace.refused(22.0, 22.1, 0.0)
    assert pace.left(22.1) == pytest.approx(1.0)


def test_a_call_that_is_being_answered_is_hope() -> None:
    pace = Pace()
    assert not pace.refused(0.0, 1.0, 0.0)
    late = 1.1 + FIRST_PATIENCE_S
    with pace.under_way(0.0):
        assert not pace.refused(late, late, 0.0)
    assert pace.refused(late, late, 0.0)
    pace.answered(late)
    assert not pace.refused(late, late + LONGEST_REFUSED_S, 0.0)
    assert pace.refused(late, late + LONGEST_REFUSED_S + 1.0, 0.0)


# Several calls at once


def by_length(asked: Asked) -> str:
    return f"of {seconds(asked):.2f} seconds"


def test_texts_are_in_order_whatever_comes_first(server: VoxtralServer, audio: Audio) -> None:
    """The first piece is answered last."""
    later = threading.Semaphore(0)

    def play(player: Player, asked: Asked) -> None:
        if seconds(asked) > 1.05:
            later.release()
        else:
            for _ in range(3):
                later.acquire(timeout=PATIENCE_S)
        says(by_length(asked))(player, asked)

    spans = [Span(1, 2), Span(3, 4.1), Span(5, 6.2), Span(7, 8.3)]
    server.script = [play] * 4
    seen: list[float] = []
    heard = load(server).transcribe(audio, ask(), seen.append, spans)
    assert [segment.text for segment in heard.segments] == [f"of {1 + n / 10:.2f} seconds" for n in range(4)]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize(("asked_for", "at_once"), [(None, 4), (1, 1), (3, 3), (64, 16)])
def test_calls_at_once_are_as_many_as_asked_for(
    server: VoxtralServer, audio: Audio, asked_for: int | None, at_once: int
) -> None:
    together = threading.Barrier(at_once, timeout=PATIENCE_S)

    def play(player: Player, asked: Asked) -> None:
        together.wait()
        says("good morning")(player, asked)

    server.script = [play] * (2 * at_once)
    spans = [Span(1 + n / 10, 2 + n / 10) for n in range(2 * at_once)]
    heard = hear(server, audio, spans, batch_size=asked_for)
    assert server.most == at_once
    assert len(heard.segments) == 2 * at_once
    assert bool([warning for warning in heard.warnings if "no more than 16" in warning]) == (asked_for == 64)


# Stopping


class Stop:
    """A report that raises from the `nth` time on after `when` is set."""

    def __init__(self, when: threading.Event, nth: int = 1) -> None:
        self.when, self.left = when, nth

    def __call__(self, _: float) -> None:
        if self.when.is_set():
            self.left -= 1
            if self.left <= 0:
                raise CancelledError("enough")


def ended() -> bool:
    for thread in threads():
        thread.join(PATIENCE_S)
    return not threads()


@pytest.mark.parametrize("nth", [1, 4])
@pytest.mark.parametrize("play", [hangs, drips])
def test_a_job_is_stopped_while_a_call_hangs(
    server: VoxtralServer, audio: Audio, caplog: pytest.LogCaptureFixture, play: Play, nth: int
) -> None:
    """The report is heard several times while nothing happens; the call ends at once and is not tried again."""
    begun = threading.Event()

    def begins(player: Player, asked: Asked) -> None:
        begun.set()
        play(player, asked)

    backend = load(server)
    server.script = [begins] * 4
    with pytest.raises(CancelledError):
        backend.transcribe(audio, ask(batch_size=1), Stop(begun, nth), SPANS)
    assert ended()
    assert not server.over.is_set()
    assert "asked again" not in caplog.text
    assert len(server.asked) == 1
    server.script = [says("good morning")]
    assert backend.transcribe(audio, ask(), ignore, SPANS[:1]).segments[0].text == "good morning"


def test_a_job_is_stopped_while_a_body_is_sent(
    server: VoxtralServer, audio: Audio, caplog: pytest.LogCaptureFixture
) -> None:
    server.stalls = [PATIENCE_S]
    long = Audio(np.tile(audio.samples, 15))
    with pytest.raises(CancelledError):
        load(server).transcribe(long, ask(), Stop(server.stalled), [Span(0, 300)])
    assert ended()
    assert not server.over.is_set()
    assert "asked again" not in caplog.text
    assert server.asked == []


def test_a_job_is_stopped_in_a_pause(server: VoxtralServer, audio: Audio) -> None:
    begun = threading.Event()

    def play(player: Player, asked: Asked) -> None:
        player.answer(429, {}, Retry_After=60)
        begun.set()

    server.script = [play] * 3
    with pytest.raises(CancelledError):
        load(server).transcribe(audio, ask(), Stop(begun, 2), SPANS)
    assert ended()
    assert len(server.asked) <= 3


def test_a_failure_stops_the_other_calls(server: VoxtralServer, audio: Audio) -> None:
    server.script = [hangs, hangs, status(413, {}), *[status(429, {}, Retry_After=60)] * 20]
    spans = [Span(1 + n / 10, 2 + n / 10) for n in range(20)]
    with pytest.raises(ServiceError, match="no piece as large"):
        hear(server, audio, spans)
    assert ended()
    assert len(server.asked) <= 5


def test_words_have_no_times_of_the_service(server: VoxtralServer, audio: Audio) -> None:
    server.script = [says("good morning")]
    backend = load(server)
    segments = backend.transcribe(audio, ask(), ignore, SPANS[:1]).segments
    assert backend.time_words(audio, segments, ignore) == segments
    backend.close()
