"""The engine process where no other test comes: what it tells first, and a GPU that stopped answering."""

from __future__ import annotations

import pickle
import queue
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hansard.engine import child
from hansard.engine.child import GPU_LOST, Engine
from hansard.engine.wire import Failed, Fitness, Load, Ready, Settled, Spent, Unload
from hansard.errors import HubError
from hansard.models import Models
from hansard.pipeline import Job, Stock
from hansard.plan import Choice, Plan
from hansard.request import parse
from hansard.settings import Settings
from hansard.vendors import give_back_memory


def test_a_gpu_that_is_lost_is_asked_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is asked for may raise or hang: the process says that it is spent, answers, and leaves."""

    def lose(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def leave(code: int) -> None:
        raise SystemExit(code)

    engine: Any = Engine.__new__(Engine)  # without its pipe and its threads
    engine._work, engine._outbox, engine._cancelled = queue.SimpleQueue(), queue.SimpleQueue(), set()
    engine._stock, engine._running, engine._gpu_lost, engine._looked = Stock(Settings()), None, False, 0.0
    engine._sender = threading.Thread(target=lambda: None)
    engine._sender.start()
    engine._work.put(Job("a", parse({"audio": "data:,"}), Plan(None), Path("a.wav"), Path()))
    monkeypatch.setattr(child, "run", lose)
    monkeypatch.setattr(child, "give_back_memory", lambda: pytest.fail("the GPU was asked for memory"))
    monkeypatch.setattr(child.os, "_exit", leave)
    with pytest.raises(SystemExit) as left:
        engine.serve()
    assert left.value.code == GPU_LOST
    spent, failed = (pickle.loads(engine._outbox.get_nowait()) for _ in range(2))
    assert isinstance(spent, Spent)
    assert isinstance(failed, Failed)
    assert failed.code == "engine_crashed"


def test_fitness_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may take minutes to load, or never end: the parent waits for the first message."""
    engine: Any = Engine.__new__(Engine)
    engine._outbox, engine._stock = queue.SimpleQueue(), Stock(Settings(default_model="sphinx"))
    told_before_loading: list[Any] = []

    def load(*_: object) -> None:
        if not told_before_loading:
            told_before_loading.append(pickle.loads(engine._outbox.get_nowait()))

    monkeypatch.setattr(child, "problems", lambda settings: (f"{settings.default_model} is wrong",))
    monkeypatch.setattr(engine, "_load", load)
    engine.warm_up()
    assert told_before_loading == [Fitness(("sphinx is wrong",))]
    assert pickle.loads(engine._outbox.get_nowait()) == Ready()


def test_with_lazy_models_nothing_is_loaded_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Engine.__new__(Engine)
    engine._outbox, engine._stock = queue.SimpleQueue(), Stock(Settings(default_model="sphinx", lazy_load_models=True))
    monkeypatch.setattr(child, "problems", lambda settings: ())
    monkeypatch.setattr(engine, "_load", lambda *_: pytest.fail("a model was loaded"))
    engine.warm_up()
    assert [pickle.loads(engine._outbox.get_nowait()) for _ in range(2)] == [Fitness(()), Ready()]


class Fake:
    """A backend that is there only when `over` is set; `fails` is how often it cannot be had before."""

    begun = threading.Event()
    over = threading.Event()
    fails = 0
    closed = 0

    def __init__(self, model: str, models: Models) -> None:
        type(self).begun.set()
        assert self.over.wait(60)
        if self.fails > 0:
            type(self).fails -= 1
            raise HubError("the hub sleeps")

    def close(self) -> None:
        type(self).closed += 1


