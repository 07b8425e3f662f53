"""Work in batches that memory can hold: halved when it runs out, down to one, then a clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from hansard.errors import OutOfMemoryError
from hansard.vendors import give_back_memory, no_room

T = TypeVar("T")
R = TypeVar("R")


class Batch:
    """How many items are worked on at once; `size` is what it was halved to, `asked` what it began with."""

    def __init__(self, size: int) -> None:
        self.size = self.asked = size

    def run(
        self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]
    ) -> Iterator[tuple[Sequence[T], Sequence[R]]]:
        """The items in batches, each with what the work made of it. Raises OutOfMemoryError when one is too many."""
        at = 0
        while at < len(items):
            part = items[at : at + self.size]
            full = False
            try:
                done = work(part)
            except (RuntimeError, MemoryError) as error:
                if not no_room(error):
                    raise
                if len(part) == 1:
                    raise OutOfMemoryError(
                        "not even one chunk of the recording fits into memory beside the model; take a smaller model, "
                        "a leaner COMPUTE_TYPE or a larger machine"
                    ) from None
                self.size = max(1, len(part) // 2)
                full = True
            if full:
                give_back_memory()  # here, where the error no longer holds what the batch had made
            else:
                yield part, done
                at += len(part)
