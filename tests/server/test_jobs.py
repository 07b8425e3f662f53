"""The job core: whatever callers, runners and restarts do, each job ends once, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fake_runner import PLAN, TRANSCRIPT, FakeRunner, Play
from submissions import SOUND, asked, opened, rename, state, until, uploads

from hansard.errors import (
    AudioError,
    CancelledError,
    EngineError,
    HansardError,
    JobMissingError,
    NotAudioError,
    QueueFullError,
    RequestError,
    SettingsError,
)
from hansard.request import parse
from hansard.server import jobs, ledger
from hansard.server.job import Job, Submission
from hansard.server.jobs import JobCore
from hansard.server.store import FILE, Store
from hansard.settings import Settings
from places import ROOT

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


@pytest.fixture
def settings(settings_of: Callable[..., Settings]) -> Settings:
    return settings_of(max_queue=3)


@pytest_asyncio.fixture
async def core(settings: Settings, runner: FakeRunner) -> AsyncIterator[JobCore]:
    async with opened(settings, runner) as made:
        yield made


# A job's life


async def test_a_job_is_done_and_its_result_is_there(core: JobCore, runner: FakeRunner) -> None:
    job = await core.submit(asked(core, metadata={"n": 1}))
    assert job.state == "queued"
    done = await core.wait(job.id)
    assert (done.state, done.percent, done.runs, done.error) == ("completed", 100.0, 1, None)
    assert done.created <= done.started <= done.finished  # type: ignore[operator]
    assert done.submission.metadata == {"n": 1}
    assert core.result(job.id) == TRANSCRIPT
    assert [(call.job_id, call.content) for call in runner.calls] == [(job.id, SOUND)]
    assert uploads(core) == []


async def test_a_result_outlives_the_few_in_memory(core: JobCore) -> None:
    ids = []
    for _ in range(ledger.KEPT + 1):
        ids.append((await core.submit(asked())).id)
        await core.wait(ids[-1])
    assert all(core.result(job_id) == TRANSCRIPT for job_id in ids)


FAILURES = [
    (AudioError("this recording cannot be used"), ("bad_audio", "this recording cannot be used")),
    (ValueError("/a/path/of/the/machine"), None),
    (asyncio.CancelledError(), ("engine_failed", "the job was stopped before it was done; send it again")),
]


@pytest.mark.parametrize(("error", "told"), FAILURES)
async def test_a_failure_is_told_and_the_next_job_is_done(
    core: JobCore, runner: FakeRunner, error: BaseException, told: tuple[str, str] | None
) -> None:
    runner.plays.append(Play(error))
    bad, good = await core.submit(asked(core)), await core.submit(asked(core))
    failed = await core.wait(bad.id)
    assert failed.state == "failed"
    expected = told or ("internal", f"this is our mistake; the server's log has the details under job {bad.id}")
    assert failed.error == expected
    with pytest.raises(HansardError) as raised:
        core.result(bad.id)
    assert (raised.value.code, raised.value.sentence) == expected
    assert (await core.wait(good.id)).state == "completed"
    assert uploads(core) == []


async def test_a_job_that_is_refused_never_reaches_the_engine(core: JobCore, runner: FakeRunner) -> None:
    """Neither one that is refused when it is taken, nor one that cannot be done any more when its turn comes."""
    runner.refuses += [RequestError("model 'x' is not known"), None, RequestError("model 'y' is gone")]
    with pytest.raises(RequestError, match="'x' is not known"):
        await core.submit(asked(core))
    job = await core.submit(asked(core))
    assert (await core.wait(job.id)).error == ("invalid_request", "model 'y' is gone")
    assert (runner.calls, uploads(core)) == ([], [])


async def test_jobs_run_in_their_order_and_so_many_at_once(settings: Settings) -> None:
    runner = FakeRunner(at_once=2)
    gates = [runner.gated() for _ in range(3)]
    async with opened(settings, runner) as core:
        ids = [(await core.submit(asked())).id for _ in range(3)]
        await until(lambda: len(runner.calls) == 2)
        assert (core.running, core.waiting, core.position(ids[2]), core.position(ids[0])) == (2, 1, 0, None)
        begun = [core.get(job_id).started or 0 for job_id in ids[:2]]
        assert begun == sorted(begun)
        reached = [call.job_id for call in runner.calls]  # each writes its beginning in a thread, so either comes first
        assert sorted(reached) == sorted(ids[:2])
        gates[1].set()
        assert (await core.wait(reached[1])).state == "completed"
        await until(lambda: len(runner.calls) == 3)
        assert runner.calls[2].job_id == ids[2]
        for gate in gates:
            gate.set()
        for job_id in ids:
            await core.wait(job_id)


# Progress


async def test_progress_has_a_stage_a_percent_and_an_eta(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated(reports=(("fetch", 1.0), ("decode", 1.0), ("transcribe", 0.5)))
    job = await core.submit(asked())
    await until(lambda: core.get(job.id).stage == "transcribe")
    now = core.get(job.id)
    shares = PLAN.stages
    expected = int(100 * (shares["fetch"] + shares["decode"] + 0.5 * shares["transcribe"]) / sum(shares.values()))
    assert (now.stage_percent, now.percent) == (50, expected)
    assert now.started is not None
    left = (100 - expected) / expected
    assert now.eta_s(now.started + 10.0) == pytest.approx(10.0 * left)
    gate.set()
    done = await core.wait(job.id)
    assert done.eta_s(time.time()) is None


async def test_there_is_no_eta_where_it_would_be_a_guess() -> None:
    job = Job("a", asked(), "running", 1.0, 1.0, percent=4.0)
    assert job.eta_s(9.0) is None
    assert replace(job, percent=50.0, stage="transcribe").eta_s(9.0) == 8.0
    assert replace(job, percent=18.0, stage="decode").eta_s(9.0) is None, "an engine may still be starting"
    assert replace(job, percent=50.0, state="queued").eta_s(9.0) is None


async def test_changes_end_with_the_end_and_never_fall(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated(reports=tuple(("transcribe", step / 10) for step in range(11)))
    job = await core.submit(asked())
    seen = []

    async def watch() -> None:
        async for now in core.changes(job.id):
            seen.append(now)
            if now.stage_percent == 100:
                gate.set()

    await watch()
    assert seen[0].state == "queued"
    assert seen[-1].state == "completed"
    percents = [now.percent for now in seen]
    assert percents == sorted(percents)
    assert [now async for now in core.changes(job.id)] == [seen[-1]]


async def test_watchers_of_a_deleted_job_see_its_end(core: JobCore, runner: FakeRunner) -> None:
    runner.gated()
    job = await core.submit(asked(core))
    watching = [asyncio.create_task(core.wait(job.id)) for _ in range(3)]
    await until(lambda: bool(runner.calls))
    await core.delete(job.id)
    assert {(await task).state for task in watching} == {"cancelled"}
    with pytest.raises(JobMissingError):
        core.get(job.id)
    assert core.list() == []
    assert uploads(core) == []


# The queue's bound


async def test_a_full_queue_refuses_with_a_time_to_come_again(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated()
    running = await core.submit(asked())
    await state(core, running, "running")
    ids = [(await core.submit(asked(core))).id for _ in range(3)]
    before = uploads(core)
    with pytest.raises(QueueFullError) as full:
        await core.submit(asked(core))
    assert 5 <= full.value.retry_after_s <= 60
    assert uploads(core) == before
    gate.set()
    for job_id in ids:
        await core.wait(job_id)
    assert (await core.submit(asked())).state == "queued"


# The same job


async def test_the_same_work_in_flight_is_one_job(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated()
    first = await core.submit(asked(core, digest="d", awaited=True))
    await state(core, first, "running")
    again = await core.submit(asked(core, digest="d", awaited=True))
    assert again.id == first.id
    assert uploads(core) == [first.submission.recording.parent.name]  # type: ignore[union-attr]
    gate.set()
    await core.wait(first.id)
    assert (await core.submit(asked(core, digest="d", awaited=True))).state == "completed", "nobody heard it yet"
    core.heard(first.id)
    new = await core.submit(asked(core, digest="d", awaited=True))
    assert new.id != first.id
    await core.wait(new.id)
    assert len(runner.calls) == 2


OTHERS = [{"owner": "you"}, {"digest": "e"}, {"digest": ""}, {"awaited": True}, {"webhook": "https://a.example/"}]


@pytest.mark.parametrize("other", OTHERS)
async def test_what_differs_is_another_job(core: JobCore, runner: FakeRunner, other: dict[str, Any]) -> None:
    runner.gated()
    first = await core.submit(asked(owner="me", digest="d"))
    assert (await core.submit(asked(**{"owner": "me", "digest": "d"} | other))).id != first.id


async def test_a_failure_that_nobody_heard_is_told_once_and_then_tried_again(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated(AudioError("no"))
    first = await core.submit(asked(digest="d", awaited=True))
    gate.set()
    await core.wait(first.id)
    told = await core.submit(asked(digest="d", awaited=True))
    assert (told.id, told.state) == (first.id, "failed")
    again = await core.submit(asked(digest="d", awaited=True))
    assert again.id != first.id
    assert (await core.wait(again.id)).state == "completed"


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_failure_that_was_told_is_tried_again(core: JobCore, runner: FakeRunner, awaited: bool) -> None:
    gate = runner.gated(AudioError("no"))
    first = await core.submit(asked(digest="d", awaited=awaited))
    with core.awaiting(first.id):
        gate.set()
        await core.wait(first.id)
    if awaited:  # a door says so, once the answer is on its way: until then its caller may have to come again
        core.heard(first.id)
    assert (await core.submit(asked(digest="d", awaited=awaited))).id != first.id


async def test_a_job_that_is_being_stopped_is_not_given_to_a_new_caller(core: JobCore, runner: FakeRunner) -> None:
    runner.gated()
    first = await core.submit(asked(digest="d"))
    await state(core, first, "running")
    stopping = asyncio.create_task(core.cancel(first.id))
    await asyncio.sleep(0)
    second = await core.submit(asked(digest="d"))
    assert second.id != first.id
    assert (await stopping).state == "cancelled"
    assert (await core.wait(second.id)).state == "completed"


async def test_a_key_is_one_job_whatever_became_of_it(core: JobCore) -> None:
    first = await core.submit(asked(core, idempotency_key="k", digest="d"))
    await core.wait(first.id)
    core.heard(first.id)
    again = await core.submit(asked(core, idempotency_key="k", digest="d"))
    assert (again.id, again.state) == (first.id, "completed")
    with pytest.raises(RequestError, match="idempotency key"):
        await core.submit(asked(core, idempotency_key="k", digest="e"))
    assert (await core.submit(asked(idempotency_key="k", digest="e", owner="you"))).id != first.id
    assert uploads(core) == []


# Stopping


async def test_a_queued_job_can_be_cancelled(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated()
    first = await core.submit(asked())
    job = await core.submit(asked(core))
    ended = await core.cancel(job.id)
    assert (ended.state, ended.error) == ("cancelled", ("cancelled", "the job was cancelled"))
    assert uploads(core) == []
    gate.set()
    assert (await core.cancel(job.id)).finished == ended.finished
    assert (await core.wait(first.id)).state == "completed"
    assert (await core.wait((await core.submit(asked())).id)).state == "completed"
    assert job.id not in [call.job_id for call in runner.calls]


async def test_a_running_job_can_be_cancelled_and_the_engine_is_told(core: JobCore, runner: FakeRunner) -> None:
    runner.gated()
    job = await core.submit(asked(core))
    await until(lambda: bool(runner.calls))
    both = await asyncio.gather(core.cancel(job.id), core.cancel(job.id))
    assert [ended.state for ended in both] == ["cancelled", "cancelled"]
    assert runner.stopped == [job.id]
    assert uploads(core) == []
    with pytest.raises(CancelledError):
        core.result(job.id)


async def test_a_job_can_be_cancelled_before_its_task_has_begun(core: JobCore, runner: FakeRunner) -> None:
    """Its coroutine is then never entered."""
    job = await core.submit(asked(core))
    while core.get(job.id).state == "queued":
        await asyncio.sleep(0)
    assert (await core.cancel(job.id)).state == "cancelled"
    assert (await core.wait((await core.submit(asked())).id)).state == "completed"


async def test_a_finished_job_stays_as_it_is(core: JobCore) -> None:
    job = await core.submit(asked())
    await core.wait(job.id)
    assert (await core.cancel(job.id)).state == "completed"
    assert core.result(job.id) == TRANSCRIPT


async def test_awaited_work_ends_when_nobody_waits(
    core: JobCore, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ABANDONED_S", 0.05)
    runner.gated()
    job = await core.submit(asked(core, awaited=True))
    with core.awaiting(job.id), core.awaiting(job.id):
        await until(lambda: bool(runner.calls))
        await asyncio.sleep(0.2)
        assert core.get(job.id).state == "running"
    assert (await core.wait(job.id)).state == "cancelled"
    assert runner.stopped == [job.id]
    assert uploads(core) == []


async def test_awaited_work_that_nobody_ever_waited_for_ends(
    core: JobCore, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ABANDONED_S", 0.05)
    gate = runner.gated()
    kept = await core.submit(asked())
    left = await core.submit(asked(core, awaited=True))
    assert (await core.wait(left.id)).state == "cancelled"
    gate.set()
    assert (await core.wait(kept.id)).state == "completed"


async def test_who_comes_back_in_time_finds_the_job(
    core: JobCore, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = runner.gated()
    job = await core.submit(asked(digest="d", awaited=True))
    monkeypatch.setattr(jobs, "ABANDONED_S", 0.2)
    with core.awaiting(job.id):
        pass
    with core.awaiting((await core.submit(asked(digest="d", awaited=True))).id):
        await asyncio.sleep(0.5)
        gate.set()
        assert (await core.wait(job.id)).state == "completed"
    with core.awaiting(job.id), core.awaiting("no job"):
        pass


# Who may see what


async def test_owners_see_their_own_jobs(core: JobCore) -> None:
    mine = [(await core.submit(asked(owner="me"))).id for _ in range(3)]
    for job_id in mine:
        await core.wait(job_id, "me")
    assert [job.id for job in core.list("me", 2)] == mine[:0:-1]
    assert core.list("you") == []
    for forbidden in (core.get, core.result):
        with pytest.raises(JobMissingError):
            forbidden(mine[0], "you")
    for call in (core.cancel, core.delete, core.wait):
        with pytest.raises(JobMissingError):
            await call(mine[0], "you")
    assert len(core.list("me")) == 3


async def test_a_list_shows_jobs_as_they_are_now(core: JobCore, runner: FakeRunner) -> None:
    runner.gated(reports=(("transcribe", 1.0),))
    job = await core.submit(asked())
    await until(lambda: core.get(job.id).percent > 0)
    assert core.list() == [core.get(job.id)]


# Sound inside a request


async def test_sound_inside_a_request_becomes_a_file(core: JobCore, runner: FakeRunner, settings: Settings) -> None:
    packed = base64.b64encode(SOUND).decode()
    for audio in (packed, f"data:audio/wav;base64,{packed}"):
        job = await core.submit(Submission(parse({"audio": audio})))
        assert (await core.wait(job.id)).state == "completed"
        assert runner.calls[-1].content == SOUND
        assert runner.calls[-1].request.audio == "upload"
    written = b"".join(path.read_bytes() for path in settings.state_dir.glob(f"{FILE}*"))
    assert packed.encode() not in written
    assert uploads(core) == []


async def test_sound_that_is_none_is_refused_at_once(core: JobCore, runner: FakeRunner) -> None:
    page = base64.b64encode(b"<!doctype html><html></html>").decode()
    with pytest.raises(NotAudioError):
        await core.submit(Submission(parse({"audio": page})))
    with pytest.raises(RequestError):
        await core.submit(Submission(parse({"audio": "not base64!"})))
    assert uploads(core) == []
    assert core.list() == []


async def test_what_is_a_source_stays_one(core: JobCore, runner: FakeRunner) -> None:
    for audio in ("https://example.com/a.mp3", "file:///a.wav", "s3://bucket/key"):
        await core.wait((await core.submit(Submission(parse({"audio": audio})))).id)
        assert (runner.calls[-1].request.audio, runner.calls[-1].recording) == (audio, None)


# Restarts


async def test_a_restart_loses_nothing(settings: Settings) -> None:
    first = FakeRunner()
    async with opened(settings, first) as core:
        done = await core.submit(asked(core))
        await core.wait(done.id)
        first.gated()
        running, queued = await core.submit(asked(core)), await core.submit(asked(core))
        await until(lambda: len(first.calls) == 2)
    assert first.stopped == [running.id]
    second = FakeRunner()
    async with opened(settings, second) as core:
        assert core.result(done.id) == TRANSCRIPT
        assert (await core.wait(running.id)).runs == 1, "a server that was stopped in order costs no try"
        assert (await core.wait(queued.id)).runs == 1
        assert [(call.job_id, call.content) for call in second.calls] == [(running.id, SOUND), (queued.id, SOUND)]
        assert uploads(core) == []


async def test_a_job_may_be_stopped_with_its_server_any_number_of_times(settings: Settings) -> None:
    runner = FakeRunner()
    for run in range(4):
        gate = runner.gated()
        async with opened(settings, runner) as core:
            if run == 0:
                job = await core.submit(asked(core))
            await until(lambda: len(runner.calls) > run)  # noqa: B023 it is awaited here
            if run == 3:
                gate.set()
                done = await core.wait(job.id)
                assert (done.state, done.runs) == ("completed", 1)
    assert runner.released == 4


async def test_a_job_whose_server_was_killed_twice_fails(settings: Settings) -> None:
    runner, ended = FakeRunner(), list[Job]()
    runner.gated()
    async with opened(settings, runner) as core:
        job = await core.submit(asked(core))
        running = await state(core, job, "running")
    store = Store(settings.state_dir)
    store.update(replace(running, runs=2))  # as two that were killed leave it
    store.close()
    core = JobCore(settings, runner)
    core.on_end(ended.append)
    async with core:
        assert core.get(job.id).error == (
            "engine_failed",
            "the server was stopped twice while this job ran; send it again",
        )
        assert uploads(core) == []
    assert [job.state for job in ended] == ["failed"]


async def test_a_token_does_not_outlive_the_process(settings: Settings) -> None:
    runner = FakeRunner()
    runner.gated()
    async with opened(settings, runner) as core:
        blocking = await core.submit(asked())
        job = await core.submit(asked(core, fields={"hf_token": "hf_secretsecret"}))
        await until(lambda: bool(runner.calls))
    async with opened(settings, FakeRunner()) as core:
        failed = core.get(job.id)
        assert failed.state == "failed"
        assert "keeps no tokens" in failed.failure().sentence
        assert uploads(core) == []
        await core.wait(blocking.id)


async def test_a_recording_that_is_gone_fails_its_job(settings: Settings) -> None:
    runner = FakeRunner()
    runner.gated()
    async with opened(settings, runner) as core:
        await core.submit(asked())
        job = await core.submit(asked(core))
        await until(lambda: bool(runner.calls))
        job.submission.recording.unlink()  # type: ignore[union-attr]
    async with opened(settings, FakeRunner()) as core:
        assert "the recording is gone" in core.get(job.id).failure().sentence


async def test_abandoned_work_is_not_taken_up_for_long(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner()
    runner.gated()
    async with opened(settings, runner) as core:
        job = await core.submit(asked(core, awaited=True))
        await until(lambda: bool(runner.calls))
    monkeypatch.setattr(jobs, "ABANDONED_S", 0.05)
    runner = FakeRunner()
    runner.gated()
    async with opened(settings, runner) as core:
        assert (await core.wait(job.id)).state == "cancelled"


async def test_the_same_work_is_found_after_a_restart(settings: Settings) -> None:
    async with opened(settings, FakeRunner()) as core:
        job = await core.submit(asked(digest="d", awaited=True))
        await core.wait(job.id)
    async with opened(settings, FakeRunner()) as core:
        assert (await core.submit(asked(digest="d", awaited=True))).id == job.id


async def test_uploads_of_nobody_are_removed_at_the_start(settings: Settings) -> None:
    for name in ("folder", "file"):
        (settings.state_dir / "uploads").mkdir(parents=True, exist_ok=True)
        left = settings.state_dir / "uploads" / name
        left.mkdir() if name == "folder" else left.touch()
    async with opened(settings, FakeRunner()) as core:
        assert uploads(core) == []


KILLED = """
import asyncio, os, sys
sys.path[:0] = {path!r}
from fake_runner import FakeRunner
from submissions import asked
from hansard.server.jobs import JobCore
from hansard.settings import Settings
from pathlib import Path

