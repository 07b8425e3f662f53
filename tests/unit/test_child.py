"""The engine process where no other test comes: what it tells first, and a GPU that stopped answering."""

from __future__ import annotations

import pickle
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from hansard.engine import child
from hansard.engine.child import GPU_LOST, Engine
from hansard.engine.wire import Failed, Fitness, Ready, Spent
from hansard.pipeline import Job, Stock
from hansard.plan import Plan
from hansard.request import parse
from hansard.settings import Settings


def test_a_gpu_that_is_lost_is_asked_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is asked for may raise or hang: the process says that it is spent, answers, and leaves."""

    def lose(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def leave(code: int) -> None:
        raise SystemExit(code)

    engine: Any = Engine.__new__(Engine)  # without its pipe and its threads
    engine._work, engine._outbox, engine._cancelled = queue.SimpleQueue(), queue.SimpleQueue(), set()
    engine._stock, engine._running, engine._gpu_lost = Stock(Settings()), None, False
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
