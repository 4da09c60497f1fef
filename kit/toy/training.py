"""Training in the toy world: the schedules of `kit.sync` as they are, everything else a table."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from kit.sync import Never, Schedule, SyncState
from kit.toy.world import ToyWorld


class ToyState(NamedTuple):
    """What a direction may look at, at one step."""

    step: int
    staleness: int  # updates that the sampler lags behind the policy
    batch: int  # number of the batch at hand: with reuse_epochs > 1 several steps share one
    logits: Float[Tensor, "prefix vocab"]
    sampler_logits: Float[Tensor, "prefix vocab"]
    ref_logits: Float[Tensor, "prefix vocab"]
    prox_logits: Float[Tensor, "prefix vocab"]  # the policy before the first pass over this batch


Direction = Callable[[ToyState], Tensor]


class ToyRun(NamedTuple):
    """One number a step, before its update; the last entry of each is after the last update."""

    rewards: list[float]  # exact expected reward of the *policy*
    drifts: list[float]  # KL(policy || sampler), nats a token, on the policy's prefixes
    staleness: list[int]  # updates
    syncs: list[int]  # steps before which the sampler received the policy's weights
    states: list[ToyState]


def train(
    world: ToyWorld,
    direction: Direction,
    schedule: Schedule,
    *,
    steps: int,
    learning_rate: float,
    start: Float[Tensor, "prefix vocab"] | None = None,
    ref_schedule: Schedule | None = None,
    ref_mixup_alpha: float = 1.0,
    reuse_epochs: int = 1,
) -> ToyRun:
    r"""Plain gradient steps with a sampler and a reference that follow schedules, in the order of `kit.run`.

    .. math:: z \leftarrow z + \eta \, d(state)

    Args:
        direction: where to go, such as an exact expectation of `kit.toy.estimators` or an estimate from draws.
        schedule: of the sampler, asked where a batch is generated. `OnDrift` sees the drift as the run loop measures
            it, on the sampler's prefixes.
        steps: updates, >= 1.
        learning_rate: eta.
        start: the first policy, sampler and reference; None is uniform.
        ref_schedule: of the reference, asked at every step; None is `Never()`.
        ref_mixup_alpha: how far the reference then moves to the policy's table, in (0, 1].
        reuse_epochs: steps on each batch.

    >>> import torch
    >>> world = ToyWorld(torch.tensor([1.0, 0.0]))
    >>> run = train(world, lambda state: world.policy_gradient(state.logits), Never(), steps=2, learning_rate=1.0)
    >>> [round(reward, 3) for reward in run.rewards], run.staleness
    ([0.5, 0.622, 0.725], [0, 1, 2])
    """
    logits = world.zeros() if start is None else start
    sampler = ref = prox = logits
    last_sync, last_ref_sync, drift, syncs = 0, 0, None, []
    states: list[ToyState] = []
    ref_schedule = Never() if ref_schedule is None else ref_schedule
    for step in range(steps):
        if step % reuse_epochs == 0:
            if schedule.due(SyncState(step, last_sync, drift)):
                sampler, last_sync = logits, step
                syncs.append(step)
            prox = logits
        if ref_schedule.due(SyncState(step, last_ref_sync, sampler_step=last_sync)):
            ref, last_ref_sync = ref + ref_mixup_alpha * (logits - ref), step
        state = ToyState(step, step - last_sync, step // reuse_epochs, logits, sampler, ref, prox)
        states.append(state)
        logits = logits + learning_rate * direction(state)
        drift = world.drift(logits, sampler) if schedule.needs_drift else None
    states.append(ToyState(steps, steps - last_sync, steps // reuse_epochs, logits, sampler, ref, prox))
    return ToyRun(
        rewards=[world.expected_reward(state.logits).item() for state in states],
        drifts=[world.kl(state.logits, state.sampler_logits, per_token=True).item() for state in states],
        staleness=[state.staleness for state in states],
        syncs=syncs,
        states=states,
    )
