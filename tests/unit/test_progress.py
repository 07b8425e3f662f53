"""Progress that never falls, in one channel: in order, newest first when in a hurry, and silent once it is left."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from itertools import pairwise

import pytest

from hansard.progress import Channel, Overall, State

SHARES = {"fetch": 5, "decode": 5, "transcribe": 60, "diarize": 30}


def at(percent: int) -> State:
    return State("transcribe", percent, percent)


class Listener:
    """A platform that takes its time over each message, and remembers what it got."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.begun: list[int] = []
        self.got: list[int] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0

    async def send(self, state: dict[str, object]) -> None:
        percent = state["percent"]
        assert isinstance(percent, int)
        self.begun.append(percent)
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        self.got.append(percent)


# One number


def test_stages_add_up_by_their_shares() -> None:
    overall = Overall(SHARES)
    assert overall.update("fetch", 0.5) == State("fetch", 50, 2)
    assert overall.update("fetch", 1) == State("fetch", 100, 5)
    assert overall.update("decode", 1) == State("decode", 100, 10)
    assert overall.update("diarize", 0.1) == State("diarize", 10, 13)
    assert overall.update("transcribe", 0.5) == State("transcribe", 50, 43)


def test_shares_need_not_be_percents() -> None:
    overall = Overall({"fetch": 1, "decode": 3})
    assert overall.update("decode", 1).percent == 75
    assert overall.update("fetch", 1).percent == 100


def test_the_number_never_falls_and_ends_at_a_hundred() -> None:
    chance = random.Random(0)
    overall = Overall(SHARES)
    updates = [(chance.choice(list(SHARES)), chance.uniform(-0.5, 1.5)) for _ in range(500)]
    seen = [overall.update(stage, fraction) for stage, fraction in updates]
    assert all(before.percent <= after.percent for before, after in pairwise(seen))
    assert all(0 <= state.percent <= 100 and 0 <= state.stage_percent <= 100 for state in seen)
    for stage in SHARES:
        last = overall.update(stage, 1.0)
    assert (last.stage_percent, last.percent) == (100, 100)


def test_a_stage_that_falls_back_stays_where_it_was() -> None:
    overall = Overall(SHARES)
    overall.update("transcribe", 0.8)
    assert overall.update("transcribe", 0.2) == State("transcribe", 80, 48)


# The channel


@pytest.mark.asyncio
async def test_a_state_is_sent_as_plain_fields() -> None:
    got: list[dict[str, object]] = []

    async def send(state: dict[str, object]) -> None:
        got.append(state)

    async with Channel(send) as channel:
        channel.offer(State("decode", 10, 6))
        await asyncio.sleep(0.05)
    assert got == [{"stage": "decode", "stage_percent": 10, "percent": 6}]


@pytest.mark.asyncio
async def test_messages_go_one_at_a_time_in_order() -> None:
    listener = Listener(delay=0.03)
    async with Channel(listener.send, interval=0) as channel:
        for percent in range(20):
            channel.offer(at(percent))
            await asyncio.sleep(0.01)
    assert listener.got == listener.begun == sorted(set(listener.got))
    assert len(listener.got) >= 4
    assert listener.most_at_once == 1


@pytest.mark.asyncio
async def test_of_many_states_the_newest_is_sent() -> None:
    listener = Listener()
    async with Channel(listener.send, interval=0.15) as channel:
        channel.offer(at(1))
        await asyncio.sleep(0.05)
        for percent in range(2, 50):
            channel.offer(at(percent))
        await asyncio.sleep(0.3)
    assert listener.got == [1, 49]


@pytest.mark.asyncio
@pytest.mark.parametrize("delay", [0.0, 0.06])
async def test_messages_keep_their_distance(delay: float) -> None:
    listener = Listener(delay)
    async with Channel(listener.send, interval=0.1) as channel:
        for percent in range(70):
            channel.offer(at(percent))
            await asyncio.sleep(0.005)
    assert len(listener.times) >= 3
    assert all(after - before >= 0.095 for before, after in pairwise(listener.times))


@pytest.mark.asyncio
async def test_nothing_is_sent_where_nothing_was_offered() -> None:
    listener = Listener()
    async with Channel(listener.send, interval=0):
        await asyncio.sleep(0.05)
    assert listener.begun == []


@pytest.mark.asyncio
async def test_leaving_waits_for_the_message_under_way() -> None:
    listener = Listener(delay=0.2)
    async with Channel(listener.send) as channel:
        channel.offer(at(1))
        await asyncio.sleep(0.05)
        assert (listener.begun, listener.got) == ([1], [])
    assert listener.got == [1]


