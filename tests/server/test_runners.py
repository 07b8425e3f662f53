"""Both runners under one contract, and what each has for itself: callers of a server cannot tell them apart."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
import scripted_engine
import soundfile
from aiohttp import web
from fake_endpoint import ENDPOINT, KEY, FakeEndpoint, Send, Worker
from fake_runner import TRANSCRIPT
from pydantic import SecretStr

import handler
from hansard import envelope, render
from hansard.engine import child
from hansard.errors import (
    AudioError,
    CancelledError,
    EngineError,
    HansardError,
    OutOfMemoryError,
    RequestError,
    ServiceError,
    SettingsError,
    TokenRefusedError,
    TooLargeError,
)
from hansard.plan import STAGES
from hansard.request import parse
from hansard.server import runners
from hansard.server.runners import LocalRunner, Runner
from hansard.server.runpod import inline as runpod_inline
from hansard.server.runpod import runner as runpod_runner
from hansard.server.runpod.answers import failure, job_input, transcript
from hansard.server.runpod.runner import RunPodRunner
from hansard.settings import Settings
from hansard.transcript import SAMPLE_RATE, Transcript

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

SettingsOf = Callable[..., Settings]


def sound(order: str = "speak") -> bytes:
    """A short silence, and what the scripted engine is to do with it."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600, np.int16), SAMPLE_RATE, format="WAV")
    return file.getvalue() + scripted_engine.ORDER + order.encode()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted engine behind every host, and a platform that is looked at often."""
    monkeypatch.setattr(child, "main", scripted_engine.main)
    monkeypatch.setattr(runpod_runner, "POLL_S", 0.01)
    monkeypatch.setattr(runpod_runner, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(runpod_runner, "LONGEST_PAUSE_S", 0.02)


def remote_settings(settings_of: SettingsOf, url: str, **given: Any) -> Settings:
    given = {"runpod_endpoint_id": ENDPOINT, "runpod_api_key": SecretStr(KEY), "runpod_endpoint_url": url} | given
    return settings_of(**given)


@pytest_asyncio.fixture(params=["local", "runpod"])
async def made(request: pytest.FixtureRequest, settings_of: SettingsOf, tmp_path: Path) -> AsyncIterator[Runner]:
    """A runner of each kind; RunPod's has the real worker behind the platform."""
    before = logging.getLogger().handlers[:]
    async with AsyncExitStack() as stack:
        settings = settings_of()
        if request.param == "runpod":
            theirs = settings_of(work_dir=tmp_path / "worker", log_file=tmp_path / "log.txt")
            worker = handler.Worker(theirs, echo=False)
            stack.callback(worker.close)
            endpoint = await stack.enter_async_context(FakeEndpoint(worker.handle))
            settings = remote_settings(settings_of, endpoint.url)
        runner = runners.choose(settings)
        assert type(runner) is {"local": LocalRunner, "runpod": RunPodRunner}[request.param]
        await runner.start()
        stack.push_async_callback(runner.close)
        yield runner
    logging.getLogger().handlers[:] = before
    assert not list(tmp_path.glob("work*/**/*"))


async def do(
    runner: Runner, order: str = "speak", report: Any = None, recording: Path | None = None, **fields: Any
) -> Transcript:
    """One job, from its check to its transcript."""
    audio = "upload" if recording else "data:audio/wav;base64," + base64.b64encode(sound(order)).decode()
    request = parse({"audio": audio, **fields})
    plan = await runner.check(request)
    return await runner.run("job", request, recording, plan, report or (lambda stage, fraction: None))


# The contract


async def test_what_was_said_comes_back_whole(made: Runner) -> None:
    found = await do(made, diarization=True, align_output=True)
    assert replace(found, timings={}) == replace(TRANSCRIPT, timings={}, model=hashlib.sha256(sound()).hexdigest())
    assert found.timings["transcribe"] == TRANSCRIPT.timings["transcribe"]
    assert "fetch" in found.timings


