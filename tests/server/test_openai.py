"""OpenAI's endpoints as the real `openai` package calls them, against a real uvicorn."""

import asyncio
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_runner import TRANSCRIPT, FakeRunner, Play

from conftest import Serve, Server
from hansard import render
from hansard.errors import CrashedError, ModelMissingError, NotAudioError, TokenMissingError
from hansard.request import parse
from hansard.server import jobs
from hansard.server.openai import models as openai_models
from hansard.server.runners import LocalRunner
from hansard.server.waiting import Rhythm, digest, rhythm
from hansard.settings import Settings

SOUND = ("a.wav", b"sound")
URL = "/v1/audio/transcriptions"
SOON_S = 60  # for what comes as soon as the machine lets it

IMPATIENT = {"x-stainless-read-timeout": "0.5"}

Sdk = Callable[..., openai.OpenAI]


@pytest.fixture
def sdk() -> Iterator[Sdk]:
    """A client of a server: `sdk(server, max_retries=2)`; it knows no proxy of the machine."""
    clients: list[openai.OpenAI] = []

    def make(of: Server, hooks: dict[str, Any] | None = None, **given: Any) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(trust_env=False, event_hooks=hooks or {})
        given = {"api_key": "key", "max_retries": 0, "timeout": 60, **given}
        clients.append(openai.OpenAI(base_url=f"{of.url}/v1", http_client=http, **given))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(server: Server, sdk: Sdk) -> openai.OpenAI:
    """One of `server` that sends everything once."""
    return sdk(server)


def impatient(read_s: float) -> openai.Timeout:
    """A client that gives up when no bytes come for so long."""
    return openai.Timeout(60, read=read_s)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_json_is_a_transcription(client: openai.OpenAI, runner: FakeRunner) -> None:
    told = client.audio.transcriptions.create(file=SOUND, model="whisper-1")
    assert told.text == "good morning hello"
    assert told.usage is not None
    assert (told.usage.type, told.usage.seconds) == ("duration", 3.5)
    assert told.languages is not None
    assert told.languages[0].code == "en"
    assert runner.calls[0].content == b"sound"


@pytest.mark.parametrize(("name", "written"), [("text", "txt"), ("srt", "srt"), ("vtt", "vtt")])
def test_texts_are_strings(client: openai.OpenAI, name: Any, written: str) -> None:
    told = client.audio.transcriptions.create(file=SOUND, model="whisper-1", response_format=name)
    assert told == render.FORMATS[written](TRANSCRIPT)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response_format": "json"}, "application/json"),
        ({"response_format": "verbose_json"}, "application/json"),
        ({"response_format": "diarized_json"}, "application/json"),
        ({"response_format": "text"}, "text/plain; charset=utf-8"),
        ({"response_format": "srt"}, "application/x-subrip; charset=utf-8"),
        ({"response_format": "vtt"}, "text/vtt; charset=utf-8"),
        ({"stream": "true"}, "text/event-stream; charset=utf-8"),
        ({"stream": "true", "response_format": "text"}, "text/event-stream; charset=utf-8"),
        ({"stream": "true", "response_format": "diarized_json"}, "text/event-stream; charset=utf-8"),
    ],
    ids=" ".join,
)
def test_what_kind_of_text_comes(server: Server, runner: FakeRunner, fields: dict[str, str], kind: str) -> None:
    french = replace(TRANSCRIPT.segments[0], text="déjà vu à Noël")
    runner.otherwise = Play(replace(TRANSCRIPT, segments=(french,)))
    told = server.http.post(URL, files={"file": SOUND}, data=fields)
    assert (told.status_code, told.headers["content-type"]) == (200, kind)
    if "stream" in fields:
        assert (told.headers["cache-control"], told.headers["x-accel-buffering"]) == ("no-store", "no")
        assert "d\\u00e9j\\u00e0 vu" in told.text
    else:
        assert "déjà vu" in told.text


