"""What a sampler draws ahead of when it is asked for, in the order in which it will be."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Generic, Protocol, TypeVar, runtime_checkable

from kit.samplers.sampler import Request, Upcoming


@runtime_checkable
class Answer(Protocol):
    """What will come of a request."""

    def cancel(self) -> object:
        """It is not needed any more."""
        ...


A = TypeVar("A", bound=Answer)


@dataclass
class Drawn(Generic[A]):
    """A request, and where its answer will be."""

    request: Request
    is_after_sync: bool
    answer: A


class DrawnAhead(Generic[A]):
    """A queue of requests that were handed out.

    Args:
        draw: hands out a request.
        depth: batches that are drawn ahead of the one being trained on, >= 0.
        ahead: of these, how many may be drawn for after the next sync, with the weights of before it, >= 0.

    Raises:
        ValueError: if depth or ahead is out of range.
    """

    def __init__(self, draw: Callable[[Request], A], *, depth: int, ahead: int) -> None:
        if depth < 0 or not 0 <= ahead <= depth:
            raise ValueError(f"expected depth >= 0 and 0 <= ahead <= depth, came {depth} and {ahead}")
        self.queue: list[Drawn[A]] = []
        self._draw, self._depth, self._ahead = draw, depth, ahead

    def expect(self, batches: Iterable[Upcoming]) -> None:
        """Draw what will be asked for next, in this order; what was drawn for something else is dropped."""
        wanted, late = [], 0
        for batch in islice(batches, self._depth + 1):
            late += batch.is_after_sync
            if late > self._ahead:
                break
            wanted += [(request, batch.is_after_sync) for request in batch.requests]
        pairs = zip(wanted, self.queue, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0][0] == pair[1].request, pairs))
        self.drop(same)
        for (_, is_after_sync), drawn in zip(wanted, self.queue, strict=False):
            drawn.is_after_sync = is_after_sync
        for request, is_after_sync in wanted[same:]:
            self.queue.append(Drawn(request, is_after_sync, self._draw(request)))

    def first(self, request: Request) -> Drawn[A]:
        """This request, drawn now unless it is what was expected."""
        if not self.queue or self.queue[0].request != request:
            self.drop(0)
            self.queue.append(Drawn(request, False, self._draw(request)))
        return self.queue[0]

    def keep_after_sync(self) -> list[Drawn[A]]:
        """Drop what only the weights of now can answer; returns what stays, all of which must be waited for."""
        for drawn in list(self.queue):
            if not drawn.is_after_sync:
                drawn.answer.cancel()
                self.queue.remove(drawn)
        return self.queue

    def drop(self, first: int) -> None:
        """Forget all from this number on."""
        for drawn in self.queue[first:]:
            drawn.answer.cancel()
        del self.queue[first:]
