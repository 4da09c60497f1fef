"""Sync schedules: staleness at every step, from online to offline, and what may not be written."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.sync import Drift, Every, Never, OnDrift, Schedule, SyncState, WarmUp, WithSampler, every, staleness, timeline

INTERVALS = st.integers(1, 40)
NAN = float("nan")


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


@pytest.mark.parametrize("schedule", [Every(1), Every(3), Never(), WarmUp(1, 3, 4), OnDrift(0.1, 0.1, 1)])
@pytest.mark.parametrize("step", [0, 6])
def test_nothing_is_due_where_the_sampler_already_holds_the_policy(schedule: Schedule, step: int) -> None:
    assert not schedule.due(SyncState(step, last_sync_step=step, drift=Drift(9.0, 9.0)))
    assert not schedule.due(SyncState(step, last_sync_step=step))


@pytest.mark.parametrize(("drift", "due"), [(0.0, False), (0.05, False), (0.0501, True), (3.0, True)])
def test_drift_is_due_above_its_bound_however_few_steps_it_took(drift: float, due: bool) -> None:
    assert OnDrift(max_kl=0.05).due(SyncState(step=8, last_sync_step=7, drift=Drift(kl=drift, m2=0.0))) is due
    assert OnDrift(max_m2=0.05).due(SyncState(step=8, last_sync_step=7, drift=Drift(kl=0.0, m2=drift))) is due


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        (OnDrift(max_kl=0.2), False),  # the drift below is 0.2 and 0.5: at a bound is not above it
        (OnDrift(max_kl=0.19), True),
        (OnDrift(max_m2=0.5), False),
        (OnDrift(max_m2=0.49), True),
        (OnDrift(max_kl=0.2, max_m2=0.49), True),  # one of two suffices
        (OnDrift(max_kl=0.19, max_m2=0.5), True),
        (OnDrift(max_kl=0.2, max_m2=0.5), False),
        (OnDrift(max_kl=0.2, max_interval=4), False),  # the lag below is 3
        (OnDrift(max_kl=0.2, max_interval=3), True),
        (OnDrift(max_kl=0.2, max_interval=2), True),  # asked too late, as between reused batches
    ],
)
def test_the_first_bound_to_be_passed_counts(schedule: OnDrift, due: bool) -> None:
    assert schedule.due(SyncState(step=8, last_sync_step=5, drift=Drift(kl=0.2, m2=0.5))) is due


@pytest.mark.parametrize("drift", [None, Drift(NAN, 0.1), Drift(0.1, NAN)])
@pytest.mark.parametrize("schedule", [OnDrift(max_kl=0.05), OnDrift(max_m2=0.05), OnDrift(0.05, max_interval=1)])
def test_a_drift_that_was_not_measured_is_an_error_and_not_a_no(drift: Drift | None, schedule: OnDrift) -> None:
    with pytest.raises(ValueError, match=r"measured drift at step 8, came (None|Drift.*nan)"):
        schedule.due(SyncState(step=8, last_sync_step=7, drift=drift))


def test_only_the_schedule_that_reads_the_drift_asks_for_it() -> None:
    assert OnDrift.needs_drift and OnDrift(0.1).needs_drift
    assert not (Every.needs_drift or Never.needs_drift or WarmUp.needs_drift or WithSampler.needs_drift)
    with pytest.raises(ValueError, match="schedule of steps alone"):
        timeline(OnDrift(0.1), 3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Every(1), 0), (Every(7), 6), (Never(), None), (WarmUp(1, 3, 4), 2), (WarmUp(5, 2, 4), 4),
        (OnDrift(0.1), None), (OnDrift(max_m2=0.1, max_interval=6), 5), (WithSampler(), None),
    ],
)  # fmt: skip
def test_the_largest_staleness_is_one_less_than_the_largest_interval(schedule: Schedule, expected: int | None) -> None:
    assert schedule.max_staleness == expected


@pytest.mark.parametrize("schedule", [Every(1), Every(7), WarmUp(1, 3, 4), WarmUp(5, 2, 4)])
def test_no_lag_exceeds_the_largest_staleness(schedule: Every | WarmUp) -> None:
    found = max(timeline(schedule, 50))
    assert found == schedule.max_staleness or (schedule == WarmUp(5, 2, 4) and found == 2)  # it shrinks before step 5


@pytest.mark.parametrize(
    ("last_sync_step", "sampler_step", "due"), [(0, 0, False), (0, 3, True), (3, 3, False), (3, 4, True)]
)
def test_a_reference_with_the_sampler_is_copied_when_the_sampler_was(
    last_sync_step: int, sampler_step: int, due: bool
) -> None:
    assert WithSampler().due(SyncState(5, last_sync_step, sampler_step=sampler_step)) is due


def test_the_sampler_cannot_follow_itself() -> None:
    with pytest.raises(ValueError, match="WithSampler is a schedule for the reference alone"):
        WithSampler().due(SyncState(5, 3))
    with pytest.raises(ValueError, match="for the reference alone"):
        timeline(WithSampler(), 3)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Every(1), [0, 1, 2, 0, 1, 2, 0, 1, 2]),  # even online, later passes are off-policy
        (Every(3), [0, 1, 2, 0, 1, 2, 0, 1, 2]),
        (Every(4), [0, 1, 2, 3, 4, 5, 0, 1, 2]),  # due at step 4, in the middle of a batch: asked again at step 6
        (Never(), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_with_three_passes_over_each_batch_the_sampler_is_copied_between_batches(
    schedule: Schedule, expected: list[int]
) -> None:
    assert timeline(schedule, 9, reuse_epochs=3) == expected


@pytest.mark.parametrize("reuse_epochs", [0, -1])
def test_a_timeline_of_no_passes_is_refused(reuse_epochs: int) -> None:
    with pytest.raises(ValueError, match=f"reuse_epochs >= 1, came {reuse_epochs}"):
        timeline(Every(1), 3, reuse_epochs=reuse_epochs)


def test_a_notebook_parameter_becomes_a_schedule() -> None:
    assert every(None) == Never()
    assert every(1) == Every(1) != Every(2)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "every": every,
    "Every": Every,
    "WarmUp start": lambda value: WarmUp(value, 2, 2),
    "WarmUp end": lambda value: WarmUp(2, value, 2),
    "WarmUp steps": lambda value: WarmUp(2, 2, value),
    "OnDrift max_interval": lambda value: OnDrift(0.1, max_interval=value),
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
    ("bound", "error"),
    [
        (0.0, ValueError),
        (-1.0, ValueError),
        (float("inf"), ValueError),
        (float("nan"), ValueError),
        (True, TypeError),
        ("1", TypeError),
    ],
)
def test_a_drift_bound_is_a_positive_number(bound: Any, error: type[Exception]) -> None:
    for name in ("max_kl", "max_m2"):
        with pytest.raises(error):
            OnDrift(**{name: bound})


def test_a_drift_schedule_without_a_bound_on_drift_is_refused() -> None:
    with pytest.raises(ValueError, match="expected max_kl or max_m2, came neither"):
        OnDrift(max_interval=5)


def test_a_sync_from_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="last_sync_step <= step, came 5 and 4"):
        SyncState(step=4, last_sync_step=5)
    with pytest.raises(ValueError):
        SyncState(step=4, last_sync_step=-1)


def test_schedules_are_values() -> None:
    assert len({Every(3), Every(3), Every(4), Never(), Never(), WarmUp(1, 2, 3), WarmUp(1, 2, 3), OnDrift(0.1)}) == 5
    assert OnDrift(0.1) != OnDrift(max_m2=0.1) and WithSampler() == WithSampler() != Never()
    with pytest.raises(FrozenInstanceError):
        Every(3).interval = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert staleness(SyncState(7, 4)) == 3
