"""Both runners under one contract, and what each has for itself: callers of a server cannot tell them apart."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
import os
import time
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
import telling_engine
from aiohttp import web
from fake_endpoint import KEY, FakeEndpoint, Worked, Worker, remote_settings
from fake_runner import TRANSCRIPT
from pydantic import SecretStr

import handler
from hansard import envelope, render
from hansard.engine import child
from hansard.errors import (
    AudioError,
    CancelledError,
    HansardError,
    OutOfMemoryError,
    ServiceError,
    SettingsError,
    TooLargeError,
)
from hansard.plan import STAGES
from hansard.request import parse
from hansard.server import runners
from hansard.server.job_views import answer, written
from hansard.server.runners import LocalRunner, Runner
from hansard.server.runpod import inline as runpod_inline
from hansard.server.runpod import runner as runpod_runner
from hansard.server.runpod.answers import failure, job_input, transcript
from hansard.server.runpod.runner import RunPodRunner
from hansard.settings import Settings
from hansard.transcribers.sphinx import Sphinx
from hansard.transcript import SAMPLE_RATE, Audio, Transcript

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
    monkeypatch.setattr(runpod_runner, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(runpod_runner, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(runpod_runner, "LONGEST_PAUSE_S", 0.02)


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
    with pytest.raises(HansardError, match="'no-such-model' is not known"):
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


# What each gives of every kind of job


CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "words": {"align_output": True},
    "captions": {"output_formats": ["srt", "vtt", "txt", "tsv"]},
    "speakers": {"diarization": True, "output_formats": ["rttm", "srt"]},
    "speakers without captions": {"diarization": True},
    "names": {"diarization": True, "speaker_verification": True, "speaker_samples": "one"},
    "debug": {"debug": True},
    "channels": {"channels": "separate", "output_formats": ["rttm", "vtt"]},
    "translation": {"task": "translate", "language": "en", "output_formats": ["srt"]},
    "translation with speakers": {"task": "translate", "diarization": True, "output_formats": ["rttm", "vtt"]},
    "turns": {"task": "diarization", "output_formats": ["rttm"]},
    "turns with names": {"task": "diarization", "speaker_verification": True, "speaker_samples": "one"},
    "text of turns": {"task": "transcription", "output_formats": ["rttm", "tsv"]},
    "text of given turns": {
        "task": "transcription",
        "segments": [{"start": 0.5, "end": 2.0, "speaker": "Dr. Ada  L."}, {"start": 2.5, "end": 3.0, "speaker": "B"}],
        "output_formats": ["rttm", "srt"],
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Runner, Runner]]:
    """A runner of each kind, over engines that tell what a request asks for, of every task."""
    before = logging.getLogger().handlers[:]
    folder = tmp_path_factory.mktemp("both")

    def settings_of(**given: Any) -> Settings:
        names = ("state_dir", "work_dir", "hf_home", "log_file")
        return Settings(**{name: folder / name for name in names}, hf_hub_offline=True, **given)

    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(child, "main", telling_engine.main)
        patch.setattr(runpod_runner, "POLL_S", 0.01)
        patch.setattr(Sphinx, "can", replace(Sphinx.can, tasks=frozenset({"transcribe", "translate"})))
        worker = handler.Worker(settings_of(), echo=False)
        stack.callback(worker.close)
        endpoint = await stack.enter_async_context(FakeEndpoint(worker.handle))
        runners_of_both = LocalRunner(settings_of()), RunPodRunner(remote_settings(settings_of, endpoint.url))
        for runner in runners_of_both:
            await runner.start()
            stack.push_async_callback(runner.close)
        yield runners_of_both
    logging.getLogger().handlers[:] = before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CASES)
async def test_both_give_the_same(both: tuple[Runner, Runner], name: str) -> None:
    fields = dict(CASES[name])
    if fields.get("speaker_samples") == "one":
        voice = "data:audio/wav;base64," + base64.b64encode(sound()).decode()
        fields["speaker_samples"] = [{"name": "Dr. Ada  L.", "audio": voice}]
    request = parse({"audio": "upload", **fields})
    here, there = [replace(await do(runner, **fields), timings={}) for runner in both]
    assert answer(request, there) == answer(request, here)
    assert there.turns == here.turns
    assert there.warnings == here.warnings == ("of this recording",)
    if name in ("text", "debug"):  # that have words here, where nobody asks for them
        here = replace(here, segments=tuple(replace(segment, words=()) for segment in here.segments))
    assert there.segments == here.segments
    formats = ["rttm"] if request.task == "diarization" else ["srt", "vtt", "txt", "tsv"]
    assert [written(request, there, name) for name in formats] == [written(request, here, name) for name in formats]


async def test_the_timings_of_a_debugged_job_come_along(made: Runner) -> None:
    told = answer(parse({"audio": "upload", "debug": True}), await do(made, debug=True))["logs"]
    assert f"stage transcribe took {TRANSCRIPT.timings['transcribe']:.3f} s" in told


# The one of this machine


def engines() -> int:
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return sum("spawn_main" in command for command in commands)


@pytest.mark.parametrize("lazy", [True, False])
async def test_the_engine_starts_when_it_is_told_to(settings_of: SettingsOf, lazy: bool) -> None:
    others = engines()
    runner = LocalRunner(settings_of(lazy_load_models=lazy))
    await runner.close()
    await runner.start()
    assert engines() - others == (0 if lazy else 1)
    assert (await do(runner)).language == "en"
    await runner.close()
    assert engines() == others


async def test_a_default_that_does_not_exist_is_told_at_the_start(settings_of: SettingsOf) -> None:
    with pytest.raises(SettingsError, match="DEFAULT_MODEL"):
        await LocalRunner(settings_of(default_model="no-such-model")).start()


# RunPod's


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
    ("run", {"status": 413}, TooLargeError, "URL"),
    ("run", {"status": 400, "text": f"bad {KEY} input"}, ServiceError, r"with 400: bad \*\*\* input$"),
    ("run", {"status": 400, "text": "x" * 495 + KEY}, ServiceError, r"with 400: x{495}\*\*\*$"),
    ("run", {"status": 400, "text": "x" * 5000}, ServiceError, r"with 400: x{500}…$"),
    ("run", {"text": "{}"}, ServiceError, "no id"),
    ("run", {"text": '{"id": "../other"}'}, ServiceError, "no id"),
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


FOR_THE_OPERATOR = [(401, "RUNPOD_API_KEY"), (403, "RUNPOD_API_KEY"), (404, "RUNPOD_ENDPOINT_ID")]


@pytest.mark.parametrize(("status", "variable"), FOR_THE_OPERATOR)
async def test_the_operator_s_mistakes_are_told_to_the_operator(
    remote: RunPodRunner, endpoint: FakeEndpoint, caplog: pytest.LogCaptureFixture, status: int, variable: str
) -> None:
    endpoint.faults.append(("run", web.Response(status=status)))
    with pytest.raises(ServiceError) as failed:
        await do(remote)
    assert failed.value.sentence == "the server's access to its endpoint was refused; its log says more"
    assert endpoint.calls == ["run"]
    assert variable in caplog.text


async def test_a_wrong_key_is_told(
    endpoint: FakeEndpoint, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
) -> None:
    runner = RunPodRunner(remote_settings(settings_of, endpoint.url, runpod_api_key=SecretStr("other")))
    await runner.start()
    with pytest.raises(ServiceError, match="access to its endpoint"):
        await do(runner)
    await runner.close()
    assert "RUNPOD_API_KEY" in caplog.text


async def test_any_success_of_run_is_one(remote: RunPodRunner, endpoint: FakeEndpoint) -> None:
    endpoint.run_status = 202
    assert (await do(remote)).language == "en"


async def test_who_cannot_be_reached_is_given_up(
    remote: RunPodRunner, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_runner, "POST_PATIENCE_S", 0.1)
    endpoint.faults += [("run", None)] * 1000
    with pytest.raises(ServiceError, match="cannot be reached"):
        await do(remote)


async def test_a_job_under_way_is_not_given_up_for_minutes() -> None:
    assert runpod_runner.POLL_PATIENCE_S >= 300


async def test_a_pause_that_is_asked_for_is_made(
    remote: RunPodRunner, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_runner, "LONGEST_PAUSE_S", 5)
    endpoint.faults.append(("run", web.Response(status=429, headers={"Retry-After": "1"})))
    begin = time.monotonic()
    await do(remote)
    assert time.monotonic() - begin >= 1


NO_STATUS: list[dict[str, Any]] = [{}, {"error": "no"}, {"status": "in_progress"}, {"status": "POLISHING"}]


@pytest.mark.parametrize("told", NO_STATUS)
async def test_an_answer_without_a_status_is_a_fault_in_passing(
    remote: RunPodRunner, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    endpoint.faults += [("status", web.json_response(told)) for _ in range(3)]
    assert (await do(remote)).language == "en"
    assert endpoint.faults == []
    monkeypatch.setattr(runpod_runner, "POLL_PATIENCE_S", 0.1)
    endpoint.faults += [("status", web.json_response(told)) for _ in range(100)]
    with pytest.raises(ServiceError, match="without a status"):
        await do(remote)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_one_look_that_is_refused_costs_nothing(
    remote: RunPodRunner, endpoint: FakeEndpoint, status: int
) -> None:
    endpoint.faults += [("status", web.Response(status=status)) for _ in range(runpod_runner.LOOKS - 1)]
    assert (await do(remote)).language == "en"
    assert endpoint.faults == []


GIVEN_UP = [
    (401, "^service_failed: .* access to its endpoint"),
    (404, "^engine_failed: .* send it again$"),
    (302, "^service_failed: .* with 302"),
    (502, "^service_failed: .* answers 502"),
]


@pytest.mark.parametrize("fate", GIVEN_UP)
async def test_a_job_that_is_given_up_is_cancelled(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, monkeypatch: pytest.MonkeyPatch, fate: Any
) -> None:
    status, told = fate
    worked.hold = True
    monkeypatch.setattr(runpod_runner, "POLL_PATIENCE_S", 0.1)
    endpoint.faults += [("status", web.Response(status=status)) for _ in range(100)]
    with pytest.raises(HansardError, match=told):
        await do(remote)
    assert endpoint.jobs["remote-0"].told["status"] == "CANCELLED"
    assert worked.stopped == 1


ENDED = [
    ({"status": "TIMED_OUT", "error": "job timed out"}, ServiceError, "execution timeout"),
    ({"status": "CANCELLED"}, CancelledError, "at the endpoint"),
    ({"status": "FAILED"}, ServiceError, "does not say why"),
    ({"status": "FAILED", "error": "out_of_memory: too long"}, OutOfMemoryError, "^out_of_memory: too long$"),
    ({"status": "FAILED", "output": {"error": "bad_audio: no"}}, AudioError, "^bad_audio: no$"),
    ({"status": "FAILED", "error": {"code": "bad_audio", "message": "no"}}, AudioError, "^bad_audio: no$"),
    ({"status": "FAILED", "error": f"it broke with {KEY}"}, ServiceError, r"it broke with \*\*\*$"),
    ({"status": "FAILED", "error": f"bad_audio: {KEY}"}, AudioError, r"^bad_audio: \*\*\*$"),
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
    assert "cancel" not in endpoint.calls


CRASH = json.dumps({"error_type": "<class 'X'>", "error_message": "it broke", "error_traceback": "File /secret"})
WORDS = [
    (CRASH, "service_failed", "the endpoint's worker failed: it broke"),
    ("no_such_code: x", "service_failed", "the endpoint's worker failed: no_such_code: x"),
    ({"code": 7}, "service_failed", 'the endpoint\'s worker failed: {"code": 7}'),
    ("bad_audio: one\ntwo: three", "bad_audio", "one\ntwo: three"),
    ("bad_audio: " + "x" * 10_000, "bad_audio", "x" * 500 + "…"),
    ({"code": "bad_audio", "message": "no"}, "bad_audio", "no"),
    (
        {"code": "other", "message": "no"},
        "service_failed",
        'the endpoint\'s worker failed: {"code": "other", "message": "no"}',
    ),
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
    assert [warning for warning in found.warnings if "packed" in warning] == []
    assert found.warnings[0] == TRANSCRIPT.warnings[0]


async def test_transcriptions_and_bare_turns_are_read() -> None:
    for task, key in (("transcription", "transcriptions"), ("diarization", "segments")):
        answer = render.to_result(TRANSCRIPT, task=task)
        assert key in answer
        found = transcript(answer)
        assert [segment.speaker for segment in found.segments] == ["SPEAKER_00", "SPEAKER_01"]
        assert [bool(segment.text) for segment in found.segments] == [task == "transcription"] * 2


async def test_the_worker_is_asked_for_what_its_answer_cannot_do_without() -> None:
    def asked(**fields: Any) -> dict[str, Any]:
        return job_input(parse({"audio": "https://example.com/a.mp3", **fields}), Settings())

    assert asked() == {"audio": "https://example.com/a.mp3", "align_output": False, "output_formats": []}
    segments = [{"start": 0, "end": 1, "speaker": "A"}]
    for fields in (
        {"output_formats": ["srt"]},
        {"output_formats": ["txt", "vtt"]},
        {"diarization": True},
        {"task": "transcription"},
        {"task": "transcription", "segments": segments, "output_formats": ["vtt"]},
    ):
        assert asked(**fields)["align_output"] is True
    for fields in (
        {"output_formats": ["txt"]},
        {"task": "translate", "output_formats": ["srt"]},
        {"task": "translate", "diarization": True},
        {"task": "diarization"},
        {"task": "transcription", "segments": segments},
    ):
        assert asked(**fields)["align_output"] is False
    assert asked(channels="separate")["output_formats"] == ["rttm"]
    assert asked(task="transcription", segments=segments)["output_formats"] == ["rttm"]
    assert asked(hf_token="hf_secretsecret")["huggingface_access_token"] == "hf_secretsecret"
    for fields in ({"task": "diarization"}, {"task": "transcription"}, {"diarization": True}, {"vad_onset": 0.2}):
        parse(asked(**fields))


async def test_the_server_s_own_models_are_asked_for(settings_of: SettingsOf) -> None:
    ours = settings_of(default_model="large-v3", diarization_model="embedded")

    def model(settings: Settings, **fields: Any) -> object:
        return job_input(parse({"audio": "https://example.com/a.mp3", **fields}), settings).get("model")

    assert model(ours) == model(ours, task="translate") == model(ours, diarization=True) == "large-v3"
    assert model(ours, task="diarization") == "embedded"
    assert model(ours, model="turbo") == "turbo"
    assert model(settings_of()) is model(settings_of(), task="diarization") is None
    runner = RunPodRunner(remote_settings(settings_of, "http://127.0.0.1/v2", default_model="large-v3"))
    plan = await runner.check(parse({"audio": "https://example.com/a.mp3"}))
    assert plan.model == "large-v3"


async def test_answers_of_other_hands_are_read(remote: RunPodRunner, worked: Worked) -> None:
    worked.answer = {**worked.answer, "error": None}
    worked.answer["segments"] = [{**segment, "text": None} for segment in worked.answer["segments"]]
    assert [segment.text for segment in (await do(remote)).segments] == ["", ""]
    for change in (
        {"rttm": "SPEAKER recording 1 0.5"},
        {"segments_gz": "AAAA"},
        {"segments_gz": base64.b64encode(b"\x1f\x8b\x08" + bytes(40)).decode()},
        {"warnings": None},
        {"segments": [3]},
    ):
        with pytest.raises(ServiceError, match="is no transcript"):
            transcript({**worked.answer, **change})


async def test_labels_with_spaces_are_restored() -> None:
    named = replace(
        TRANSCRIPT,
        turns=tuple(replace(turn, speaker="Dr. Ada  L.") for turn in TRANSCRIPT.turns),
        segments=tuple(replace(segment, speaker="Dr. Ada  L.") for segment in TRANSCRIPT.segments),
    )
    answer = render.to_result(named, words=True) | {"rttm": render.FORMATS["rttm"](named)}
    assert "Dr._Ada_L." in answer["rttm"]
    assert transcript(answer).turns == named.turns


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


PROGRESS: list[tuple[dict[str, Any], str, int, list[str]]] = [
    ({"diarization": True}, "diarize", 40, ["fetch", "decode"]),
    ({"diarization": True}, "transcribe", 40, ["fetch", "decode"]),
    ({"diarization": True}, "align", 40, ["fetch", "decode", "transcribe"]),
    ({"diarization": True}, "assign", 40, ["fetch", "decode", "transcribe", "align", "diarize"]),
    ({"task": "transcription"}, "transcribe", 40, ["fetch", "decode", "diarize"]),
    ({}, "transcribe", 40, ["fetch", "decode"]),
    ({}, "load", 40, []),
]


@pytest.mark.parametrize(("fields", "stage", "percent", "over"), PROGRESS)
async def test_stages_before_the_one_that_is_seen_are_over(
    remote: RunPodRunner, endpoint: FakeEndpoint, fields: dict[str, Any], stage: str, percent: int, over: list[str]
) -> None:
    output = {"stage": stage, "stage_percent": percent, "percent": 50}
    endpoint.faults += [
        ("status", web.json_response({"status": status, "output": output})) for status in ("IN_QUEUE", "IN_PROGRESS")
    ]
    told: list[tuple[str, float]] = []
    await do(remote, report=lambda *state: told.append(state), **fields)
    assert told == [*((stage, 1.0) for stage in over), (stage, percent / 100)]


async def test_a_job_that_waits_there_reports_nothing(remote: RunPodRunner, endpoint: FakeEndpoint) -> None:
    stale = {"status": "IN_QUEUE", "output": {"stage": "transcribe", "stage_percent": 90}}
    endpoint.faults.append(("status", web.json_response(stale)))
    told: list[str] = []
    await do(remote, report=lambda stage, _: told.append(stage))
    assert told == []


# A job and two servers


async def another(runner: RunPodRunner) -> RunPodRunner:
    """The runner of the next server."""
    new = RunPodRunner(runner._settings)
    await new.start()
    return new


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def notes(settings_of: SettingsOf) -> list[str]:
    return sorted(path.name for path in (settings_of().state_dir / "remote").glob("*"))


async def left(runner: RunPodRunner, settings_of: SettingsOf, **fields: Any) -> None:
    """A job that the server leaves to the next one in mid-work."""
    task = asyncio.create_task(do(runner, **fields))
    await until(lambda: notes(settings_of) == ["job"])
    runner.release()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_next_server_takes_a_job_up(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf, tmp_path: Path
) -> None:
    worked.hold = True
    recording = tmp_path / "a.wav"
    recording.write_bytes(sound())
    await left(remote, settings_of, recording=recording)
    assert endpoint.jobs["remote-0"].told["status"] == "IN_PROGRESS"
    assert "cancel" not in endpoint.calls
    worked.hold = False
    new = await another(remote)
    assert replace(await do(new, recording=recording), turns=()) == replace(TRANSCRIPT, turns=())
    assert len(endpoint.jobs) == 1
    assert notes(settings_of) == []
    await new.close()


async def test_a_job_that_the_next_server_never_runs_is_cancelled_there(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf
) -> None:
    worked.hold = True
    await left(remote, settings_of)
    new = await another(remote)
    await new.forget("job")
    assert endpoint.jobs["remote-0"].told["status"] == "CANCELLED"
    assert notes(settings_of) == []
    await new.forget("job that nobody knows")
    await new.close()


async def test_a_job_that_is_being_posted_is_left_too(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf
) -> None:
    worked.hold, endpoint.run_pause_s = True, 0.3
    task = asyncio.create_task(do(remote))
    await until(lambda: endpoint.jobs)
    remote.release()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert notes(settings_of) == ["job"]
    assert endpoint.jobs["remote-0"].told["status"] == "IN_PROGRESS"


async def test_a_job_that_the_endpoint_forgot_is_sent_anew(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf
) -> None:
    worked.hold = True
    await left(remote, settings_of)
    endpoint.jobs["forgotten"] = endpoint.jobs.pop("remote-0")
    worked.hold = False
    new = await another(remote)
    assert (await do(new)).language == "en"
    assert len(endpoint.jobs) == 2
    assert notes(settings_of) == []
    await new.close()


async def test_a_job_taken_up_can_be_cancelled(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf
) -> None:
    worked.hold = True
    await left(remote, settings_of)
    new = await another(remote)
    calls = len(endpoint.calls)
    task = asyncio.create_task(do(new))
    await until(lambda: len(endpoint.calls) > calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [job.told["status"] for job in endpoint.jobs.values()] == ["CANCELLED"]
    assert notes(settings_of) == []
    await new.close()


async def test_what_nobody_can_take_up_is_cancelled(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf
) -> None:
    worked.hold = True
    await left(remote, settings_of, hf_token="hf_secretsecret")
    assert endpoint.jobs["remote-0"].told["status"] == "CANCELLED"
    assert notes(settings_of) == []


@pytest.mark.parametrize("order", ["done", "failed", "cancelled", "given up"])
async def test_no_note_is_left_of_a_job_that_has_ended(
    remote: RunPodRunner, endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf, order: str
) -> None:
    worked.hold = True
    task = asyncio.create_task(do(remote))
    await until(lambda: notes(settings_of) == ["job"])
    if order == "failed":
        worked.answer = {"error": "bad_audio: no"}
    if order == "given up":
        endpoint.faults += [("status", web.Response(status=302))] * 2
    if order == "cancelled":
        task.cancel()
    if order != "given up":
        worked.hold = False
    await asyncio.wait([task])
    assert task.cancelled() or (task.exception() is None) is (order == "done")
    assert notes(settings_of) == []


async def test_old_notes_and_those_that_cannot_be_read(
    remote: RunPodRunner, endpoint: FakeEndpoint, settings_of: SettingsOf
) -> None:
    folder = settings_of().state_dir / "remote"
    folder.mkdir(parents=True)
    for name, told in (("job", '{"remote": "../x", "warnings": [], "stored": false}'), ("old", "{}"), ("other", "")):
        (folder / name).write_text(told)
    os.utime(folder / "old", (0, 0))
    new = await another(remote)
    assert notes(settings_of) == ["job", "other"]
    assert (await do(new)).language == "en"
    assert len(endpoint.jobs) == 1
    await new.close()


# The whole server


async def test_delete_stops_the_job_at_the_endpoint(
    serve: Callable[..., Any], endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf
) -> None:
    worked.hold = True
    server = await asyncio.to_thread(serve, runner=None, **settings_for(endpoint))
    job = await asyncio.to_thread(server.http.post, "/v1/jobs", files={"file": ("a.wav", sound())})
    await until(lambda: worked.asked)
    gone = await asyncio.to_thread(server.http.delete, f"/v1/jobs/{job.json()['id']}")
    assert gone.status_code == 204
    assert endpoint.jobs["remote-0"].told["status"] == "CANCELLED"
    assert notes(settings_of) == []
    await asyncio.to_thread(server.stop)


async def test_a_restart_pays_once(
    serve: Callable[..., Any], endpoint: FakeEndpoint, worked: Worked, settings_of: SettingsOf
) -> None:
    worked.hold = True
    first = await asyncio.to_thread(serve, runner=None, **settings_for(endpoint))
    job = await asyncio.to_thread(first.http.post, "/v1/jobs", files={"file": ("a.wav", sound())})
    await until(lambda: notes(settings_of))
    await asyncio.to_thread(first.stop)
    assert endpoint.jobs["remote-0"].told["status"] == "IN_PROGRESS"
    second = await asyncio.to_thread(serve, runner=None, **settings_for(endpoint))
    worked.hold = False
    where = f"/v1/jobs/{job.json()['id']}"
    while (await asyncio.to_thread(second.http.get, where)).json()["state"] != "completed":
        await asyncio.sleep(0.02)
    found = (await asyncio.to_thread(second.http.get, f"{where}/result")).json()
    assert [segment["text"] for segment in found["segments"]] == ["good morning", "hello"]
    assert list(endpoint.jobs) == ["remote-0"]
    assert notes(settings_of) == []
    await asyncio.to_thread(second.stop)


def settings_for(endpoint: FakeEndpoint) -> dict[str, Any]:
    return remote_settings(dict, endpoint.url)  # type: ignore[arg-type, return-value]


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


async def test_what_a_recording_cost_to_send_is_told(
    remote: RunPodRunner, worked: Worked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*given: Any, **more: Any) -> Audio:
        return replace(runpod_inline_decode(*given, **more), warnings=("of the decoder",))

    runpod_inline_decode = runpod_inline.decode
    monkeypatch.setattr(runpod_inline, "decode", decode)
    monkeypatch.setattr(runpod_inline, "LIMIT", 250_000)
    recording = tmp_path / "a.wav"
    soundfile.write(recording, np.zeros(10 * SAMPLE_RATE, np.int16), SAMPLE_RATE)
    found = await do(remote, recording=recording)
    assert worked.asked[0]["audio"].startswith("data:audio/flac")
    first, second, third = found.warnings
    assert (first, third) == ("of the decoder", *TRANSCRIPT.warnings)
    assert "sent to the endpoint as FLAC" in second


async def test_what_it_cost_to_send_is_told_by_the_next_server(
    remote: RunPodRunner, worked: Worked, settings_of: SettingsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_inline, "LIMIT", 250_000)
    recording = tmp_path / "a.wav"
    soundfile.write(recording, np.zeros(10 * SAMPLE_RATE, np.int16), SAMPLE_RATE)
    worked.hold = True
    await left(remote, settings_of, recording=recording)
    worked.hold = False
    new = await another(remote)
    assert "sent to the endpoint as FLAC" in (await do(new, recording=recording)).warnings[0]
    await new.close()


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
