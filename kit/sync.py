"""When to copy the policy's weights into the sampler: the paper's dial `s`, as values.

Steps are optimizer steps, counted from 0. The sampler holds the policy's weights at step 0. `due` is asked before step
`t` generates; when it says yes, the weights are copied and `last_sync_step` becomes `t`. So staleness, the updates that
the sampler lags behind the policy, is `t mod s` with `Every(s)`: 0 when online, up to s - 1 when semi-online, and `t`
when offline. No schedule copies what the sampler already holds.

Lanchantin et al. 2025, "Bridging Offline and Online Reinforcement Learning for LLMs", https://arxiv.org/abs/2506.21495.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class SyncState:
    """What a schedule may look at."""

    step: int  # the step about to generate, from 0
    last_sync_step: int  # the step before which the weights were last copied; 0 at the start
    drift: float | None = None  # measured KL from the sampler to the policy, nats per token; None = not measured

    def __post_init__(self) -> None:
        if not 0 <= self.last_sync_step <= self.step:
            raise ValueError(f"expected 0 <= last_sync_step <= step, came {self.last_sync_step} and {self.step}")


def staleness(state: SyncState) -> int:
    """Optimizer updates that the sampler lags behind the policy; 0 = on-policy.

    >>> staleness(SyncState(step=7, last_sync_step=5))
    2
    """
    return state.step - state.last_sync_step


@runtime_checkable
class Schedule(Protocol):
    """Decides when to copy weights. `needs_drift` says whether `due` reads the measured drift."""

    needs_drift: ClassVar[bool]

    def due(self, state: SyncState) -> bool:
        """Whether to copy the weights before this step generates."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """Copy when the sampler lags `interval` steps: 1 is online, larger is semi-online.

    >>> timeline(Every(3), 7)
    [0, 1, 2, 0, 1, 2, 0]
    """

    needs_drift: ClassVar[bool] = False
    interval: int  # s, steps, >= 1

    def __post_init__(self) -> None:
        _require_steps("interval", self.interval)

    def due(self, state: SyncState) -> bool:
        """True when the lag has reached the interval."""
        return staleness(state) >= self.interval


@dataclass(frozen=True, slots=True)
class Never:
    """Keep the seed model's weights: offline.

    >>> timeline(Never(), 4)
    [0, 1, 2, 3]
    """

    needs_drift: ClassVar[bool] = False

    def due(self, state: SyncState) -> bool:
        """Always False."""
        return False


@dataclass(frozen=True, slots=True)
class WarmUp:
    """An interval that goes linearly from `start` to `end` over `steps` steps and stays there; it may grow or shrink.

    >>> [WarmUp(1, 3, steps=4).interval_at(step) for step in range(6)]  # 1, 1.5, 2, 2.5, 3, 3: halves round up
    [1, 2, 2, 3, 3, 3]
    >>> timeline(WarmUp(1, 3, steps=4), 8)
    [0, 1, 0, 1, 2, 0, 1, 2]
    """

    needs_drift: ClassVar[bool] = False
    start: int  # steps, >= 1
    end: int  # steps, >= 1
    steps: int  # length of the change, >= 1

    def __post_init__(self) -> None:
        for name in ("start", "end", "steps"):
            _require_steps(name, getattr(self, name))

    def interval_at(self, step: int) -> int:
        """The interval in force at a step, rounded to the nearest number of steps, halves up."""
        done = min(step, self.steps)
        return (2 * (self.start * (self.steps - done) + self.end * done) + self.steps) // (2 * self.steps)

    def due(self, state: SyncState) -> bool:
        """True when the lag has reached the interval in force now."""
        return staleness(state) >= self.interval_at(state.step)


@dataclass(frozen=True, slots=True)
class OnDrift:
    """Copy when the policy has drifted from the sampler by more than `max_kl`, however many steps that took.

    Not in the paper: it bounds the distance that `s` only stands for.

    >>> OnDrift(max_kl=0.1).due(SyncState(step=9, last_sync_step=2, drift=0.2))
    True
    """

    needs_drift: ClassVar[bool] = True
    max_kl: float  # nats per token, > 0

    def __post_init__(self) -> None:
        if isinstance(self.max_kl, bool) or not isinstance(self.max_kl, (int, float)):
            raise TypeError(f"expected max_kl as a number of nats per token, came {self.max_kl!r}")
        if not (self.max_kl > 0 and math.isfinite(self.max_kl)):
            raise ValueError(
                f"expected a finite max_kl > 0, came {self.max_kl}: write Never() for offline, Every(1) online"
            )

    def due(self, state: SyncState) -> bool:
        """True when the measured drift exceeds the bound; ValueError if there is something to copy but no drift."""
        if staleness(state) == 0:
            return False
        if state.drift is None or math.isnan(state.drift):
            raise ValueError(
                f"expected the measured drift at step {state.step}, came {state.drift}: put it in SyncState"
            )
        return state.drift > self.max_kl


def every(interval: int | None) -> Every | Never:
    """The schedule of a notebook's `sync_interval`: steps between copies, None for offline, 1 for online.

    Raises:
        TypeError: for a bool, a float or text.
        ValueError: for 0 or less.

    >>> every(10), every(None)
    (Every(interval=10), Never())
    """
    return Never() if interval is None else Every(interval)


def timeline(schedule: Schedule, steps: int) -> list[int]:
    """Staleness at each of the first `steps` steps, by replaying `due`.

    Raises:
        ValueError: if the schedule needs a measured drift, which a replay does not have.
    """
    if schedule.needs_drift:
        raise ValueError(f"expected a schedule of steps alone, came {schedule}: its timeline depends on the run")
    lags, last_sync_step = [], 0
    for step in range(steps):
        if schedule.due(SyncState(step, last_sync_step)):
            last_sync_step = step
        lags.append(step - last_sync_step)
    return lags


def _require_steps(name: str, value: object) -> None:
    """Raise TypeError unless a whole number of steps came, ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} as a whole number of steps, came {value!r}: None is offline, 1 online")
    if value < 1:
        raise ValueError(f"expected {name} >= 1 step, came {value}: write None (or Never()) for offline, 1 for online")
