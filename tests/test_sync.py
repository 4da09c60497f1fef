"""Sync schedules: staleness at every step, from online to offline, and what may not be written."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sync import Every, Never, OnDrift, Schedule, SyncState, WarmUp, every, staleness, timeline

INTERVALS = st.integers(1, 40)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Every(1), [0, 0, 0, 0, 0, 0, 0]),  # online: copied before every step
        (Every(3), [0, 1, 2, 0, 1, 2, 0]),
        (Every(100), [0, 1, 2, 3, 4, 5, 6]),
        (Never(), [0, 1, 2, 3, 4, 5, 6]),
        # intervals 1, 1.5, 2, 2.5, 3, 3, 3, ... round to 1, 2, 2, 3, 3, 3, 3; lag reaches them at steps 2, 5, 8
        (WarmUp(1, 3, steps=4), [0, 1, 0, 1, 2, 0, 1, 2, 0]),
        # intervals 4, 3, 2, 1, 1: the lag of 2 at step 2 suffices, then every step
        (WarmUp(4, 1, steps=3), [0, 1, 0, 0, 0]),
    ],
)
def test_staleness_at_each_step(schedule: Schedule, expected: list[int]) -> None:
    assert timeline(schedule, len(expected)) == expected


@settings(deadline=None)
@given(INTERVALS, st.integers(0, 200))
def test_staleness_is_the_step_modulo_the_interval(interval: int, steps: int) -> None:
    assert timeline(Every(interval), steps) == [step % interval for step in range(steps)]


@settings(deadline=None)
@given(INTERVALS, INTERVALS, st.integers(1, 60))
def test_a_warm_up_goes_from_start_to_end_and_bounds_the_lag(start: int, end: int, steps: int) -> None:
    schedule = WarmUp(start, end, steps)
    intervals = [schedule.interval_at(step) for step in range(steps + 10)]
    assert intervals[0] == start and intervals[steps:] == [end] * 10
    for step, interval in enumerate(intervals[: steps + 1]):
        assert abs(interval - (start + (end - start) * step / steps)) <= 0.5 + 1e-9
    assert all(lag < interval for lag, interval in zip(timeline(schedule, steps + 10), intervals, strict=True))


@settings(deadline=None)
@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 30))
def test_an_interval_that_changes_during_a_run_bounds_the_lag_at_once(before: int, after: int, change: int) -> None:
    last_sync_step = 0
    for step in range(60):
        schedule = Every(before if step < change else after)
        if schedule.due(SyncState(step, last_sync_step)):
            last_sync_step = step
        assert step - last_sync_step < schedule.interval


@pytest.mark.parametrize("schedule", [Every(1), Every(3), Never(), WarmUp(1, 3, 4), OnDrift(0.1)])
@pytest.mark.parametrize("step", [0, 6])
def test_nothing_is_due_where_the_sampler_already_holds_the_policy(schedule: Schedule, step: int) -> None:
    assert not schedule.due(SyncState(step, last_sync_step=step, drift=9.0))
    assert not schedule.due(SyncState(step, last_sync_step=step))


@pytest.mark.parametrize(("drift", "due"), [(0.0, False), (0.05, False), (0.0501, True), (3.0, True)])
def test_drift_is_due_above_its_bound_however_few_steps_it_took(drift: float, due: bool) -> None:
    assert OnDrift(max_kl=0.05).due(SyncState(step=8, last_sync_step=7, drift=drift)) is due


@pytest.mark.parametrize("drift", [None, float("nan")])
def test_a_drift_that_was_not_measured_is_an_error_and_not_a_no(drift: float | None) -> None:
    with pytest.raises(ValueError, match=f"measured drift at step 8, came {drift}"):
        OnDrift(max_kl=0.05).due(SyncState(step=8, last_sync_step=7, drift=drift))


def test_only_the_schedule_that_reads_the_drift_asks_for_it() -> None:
    assert OnDrift.needs_drift and OnDrift(0.1).needs_drift
    assert not (Every.needs_drift or Never.needs_drift or WarmUp.needs_drift)
    with pytest.raises(ValueError, match="schedule of steps alone"):
        timeline(OnDrift(0.1), 3)


def test_a_notebook_parameter_becomes_a_schedule() -> None:
    assert every(None) == Never()
    assert every(1) == Every(1) != Every(2)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "every": every,
    "Every": Every,
    "WarmUp start": lambda value: WarmUp(value, 2, 2),
    "WarmUp end": lambda value: WarmUp(2, value, 2),
    "WarmUp steps": lambda value: WarmUp(2, 2, value),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("sentinel", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError)])
def test_a_sentinel_is_refused_by_saying_what_to_write(maker: str, sentinel: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"offline.*1.*online"):
        MAKERS[maker](sentinel)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("number", [2.0, "10"])
def test_only_whole_numbers_are_steps(maker: str, number: object) -> None:
    with pytest.raises(TypeError):
        MAKERS[maker](number)


@pytest.mark.parametrize(
    ("max_kl", "error"),
    [(0.0, ValueError), (-1.0, ValueError), (float("inf"), ValueError), (True, TypeError), ("1", TypeError)],
)
def test_a_drift_bound_is_a_positive_number(max_kl: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        OnDrift(max_kl)


def test_a_sync_from_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="last_sync_step <= step, came 5 and 4"):
        SyncState(step=4, last_sync_step=5)
    with pytest.raises(ValueError):
        SyncState(step=4, last_sync_step=-1)


def test_schedules_are_values() -> None:
    assert len({Every(3), Every(3), Every(4), Never(), Never(), WarmUp(1, 2, 3), WarmUp(1, 2, 3), OnDrift(0.1)}) == 5
    with pytest.raises(FrozenInstanceError):
        Every(3).interval = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert staleness(SyncState(7, 4)) == 3
