"""The parent's side of the engine: one process at a time, whatever jobs, cancels and crashes come."""

import asyncio
import base64
import contextlib
import io
import os
import time
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import fake_engine
import psutil
import pytest
import pytest_asyncio

from hansard import health
from hansard.engine import child
from hansard.engine import host as parent
from hansard.engine import process as alone
from hansard.engine.host import EngineHost
from hansard.errors import (
    AudioError,
    CrashedError,
    EngineError,
    HansardError,
    ModelError,
    OutOfMemoryError,
    RequestError,
    UnfitError,
)
from hansard.plan import Choice, Plan
from hansard.request import parse
from hansard.settings import Settings
from hansard.transcript import Transcript

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

GRACE_S = 0.5  # for jobs that never stop by themselves
PATIENCE_S = 40  # for jobs that do, however busy the machine


def recording() -> str:
    """A short silence as a data URI: what the fake engine does not listen to."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(bytes(3200))
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


@pytest_asyncio.fixture
async def host(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EngineHost]:
    monkeypatch.setattr(child, "main", fake_engine.main)
    made = EngineHost(Settings(work_dir=tmp_path, cancel_grace_s=getattr(request, "param", PATIENCE_S)))
    made.start()
    yield made
    await asyncio.to_thread(made.close)
    assert engines() == []
    assert list(tmp_path.iterdir()) == []


impatient = pytest.mark.parametrize("host", [GRACE_S], indirect=True, ids=["impatient"])


def engines() -> list[int]:
    """The engine processes that live."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "spawn_main" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def post(host: EngineHost, order: str, name: str = "job", states: list[str] | None = None) -> Transcript:
    request = parse({"audio": recording(), "prompt": order})
    plan = Plan(Choice("fake", "fake"))
    seen = [] if states is None else states
    return await host.transcribe(name, request, plan, lambda stage, _: seen.append(stage))


async def started(
    host: EngineHost, order: str, name: str = "job", states: list[str] | None = None
) -> asyncio.Task[Transcript]:
    """A job that the engine process has begun."""
    seen = [] if states is None else states
    task = asyncio.create_task(post(host, order, name, seen))
    await until(lambda: "decode" in seen)
    return task


async def until(true: Callable[[], bool]) -> None:
    """Return once it is true; the test's time limit is the only one."""
    while not true():
        await asyncio.sleep(0.01)


async def still_works(states: list[str]) -> None:
    """Return when the engine has told of further progress."""
    before = len(states)
    await until(lambda: len(states) > before + 2)


