"""The job core where something goes wrong at the wrong moment: no work is lost, nobody else waits for it."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from fake_runner import TRANSCRIPT, FakeRunner, Play
from submissions import SOUND, asked, opened, state, until, uploads

from hansard.errors import CancelledError, EngineError, JobMissingError, RequestError, ServiceError
from hansard.plan import Plan
from hansard.request import Request
from hansard.server import jobs
from hansard.server.job import Job
from hansard.server.jobs import JobCore
from hansard.server.live import limited
from hansard.server.store import FILE, Store
from hansard.settings import Settings
from hansard.shielded import to_the_end
from hansard.transcript import Segment

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

DATA = "data:audio/wav;base64," + base64.b64encode(SOUND).decode()


@pytest.fixture
def settings(settings_of: Callable[..., Settings]) -> Settings:
    return settings_of(max_queue=30)


@pytest_asyncio.fixture
async def core(settings: Settings, runner: FakeRunner) -> AsyncIterator[JobCore]:
    async with opened(settings, runner) as made:
        yield made


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that takes no result before this is set; `held.reached` is set when one was offered to it."""
    let_go, complete = threading.Event(), Store.complete
    let_go.reached = threading.Event()  # type: ignore[attr-defined]

    def slow(store: Store, *what: object) -> None:
        let_go.reached.set()  # type: ignore[attr-defined]
        assert let_go.wait(60)
        complete(store, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "complete", slow)
    return let_go


# While a result is written


async def test_what_is_done_is_past_cancelling(core: JobCore, held: threading.Event) -> None:
    ended: list[Job] = []
    core.on_end(ended.append)
    job = await core.submit(asked())
    await asyncio.to_thread(held.reached.wait)  # type: ignore[attr-defined]
    cancelling = asyncio.ensure_future(core.cancel(job.id))
    await asyncio.sleep(0.02)
    assert core.get(job.id).error is None, "it is not told to stop either"
    held.set()
    assert (await cancelling).state == "completed"
    assert [one.state for one in ended] == ["completed"]
    assert (core.get(job.id).state, core.result(job.id)) == ("completed", TRANSCRIPT)


async def test_a_server_that_ends_writes_what_is_done(settings: Settings, held: threading.Event) -> None:
    first, second, ended = FakeRunner(), FakeRunner(), list[Job]()
    core = JobCore(settings, first)
    core.on_end(ended.append)
    await core.__aenter__()
    job = await core.submit(asked(core))
    await asyncio.to_thread(held.reached.wait)  # type: ignore[attr-defined]
    ending = asyncio.ensure_future(core.__aexit__())
    await asyncio.sleep(0.02)
    held.set()
    await ending
    assert [one.state for one in ended] == ["completed"]
    async with opened(settings, second) as core:
        assert core.result(job.id) == TRANSCRIPT
    assert second.calls == []


async def test_a_job_that_is_cancelled_as_the_server_ends_is_not_taken_up(settings: Settings) -> None:
    first, second = FakeRunner(), FakeRunner()
    first.gated()
    async with opened(settings, first) as core:
        job = await core.submit(asked(core))
        await until(lambda: bool(first.calls))
        cancelling = asyncio.ensure_future(core.cancel(job.id))
        await asyncio.sleep(0)
    assert (await cancelling).state == "cancelled"
    async with opened(settings, second) as core:
        assert core.get(job.id).state == "cancelled"
    assert second.calls == []


async def test_work_goes_to_its_end_and_then_the_cancelling_is_told() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append(True)

    task = asyncio.ensure_future(to_the_end(work()))
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


# What cannot be written


@pytest.mark.parametrize("words", ["an emoji that was cut: \ud83d", "a" * 100_000], ids=["half a pair", "very long"])
async def test_no_error_ends_a_worker(core: JobCore, runner: FakeRunner, words: str) -> None:
    gate = runner.gated(ServiceError(words))
    job = await core.submit(asked(core))
    gate.set()
    failed = await core.wait(job.id)
    assert failed.failure().code == "service_failed"
    assert failed.failure().sentence.encode()
    assert (await core.wait((await core.submit(asked())).id)).state == "completed"


