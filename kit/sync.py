"""When to copy the policy's weights into the sampler: the paper's dial `s`, as values.

Steps are optimizer steps, counted from 0. The sampler holds the policy's weights at step 0. `due` is asked before step
`t` generates; when it says yes, the weights are copied and `last_sync_step` becomes `t`. So staleness, the updates that
the sampler lags behind the policy, is `t mod s` with `Every(s)`: 0 when online, up to s - 1 when semi-online, and `t`
when offline. No schedule copies what the sampler already holds.

The same quantity elsewhere: TRL's `weight_sync_steps` (asynchronous GRPO) or `steps_per_generation` over
`gradient_accumulation_steps` (GRPO), `sync_vllm_model_every_n_steps` of the authors' fairseq2 branch, verl's
`trigger_parameter_sync_step`, oat's `sync_params_every`. Two other knobs age the data too and are kept apart:
`RunConfig.reuse_epochs` (TRL's `num_iterations`) and `RunConfig.max_age` (TRL's `max_staleness`).

Lanchantin et al. 2025, "Bridging Offline and Online Reinforcement Learning for LLMs", https://arxiv.org/abs/2506.21495.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable


class Drift(NamedTuple):
    """How far the policy has moved from the sampler, on completions that the sampler wrote; see `kit.offpolicy`."""

    kl: float  # KL(policy || sampler), nats a token
    m2: float  # mean squared log-ratio, squared nats


@dataclass(frozen=True, slots=True)
class SyncState:
    """What a schedule may look at."""

    step: int  # the step about to generate, from 0
    last_sync_step: int  # the step before which the weights were last copied; 0 at the start
    drift: "Drift | None" = None  # None = not measured
    sampler_step: int | None = None  # for a reference: the step before which the *sampler* was last copied to

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

    @property
    def max_staleness(self) -> int | None:
        """The largest lag that the schedule allows, steps; None = no limit."""
        ...

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

    @property
    def max_staleness(self) -> int:
        return self.interval - 1

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

    @property
    def max_staleness(self) -> None:
        return None

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

    @property
    def max_staleness(self) -> int:
        return max(self.start, self.end) - 1

    def interval_at(self, step: int) -> int:
        """The interval in force at a step, rounded to the nearest number of steps, halves up."""
        done = min(step, self.steps)
        return (2 * (self.start * (self.steps - done) + self.end * done) + self.steps) // (2 * self.steps)

    def due(self, state: SyncState) -> bool:
        """True when the lag has reached the interval in force now."""
        return staleness(state) >= self.interval_at(state.step)


@dataclass(frozen=True, slots=True)
class OnDrift:
    """Copy when the policy has drifted from the sampler by more than a bound, however many steps that took.

    Not in the paper: it bounds the distance that `s` only stands for. Give one bound or both; the first to pass counts.
    The drift is measured after each update, on completions of the step before (`RunConfig.drift_prompts`).

    >>> OnDrift(max_kl=0.1).due(SyncState(step=9, last_sync_step=2, drift=Drift(kl=0.2, m2=0.5)))
    True
    """

    needs_drift: ClassVar[bool] = True
    max_kl: float | None = None  # KL(policy || sampler), nats a token, > 0
    max_m2: float | None = None  # mean squared log-ratio, squared nats, > 0
    max_interval: int | None = None  # steps: copy at the latest when the sampler lags this many; None = no limit

    def __post_init__(self) -> None:
        if self.max_kl is None and self.max_m2 is None:
            raise ValueError("expected max_kl or max_m2, came neither: Every(s) copies after a number of steps alone")
        _require_bound("max_kl", self.max_kl)
        _require_bound("max_m2", self.max_m2)
        if self.max_interval is not None:
            _require_steps("max_interval", self.max_interval)

    @property
    def max_staleness(self) -> int | None:
        return None if self.max_interval is None else self.max_interval - 1

    def due(self, state: SyncState) -> bool:
        """True when a measured drift exceeds its bound; ValueError if there is something to copy but no drift."""
        if staleness(state) == 0:
            return False
        if state.drift is None or math.isnan(state.drift.kl) or math.isnan(state.drift.m2):
            raise ValueError(
                f"expected the measured drift at step {state.step}, came {state.drift}: put it in SyncState"
            )
        is_far = self.max_kl is not None and state.drift.kl > self.max_kl
        is_wide = self.max_m2 is not None and state.drift.m2 > self.max_m2
        is_late = self.max_interval is not None and staleness(state) >= self.max_interval
        return is_far or is_wide or is_late


@dataclass(frozen=True, slots=True)
class WithSampler:
    """For a reference: copy whenever the sampler was copied to, so that the reference is the policy that sampled.

    >>> WithSampler().due(SyncState(step=4, last_sync_step=2, sampler_step=4))
    True
    """

    needs_drift: ClassVar[bool] = False

    @property
    def max_staleness(self) -> None:
        return None

    def due(self, state: SyncState) -> bool:
        """True at the steps before which the sampler was copied to; ValueError for a schedule of the sampler itself."""
        if state.sampler_step is None:
            raise ValueError("expected sampler_step, came None: WithSampler is a schedule for the reference alone")
        return state.last_sync_step < state.sampler_step


def every(interval: int | None) -> Every | Never:
    """The schedule of a notebook's `sync_interval`: steps between copies, None for offline, 1 for online.

    Raises:
        TypeError: for a bool, a float or text.
        ValueError: for 0 or less.

    >>> every(10), every(None)
    (Every(interval=10), Never())
    """
    return Never() if interval is None else Every(interval)


def timeline(schedule: Schedule, steps: int, reuse_epochs: int = 1) -> list[int]:
    """Staleness at each of the first `steps` steps, by replaying `due` where a batch is generated.

    >>> timeline(Every(2), 6, reuse_epochs=3)  # a batch serves three steps
    [0, 1, 2, 0, 1, 2]

    Raises:
        ValueError: if the schedule needs a measured drift, which a replay does not have, or reuse_epochs is below 1.
    """
    if reuse_epochs < 1:
        raise ValueError(f"expected reuse_epochs >= 1, came {reuse_epochs}: 1 uses each batch once")
    if schedule.needs_drift:
        raise ValueError(f"expected a schedule of steps alone, came {schedule}: its timeline depends on the run")
    lags, last_sync_step = [], 0
    for step in range(steps):
        if step % reuse_epochs == 0 and schedule.due(SyncState(step, last_sync_step)):
            last_sync_step = step
        lags.append(step - last_sync_step)
    return lags


def _require_bound(name: str, bound: object) -> None:
    """Raise TypeError unless a number or None came, ValueError unless it is above 0 and finite."""
    if bound is None:
        return
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise TypeError(f"expected {name} as a number of nats per token, came {bound!r}")
    if not (bound > 0 and math.isfinite(bound)):
        raise ValueError(f"expected a finite {name} > 0, came {bound}: write Never() for offline, Every(1) for online")


def _require_steps(name: str, value: object) -> None:
    """Raise TypeError unless a whole number of steps came, ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} as a whole number of steps, came {value!r}: None is offline, 1 online")
    if value < 1:
        raise ValueError(f"expected {name} >= 1 step, came {value}: write None (or Never()) for offline, 1 for online")
