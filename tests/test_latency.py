"""How long a run takes: closed forms by hand, and an independent simulation, event by event."""

import heapq
import math
import random

import pytest

from kit.latency import Elapsed, Parts, elapsed


def simulated(parts: Parts, steps: int, interval: int | None, depth: int, ahead: int) -> float:
    """The same rules as events on a clock: everything starts at the first moment at which all it needs is there."""
    drawn, trained, synced_for = 0, 0, 0  # batches; and the window whose weights the sampler has
    sampler = trainer = False  # busy
    clock, events = 0.0, [(0.0, 0, "start")]
    window = (lambda step: 0) if interval is None else (lambda step: step // interval)
    serial = 0

    def later(seconds: float, what: str) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (clock + seconds, serial, what))

    while events:
        clock, _, what = heapq.heappop(events)
        if what == "drawn":
            drawn, sampler = drawn + 1, False
        elif what == "trained":
            trained, trainer = trained + 1, False
        elif what == "synced":
            synced_for, sampler, trainer = window(trained), False, False
        if events and events[0][0] == clock:  # take all that happens at this moment before starting anything
            continue
        if not trainer and trained < steps and window(trained) == synced_for and drawn > trained:
            trainer = True
            later(parts.train, "trained")
        early = interval is not None and window(drawn) > synced_for and drawn < (synced_for + 1) * interval + ahead
        is_due = drawn < steps and drawn <= trained + depth and (window(drawn) == synced_for or early)
        if not sampler and is_due:
            sampler = True
            later(parts.generate, "drawn")
        if not sampler and not trainer and trained < steps and window(trained) > synced_for:
            sampler = trainer = True
            later(parts.sync, "synced")
    assert (drawn, trained) == (steps, steps)
    return clock


def test_it_is_what_a_simulation_finds() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        parts = Parts(*(chance.randint(1, 9) for _ in range(2)), sync=chance.randint(0, 3))
        steps, interval, depth = chance.randint(1, 30), chance.choice([None, 1, 2, 3, 5, 10]), chance.randint(0, 4)
        ahead = chance.randint(0, depth)
        found = elapsed(parts, steps, interval, depth=depth, ahead=ahead)
        assert found.seconds == pytest.approx(simulated(parts, steps, interval, depth, ahead)), (
            parts, steps, interval, depth, ahead,
        )  # fmt: skip


@pytest.mark.parametrize("interval", [1, 2, 5, None])
def test_a_blocking_run_is_the_sum_of_its_parts(interval: int | None) -> None:
    syncs = 0 if interval is None else math.ceil(20 / interval) - 1
    found = elapsed(Parts(2.0, 3.0, 0.5), 20, interval)
    assert found.seconds == 20 * 5.0 + 0.5 * syncs
    assert found.sampler_idle == pytest.approx(1 - 40 / found.seconds)
    assert found.trainer_idle == pytest.approx(1 - 60 / found.seconds)


def test_online_nothing_overlaps_unless_one_batch_may_be_stale() -> None:
    assert elapsed(Parts(2.0, 2.0, 0.0), 100, 1, depth=4).seconds == 400.0
    assert elapsed(Parts(2.0, 2.0, 0.0), 100, 1, depth=1, ahead=1).seconds == 202.0


def test_a_long_run_takes_what_its_slower_part_takes() -> None:
    assert elapsed(Parts(3.0, 1.0, 0.0), 1000, None, depth=1).seconds == 3001.0
    assert elapsed(Parts(1.0, 3.0, 0.0), 1000, None, depth=1).seconds == 3001.0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="seconds >= 0"):
        Parts(-1.0, 1.0, 1.0)
    for steps, interval, depth, ahead in [(0, 1, 0, 0), (1, 0, 0, 0), (1, 1, 0, 1), (1, 1, -1, 0)]:
        with pytest.raises(ValueError, match=f"came {steps}, {interval}, {depth} and {ahead}"):
            elapsed(Parts(1.0, 1.0, 1.0), steps, interval, depth=depth, ahead=ahead)
    assert elapsed(Parts(0.0, 0.0, 0.0), 3, 1) == Elapsed(0.0, 0.0, 0.0)