def test_verbose_json_has_segments_and_words(client: openai.OpenAI) -> None:
    told = client.audio.transcriptions.create(
        file=SOUND, model="whisper-1", response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert told.segments is not None
    assert told.words is not None
    assert [segment.text for segment in told.segments] == ["good morning", "hello"]
    assert [word.word for word in told.words] == ["good", "morning", "hello"]
    assert told.segments[0].model_extra == {"speaker": "SPEAKER_00"}


def test_diarized_json_has_speakers(client: openai.OpenAI, runner: FakeRunner) -> None:
    told = client.audio.transcriptions.create(
        file=SOUND, model="gpt-4o-transcribe-diarize", response_format="diarized_json", chunking_strategy="auto"
    )
    assert [segment.speaker for segment in told.segments] == ["A", "B"]
    assert runner.calls[0].request.diarization


def test_every_parameter_of_the_package_arrives(client: openai.OpenAI, runner: FakeRunner) -> None:
    client.audio.transcriptions.create(
        file=SOUND,
        model="turbo",
        chunking_strategy={"type": "server_vad", "threshold": 0.75, "prefix_padding_ms": 300},
        keywords=["Hansard", "Westminster"],
        known_speaker_names=["ann", "bob"],
        known_speaker_references=["data:audio/wav;base64,AAAA", "data:audio/wav;base64,BBBB"],
        language="en",
        languages=["en"],
        prompt="a meeting",
        response_format="verbose_json",
        temperature=0.5,
        timestamp_granularities=["word"],
        extra_body={"num_speakers": 2, "debug": True, "output_formats": ["srt", "vtt"], "speaker_threshold": 0.5},
    )
    request = runner.calls[0].request
    assert (request.model, request.language, request.prompt, request.temperature) == ("turbo", "en", "a meeting", 0.5)
    assert (request.hotwords, request.vad_onset, request.align_output) == ("Hansard, Westminster", 0.75, True)
    voices = [(sample.name, str(sample.audio).partition(",")[2]) for sample in request.speaker_samples]
    assert voices == [("ann", "AAAA"), ("bob", "BBBB")]
    assert (request.num_speakers, request.debug, request.speaker_threshold) == (2, True, 0.5)
    assert request.output_formats == ["srt", "vtt"]


def test_own_fields_that_are_lists_of_objects(client: openai.OpenAI, runner: FakeRunner) -> None:
    turns = [{"start": 0.5, "end": 1.5, "speaker": "x"}, {"start": 2, "end": 3, "speaker": "y"}]
    client.audio.transcriptions.create(
        file=SOUND, model="whisper-1", extra_body={"task": "transcription", "segments": turns}
    )
    given = runner.calls[0].request.segments
    assert given is not None
    assert [segment.model_dump() for segment in given] == turns


def test_translations(client: openai.OpenAI, runner: FakeRunner) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package warns of OpenAI's plans for it
        told = client.audio.translations.create(file=SOUND, model="whisper-1", response_format="verbose_json")
    assert told.text == "good morning hello"
    assert told.language == "english"
    assert runner.calls[0].request.task == "translate"


def test_a_translation_through_the_model_that_tells_speakers_apart(client: openai.OpenAI, runner: FakeRunner) -> None:
    told = client.audio.transcriptions.create(
        file=SOUND,
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        extra_body={"task": "translate"},
    )
    assert told.model_extra is not None
    assert (told.task, [segment.speaker for segment in told.segments]) == ("translate", ["A", "B"])
    assert (runner.calls[0].request.task, runner.calls[0].request.diarization) == ("translate", True)


def test_hints_that_are_not_followed_are_warnings(client: openai.OpenAI, runner: FakeRunner) -> None:
    told = client.audio.transcriptions.create(
        file=SOUND,
        model="whisper-1",
        chunking_strategy={"type": "server_vad", "prefix_padding_ms": 300, "silence_duration_ms": 200},
        languages=["de", "en"],
    )
    assert told.model_extra is not None
    assert [warning.split(" of ")[0] for warning in told.model_extra["warnings"]] == [
        "the language was detected among all, not only among the languages de and en",
        "prefix_padding_ms and silence_duration_ms",
        "this was made up",
    ]
    assert runner.calls[0].request.language is None


def test_a_stream(client: openai.OpenAI) -> None:
    with client.audio.transcriptions.create(file=SOUND, model="gpt-4o-transcribe", stream=True) as stream:
        told = list(stream)
    assert [event.type for event in told] == [*["transcript.text.delta"] * 2, "transcript.text.done"]
    assert "".join(event.delta for event in told if event.type == "transcript.text.delta") == "good morning hello"


def test_a_stream_of_text(client: openai.OpenAI) -> None:
    with client.audio.transcriptions.create(
        file=SOUND, model="gpt-4o-transcribe", response_format="text", stream=True
    ) as stream:
        told = list(stream)
    assert [event.type for event in told] == [*["transcript.text.delta"] * 2, "transcript.text.done"]
    assert told[-1].type == "transcript.text.done"
    assert (told[-1].text, told[-1].usage) == ("good morning hello", None)


def test_a_stream_of_speakers(client: openai.OpenAI) -> None:
    with client.audio.transcriptions.create(
        file=SOUND, model="gpt-4o-transcribe-diarize", response_format="diarized_json", stream=True
    ) as stream:
        told = [event for event in stream if event.type == "transcript.text.segment"]
    assert [event.speaker for event in told] == ["A", "B"]


def test_an_asynchronous_client(server: Server) -> None:
    async def ask() -> tuple[str, list[str]]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="key", http_client=http) as client:
            told = await client.audio.transcriptions.create(file=SOUND, model="whisper-1")
            stream = await client.audio.transcriptions.create(file=SOUND, model="gpt-transcribe", stream=True)
            return told.text, [event.type async for event in stream]

    text, kinds = asyncio.run(ask())
    assert text == "good morning hello"
    assert kinds[-1] == "transcript.text.done"


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"sphinx", "large-v3", "embedded", *openai_models.OPENAI} <= set(names)
    assert len(set(names)) == len(names)
    assert client.models.retrieve("pyannote/speaker-diarization-community-1").object == "model"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        client.models.retrieve("gpt-9")