async def test_a_recording_that_came_as_a_file_is_used_and_left_alone(made: Runner, tmp_path: Path) -> None:
    recording = tmp_path / "upload.wav"
    recording.write_bytes(sound("speak on"))
    found = await do(made, recording=recording)
    assert found.model == hashlib.sha256(sound("speak on")).hexdigest()
    assert recording.read_bytes() == sound("speak on")


async def test_captions_are_the_same(made: Runner) -> None:
    found = await do(made, diarization=True, output_formats=["srt", "rttm"])
    for name in ("srt", "vtt", "rttm", "tsv"):
        assert render.FORMATS[name](found) == render.FORMATS[name](TRANSCRIPT)


async def test_an_error_keeps_its_kind_and_its_sentence(made: Runner) -> None:
    with pytest.raises(AudioError, match=r"^bad_audio: this recording cannot be used$"):
        await do(made, "refuse")
    assert (await do(made)).language == "en"


async def test_a_bug_shows_nothing_of_the_machine(made: Runner) -> None:
    with pytest.raises(HansardError) as failed:
        await do(made, "bug")
    assert failed.value.code == "internal"
    assert "/a/path" not in str(failed.value)


async def test_what_does_not_exist_is_refused(made: Runner) -> None:
    with pytest.raises(RequestError, match="'no-such-model' is not known"):
        await do(made, model="no-such-model")


async def test_progress_is_of_stages_of_the_plan_and_never_falls(made: Runner) -> None:
    told: list[tuple[str, float]] = []
    request = parse({"audio": "upload", "diarization": True})
    plan = await made.check(request)
    await do(made, "work 1.5", lambda stage, fraction: told.append((stage, fraction)), diarization=True)
    assert {stage for stage, _ in told} <= set(plan.stages) <= set(STAGES)
    assert ("transcribe", 0.5) in told
    assert {("fetch", 1.0), ("decode", 1.0)} <= set(told)
    assert all(0 <= fraction <= 1 for _, fraction in told)


async def test_a_cancelled_job_is_stopped_in_earnest(made: Runner) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def report(stage: str, fraction: float) -> None:
        if stage == "transcribe":
            loop.call_soon_threadsafe(begun.set)

    task = asyncio.create_task(do(made, "work 1000", report))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await do(made)).language == "en", "the engine is free again"


# The one of this machine


def engines() -> int:
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return sum("spawn_main" in command for command in commands)


@pytest.mark.parametrize("lazy", [True, False])
async def test_the_engine_starts_when_it_is_told_to(settings_of: SettingsOf, lazy: bool) -> None:
    runner = LocalRunner(settings_of(lazy_load_models=lazy))
    await runner.close()
    await runner.start()
    assert engines() == (0 if lazy else 1)
    assert (await do(runner)).language == "en"
    await runner.close()
    assert engines() == 0


async def test_a_default_that_does_not_exist_is_told_at_the_start(settings_of: SettingsOf) -> None:
    with pytest.raises(SettingsError, match="DEFAULT_MODEL"):
        await LocalRunner(settings_of(default_model="no-such-model")).start()


# RunPod's


