"""Ranks that share the micro-batches of a step."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")
Result = TypeVar("Result")


@runtime_checkable
class Team(Protocol):
    """Every rank calls with the same arguments, and gets the same results."""

    def map(self, function: Callable[[Item, bool], Result], items: Sequence[Item]) -> list[Result]:
        """`function(item, counts)` of every item, in order.

        Ranks wait for each other in every pass of a sharded model, so all call it equally often: one with nothing left
        repeats the first item, with `counts` false, and its result is dropped.
        """
        ...


class Alone:
    """One rank, which does everything.

    >>> Alone().map(lambda item, counts: (item, counts), "ab")
    [('a', True), ('b', True)]
    """

    def map(self, function: Callable[[Item, bool], Result], items: Sequence[Item]) -> list[Result]:
        return [function(item, True) for item in items]