async def cancelled(task: asyncio.Task[Transcript]) -> None:
    """Cancel a job and wait until it is over."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_jobs_run_in_one_process_that_is_not_this_one(host: EngineHost) -> None:
    first, second = await post(host, "work 0"), await post(host, "work 0")
    assert first.model == second.model != str(os.getpid())
    assert set(first.timings) == {"fetch", "decode"}


async def test_two_jobs_at_once_are_both_answered(host: EngineHost) -> None:
    both = await asyncio.gather(post(host, "work 0.2", "a"), post(host, "work 0", "b"))
    assert len({transcript.model for transcript in both}) == 1


async def test_a_job_of_an_id_that_is_running_is_refused(host: EngineHost) -> None:
    states: list[str] = []
    task = await started(host, "work 50", states=states)
    with pytest.raises(EngineError, match="running already"):
        await post(host, "work 0")
    await still_works(states)
    await cancelled(task)


@pytest.mark.parametrize(
    ("order", "kind", "says"),
    [
        ("refuse", AudioError, "cannot be used"),
        ("bug", HansardError, "log has the details"),
        ("memory", OutOfMemoryError, "shorter recording"),
        ("gpu", CrashedError, "GPU stopped answering"),
        ("die", CrashedError, "killed.*memory"),
        ("exit", CrashedError, "exit code 3"),
    ],
)
async def test_a_failure_costs_one_job(host: EngineHost, order: str, kind: type[HansardError], says: str) -> None:
    with pytest.raises(kind, match=says) as failed:
        await post(host, order)
    assert "/a/path" not in str(failed.value)
    for _ in range(3):
        assert (await post(host, "work 0")).language == "en"
    assert len(engines()) == 1


async def test_crash_after_crash_leaves_one_engine(host: EngineHost) -> None:
    for _ in range(4):
        with pytest.raises(CrashedError):
            await post(host, "die")
        assert (await post(host, "work 0")).language == "en"
        assert len(engines()) == 1


async def test_a_cancelled_job_stops_by_itself_and_the_engine_stays(host: EngineHost) -> None:
    before = (await post(host, "work 0")).model
    await cancelled(await started(host, "work 50"))
    assert (await post(host, "work 0")).model == before


@impatient
async def test_a_job_that_does_not_stop_is_killed_and_the_next_one_runs_at_once(host: EngineHost) -> None:
    for _ in range(3):
        task = await started(host, "hang")
        begin = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begin < GRACE_S + 30
        assert (await post(host, "work 0")).language == "en"
        assert len(engines()) == 1


async def test_a_hung_engine_is_killed_and_costs_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped says nothing, and nothing tells it from one that a driver holds up for ever."""
    monkeypatch.setattr(child, "main", fake_engine.quick_main)
    monkeypatch.setattr(alone, "SILENCE_S", 3.0)
    host = EngineHost(Settings(work_dir=tmp_path))
    host.start()
    try:
        task = await started(host, "work 50")
        psutil.Process(engines()[0]).suspend()
        with pytest.raises(CrashedError, match="no sign of life for 3 s; send the job again"):
            await task
        assert (await post(host, "work 0")).language == "en"
    finally:
        await asyncio.to_thread(host.close)


@impatient
async def test_a_host_that_retires_starts_no_other_engine(host: EngineHost) -> None:
    task = await started(host, "hang")
    host.retire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engines() == []
    with pytest.raises(EngineError, match="being stopped"):
        await post(host, "work 0")


@impatient
async def test_cancelling_again_does_not_spare_the_job(host: EngineHost) -> None:
    task = await started(host, "hang")
    for _ in range(4):
        task.cancel()
        await asyncio.sleep(GRACE_S / 5)
    with pytest.raises(asyncio.CancelledError):
        await task
    begin = time.monotonic()
    assert (await post(host, "work 0")).language == "en"
    assert time.monotonic() - begin < 30


async def test_a_job_that_waits_its_turn_can_be_cancelled(host: EngineHost) -> None:
    states: list[str] = []
    long = await started(host, "work 50", "long", states)
    waiting = asyncio.create_task(post(host, "work 0", "waiting"))
    await asyncio.sleep(0.3)  # it may reach the engine's queue or not: it can be cancelled in either case
    await cancelled(waiting)
    assert not long.done()
    await still_works(states)
    await cancelled(long)


async def test_an_id_that_was_cancelled_can_be_used_again(host: EngineHost) -> None:
    await cancelled(await started(host, "work 50"))
    assert (await post(host, "work 0")).language == "en"


async def test_a_closed_host_takes_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "main", fake_engine.main)
    host = EngineHost(Settings(work_dir=tmp_path))
    host.start()
    await asyncio.to_thread(host.close)
    with pytest.raises(EngineError, match="being stopped"):
        await post(host, "work 0")
    assert engines() == []


async def test_an_engine_that_lost_its_gpu_is_replaced(host: EngineHost) -> None:
    """Every later call on that GPU would fail in the old process, though it lives."""
    before = (await post(host, "work 0")).model
    with pytest.raises(CrashedError):
        await post(host, "gpu")
    assert (await post(host, "work 0")).model != before


# Fitness


@contextlib.contextmanager
def host_of(
    main: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **given: float | Path
) -> Iterator[EngineHost]:
    """A host of another kind of engine process."""
    monkeypatch.setattr(child, "main", main)
    made = EngineHost(Settings(work_dir=tmp_path, cancel_grace_s=PATIENCE_S, **given))
    made.start()
    yield made
    made.close()
    assert engines() == []
    assert list(tmp_path.iterdir()) == []