ONE = Choice("fake", "one")


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine without its pipe and its threads, and a backend `fake` that is there at once."""
    fake: Any = type("Fake", (Fake,), {"begun": threading.Event(), "over": threading.Event()})
    fake.over.set()
    engine: Any = Engine.__new__(Engine)
    engine._work, engine._outbox, engine._newest = queue.SimpleQueue(), queue.SimpleQueue(), {}
    engine._stock, engine._running, engine._gpu_lost, engine._looked = Stock(Settings()), None, False, 0.0
    engine._sender = threading.Thread(target=lambda: None)
    engine._sender.start()
    monkeypatch.setattr(child, "_backends", lambda: {"fake": fake})
    engine.fake = fake
    return engine


def serves(engine: Any, *work: Load | Unload) -> list[Any]:
    """What an engine answers to all of this, which was asked for before it came to the first."""
    for order in work:
        engine._newest[order.choice] = order.id
        engine._work.put(order)
    engine._work.put(None)
    engine.serve()
    told = []
    while (message := engine._outbox.get_nowait()) is not None:
        told.append(pickle.loads(message))
    return told


def test_of_several_orders_for_a_model_only_the_last_is_obeyed(idle: Any) -> None:
    for last, orders in ((0, (Load, Unload)), (1, (Load, Unload, Load)), (0, (Unload, Load, Unload))):
        idle.fake.closed, begun = 0, idle.fake.begun
        begun.clear()
        answers = serves(idle, *(kind(str(number), ONE) for number, kind in enumerate(orders)))
        assert answers == [Settled(str(number)) for number in range(len(orders))], "each is answered"
        assert begun.is_set() is bool(last), orders


def test_orders_for_a_model_that_is_being_loaded_keep_no_job_waiting(idle: Any) -> None:
    """As a default model that is still downloaded: what comes after the order is done at once."""
    idle.fake.over.clear()
    shelf = idle._stock.shelf
    loading = threading.Thread(target=shelf.get, args=(idle.fake, "one", Models(Settings())))
    loading.start()
    assert idle.fake.begun.wait(60)
    begin = time.monotonic()
    assert serves(idle, Unload("a", ONE)) == [Settled("a")]
    assert serves(idle, Load("b", ONE), Unload("c", Choice("fake", "two"))) == [Settled("c")]
    assert time.monotonic() - begin < 30
    idle.fake.over.set()
    loading.join(60)
    assert pickle.loads(idle._outbox.get(timeout=60)) == Settled("b")
    assert shelf.contents().held == ((idle.fake, "one"),), "the last order was to load it"


def test_a_load_that_joined_one_that_broke_off_is_done_after_all(idle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = idle._stock.shelf
    monkeypatch.setattr(shelf, "joins", lambda *_: True)
    idle._newest[ONE] = "a"
    assert idle._obey(Load("a", ONE)) is None
    assert idle._work.get(timeout=60) == Load("a", ONE)


@pytest.mark.parametrize(("idle_s", "gone"), [(1e-3, True), (60.0, False), (0.0, False)])
def test_models_that_no_job_uses_go_although_there_is_always_work(
    idle: Any, monkeypatch: pytest.MonkeyPatch, idle_s: float, gone: bool
) -> None:
    idle._stock = Stock(Settings(model_idle_timeout=idle_s))
    serves(idle, Load("a", ONE))
    idle.fake.closed = 0
    idle._stock.shelf.get(idle.fake, "one", Models(Settings()))
    idle._stock.shelf.begin()
    time.sleep(0.01)
    idle._work.put(Unload("b", Choice("fake", "two")))
    assert idle._next() == Unload("b", Choice("fake", "two"))
    assert idle.fake.closed == gone
    idle._work.put(None)
    monkeypatch.setattr(idle._stock.shelf, "let_go_unused", lambda _: pytest.fail("it has only just looked"))
    monkeypatch.setattr(child, "IDLE_LOOK_S", 60.0)
    if idle_s >= 60.0:
        assert idle._next() is None


def test_a_default_model_that_could_not_be_had_is_tried_again(idle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "DEFAULTS", (({"fake": idle.fake}, lambda _: ONE),))
    monkeypatch.setattr(child, "problems", lambda settings: ())
    idle.fake.fails = 2
    idle.warm_up()
    failed = idle._stock.shelf.contents().failed
    assert [error.sentence for error in failed.values()] == ["the hub sleeps"]
    assert [idle.try_again() for _ in range(3)] == [True, True, False]
    assert idle._stock.shelf.contents() == (((idle.fake, "one"),), {}, {})


def test_memory_is_given_back_while_another_thread_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the warm-up does while orders and jobs come in."""
    half = ModuleType("torch")
    monkeypatch.setitem(sys.modules, "torch", half)
    give_back_memory()
    half.cuda = ModuleType("torch.cuda")  # type: ignore[attr-defined]
    give_back_memory()