class Worked:
    """A worker that answers what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = render.to_result(TRANSCRIPT, words=True)
        self.asked: list[dict[str, Any]] = []
        self.hold = False
        self.stopped = 0

    async def __call__(self, job: dict[str, Any], send: Send) -> dict[str, Any]:
        self.asked.append(job["input"])
        if self.hold:
            await send({"stage": "transcribe", "stage_percent": 10, "percent": 5})
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.stopped += 1
                raise
        return dict(self.answer)


@pytest.fixture
def worked() -> Worked:
    return Worked()


@pytest_asyncio.fixture
async def endpoint(worked: Worker) -> AsyncIterator[FakeEndpoint]:
    async with FakeEndpoint(worked) as made:
        yield made


@pytest_asyncio.fixture
async def remote(endpoint: FakeEndpoint, settings_of: SettingsOf) -> AsyncIterator[RunPodRunner]:
    runner = RunPodRunner(remote_settings(settings_of, endpoint.url))
    await runner.start()
    yield runner
    await runner.close()


BAD = [
    ({"runpod_endpoint_id": "a/b"}, "RUNPOD_ENDPOINT_ID"),
    ({"runpod_endpoint_id": " "}, "RUNPOD_ENDPOINT_ID"),
    ({"runpod_api_key": None}, "RUNPOD_API_KEY"),
    ({"runpod_api_key": SecretStr("two words")}, "RUNPOD_API_KEY"),
    ({"runpod_endpoint_url": "api.runpod.ai/v2"}, "RUNPOD_ENDPOINT_URL"),
]


@pytest.mark.parametrize(("given", "named"), BAD)
async def test_settings_that_cannot_be_used_are_named(
    settings_of: SettingsOf, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        runners.choose(remote_settings(settings_of, "https://example.com/v2", **given))


PASSING = [
    ("run", web.Response, {"status": 429, "headers": {"Retry-After": "0"}}),
    ("run", web.Response, {"status": 502}),
    ("run", None, {}),
    ("status", web.Response, {"status": 500}),
    ("status", web.Response, {"text": "<html>"}),
    ("status", web.Response, {"text": "[]"}),
    ("status", None, {}),
]


@pytest.mark.parametrize(("kind", "answer", "given"), PASSING)
async def test_what_fails_in_passing_is_tried_again(
    remote: RunPodRunner, endpoint: FakeEndpoint, kind: str, answer: Any, given: dict[str, Any]
) -> None:
    endpoint.faults += [(kind, answer and answer(**given)) for _ in range(3)]
    assert (await do(remote)).duration == TRANSCRIPT.duration
    assert endpoint.faults == []


REFUSED = [
    ("run", {"status": 404}, SettingsError, "RUNPOD_ENDPOINT_ID"),
    ("run", {"status": 401}, TokenRefusedError, "RUNPOD_API_KEY"),
    ("run", {"status": 403}, TokenRefusedError, "RUNPOD_API_KEY"),
    ("run", {"status": 413}, TooLargeError, "URL"),
    ("run", {"status": 400, "text": f"bad {KEY} input"}, ServiceError, r"with 400: bad … input$"),
    ("run", {"text": "{}"}, ServiceError, "no id"),
    ("status", {"status": 404}, EngineError, "send it again"),
    ("status", {"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, ServiceError, "with 302"),
]


@pytest.mark.parametrize(("kind", "given", "error", "told"), REFUSED)
async def test_what_is_refused_is_not_tried_again(
    remote: RunPodRunner, endpoint: FakeEndpoint, kind: str, given: dict[str, Any], error: type[HansardError], told: str
) -> None:
    endpoint.faults.append((kind, web.Response(**given)))
    with pytest.raises(error, match=told):
        await do(remote)
    assert endpoint.calls.count(kind) == 1


async def test_a_wrong_key_is_told(endpoint: FakeEndpoint, settings_of: SettingsOf) -> None:
    runner = RunPodRunner(remote_settings(settings_of, endpoint.url, runpod_api_key=SecretStr("other")))
    await runner.start()
    with pytest.raises(TokenRefusedError, match="RUNPOD_API_KEY"):
        await do(runner)
    await runner.close()


async def test_who_cannot_be_reached_is_given_up(
    remote: RunPodRunner, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_runner, "POST_PATIENCE_S", 0.1)
    endpoint.faults += [("run", None)] * 1000
    with pytest.raises(ServiceError, match="cannot be reached"):
        await do(remote)


ENDED = [
    ({"status": "TIMED_OUT", "error": "job timed out"}, ServiceError, "execution timeout"),
    ({"status": "CANCELLED"}, CancelledError, "at the endpoint"),
    ({"status": "FAILED"}, ServiceError, "does not say why"),
    ({"status": "FAILED", "error": "out_of_memory: too long"}, OutOfMemoryError, "^out_of_memory: too long$"),
    ({"status": "COMPLETED"}, ServiceError, "lost the answer"),
    ({"status": "COMPLETED", "output": {"error": "bad_audio: no"}}, AudioError, "^bad_audio: no$"),
    ({"status": "COMPLETED", "output": {"text": "hello"}}, ServiceError, "no transcript"),
    ({"status": "COMPLETED", "output": "hello"}, ServiceError, "no transcript"),
]


@pytest.mark.parametrize(("told", "error", "sentence"), ENDED)
async def test_every_end_is_told(
    remote: RunPodRunner, endpoint: FakeEndpoint, told: dict[str, Any], error: type[HansardError], sentence: str
) -> None:
    endpoint.faults += [("status", web.json_response({"status": "IN_QUEUE"})), ("status", web.json_response(told))]
    with pytest.raises(error, match=sentence):
        await do(remote)


CRASH = json.dumps({"error_type": "<class 'X'>", "error_message": "it broke", "error_traceback": "File /secret"})
WORDS = [
    (CRASH, "service_failed", "the endpoint's worker failed: it broke"),
    ("no_such_code: x", "service_failed", "the endpoint's worker failed: no_such_code: x"),
    ({"code": 7}, "service_failed", 'the endpoint\'s worker failed: {"code": 7}'),
    ("bad_audio: one\ntwo: three", "bad_audio", "one\ntwo: three"),
    ("x" * 10_000, "service_failed", "the endpoint's worker failed: " + "x" * 500 + "…"),
]


@pytest.mark.parametrize(("error", "code", "sentence"), WORDS)
async def test_the_worker_s_words_become_an_error_of_the_tree(error: object, code: str, sentence: str) -> None:
    found = failure(error)
    assert (found.code, found.sentence) == (code, sentence)


async def test_a_packed_answer_is_unpacked(remote: RunPodRunner, worked: Worked) -> None:
    whole = {**worked.answer, "rttm": render.FORMATS["rttm"](TRANSCRIPT)}
    packed = envelope.fit({**whole, "segments": whole["segments"] * 200}, 2_500)
    assert "segments_gz" in packed
    worked.answer = packed
    found = await do(remote)
    assert len(found.segments) == 400
    assert found.turns == TRANSCRIPT.turns
    assert any("packed" in warning for warning in found.warnings)


async def test_transcriptions_and_bare_turns_are_read() -> None:
    for task, key in (("transcription", "transcriptions"), ("diarization", "segments")):
        answer = render.to_result(TRANSCRIPT, task=task)
        assert key in answer
        found = transcript(answer)
        assert [segment.speaker for segment in found.segments] == ["SPEAKER_00", "SPEAKER_01"]
        assert [bool(segment.text) for segment in found.segments] == [task == "transcription"] * 2


async def test_the_worker_is_asked_for_what_its_answer_cannot_do_without() -> None:
    def asked(**fields: Any) -> dict[str, Any]:
        return job_input(parse({"audio": "https://example.com/a.mp3", **fields}))

    assert asked() == {"audio": "https://example.com/a.mp3", "align_output": False, "output_formats": []}
    assert asked(output_formats=["srt"])["align_output"] is True
    assert asked(task="translate", output_formats=["srt"])["align_output"] is False
    assert asked(channels="separate")["output_formats"] == ["rttm"]
    assert asked(hf_token="hf_secretsecret")["huggingface_access_token"] == "hf_secretsecret"
    for fields in ({"task": "diarization"}, {"task": "transcription"}, {"diarization": True}, {"vad_onset": 0.2}):
        parse(asked(**fields))


async def test_a_job_is_cancelled_at_the_platform(remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked) -> None:
    worked.hold = True
    told: list[str] = []
    task = asyncio.create_task(do(remote, report=lambda stage, _: told.append(stage)))
    while "transcribe" not in told:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert endpoint.jobs["remote-0"].told["status"] == "CANCELLED"
    assert worked.stopped == 1


async def test_a_job_that_is_being_posted_is_cancelled_too(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked
) -> None:
    worked.hold = True
    task = asyncio.create_task(do(remote))
    while not endpoint.calls:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [job.told["status"] for job in endpoint.jobs.values()] == ["CANCELLED"]


async def test_progress_of_another_version_costs_nothing(remote: RunPodRunner, endpoint: FakeEndpoint) -> None:
    strange = [{"stage": "polish", "stage_percent": 5}, "half done", {"stage": "transcribe"}, None]
    endpoint.faults += [
        ("status", web.json_response({"status": "IN_PROGRESS", "output": progress})) for progress in strange
    ]
    told: list[str] = []
    await do(remote, report=lambda stage, _: told.append(stage))
    assert told == []


# A recording inside the request


def noise(path: Path, seconds: float) -> None:
    """What no lossless codec makes smaller."""
    samples = (np.arange(round(seconds * SAMPLE_RATE), dtype=np.uint32) * 2654435761 >> 16).astype(np.uint16)
    soundfile.write(path, samples.view(np.int16), SAMPLE_RATE)


def rest_for(room: int) -> int:
    """The size of a request's other parts that leaves so many bytes for the recording."""
    return runpod_inline.LIMIT - runpod_inline.SPARE - room // 3 * 4


