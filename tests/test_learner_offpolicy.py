"""What the learner knows of a stale sampler: distances, the policy before the first pass, bounds of a whole step."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.config import Sampling
from kit.importance import M2PO, DecoupledPPO, NoCorrection
from kit.learner import Learner
from kit.models.policy import load_policy
from kit.models.weights import digest, weights_of
from kit.objectives import DPO, GRPO, GroupDPO, Objective
from kit.rollouts import totals_of
from kit.types import Example, Group, Rollout, Totals
from tests.learning import (
    REWARDS,
    close,
    examples_of,
    gradients,
    logprobs_and_entropies,
    make_learner,
    scored_groups,
)

OFFPOLICY = ["kl", "kl_reverse", "m2", "ess", "ratio_mean", "ratio_min", "ratio_max"]


def groups_of(folder: Path) -> list[Group]:
    return scored_groups(load_policy(str(folder))[0])


@torch.no_grad()
def log_ratios(learner: Learner, rollouts: list[Rollout]) -> torch.Tensor:
    """Of all tokens, by one plain forward pass each."""
    found = [logprobs_and_entropies(learner.policy, r)[0] - torch.tensor(r.old_logprobs) for r in rollouts]
    return torch.cat(found)


@pytest.mark.parametrize(
    "objective", [DPO(), GRPO(), GRPO(NoCorrection()), GroupDPO()], ids=["dpo", "grpo", "grpo none", "group dpo"]
)
@pytest.mark.parametrize("micro_batch_size", [2, 64])
def test_distances_are_those_of_the_tokens_trained_on_before_the_update(
    tiny_folder: Path, objective: Objective, micro_batch_size: int
) -> None:
    learner = make_learner(tiny_folder, objective, micro_batch_size=micro_batch_size)
    groups = groups_of(tiny_folder)
    examples = examples_of(objective, groups)
    d = log_ratios(learner, [rollout for example in examples for rollout in example.rollouts])
    metrics = learner.update(examples, totals_of(groups, examples), step=0)
    r = d.exp()
    expected = {
        "kl": (r * d - r + 1).mean(), "kl_reverse": (r - 1 - d).mean(), "m2": (d * d).mean(),
        "ess": r.sum() ** 2 / (len(r) * (r * r).sum()), "ratio_mean": r.mean(), "ratio_min": r.min(),
        "ratio_max": r.max(),
    }  # fmt: skip
    for name, value in expected.items():
        assert metrics[f"offpolicy/{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert metrics["offpolicy/m2"] > 0.05


def test_under_a_cut_distribution_distances_mean_nothing_and_are_left_out(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, DPO(), sampling=Sampling(top_p=0.9))
    groups = groups_of(tiny_folder)
    examples = examples_of(DPO(), groups)
    metrics = learner.update(examples, totals_of(groups, examples), step=0)
    assert [name for name in metrics if name.startswith("offpolicy/")] == []


def test_drift_is_measured_on_whole_groups(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, DPO())  # which trains on two completions of three of these five groups
    groups = groups_of(tiny_folder)
    d = log_ratios(learner, [rollout for group in groups for rollout in group.rollouts])
    found, before = learner.drift(groups), digest(weights_of(learner.policy))
    assert found.kl == pytest.approx((d.exp() * d - d.exp() + 1).mean().item(), rel=1e-5)
    assert found.m2 == pytest.approx((d * d).mean().item(), rel=1e-5)
    assert digest(weights_of(learner.policy)) == before and all(p.grad is None for p in learner.policy.parameters())
    some = learner.drift(groups[:2])
    assert some.m2 == pytest.approx((d[: sum(len(r.old_logprobs) for g in groups[:2] for r in g.rollouts)] ** 2).mean())


def test_drift_from_itself_is_zero_at_every_temperature(tiny_folder: Path) -> None:
    for temperature in (1.0, 0.5):
        learner = make_learner(tiny_folder, DPO(), sampling=Sampling(temperature=temperature))
        groups = []
        for group in groups_of(tiny_folder):
            own = learner.with_prox_logprobs([Example(group.rollouts)])[0].rollouts
            groups.append(replace(group, rollouts=tuple(replace(r, old_logprobs=r.prox_logprobs) for r in own)))
        assert learner.drift(groups) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_the_recent_policy_is_that_of_before_the_first_pass(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, GRPO(DecoupledPPO()), micro_batch_size=3)
    groups = groups_of(tiny_folder)
    examples = examples_of(learner.objective, groups)
    with torch.no_grad():
        expected = [logprobs_and_entropies(learner.policy, e.rollouts[0])[0].tolist() for e in examples]
    found = learner.with_prox_logprobs(examples)
    assert [replace(r, prox_logprobs=()) for e in found for r in e.rollouts] == [e.rollouts[0] for e in examples]
    assert [e.advantages for e in found] == [e.advantages for e in examples]
    for example, row in zip(found, expected, strict=True):
        assert example.rollouts[0].prox_logprobs == pytest.approx(row, abs=1e-5)


def test_a_rollout_in_two_pairs_gets_its_own_numbers_in_both(tiny_folder: Path) -> None:
    from kit.pairing import all_pairs

    learner = make_learner(tiny_folder, DPO(pairing=all_pairs), micro_batch_size=2)
    examples = examples_of(learner.objective, groups_of(tiny_folder))
    found = learner.with_prox_logprobs(examples)
    for example, before in zip(found, examples, strict=True):
        for rollout, was in zip(example.rollouts, before.rollouts, strict=True):
            own = logprobs_and_entropies(learner.policy, was)[0].tolist()
            assert rollout.prox_logprobs == pytest.approx(own, abs=1e-5)


def test_the_second_pass_of_decoupled_ppo_is_that_of_the_formula(tiny_folder: Path) -> None:
    objective = GRPO(DecoupledPPO(0.01), aggregate="sum")
    learner = make_learner(tiny_folder, objective)
    groups = groups_of(tiny_folder)
    examples = learner.with_prox_logprobs(examples_of(objective, groups))
    totals = totals_of(groups, examples)
    learner.update(examples, totals, step=0)
    policy, loss = learner.policy, torch.zeros((), dtype=torch.float64)
    policy.zero_grad()
    clipped = 0
    for example in examples:
        [rollout], [advantage] = example.rollouts, example.advantages
        logprobs, _ = logprobs_and_entropies(policy, rollout)
        old, prox = (torch.tensor(row, dtype=torch.float64) for row in (rollout.old_logprobs, rollout.prox_logprobs))
        r = (logprobs - prox).exp()
        term = torch.minimum(r * advantage, r.clamp(0.99, 1.01) * advantage)
        clipped += int((term.detach() != (r * advantage).detach()).sum())
        loss = loss - ((prox - old).exp() * term).sum() / totals.rollouts
    loss.backward()
    expected = gradients(policy)
    metrics = learner.update(examples, totals, step=1)
    assert close(gradients(policy), expected)
    assert clipped > 0 and metrics["clip_ratio/region_mean"] > 0
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 64])
def test_m2po_leaves_out_the_tokens_of_the_whole_step(tiny_folder: Path, micro_batch_size: int) -> None:
    objective = GRPO(M2PO(0.05))
    learner = make_learner(tiny_folder, objective, micro_batch_size=micro_batch_size)
    groups = groups_of(tiny_folder)
    examples = examples_of(objective, groups)
    squares = log_ratios(learner, [r for e in examples for r in e.rollouts]).square().sort().values
    kept = max(n for n in range(len(squares) + 1) if n == 0 or squares[:n].mean() <= 0.05)
    metrics = learner.update(examples, totals_of(groups, examples), step=0)
    assert 0 < kept < len(squares)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(1 - kept / len(squares), abs=1e-6)


def test_group_dpo_gradient_is_that_of_the_formula(tiny_folder: Path) -> None:
    objective = GroupDPO(0.3, grpo_coef=0.4)
    learner = make_learner(tiny_folder, objective, micro_batch_size=5)
    policy, reference = learner.policy, load_policy(str(tiny_folder))[0].double()
    groups, loss = groups_of(tiny_folder), torch.zeros((), dtype=torch.float64)
    for group in groups:
        judged = [(r, reward) for r, reward in zip(group.rollouts, group.rewards, strict=True) if reward is not None]
        rewards = torch.tensor([reward for _, reward in judged], dtype=torch.float64)
        if len(rewards.unique()) < 2:
            continue
        sums, implicit = [], []
        for rollout, _ in judged:
            own = logprobs_and_entropies(policy, rollout)[0].sum()
            with torch.no_grad():
                ref = logprobs_and_entropies(reference, rollout)[0].sum()
            sums.append(own)
            implicit.append(0.3 * (own - ref))
        pairs = [(c, r) for c, good in enumerate(rewards) for r, bad in enumerate(rewards) if good > bad]
        margins = torch.stack([implicit[c] - implicit[r] for c, r in pairs])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        loss = loss + torch.log1p(torch.exp(-margins)).mean() / len(REWARDS)
        # Minus A log pi of each token: its gradient, not its value, is that of the ratio without a correction.
        loss = loss - 0.4 * (advantages * torch.stack(sums)).sum() / (4 * len(REWARDS))
    loss.backward()
    expected = gradients(policy)
    examples = examples_of(objective, groups)
    learner.update(examples, totals_of(groups, examples), step=0)
    assert close(gradients(policy), expected)


@pytest.mark.parametrize(
    "objective", [GRPO(M2PO()), GRPO(DecoupledPPO()), GroupDPO(grpo_coef=0.1)], ids=["m2po", "decoupled", "group dpo"]
)
def test_without_examples_nothing_is_fitted_and_nothing_moves(tiny_folder: Path, objective: Any) -> None:
    learner = make_learner(tiny_folder, objective)
    before = digest(weights_of(learner.policy))
    metrics = learner.update([], Totals(4, 16, 80, 0), step=0)
    assert digest(weights_of(learner.policy)) == before and learner.with_prox_logprobs([]) == []
    assert metrics == {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.1}
    assert not any(math.isnan(value) for value in metrics.values())
