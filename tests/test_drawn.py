"""What is handed out ahead, kept, and dropped: every case counted out by hand."""

from dataclasses import dataclass

import pytest

from kit.config import Sampling
from kit.samplers import Request, Upcoming
from kit.samplers.drawn import DrawnAhead


@dataclass
class Promise:
    number: int
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Recorded:
    """A queue, and the seeds of what was handed out so far."""

    def __init__(self, depth: int, ahead: int = 0) -> None:
        self.seeds: list[int] = []
        self.made: list[Promise] = []
        self.drawn = DrawnAhead(self.draw, depth=depth, ahead=ahead)

    def draw(self, request: Request) -> Promise:
        self.seeds.append(request.seed[0])
        self.made.append(Promise(request.seed[0]))
        return self.made[-1]

    @property
    def waiting(self) -> list[int]:
        return [drawn.answer.number for drawn in self.drawn.queue]


def request(seed: int) -> Request:
    return Request((), 1, (seed,), Sampling())


def batches(*seeds: int, sync_before: int | None = None) -> list[Upcoming]:
    """One request each; the sampler is synced before the one of this seed, and so are all later ones."""
    return [Upcoming((request(seed),), sync_before is not None and seed >= sync_before) for seed in seeds]


@pytest.mark.parametrize(("depth", "expected"), [(0, [1]), (1, [1, 2]), (3, [1, 2, 3, 4]), (9, [1, 2, 3, 4, 5])])
def test_the_batch_itself_and_depth_more_are_drawn(depth: int, expected: list[int]) -> None:
    found = Recorded(depth)
    found.drawn.expect(batches(1, 2, 3, 4, 5))
    assert found.seeds == found.waiting == expected


@pytest.mark.parametrize(("ahead", "expected"), [(0, [1, 2]), (1, [1, 2, 3]), (2, [1, 2, 3, 4])])
def test_beyond_a_sync_only_as_many_as_may_be_stale(ahead: int, expected: list[int]) -> None:
    found = Recorded(4, ahead)
    found.drawn.expect(batches(1, 2, 3, 4, 5, sync_before=3))
    assert found.waiting == expected
    assert [drawn.is_after_sync for drawn in found.drawn.queue] == [seed >= 3 for seed in expected]


def test_what_was_drawn_stays_and_what_comes_is_added() -> None:
    found = Recorded(1)
    found.drawn.expect(batches(1, 2, 3))
    assert found.drawn.first(request(1)).answer.number == 1
    del found.drawn.queue[0]
    found.drawn.expect(batches(2, 3, 4))
    assert (found.seeds, found.waiting) == ([1, 2, 3], [2, 3])


def test_another_future_drops_all_from_where_it_differs() -> None:
    found = Recorded(2)
    found.drawn.expect(batches(1, 2, 3))
    found.drawn.expect(batches(1, 7, 3))
    assert (found.seeds, found.waiting) == ([1, 2, 3, 7, 3], [1, 7, 3])
    assert [promise.is_cancelled for promise in found.made] == [False, True, True, False, False]


def test_what_was_not_expected_is_drawn_at_once() -> None:
    found = Recorded(1)
    found.drawn.expect(batches(1, 2))
    assert found.drawn.first(request(9)).answer.number == 9
    assert found.waiting == [9] and [promise.is_cancelled for promise in found.made] == [True, True, False]


def test_a_sync_keeps_what_was_drawn_for_after_it() -> None:
    found = Recorded(3, 1)
    found.drawn.expect(batches(1, 2, 3, 4, sync_before=3))
    assert [drawn.answer.number for drawn in found.drawn.keep_after_sync()] == [3] == found.waiting
    assert [promise.is_cancelled for promise in found.made] == [True, True, False]
    found.drawn.expect(batches(3, 4, 5))
    assert found.waiting == [3, 4, 5] and not found.drawn.queue[0].is_after_sync


@pytest.mark.parametrize(("depth", "ahead"), [(-1, 0), (1, 2), (1, -1)])
def test_out_of_range(depth: int, ahead: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= ahead <= depth, came {depth} and {ahead}"):
        Recorded(depth, ahead)