async def test_a_fit_machine_is_told_as_often_as_it_is_asked_for(host: EngineHost) -> None:
    await host.fitness()
    await host.fitness()
    assert not host.unfit


async def test_what_is_wrong_is_told_and_logged_and_the_jobs_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with host_of(fake_engine.unfit_main, tmp_path, monkeypatch) as host:
        with pytest.raises(UnfitError, match=r"^unfit: the first thing is wrong; the second thing is wrong$"):
            await host.fitness()
        logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert logged == ["unfit: the first thing is wrong", "unfit: the second thing is wrong"]
        assert host.unfit
        told = "this machine cannot do the work; the worker's log says why"
        await until(lambda: health.problem(tmp_path) == told)  # noted by the thread that reads, a moment later
        assert (await post(host, "work 0")).language == "en"


async def test_a_check_that_never_ends_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "FITNESS_S", 0.5)
    with host_of(fake_engine.silent_main, tmp_path, monkeypatch) as host, pytest.raises(UnfitError, match="not answer"):
        await host.fitness()


async def test_a_process_that_dies_before_it_answers_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "died as it started: exit code 5"
    with host_of(fake_engine.stillborn_main, tmp_path, monkeypatch) as host, pytest.raises(UnfitError, match=says):
        await host.fitness()


# An engine that does not even get ready


