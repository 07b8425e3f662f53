"""Models kept warm: each loaded once, whoever asks; different ones side by side; a failed one tried again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

import pytest

from hansard.errors import EngineMissingError
from hansard.shelf import Shelf

PATIENCE_S = 5.0


class Backend:
    """Counts how often it is made, and takes a moment over it."""

    made: ClassVar[list[Backend]]
    closed: bool = False

    def __init__(self) -> None:
        time.sleep(0.05)
        self.made.append(self)

    def close(self) -> None:
        self.closed = True


def backend() -> type[Backend]:
    """A class of its own for each test."""
    return type("Backend", (Backend,), {"made": []})


def test_many_who_ask_at_once_get_the_same_one() -> None:
    shelf, wanted = Shelf(), backend()
    together = threading.Barrier(8)

    def ask(_: int) -> Backend:
        together.wait(PATIENCE_S)
        return shelf.get(wanted)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(8)))
    assert len(wanted.made) == 1
    assert set(got) == set(wanted.made)
    assert shelf.get(wanted) is got[0]


def test_different_ones_are_loaded_side_by_side() -> None:
    shelf, both_are_loading = Shelf(), threading.Barrier(2)

    class First(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self) -> None:
            both_are_loading.wait(PATIENCE_S)  # broken, an error, unless the other one is loading too
            super().__init__()

    class Second(First):
        made: ClassVar[list[Backend]] = []

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(shelf.get, [First, Second])
    assert (First.made, Second.made) == ([first], [second])


def test_what_is_loaded_is_not_held_up_by_what_is_loading() -> None:
    shelf, loaded = Shelf(), backend()
    held = shelf.get(loaded)
    begun, over = threading.Event(), threading.Event()

    class Slow(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self) -> None:
            begun.set()
            assert over.wait(PATIENCE_S)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(shelf.get, Slow)
        assert begun.wait(PATIENCE_S)
        assert shelf.get(loaded) is held
        assert not slow.done()
        over.set()
    assert isinstance(slow.result(), Slow)


def test_one_that_failed_is_tried_again() -> None:
    shelf = Shelf()

    class Missing(Backend):
        made: ClassVar[list[Backend]] = []
        tries = 0

        def __init__(self) -> None:
            type(self).tries += 1
            if self.tries < 3:
                raise EngineMissingError(f"try {self.tries}")
            super().__init__()

    for number in (1, 2):
        with pytest.raises(EngineMissingError, match=f"try {number}"):
            shelf.get(Missing)
    assert shelf.get(Missing) is shelf.get(Missing)
    assert Missing.tries == 3


def test_closing_closes_everything_once() -> None:
    shelf = Shelf()
    held = [shelf.get(backend()) for _ in range(3)]
    shelf.close()
    assert all(one.closed for one in held)
    for one in held:
        one.closed = False
    shelf.close()
    assert not any(one.closed for one in held)


def test_one_that_fails_to_close_keeps_no_other_open() -> None:
    class Stuck(Backend):
        made: ClassVar[list[Backend]] = []

        def close(self) -> None:
            raise RuntimeError("stuck")

    shelf = Shelf()
    held = [shelf.get(backend()), shelf.get(Stuck), shelf.get(backend())]
    with suppress(RuntimeError):
        shelf.close()
    assert held[0].closed
    assert held[2].closed


def test_what_was_closed_is_made_anew() -> None:
    shelf, wanted = Shelf(), backend()
    first = shelf.get(wanted)
    shelf.close()
    assert shelf.get(wanted) is not first