def test_aliases_of_the_operator(serve: Serve, sdk: Sdk, runner: FakeRunner) -> None:
    client = sdk(serve(model_aliases={"mine": "turbo"}))
    client.audio.transcriptions.create(file=SOUND, model="mine")
    assert runner.calls[0].request.model == "turbo"
    assert client.models.retrieve("mine").model_extra == {"root": "turbo"}


def test_aliases_of_openais_own_names(serve: Serve, sdk: Sdk, runner: FakeRunner) -> None:
    client = sdk(serve(model_aliases={"mine": "gpt-4o-transcribe-diarize", "x": "whisper-1"}))
    for name in ("mine", "x"):
        client.audio.transcriptions.create(file=SOUND, model=name)
    assert [(call.request.model, call.request.diarization) for call in runner.calls] == [(None, True), (None, False)]
    assert client.models.retrieve("mine").model_extra == {}


def test_diarization(server: Server, runner: FakeRunner) -> None:
    told = server.http.post(
        "/v1/audio/diarization", files={"file": SOUND}, data={"response_format": "rttm", "num_speakers": "2"}
    )
    assert told.text == render.FORMATS["rttm"](TRANSCRIPT)
    assert (runner.calls[0].request.task, runner.calls[0].request.num_speakers) == ("diarization", 2)
    assert server.http.post("/v1/audio/diarization", files={"file": SOUND}).json()["num_speakers"] == 2


def test_a_url_in_json_instead_of_a_file(server: Server, runner: FakeRunner) -> None:
    told = server.http.post(URL, json={"audio_url": "https://example.com/a.mp3", "response_format": "text"})
    assert told.status_code == 200
    assert runner.calls[0].request.audio == "https://example.com/a.mp3"


# Errors


