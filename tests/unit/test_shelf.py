"""Models kept warm: each loaded once, whoever asks; different ones side by side; a failed one tried again."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

import pytest

from hansard.errors import CancelledError, EngineMissingError
from hansard.models import Models
from hansard.settings import Settings
from hansard.shelf import MOST, MOST_FAILED, Shelf
from hansard.transcribers.loading import loading

PATIENCE_S = 20.0


class Backend:
    """Counts how often it is made, and takes a moment over it."""

    made: ClassVar[list[Backend]]
    closed: bool = False

    def __init__(self, model: str = "", models: object = None) -> None:
        self.model = model
        time.sleep(0.05)
        self.made.append(self)

    def close(self) -> None:
        self.closed = True


MODELS = Models(Settings())


def get(shelf: Shelf, wanted: type[Backend], model: str = "tiny") -> Backend:
    return shelf.get(wanted, model, MODELS)


def backend() -> type[Backend]:
    """A class of its own for each test."""
    return type("Backend", (Backend,), {"made": []})


def test_many_who_ask_at_once_get_the_same_one() -> None:
    shelf, wanted = Shelf(), backend()
    together = threading.Barrier(8)

    def ask(_: int) -> Backend:
        together.wait(PATIENCE_S)
        return get(shelf, wanted)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(8)))
    assert len(wanted.made) == 1
    assert set(got) == set(wanted.made)
    assert get(shelf, wanted) is got[0]


def test_different_ones_are_loaded_side_by_side() -> None:
    shelf, both_are_loading = Shelf(), threading.Barrier(2)

    class First(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self, model: str, models: object) -> None:
            both_are_loading.wait(PATIENCE_S)  # broken, an error, unless the other one is loading too
            super().__init__(model, models)

    class Second(First):
        made: ClassVar[list[Backend]] = []

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda cls: get(shelf, cls), [First, Second])
    assert (First.made, Second.made) == ([first], [second])


def test_what_is_loaded_is_not_held_up_by_what_is_loading() -> None:
    shelf, loaded = Shelf(), backend()
    held = get(shelf, loaded)
    begun, over = threading.Event(), threading.Event()

    class Slow(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self, model: str, models: object) -> None:
            begun.set()
            assert over.wait(PATIENCE_S)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, shelf, Slow)
        assert begun.wait(PATIENCE_S)
        assert get(shelf, loaded) is held
        assert not slow.done()
        over.set()
    assert isinstance(slow.result(), Slow)


def test_one_that_failed_is_tried_again() -> None:
    shelf = Shelf()

    class Missing(Backend):
        made: ClassVar[list[Backend]] = []
        tries = 0

        def __init__(self, model: str, models: object) -> None:
            type(self).tries += 1
            if self.tries < 3:
                raise EngineMissingError(f"try {self.tries}")
            super().__init__(model, models)

    for number in (1, 2):
        with pytest.raises(EngineMissingError, match=f"try {number}"):
            get(shelf, Missing)
    assert get(shelf, Missing) is get(shelf, Missing)
    assert Missing.tries == 3


def test_closing_closes_everything_once() -> None:
    shelf = Shelf()
    held = [get(shelf, backend()) for _ in range(3)]
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
    held = [get(shelf, backend()), get(shelf, Stuck), get(shelf, backend())]
    with suppress(RuntimeError):
        shelf.close()
    assert held[0].closed
    assert held[2].closed


def test_what_was_closed_is_made_anew() -> None:
    shelf, wanted = Shelf(), backend()
    first = get(shelf, wanted)
    shelf.close()
    assert get(shelf, wanted) is not first


# Room


def test_two_models_of_one_backend_are_two() -> None:
    shelf, wanted = Shelf(), backend()
    assert get(shelf, wanted, "tiny") is not get(shelf, wanted, "large")
    assert [one.model for one in wanted.made] == ["tiny", "large"]


def greedy(fits: int) -> type[Backend]:
    """A class of which `fits` may be open at once."""

    class Greedy(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self, model: str, models: object) -> None:
            if sum(not one.closed for one in self.made) >= fits:
                raise RuntimeError("CUDA failed with error out of memory")
            super().__init__(model, models)

    return Greedy


def test_what_an_earlier_job_left_goes_when_memory_runs_out() -> None:
    shelf, wanted = Shelf(), greedy(fits=2)
    old = get(shelf, wanted, "old")
    shelf.begin()
    needed = get(shelf, wanted, "needed")
    assert get(shelf, wanted, "new").model == "new"
    assert (old.closed, needed.closed) == (True, False)
    assert get(shelf, wanted, "needed") is needed


def test_what_the_job_in_hand_needs_is_not_let_go() -> None:
    shelf, wanted = Shelf(), greedy(fits=1)
    needed = get(shelf, wanted, "needed")
    with pytest.raises(RuntimeError, match="out of memory"):
        get(shelf, wanted, "new")
    assert not needed.closed


def test_the_one_used_longest_ago_goes_first() -> None:
    shelf, wanted = Shelf(), backend()
    for number in range(MOST):
        shelf.begin()
        get(shelf, wanted, str(number))
    shelf.begin()
    get(shelf, wanted, "0")
    shelf.begin()
    get(shelf, wanted, "one more")
    assert [one.model for one in wanted.made if one.closed] == ["1"]


def test_whoever_waits_is_told_how_far_the_download_is_and_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansard.shelf.WAIT_S", 0.01)
    begun, over = threading.Event(), threading.Event()
    told: list[float] = []

    class Slow(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self, model: str, models: Models) -> None:
            models.report(0.25)
            begun.set()
            assert over.wait(PATIENCE_S)
            super().__init__(model, models)

    def leave(fraction: float) -> None:
        told.append(fraction)
        if len(told) == 3:
            raise CancelledError("the caller left")

    shelf = Shelf()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shelf.get, Slow, "tiny", MODELS)
        assert begun.wait(PATIENCE_S)
        with pytest.raises(CancelledError):
            shelf.get(Slow, "tiny", Models(Settings(), report=leave))
        over.set()
    assert told == [0.25, 0.25, 0.25]
    assert shelf.get(Slow, "tiny", MODELS) is first.result()


@pytest.mark.parametrize("told", ["as it is", "in our words"])
def test_what_was_loaded_before_memory_ran_out_is_gone_when_it_is_tried_again(told: str) -> None:
    """A half-loaded model that the error still holds would take the room that the second try needs."""
    shelf, wanted = Shelf(), backend()
    alive: list[weakref.ref[Half]] = []

    class Half:
        """The part of a model that fitted."""

    class Big(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self, model: str, models: object) -> None:
            if told == "as it is":
                self.fill()
            else:
                with loading(model):
                    self.fill()
            super().__init__(model, models)

        def fill(self) -> None:
            half = Half()
            alive.append(weakref.ref(half))
            if len(alive) == 1:
                raise RuntimeError("CUDA failed with error out of memory")
            assert alive[0]() is None

    get(shelf, wanted)
    shelf.begin()
    get(shelf, Big)
    assert len(alive) == 2


# Let go by name, or for want of use


def test_one_is_let_go_by_its_name_and_loaded_anew() -> None:
    told: list[tuple[int, int]] = []
    shelf = Shelf(lambda: told.append((len(shelf.contents().held), len(shelf.contents().coming))))
    wanted = backend()
    first, other = get(shelf, wanted), get(shelf, wanted, "other")
    shelf.let_go(wanted, "tiny")
    shelf.let_go(wanted, "tiny")
    assert (first.closed, other.closed) == (True, False)
    assert told == [(0, 1), (1, 0), (1, 1), (2, 0), (1, 0)], "what is held, and what is being loaded"
    assert get(shelf, wanted) is not first


class Gated(Backend):
    """Takes until `over`; `begun` tells that it is being made."""

    begun: ClassVar[threading.Event]
    over: ClassVar[threading.Event]

    def __init__(self, model: str, models: Models) -> None:
        models.report(0.25)
        self.begun.set()
        assert self.over.wait(PATIENCE_S)
        models.report(1.0)
        super().__init__(model, models)


def gated() -> type[Gated]:
    return type("Gated", (Gated,), {"made": [], "begun": threading.Event(), "over": threading.Event()})


def test_letting_go_waits_for_nothing_and_what_is_being_loaded_goes_once_it_is_there() -> None:
    shelf, wanted = Shelf(), gated()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(get, shelf, wanted)
        assert wanted.begun.wait(PATIENCE_S)
        shelf.let_go(wanted, "tiny")
        assert shelf.contents() == ((), {(wanted, "tiny"): 0.25}, {})
        wanted.over.set()
    assert slow.result().closed
    assert shelf.contents() == ((), {}, {})


@pytest.mark.parametrize("by", ["a job", "an order"])
def test_what_is_wanted_again_before_it_is_there_stays(by: str) -> None:
    shelf, wanted = Shelf(), gated()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(get, shelf, wanted)
        assert wanted.begun.wait(PATIENCE_S)
        shelf.let_go(wanted, "tiny")
        if by == "a job":
            other = pool.submit(get, shelf, wanted)
            while shelf._loading[wanted, "tiny"].unwanted:
                time.sleep(0.001)
        else:
            assert shelf.joins(wanted, "tiny")
            other = pool.submit(lambda: shelf.wait(wanted, "tiny") and slow.result())
        wanted.over.set()
        assert other.result(PATIENCE_S) is slow.result()
    assert shelf.contents().held == ((wanted, "tiny"),)
    assert not slow.result().closed


def test_it_is_told_how_much_of_what_is_being_loaded_is_fetched() -> None:
    told: list[float | None] = []
    shelf = Shelf(lambda: told.extend(shelf.contents().coming.values()))
    wanted = gated()
    wanted.over.set()
    get(shelf, wanted)
    assert told == [None, 0.25, None], "before the download, in its course, after it"
    assert not shelf.joins(wanted, "tiny"), "it is there"


def test_what_no_job_used_for_a_while_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("hansard.shelf.time.monotonic", lambda: now)
    shelf, wanted = Shelf(), backend()
    old, used = get(shelf, wanted, "old"), get(shelf, wanted, "used")
    shelf.begin()
    get(shelf, wanted, "used")
    now = 200.0  # the job took long
    shelf.end()
    now = 210.0
    shelf.let_go_unused(60.0)
    assert (old.closed, used.closed) == (True, False)
    now = 260.0
    shelf.let_go_unused(60.0)
    assert used.closed


def test_one_that_could_not_be_loaded_is_told_with_the_reason_until_it_is_asked_for_again() -> None:
    shelf = Shelf()
    errors: list[Exception] = [
        EngineMissingError("none"),
        ValueError("/a/path"),
        RuntimeError("CUDA out of memory"),
        CancelledError("enough"),
    ]

    class Missing(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self, model: str, models: object) -> None:
            if errors:
                raise errors.pop(0)
            super().__init__(model, models)

    for says in ("none", "the log has the details", "not enough memory", None):
        with pytest.raises((EngineMissingError, ValueError, RuntimeError, CancelledError)):
            get(shelf, Missing)
        held, coming, failed = shelf.contents()
        assert (held, coming) == ((), {})
        assert [says in error.sentence for error in failed.values()] == ([True] if says else []), says
        assert not any("/a/path" in str(error) for error in failed.values())
    get(shelf, Missing)
    assert shelf.contents() == (((Missing, "tiny"),), {}, {})


def test_one_that_could_not_be_loaded_is_forgotten_when_it_is_let_go() -> None:
    changes: list[int] = []
    shelf = Shelf(lambda: changes.append(len(shelf.contents().failed)))

    class Missing(Backend):
        made: ClassVar[list[Backend]] = []

        def __init__(self, model: str, models: object) -> None:
            raise EngineMissingError("none")

    for number in range(MOST_FAILED + 5):
        with pytest.raises(EngineMissingError):
            get(shelf, Missing, str(number))
    assert len(shelf.contents().failed) == MOST_FAILED
    shelf.let_go(Missing, str(MOST_FAILED))
    assert changes[-1] == MOST_FAILED - 1
    with pytest.raises(EngineMissingError, match="none"):
        shelf.wait(Missing, str(MOST_FAILED + 4))