async def main():
    runner = FakeRunner()
    async with JobCore(Settings(state_dir=Path({state!r})), runner) as core:
        done = await core.submit(asked(core))
        await core.wait(done.id)
        runner.gated()
        running = await core.submit(asked(core))
        while len(runner.calls) < 2:
            await asyncio.sleep(0.01)
        print(done.id, running.id, flush=True)
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_a_killed_server_loses_nothing_either(settings: Settings, runner: FakeRunner) -> None:
    path = [str(ROOT / "src"), str(ROOT / "tests"), str(Path(__file__).parent)]
    program = KILLED.format(path=path, state=str(settings.state_dir))
    made = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True)
    assert made.returncode == -9, made.stderr
    done, running = made.stdout.split()
    async with opened(settings, runner) as core:
        assert core.result(done) == TRANSCRIPT
        assert (await core.wait(running)).runs == 2
        assert runner.calls[0].content == SOUND


# What is kept, and for how long


async def test_results_expire(settings: Settings, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SWEEP_S", 0.01)
    short = settings.model_copy(update={"result_ttl_hours": 0.2 / 3600})
    runner.plays.append(Play())
    runner.gated()
    async with opened(short, runner) as core:
        done, running = await core.submit(asked()), await core.submit(asked())
        await core.wait(done.id)
        await until(lambda: [job.id for job in core.list()] == [running.id])
        with pytest.raises(JobMissingError):
            core.result(done.id)


async def test_a_result_stays_for_its_time(settings: Settings, runner: FakeRunner) -> None:
    async with opened(settings, runner) as core:
        done = await core.submit(asked())
        await core.wait(done.id)
    old = Store(settings.state_dir)
    old.update(replace(old.get(done.id), finished=time.time() - 23 * 3600))  # type: ignore[type-var]
    old.close()
    async with opened(settings, FakeRunner()) as core:
        await asyncio.sleep(0.1)
        assert core.result(done.id) == TRANSCRIPT


async def test_a_second_server_on_the_folder_is_refused(core: JobCore, settings: Settings) -> None:
    with pytest.raises(SettingsError, match="another server"):
        async with JobCore(settings, FakeRunner()):
            pass


async def test_a_runner_that_cannot_start_lets_the_folder_go(settings: Settings) -> None:
    class Unable(FakeRunner):
        async def start(self) -> None:
            raise SettingsError("DEFAULT_MODEL: no such model")

    for _ in range(2):
        with pytest.raises(SettingsError, match="DEFAULT_MODEL"):
            async with JobCore(settings, Unable()):
                pass


async def test_nothing_is_made_before_it_is_entered(settings: Settings, runner: FakeRunner) -> None:
    JobCore(settings, runner)
    assert not settings.state_dir.exists()


# What goes wrong around it


async def test_hooks_hear_of_every_end_once_and_their_errors_cost_nothing(core: JobCore, runner: FakeRunner) -> None:
    seen: list[str] = []

    def broken(job: Job) -> None:
        raise ValueError(job.id)

    core.on_end(broken)
    core.on_end(lambda job: seen.append(job.state))
    runner.plays += [Play(), Play(EngineError("no"))]
    gate = runner.gated()
    ids = [(await core.submit(asked())).id for _ in range(2)]
    for job_id in ids:
        await core.wait(job_id)
    last = await core.submit(asked())
    await core.cancel(last.id)
    gate.set()
    assert seen == ["completed", "failed", "cancelled"]
    assert (await core.wait((await core.submit(asked())).id)).state == "completed"


async def test_a_disk_that_fails_loses_no_work(core: JobCore, runner: FakeRunner, settings: Settings) -> None:
    gate = runner.gated()
    job = await core.submit(asked(core))
    await until(lambda: bool(runner.calls))
    rename(settings, "jobs", "away")
    gate.set()
    with pytest.raises(EngineError, match="STATE_DIR"):
        await core.submit(asked(core))
    assert core.get(job.id).state == "running"
    rename(settings, "away", "jobs")
    assert (await core.wait(job.id)).state == "completed"
    assert core.result(job.id) == TRANSCRIPT
    assert uploads(core) == []
    assert (await core.wait((await core.submit(asked())).id)).state == "completed"


async def test_an_end_that_could_not_be_written_is_written_later(
    settings: Settings, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SWEEP_S", 0.01)
    gate = runner.gated(AudioError("no"))
    async with opened(settings, runner) as core:
        job = await core.submit(asked())
        await until(lambda: bool(runner.calls))
        rename(settings, "jobs", "away")
        gate.set()
        await core.wait(job.id)
        rename(settings, "away", "jobs")
        await until(lambda: written_state(settings, job.id) == "failed")


def written_state(settings: Settings, job_id: str) -> str:
    db = sqlite3.connect(settings.state_dir / FILE)
    (row,) = db.execute("SELECT job FROM jobs WHERE id = ?", (job_id,)).fetchall()
    db.close()
    return str(json.loads(row[0])["state"])


async def test_who_leaves_in_mid_submission_leaves_nothing(core: JobCore, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansard.server import recordings

    begun, go_on = threading.Event(), threading.Event()

    def slow(source: str, folder: Path, *_: object) -> Path:
        begun.set()
        go_on.wait(20)
        return folder / "audio"

    monkeypatch.setattr(recordings, "fetch", slow)
    task = asyncio.create_task(core.submit(Submission(parse({"audio": "AAAA"}))))
    await until(begun.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert uploads(core) == []
    assert core.list() == []


async def test_only_what_lies_in_uploads_is_ever_removed(core: JobCore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "audio"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(SOUND)
    job = await core.submit(Submission(parse({"audio": "upload"}), elsewhere))
    await core.wait(job.id)
    assert elsewhere.read_bytes() == SOUND
    assert core.uploads.is_dir()