async def test_an_engine_that_dies_before_it_is_ready_is_started_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a load balancer that asks /readyz no job would ever come to start it."""
    monkeypatch.setattr(parent, "PAUSES_S", (0.1, 0.4, 0.8))
    work, state = tmp_path / "work", tmp_path / "state"
    work.mkdir()
    with host_of(fake_engine.late_main, work, monkeypatch, state_dir=state) as host:
        seen: set[str] = set()
        while host.state != "ready":
            seen.add(host.state)
            await asyncio.sleep(0.01)
        assert {"starting", "down"} <= seen, "it says how it is meanwhile"
        assert (host.restarts, host.waits) == (fake_engine.LATE, False)
        assert (await post(host, "work 0")).language == "en"
        times = sorted(float(file.name) for file in state.iterdir())
        assert [b - a > pause for a, b, pause in zip(times, times[1:], (0.1, 0.4), strict=False)] == [True, True]
        with pytest.raises(CrashedError):
            await post(host, "die")
        assert host.state != "down", "one that was ready is followed at once"
        assert host._stillborn == 0


async def test_an_engine_that_never_gets_ready_is_not_started_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with host_of(fake_engine.stillborn_main, tmp_path, monkeypatch) as host:
        await until(lambda: host._stillborn == 1)
        assert host.state == "down"
        assert health.problem(tmp_path) == "the engine is down; it is started again by itself"
        await asyncio.sleep(0.5)
        assert host.restarts == 0
    await asyncio.sleep(1.0)
    assert engines() == [], "closed, it starts nothing"


async def test_a_machine_that_starts_no_process_is_asked_again(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "PAUSES_S", (0.1,))
    await post(host, "work 0")
    make, refused = parent.EngineProcess, list[int]()

    def refuse_once(*given: object) -> object:
        if not refused:
            refused.append(1)
            raise OSError(12, "Cannot allocate memory")
        return make(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(parent, "EngineProcess", refuse_once)
    with pytest.raises(CrashedError):
        await post(host, "die")
    await until(lambda: host.state == "ready")
    assert refused


# Known voices


async def with_samples(host: EngineHost, *samples: dict[str, str]) -> Transcript:
    request = parse(
        {
            "audio": recording(),
            "prompt": "samples",
            "diarization": True,
            "speaker_verification": True,
            "speaker_samples": list(samples),
        }
    )
    fake = Choice("fake", "fake")
    return await host.transcribe("job", request, Plan(fake, fake), lambda *_: None)


async def test_samples_reach_the_engine_as_files(host: EngineHost) -> None:
    made = await with_samples(host, {"name": "Eve", "audio": recording()}, {"name": "Bob", "audio": recording()})
    assert made.model == "Eve=3244 Bob=3244"


BAD_SAMPLES = [
    ({"audio": "data:text/html,<html>sorry</html>"}, AudioError, "not_audio"),
    ({"url": "http://127.0.0.1:1/bob.wav"}, AudioError, "url_refused"),
    ({"audio": "data:audio/wav;base64,"}, AudioError, "empty_audio"),
    ({"audio": "not base64!"}, RequestError, "invalid_request"),
    ({"url": "/etc/passwd"}, RequestError, "invalid_request"),
]


async def test_a_bad_sample_is_an_error_that_names_it(host: EngineHost) -> None:
    for sample, kind, code in BAD_SAMPLES:
        with pytest.raises(kind, match=r"^[a-z_]+: speaker sample 'Bob': ") as failed:
            await with_samples(host, {"name": "Eve", "audio": recording()}, {"name": "Bob", **sample})
        assert failed.value.code == code


# Models that are asked for by name

ONE, TWO = Choice("fake", "one"), Choice("fake", "two")


@pytest.fixture
def stocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineHost]:
    with host_of(fake_engine.stocked_main, tmp_path, monkeypatch) as made:
        yield made


async def test_models_are_loaded_and_let_go(stocked: EngineHost) -> None:
    told: list[int] = []
    stocked.on_change(lambda: told.append(len(stocked.warm.ready)))
    for choice in (ONE, TWO, ONE):
        await stocked.load(choice)
    await until(lambda: set(stocked.warm.ready) == {ONE, TWO} and not stocked.warm.loading)
    await stocked.unload(ONE)
    await until(lambda: stocked.warm.ready == (TWO,))
    await stocked.unload(ONE)
    assert set(told) == {0, 1, 2}
    assert (await post(stocked, "work 0")).language == "en"


async def test_a_model_that_cannot_be_loaded_costs_nothing_else(stocked: EngineHost) -> None:
    await stocked.load(ONE)
    with pytest.raises(ModelError, match="cannot be had"):
        await stocked.load(Choice("fake", "absent"))
    with pytest.raises(HansardError, match="log has the details") as failed:
        await stocked.load(Choice("fake", "odd"))
    assert "/a/path" not in str(failed.value)
    await until(lambda: not stocked.warm.loading)
    assert stocked.warm.ready == (ONE,)


async def test_a_model_that_kills_the_process_is_told_and_the_next_process_holds_nothing(stocked: EngineHost) -> None:
    await stocked.load(ONE)
    await until(lambda: stocked.warm.ready == (ONE,))
    with pytest.raises(CrashedError, match="exit code 4"):
        await stocked.load(Choice("fake", "deadly"))
    assert stocked.warm.ready == ()
    await stocked.load(TWO)
    assert len(engines()) == 1


async def test_a_load_waits_for_the_job_in_hand_and_leaves_it_alone(stocked: EngineHost) -> None:
    states: list[str] = []
    job = await started(stocked, "work 50", states=states)
    load = asyncio.create_task(stocked.load(ONE))
    await still_works(states)
    assert not load.done()
    await cancelled(job)
    await load


async def test_nothing_is_started_to_let_a_model_go(tmp_path: Path) -> None:
    host = EngineHost(Settings(work_dir=tmp_path))
    await host.unload(ONE)
    assert (host.state, host.warm.ready, engines()) == ("down", (), [])
    host.close()


async def test_models_that_no_job_uses_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with host_of(fake_engine.stocked_main, tmp_path, monkeypatch, model_idle_timeout=0.2) as host:
        process = (await post(host, "work 0")).model
        held: list[int] = []
        host.on_change(lambda: held.append(len(host.warm.ready)))
        await host.load(ONE)
        await until(lambda: 1 in held and held[-1] == 0)
        assert (await post(host, "work 0")).model == process, "only the models went"