@pytest.mark.asyncio
async def test_nothing_is_sent_after_leaving() -> None:
    listener = Listener(delay=0.02)
    async with Channel(listener.send, interval=0) as channel:
        channel.offer(at(1))
        await asyncio.sleep(0.01)
        channel.offer(at(2))
    channel.offer(at(3))
    sent = list(listener.begun)
    await asyncio.sleep(0.1)
    assert listener.begun == sent == [1]


@pytest.mark.asyncio
async def test_leaving_does_not_wait_out_the_interval() -> None:
    begin = time.monotonic()
    async with Channel(Listener().send, interval=60) as channel:
        channel.offer(at(1))
        await asyncio.sleep(0.02)
    assert time.monotonic() - begin < 15


@pytest.mark.asyncio
async def test_a_message_that_hangs_is_cut_off() -> None:
    cut_off = asyncio.Event()

    async def hang(_: dict[str, object]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cut_off.set()

    begin = time.monotonic()
    async with Channel(hang, drain=0.1) as channel:
        channel.offer(at(1))
        await asyncio.sleep(0.02)
    assert 0.1 <= time.monotonic() - begin < 15
    await asyncio.wait_for(cut_off.wait(), 15)


@pytest.mark.asyncio
async def test_a_message_that_fails_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    got: list[object] = []

    async def fail_first(state: dict[str, object]) -> None:
        got.append(state["percent"])
        if len(got) == 1:
            raise ConnectionError("https://platform/?token=secret")

    with caplog.at_level(logging.WARNING):
        async with Channel(fail_first, interval=0) as channel:
            channel.offer(at(1))
            await asyncio.sleep(0.03)
            channel.offer(at(2))
            await asyncio.sleep(0.03)
    assert got == [1, 2]
    assert [record.getMessage() for record in caplog.records] == ["progress could not be told: ConnectionError"]


@pytest.mark.asyncio
async def test_an_error_inside_comes_out_unchanged_after_draining() -> None:
    listener = Listener(delay=0.1)

    async def job() -> None:
        async with Channel(listener.send) as channel:
            channel.offer(at(1))
            await asyncio.sleep(0.02)
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        await job()
    assert listener.got == [1]


@pytest.mark.asyncio
async def test_a_cancelled_job_is_drained_too() -> None:
    listener = Listener(delay=0.1)

    async def job() -> None:
        async with Channel(listener.send) as channel:
            channel.offer(at(1))
            await asyncio.sleep(60)

    task = asyncio.create_task(job())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert listener.got == [1]


@pytest.mark.asyncio
async def test_nothing_more_is_told_of_a_job_that_takes_its_time_to_stop() -> None:
    listener = Listener()

    async def job() -> None:
        async with Channel(listener.send, interval=0.05) as channel:
            channel.offer(at(1))
            try:
                await asyncio.sleep(60)
            finally:
                channel.offer(at(2))
                await asyncio.sleep(0.3)

    task = asyncio.create_task(job())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert listener.begun == [1]


@pytest.mark.asyncio
async def test_any_thread_may_offer() -> None:
    listener = Listener()
    overall, lock = Overall(dict.fromkeys("abcd", 1)), threading.Lock()

    def work(stage: str, channel: Channel) -> None:
        for step in range(1, 101):
            with lock:
                channel.offer(overall.update(stage, step / 100))
            time.sleep(0.0005)

    async with Channel(listener.send, interval=0.01) as channel:
        await asyncio.gather(*(asyncio.to_thread(work, stage, channel) for stage in "abcd"))
        await asyncio.sleep(0.1)
    assert listener.got == sorted(listener.got)
    assert listener.got[-1] == 100


@pytest.mark.asyncio
async def test_a_thread_wakes_a_loop_that_sleeps() -> None:
    got = asyncio.Event()

    async def send(_: dict[str, object]) -> None:
        got.set()

    async with Channel(send) as channel:
        threading.Timer(0.05, channel.offer, [at(1)]).start()
        assert await asyncio.wait_for(got.wait(), 15)


@pytest.mark.asyncio
async def test_offering_never_blocks() -> None:
    async def hang(_: dict[str, object]) -> None:
        await asyncio.sleep(60)

    async with Channel(hang, drain=0) as channel:
        begin = time.monotonic()
        await asyncio.to_thread(lambda: [channel.offer(at(percent % 100)) for percent in range(10_000)])
        assert time.monotonic() - begin < 15