@pytest.mark.parametrize("start", [0.5, float("nan")])
async def test_text_and_numbers_that_json_has_not_are_kept(settings: Settings, start: float) -> None:
    odd = replace(TRANSCRIPT, segments=(Segment(start, 2.0, "half a pair: \ud800"),))
    runner = FakeRunner(otherwise=Play(odd))
    async with opened(settings, runner) as core:
        job = await core.submit(asked())
        assert (await core.wait(job.id)).state == "completed"
        assert (await core.wait((await core.submit(asked())).id)).state == "completed"
    async with opened(settings, FakeRunner()) as core:
        (segment,) = core.result(job.id).segments
        assert segment.text == "half a pair: ?"


async def test_a_result_that_cannot_be_kept_is_our_mistake(core: JobCore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("whatever it is")

    monkeypatch.setattr(Store, "complete", broken)
    job = await core.submit(asked(core))
    assert (await core.wait(job.id)).failure().code == "internal"
    assert uploads(core) == []
    monkeypatch.undo()
    assert (await core.wait((await core.submit(asked())).id)).state == "completed"


async def test_an_end_that_nothing_can_write_costs_no_other_job(core: JobCore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("whatever it is")

    first = await core.submit(asked())
    await core.wait(first.id)
    monkeypatch.setattr(Store, "update", broken)
    with pytest.raises(JobMissingError):
        await core.delete("no such job")
    job = await core.submit(asked())
    assert (await core.wait(job.id)).state == "failed", "its beginning could not be written"
    monkeypatch.undo()
    assert (await core.wait((await core.submit(asked())).id)).state == "completed"


async def test_an_end_at_the_start_that_cannot_be_written_is_written_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SWEEP_S", 0.01)
    runner = FakeRunner()
    runner.gated()
    async with opened(settings, runner) as core:
        job = await core.submit(asked(core))
        await until(lambda: bool(runner.calls))
        assert job.submission.recording
        recording = job.submission.recording
    recording.unlink()
    update, calls = Store.update, []

    def once(store: Store, job: Job) -> None:
        calls.append(job)
        if len(calls) == 1:
            raise EngineError("no room")
        update(store, job)

    monkeypatch.setattr(Store, "update", once)
    async with opened(settings, FakeRunner()) as core:
        await until(lambda: len(calls) > 1)
        assert (await core.wait(job.id)).state == "failed"
    store = Store(settings.state_dir)
    assert store.get(job.id).state == "failed"  # type: ignore[union-attr]
    store.close()


async def test_a_row_that_nobody_can_read_is_removed(settings: Settings) -> None:
    async with opened(settings, FakeRunner()) as core:
        job = await core.submit(asked())
        await core.wait(job.id)
    db = sqlite3.connect(settings.state_dir / FILE)
    db.execute("UPDATE jobs SET job = 'no JSON', state = 'queued'")
    db.commit()
    db.close()
    async with opened(settings, FakeRunner()) as core:
        with pytest.raises(JobMissingError):
            core.get(job.id)


async def test_an_uploads_that_is_a_file_is_told(settings: Settings) -> None:
    settings.state_dir.mkdir()
    (settings.state_dir / "uploads").write_text("")
    with pytest.raises(Exception, match="uploads in STATE_DIR"):
        async with JobCore(settings, FakeRunner()):
            pass


# The same work again


async def test_a_deleted_job_gives_its_key_back_at_once(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated()
    job = await core.submit(asked(idempotency_key="k"))
    await state(core, job, "running")
    deleting = asyncio.ensure_future(core.delete(job.id))
    await asyncio.sleep(0)
    new = await core.submit(asked(idempotency_key="k"))
    gate.set()
    await deleting
    assert new.id != job.id
    assert (await core.wait(new.id)).state == "completed"


@pytest.mark.parametrize("gives", [TRANSCRIPT, EngineError("no")])
async def test_what_nobody_heard_is_not_kept_for_long(
    core: JobCore, runner: FakeRunner, settings: Settings, gives: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.otherwise = replace(runner.otherwise, gives=gives)  # type: ignore[arg-type]
    first = await core.submit(asked(digest="d", awaited=True))
    await core.wait(first.id)
    monkeypatch.setattr(jobs, "UNHEARD_S", 0.0)
    await asyncio.sleep(0.01)
    assert (await core.submit(asked(digest="d", awaited=True))).id != first.id


async def test_two_at_once_are_one_job_however_long_the_check_takes(core: JobCore, runner: FakeRunner) -> None:
    check = runner.check

    async def slow(request: Request) -> Plan:
        await asyncio.sleep(0.01)
        return await check(request)

    runner.check = slow  # type: ignore[method-assign]
    runner.gated()
    first, second = await asyncio.gather(*(core.submit(asked(core, digest="d")) for _ in range(2)))
    assert first.id == second.id
    assert len(uploads(core)) == 1


async def test_what_waits_again_is_listed_so(settings: Settings) -> None:
    runner = FakeRunner()
    runner.gated()
    async with opened(settings, runner) as core:
        ids = [(await core.submit(asked())).id for _ in range(2)]
        await until(lambda: bool(runner.calls))
    store = Store(settings.state_dir)
    for job_id in ids:  # as a killed server leaves them that did two at once
        store.update(replace(store.get(job_id), state="running", runs=1))  # type: ignore[type-var]
    store.close()
    runner.refuses.append(None)
    gate = runner.gated()
    async with opened(settings, runner) as core:
        await until(lambda: len(runner.calls) == 2)
        assert [job.id for job in core.list(state="queued")] == [ids[1]]
        assert core.counts() == {"running": 1, "queued": 1}
        gate.set()


# What one caller may cost the others


async def test_a_source_is_judged_in_no_time(core: JobCore) -> None:
    """A pattern that tried every space once took minutes here, and nobody else was served meanwhile."""
    begin = time.perf_counter()
    with pytest.raises(RequestError):
        await asyncio.wait_for(core.submit(asked(fields={"audio": " " * 1_000_000 + "x"})), 60)
    await core.submit(asked(fields={"audio": " " * 1_000_000 + ":"}))
    assert time.perf_counter() - begin < 30


async def test_voices_in_a_request_lie_in_files_until_they_are_needed(settings: Settings, runner: FakeRunner) -> None:
    gate = runner.gated()
    voices = [{"name": "ann", "audio": DATA}, {"name": "bob", "url": "https://example.com/bob.wav"}]
    fields = {"diarization": True, "speaker_verification": True, "speaker_samples": voices}
    async with opened(settings, runner) as core:
        first = await core.submit(asked())
        waiting = await core.submit(asked(core, fields={**fields, "audio": "upload"}))
        assert DATA[30:] not in json.dumps(waiting.submission.request.model_dump(mode="json"))
        assert [path and path.read_bytes() for path in waiting.submission.samples] == [SOUND, None]
        gate.set()
        await core.wait(first.id)
        done = await core.wait(waiting.id)
        assert (done.state, uploads(core)) == ("completed", [])
    given = runner.calls[1].request.speaker_samples
    assert [(sample.name, sample.url) for sample in given] == [("ann", None), ("bob", "https://example.com/bob.wav")]
    assert base64.b64decode((given[0].audio or "").partition(",")[2]) == SOUND


async def test_voices_beside_a_url_have_a_folder_too(settings: Settings, runner: FakeRunner) -> None:
    voices = [{"name": "ann", "audio": DATA}]
    fields = {"diarization": True, "speaker_verification": True, "speaker_samples": voices}
    runner.gated()
    async with opened(settings, runner) as core:
        job = await core.submit(asked(fields=fields))
        await until(lambda: bool(runner.calls))
        assert len(uploads(core)) == 1
    second = FakeRunner()
    async with opened(settings, second) as core:  # and after a restart they are still there
        assert (await core.wait(job.id)).state == "completed"
        assert uploads(core) == []
    assert second.calls[0].request.speaker_samples[0].audio != "upload"


async def test_a_voice_that_is_no_sound_is_refused_by_its_name(core: JobCore) -> None:
    voices = [{"name": "ann", "audio": "data:audio/wav;base64,%%%"}]
    fields = {"diarization": True, "speaker_verification": True, "speaker_samples": voices}
    with pytest.raises(RequestError, match="'ann'"):
        await core.submit(asked(core, fields={**fields, "audio": "upload"}))
    assert uploads(core) == []


async def test_many_results_expire_a_few_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansard.server.store.AT_ONCE", 2)
    async with opened(settings, FakeRunner()) as core:
        for _ in range(5):
            await core.wait((await core.submit(asked())).id)
    store = Store(settings.state_dir)
    assert store.expire(time.time() + 1) == 5
    assert store.newest("", 10) == []
    store.close()


# Limits and ends


async def test_a_job_that_takes_longer_than_it_may_is_ended(core: JobCore, runner: FakeRunner) -> None:
    runner.gated()
    job = await core.submit(asked(core, limit_s=0.05))
    failed = await core.wait(job.id)
    assert (failed.state, failed.failure().code) == ("failed", "timed_out")
    assert runner.stopped == [job.id]
    assert uploads(core) == []


async def test_a_time_out_of_something_else_stays_one() -> None:
    with pytest.raises(TimeoutError):
        async with limited(60):
            raise TimeoutError


async def test_the_runner_forgets_what_has_ended_also_what_it_never_ran(settings: Settings) -> None:
    first, second = FakeRunner(), FakeRunner()
    first.gated()
    async with opened(settings, first) as core:
        ids = [(await core.submit(asked(core))).id for _ in range(2)]
        await until(lambda: bool(first.calls))
    second.gated()
    async with opened(settings, second) as core:
        await core.cancel(ids[1])
        await until(lambda: second.forgotten == [ids[1]])
    assert first.forgotten == []


async def test_a_job_that_stops_slowly_says_so_at_once(core: JobCore, runner: FakeRunner) -> None:
    stopping, run = asyncio.Event(), runner.run

    async def slow(*given: object) -> object:
        try:
            return await run(*given)  # type: ignore[arg-type]
        except asyncio.CancelledError:
            await stopping.wait()
            raise

    runner.run = slow  # type: ignore[method-assign, assignment]
    runner.gated()
    job = await core.submit(asked())
    await until(lambda: bool(runner.calls))
    cancelling = asyncio.ensure_future(core.cancel(job.id))
    await asyncio.sleep(0)
    now = core.get(job.id)
    assert (now.state, now.error and now.error[0]) == ("running", CancelledError.code)
    stopping.set()
    assert (await cancelling).state == "cancelled"


async def test_a_purge_cancels_what_waits_of_its_owner(core: JobCore, runner: FakeRunner) -> None:
    gate = runner.gated()
    running = await core.submit(asked(owner="me"))
    await until(lambda: bool(runner.calls))
    mine = [await core.submit(asked(core, owner="me")) for _ in range(2)]
    theirs = await core.submit(asked(owner="you"))
    assert core.purge("me") == 2
    assert [core.get(job.id, "me").state for job in mine] == ["cancelled"] * 2
    gate.set()
    assert (await core.wait(running.id, "me")).state == "completed"
    assert (await core.wait(theirs.id, "you")).state == "completed"


async def test_work_begins_with_its_first_progress(core: JobCore, runner: FakeRunner) -> None:
    """An endpoint has a queue of its own, which is no part of the work that a guess of the rest goes by."""
    waits, run = asyncio.Event(), runner.run

    async def late(job_id: str, request: Request, recording: Path | None, plan: object, report: object) -> object:
        await waits.wait()
        return await run(job_id, request, recording, plan, report)  # type: ignore[arg-type]

    runner.run = late  # type: ignore[method-assign, assignment]
    gate = runner.gated(reports=(("fetch", 0.5),))
    job = await core.submit(asked())
    begun = (await state(core, job, "running")).started or 0
    await asyncio.sleep(0.05)
    waits.set()
    await until(lambda: core.get(job.id).stage is not None)
    assert (core.get(job.id).started or 0) >= begun + 0.05
    gate.set()
    await core.wait(job.id)