@pytest.mark.parametrize(
    ("error", "raised", "code"),
    [
        (NotAudioError("this is no sound"), openai.BadRequestError, "not_audio"),
        (TokenMissingError("give a token"), openai.PermissionDeniedError, "token_missing"),
        (CrashedError("it died"), openai.InternalServerError, "engine_crashed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_a_job_are_the_packages_own(
    client: openai.OpenAI, runner: FakeRunner, error: Any, raised: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    runner.otherwise = Play(error)
    with pytest.raises(raised, match=error.sentence) as told:
        client.audio.transcriptions.create(file=SOUND, model="whisper-1", stream=stream)
    assert told.value.code == code
    assert told.value.request_id


def test_errors_of_the_form_are_told_before_any_work(server: Server, client: openai.OpenAI, runner: FakeRunner) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean num_speakers"):
        client.audio.transcriptions.create(file=SOUND, model="whisper-1", extra_body={"num_speeker": 2})
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.audio.transcriptions.create(file=SOUND, model="whisper-1", include=["logprobs"])
    assert not runner.calls
    assert not list(server.core.uploads.iterdir())


def test_a_model_that_is_nowhere_is_not_found(server: Server, sdk: Sdk, runner: FakeRunner) -> None:
    runner.refuses.append(ModelMissingError("model 'gpt-9' is not known"))
    sent: list[object] = []
    client = sdk(server, hooks={"request": [sent.append]}, max_retries=2)
    with pytest.raises(openai.NotFoundError, match="model 'gpt-9' is not known") as told:
        client.audio.transcriptions.create(file=SOUND, model="gpt-9")
    assert (told.value.code, told.value.param, len(sent)) == ("model_not_found", "model", 1)


def test_an_error_of_the_form_names_its_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.audio.transcriptions.create(file=SOUND, model="whisper-1", include=["logprobs"])
    assert (told.value.code, told.value.param) == ("unsupported", "include")


def test_a_pointless_retry_is_not_made(server: Server, sdk: Sdk, runner: FakeRunner) -> None:
    runner.otherwise = Play(NotAudioError("this is no sound"))
    sent: list[object] = []
    client = sdk(server, hooks={"request": [sent.append]}, max_retries=2)
    with pytest.raises(openai.BadRequestError):
        client.audio.transcriptions.create(file=SOUND, model="whisper-1")
    assert len(sent) == 1


# Waiting


def test_a_long_job_outlives_a_short_time_out(server: Server, sdk: Sdk, runner: FakeRunner) -> None:
    """The client waits one second for bytes; the job takes three, and heartbeats come between."""
    gate = runner.gated()
    sent: list[object] = []
    begun: list[object] = []

    def soon(response: object) -> None:
        begun.append(response)
        threading.Timer(3, gate.set).start()

    client = sdk(server, {"request": [sent.append], "response": [soon]}, timeout=impatient(1), max_retries=2)
    told = client.audio.transcriptions.create(file=SOUND, model="whisper-1")
    assert told.text == "good morning hello"
    assert len(begun) == 1, "the answer did not begin before the job had ended"
    assert len(runner.calls) == 1


def test_a_stream_outlives_a_short_time_out(server: Server, sdk: Sdk, runner: FakeRunner) -> None:
    gate = runner.gated(reports=(("transcribe", 0.5),))
    client = sdk(server, timeout=impatient(1))
    with client.audio.transcriptions.create(file=SOUND, model="whisper-1", stream=True) as stream:
        threading.Timer(2, gate.set).start()
        assert [event.type for event in stream][-1] == "transcript.text.done"


def test_a_client_that_timed_out_comes_back_to_its_job(server: Server, sdk: Sdk, runner: FakeRunner) -> None:
    """Plain text has no heartbeats: the package sends the request again, and the work is done once."""
    gate = runner.gated()
    sent: list[object] = []

    def count(request: object) -> None:
        sent.append(request)
        if len(sent) == 2:
            gate.set()

    client = sdk(server, {"request": [count]}, timeout=impatient(0.5), max_retries=10)
    told = client.audio.transcriptions.create(file=SOUND, model="whisper-1", response_format="text")
    assert told == render.FORMATS["txt"](TRANSCRIPT)
    assert len(sent) > 1
    assert len(runner.calls) == 1


def test_an_error_after_the_answer_has_begun_reaches_the_client(server: Server, sdk: Sdk, runner: FakeRunner) -> None:
    """The connection breaks, the package sends the request again and is told; the work was done once."""
    gate = runner.gated(NotAudioError("this is no sound"))
    statuses: list[int] = []

    def note(response: Any) -> None:
        statuses.append(response.status_code)
        gate.set()

    client = sdk(server, {"response": [note]}, timeout=impatient(1), max_retries=2)
    with pytest.raises(openai.BadRequestError, match="this is no sound"):
        client.audio.transcriptions.create(file=SOUND, model="whisper-1")
    assert statuses == [200, 400]
    assert len(runner.calls) == 1


def test_spaces_then_the_error_then_the_end_of_the_connection(server: Server, runner: FakeRunner) -> None:
    gate = runner.gated(NotAudioError("this is no sound"))
    got: list[bytes] = []
    with server.http.stream("POST", URL, files={"file": SOUND}, headers=IMPATIENT) as response:
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-accel-buffering"] == "no"
        parts = response.iter_raw()
        assert next(parts) == b" "
        gate.set()
        with pytest.raises(httpx.RemoteProtocolError):
            got.extend(parts)
    assert json.loads(b"".join(got))["error"]["code"] == "not_audio"


def test_an_error_in_a_stream_is_an_event(server: Server, sdk: Sdk, runner: FakeRunner) -> None:
    gate = runner.gated(CrashedError("it died"))
    client = sdk(server, timeout=impatient(1))
    with client.audio.transcriptions.create(file=SOUND, model="whisper-1", stream=True) as stream:
        gate.set()
        with pytest.raises(openai.APIError, match="it died") as told:
            list(stream)
    assert told.value.code == "engine_crashed"


def test_heartbeats_of_a_stream_tell_how_far_it_is(server: Server, runner: FakeRunner) -> None:
    gate = runner.gated(reports=(("transcribe", 0.5),))
    with server.http.stream("POST", URL, files={"file": SOUND}, data={"stream": "true"}, headers=IMPATIENT) as response:
        lines = response.iter_lines()
        assert next(lines).startswith(": transcribe ")
        gate.set()
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_an_answer_that_was_heard_is_not_kept(server: Server, client: openai.OpenAI, runner: FakeRunner) -> None:
    for _ in range(2):
        client.audio.transcriptions.create(file=SOUND, model="whisper-1")
        client.audio.transcriptions.create(file=SOUND, model="whisper-1", response_format="text")
    assert len(runner.calls) == 4


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_long_answer_that_was_heard_is_not_kept(server: Server, runner: FakeRunner, stream: str) -> None:
    """One that had begun before the job was done."""
    for count in (1, 2):
        gate = runner.gated()
        asked = {"files": {"file": SOUND}, "data": {"stream": stream}, "headers": IMPATIENT}
        with server.http.stream("POST", URL, **asked) as response:
            parts = response.iter_text()
            assert next(parts).startswith((" ", ":"))
            gate.set()
            assert "hello" in "".join(parts)
        assert len(runner.calls) == count


def test_an_error_that_was_heard_as_an_event_is_not_kept(server: Server, runner: FakeRunner) -> None:
    for count in (1, 2):
        gate = runner.gated(NotAudioError("this is no sound"))
        asked = {"files": {"file": SOUND}, "data": {"stream": "true"}, "headers": IMPATIENT}
        with server.http.stream("POST", URL, **asked) as response:
            parts = response.iter_text()
            assert next(parts).startswith(":")
            gate.set()
            assert "this is no sound" in "".join(parts)
        assert len(runner.calls) == count


@pytest.mark.parametrize("stream", ["true", "false"])
def test_an_error_that_was_heard_is_not_kept(server: Server, runner: FakeRunner, stream: str) -> None:
    runner.otherwise = Play(NotAudioError("this is no sound"))
    for count in (1, 2):
        told = server.http.post(URL, files={"file": SOUND}, data={"stream": stream})
        assert (told.status_code, len(runner.calls)) == (400, count)


def test_work_that_nobody_waits_for_is_stopped(
    server: Server, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ABANDONED_S", 0.05)
    runner.gated()
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(URL, files={"file": SOUND}, timeout=0.5)
    until(lambda: runner.stopped)
    until(lambda: not list(server.core.uploads.iterdir()))


def test_a_full_queue_says_when_to_come_again(serve: Serve, runner: FakeRunner) -> None:
    server = serve(max_queue=1)
    gate = runner.gated()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.http.post, URL, files={"file": ("a", b"1")})
        until(lambda: runner.calls)
        second = pool.submit(server.http.post, URL, files={"file": ("a", b"2")})
        until(lambda: server.core.waiting)
        third = server.http.post(URL, files={"file": ("a", b"3")})
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) > 0
        gate.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_a_full_queue_is_tried_again_when_it_says(
    serve: Serve, sdk: Sdk, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package waits as long as `Retry-After` says, and then is served."""
    monkeypatch.setattr(jobs.JobCore, "_patience", lambda _: 2)
    server = serve(max_queue=1)
    gate = runner.gated()
    answers: list[httpx.Response] = []

    def note(response: httpx.Response) -> None:
        answers.append(response)
        gate.set()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.http.post, URL, files={"file": ("a", b"1")})
        until(lambda: runner.calls)
        second = pool.submit(server.http.post, URL, files={"file": ("a", b"2")})
        until(lambda: server.core.waiting)
        began = time.monotonic()
        told = sdk(server, {"response": [note]}, max_retries=5).audio.transcriptions.create(
            file=("a", b"3"), model="whisper-1"
        )
        assert [first.result().status_code, second.result().status_code] == [200, 200]
    assert told.text == "good morning hello"
    assert time.monotonic() - began >= 2
    assert answers[0].status_code == 429
    assert answers[0].headers["retry-after"] == "2"
    assert "x-should-retry" not in answers[0].headers


@pytest.mark.parametrize(
    ("told", "patience", "beat"),
    [("600", 15, 5), ("10", 5, 5), ("1", 0.5, 0.5), ("0.0", 0.2, 0.2), ("inf", 15, 5), ("no", 15, 5), ("nan", 15, 5)],
)
def test_the_patience_is_half_the_callers(told: str, patience: float, beat: float) -> None:
    for header in ("x-stainless-read-timeout", "x-stainless-timeout"):
        assert rhythm({header: told}) == Rhythm(patience, beat)


def test_of_two_time_outs_the_smaller_counts() -> None:
    both = ("x-stainless-read-timeout", "x-stainless-timeout")
    for told in (("600", "4"), ("4", "600"), ("4", "no"), ("inf", "4")):
        assert rhythm(dict(zip(both, told, strict=True))) == Rhythm(2, 2)
    assert rhythm({}) == Rhythm(15, 5)


def test_the_node_packages_time_out_is_kept_to(server: Server, runner: FakeRunner) -> None:
    """It tells whole seconds, in a header of its own."""
    gate = runner.gated()
    with server.http.stream("POST", URL, files={"file": SOUND}, headers={"X-Stainless-Timeout": "1"}) as response:
        parts = response.iter_raw()
        assert next(parts) == b" "
        gate.set()
        assert b"hello" in b"".join(parts)


def test_what_makes_requests_the_same() -> None:
    def of(owner: str = "ann", sound: str = "0", **fields: Any) -> str:
        return digest(owner, sound, parse({"audio": "upload", **fields}))

    assert of() == of(language=None)
    others = {of(), of("bob"), of(sound="1"), of(language="en"), of(hf_token="a"), of(hf_token="b")}
    assert len(others) == 6


# Whole


@pytest.mark.slow
def test_a_meeting_through_the_embedded_engines(
    settings_of: Callable[..., Settings], sdk: Sdk, meeting: Path, meeting_truth: list[dict[str, Any]]
) -> None:
    settings = settings_of(device="cpu")
    server = Server(settings, LocalRunner(settings)).start()
    try:
        told = sdk(server, timeout=300).audio.transcriptions.create(
            file=meeting, model="gpt-4o-transcribe-diarize", response_format="diarized_json", chunking_strategy="auto"
        )
    finally:
        server.stop()
    names = {"rms": "A", "slt": "B"}
    assert [(segment.speaker, segment.text) for segment in told.segments] == [
        (names[turn["speaker"]], turn["text"]) for turn in meeting_truth
    ]