@pytest.mark.parametrize(
    ("room", "media"), [(400_000, "application/octet-stream"), (200_000, "audio/flac"), (90_000, "audio/mpeg")]
)
async def test_a_recording_is_made_small_enough(
    settings_of: SettingsOf, tmp_path: Path, meeting: Path, room: int, media: str
) -> None:
    settings = settings_of(work_dir=tmp_path)
    samples, rate = soundfile.read(meeting, dtype="int16")
    recording = tmp_path / "a.wav"
    soundfile.write(recording, samples[: 10 * rate], rate)
    uri, warnings = runpod_inline.inline(recording, rest_for(room), settings, separate=False)
    head, _, packed = uri.partition(",")
    content = base64.b64decode(packed)
    assert head == f"data:{media};base64"
    assert len(content) <= room
    assert bool(warnings) is (media != "application/octet-stream")
    if media != "audio/mpeg":
        read, _ = soundfile.read(io.BytesIO(content), dtype="int16")
        assert len(read) >= 10 * SAMPLE_RATE
    assert list(tmp_path.iterdir()) == [recording]


async def test_what_does_not_fit_is_refused_with_what_to_do(settings_of: SettingsOf, tmp_path: Path) -> None:
    settings = settings_of(work_dir=tmp_path)
    recording = tmp_path / "a.wav"
    noise(recording, 10)
    for room, separate in ((50_000, False), (5_000, False), (0, False), (200_000, True)):
        with pytest.raises(TooLargeError, match="as a URL instead"):
            runpod_inline.inline(recording, rest_for(room), settings, separate=separate)
    assert list(tmp_path.iterdir()) == [recording]


async def test_a_request_is_never_larger_than_the_platform_takes(
    remote: RunPodRunner, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    recording = tmp_path / "a.bin"
    recording.write_bytes(bytes((runpod_inline.LIMIT - runpod_inline.SPARE) // 4 * 3 - 200))
    await do(remote, recording=recording)
    assert runpod_inline.LIMIT - 2 * runpod_inline.SPARE < endpoint.sizes[0] <= runpod_inline.LIMIT
    with pytest.raises(TooLargeError, match="10 MB"):
        await do(remote, prompt="x" * runpod_inline.LIMIT)
    assert len(endpoint.sizes) == 1
