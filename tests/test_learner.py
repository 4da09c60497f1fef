"""One optimizer step: the gradient is the objective's, written out by hand, however the batch is cut up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.config import Sampling
from kit.importance import GSPO, M2PO, PPOClip
from kit.kl import k2
from kit.learner import NonFiniteError
from kit.models.policy import load_policy
from kit.models.weights import digest, weights_of
from kit.objectives import DPO, GRPO, GroupDPO, Objective
from kit.rollouts import totals_of
from kit.types import Example, Totals
from tests.learning import (
    REWARDS,
    close,
    examples_of,
    gradients,
    logprobs_and_entropies,
    make_learner,
    scored_groups,
)

OBJECTIVES: dict[str, Objective] = {
    "dpo": DPO(beta=0.3),
    "dpo nll entropy": DPO(beta=0.3, nll_coef=0.5, entropy_coef=0.2),
    "grpo sequence": GRPO(),
    "grpo sum": GRPO(aggregate="sum"),
    "grpo token": GRPO(aggregate="token"),
    "grpo kl": GRPO(kl_coef=0.2),
    "grpo token kl": GRPO(PPOClip(0.1, 0.3), aggregate="token", kl_coef=0.2),
    "dpo by token": DPO(0.3, nll_coef=0.5, nll_normalize="token", length_normalize=True, denominator="pairs"),
    "group dpo": GroupDPO(0.3, grpo_coef=0.4),
    "grpo m2po constant": GRPO(M2PO(0.05), "constant", 6, kl_coef=0.2, kl_estimator=k2),
    "grpo gspo": GRPO(GSPO(0.05, 0.05)),
}


def updated(folder: Path, name: str, **changes: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Gradients, parameters and metrics after one step."""
    learner = make_learner(folder, OBJECTIVES[name], **changes)
    groups = scored_groups(load_policy(str(folder))[0])
    examples = examples_of(OBJECTIVES[name], groups)
    metrics = learner.update(examples, totals_of(groups, examples), step=0)
    weights = torch.cat([p.detach().flatten() for p in learner.policy.parameters()])
    return gradients(learner.policy), weights, metrics


def test_the_batch_has_everything_that_could_go_wrong(tiny_folder: Path) -> None:
    groups = scored_groups(load_policy(str(tiny_folder))[0])
    assert {len(r.completion_ids) for group in groups for r in group.rollouts} >= {1, 3, 6}
    assert [len(examples_of(OBJECTIVES[name], groups)) for name in ("dpo", "grpo sequence", "grpo kl")] == [3, 10, 18]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_step_does_not_depend_on_the_micro_batch_size(tiny_folder: Path, name: str) -> None:
    gradient, weights, metrics = updated(tiny_folder, name, micro_batch_size=64)
    for size in (1, 3, 7):
        other_gradient, other_weights, other_metrics = updated(tiny_folder, name, micro_batch_size=size)
        assert close(other_gradient, gradient)
        assert close(other_weights, weights)
        assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_metrics_do_not_depend_on_the_micro_batch_size(tiny_folder: Path, name: str) -> None:
    _, _, metrics = updated(tiny_folder, name, micro_batch_size=64)
    _, _, other = updated(tiny_folder, name, micro_batch_size=3)
    assert other == pytest.approx(metrics, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["grpo sequence", "grpo sum", "grpo token", "grpo gspo"])
def test_without_a_kl_term_the_policy_loss_is_the_loss(tiny_folder: Path, name: str) -> None:
    _, _, metrics = updated(tiny_folder, name)
    assert metrics["policy_loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_dpo_gradient_is_that_of_the_formula(tiny_folder: Path) -> None:
    objective = DPO(beta=0.3, nll_coef=0.5, entropy_coef=0.2)
    found, _, metrics = updated(tiny_folder, "dpo nll entropy")
    learner = make_learner(tiny_folder, objective)
    policy, reference = learner.policy, load_policy(str(tiny_folder))[0].double()
    groups, loss = scored_groups(load_policy(str(tiny_folder))[0]), torch.zeros((), dtype=torch.float64)
    for example in examples_of(objective, groups):
        (chosen, entropy), (rejected, _) = (logprobs_and_entropies(policy, r) for r in example.rollouts)
        with torch.no_grad():
            ref_chosen, ref_rejected = (logprobs_and_entropies(reference, r)[0].sum() for r in example.rollouts)
        margin = 0.3 * ((chosen.sum() - ref_chosen) - (rejected.sum() - ref_rejected))
        loss = loss + torch.log1p(torch.exp(-margin)) - 0.5 * chosen.mean() - 0.2 * entropy.mean()
    loss = loss / len(REWARDS)  # prompts, of which two have no pair
    loss.backward()
    assert close(found, gradients(policy))
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(gradients(policy).norm().item(), rel=1e-6)


@pytest.mark.parametrize(("name", "kl_coef"), [("grpo sequence", 0.0), ("grpo kl", 0.2)])
def test_grpo_gradient_is_that_of_the_formula(tiny_folder: Path, name: str, kl_coef: float) -> None:
    found, _, metrics = updated(tiny_folder, name)
    learner = make_learner(tiny_folder, OBJECTIVES[name])
    policy, reference = learner.policy, load_policy(str(tiny_folder))[0].double()
    groups, loss = scored_groups(load_policy(str(tiny_folder))[0]), torch.zeros((), dtype=torch.float64)
    for group in groups:
        judged = [(r, reward) for r, reward in zip(group.rollouts, group.rewards, strict=True) if reward is not None]
        rewards = torch.tensor([reward for _, reward in judged], dtype=torch.float64)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        for (rollout, _), advantage in zip(judged, advantages, strict=True):
            logprobs, _ = logprobs_and_entropies(policy, rollout)
            with torch.no_grad():
                log_ratio = logprobs_and_entropies(reference, rollout)[0] - logprobs
            ratio = torch.exp(logprobs - torch.tensor(rollout.old_logprobs, dtype=torch.float64))
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            d = log_ratio + logprobs.detach() - logprobs  # its value, with a gradient through the policy alone
            kl = d.exp() - d - 1
            loss = loss + (kl_coef * kl - surrogate).mean() / (4 * len(REWARDS))  # over all rollouts, judged or not
    loss.backward()
    assert close(found, gradients(policy))
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_grpo_on_its_own_samples_is_the_policy_gradient(tiny_folder: Path) -> None:
    objective = GRPO()
    learner = make_learner(tiny_folder, objective)
    policy, rollout = learner.policy, scored_groups(load_policy(str(tiny_folder))[0])[0].rollouts[0]
    logprobs, _ = logprobs_and_entropies(policy, rollout)
    (-2.5 * logprobs.mean() / 8).backward()
    expected = gradients(policy)
    fresh = replace(rollout, old_logprobs=tuple(logprobs.tolist()))
    metrics = learner.update([Example((fresh,), (2.5,))], Totals(2, 8, 50, 1), step=0)
    assert close(gradients(policy), expected)
    assert metrics["offpolicy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)


def test_temperature_divides_the_logits_of_policy_and_reference(tiny_folder: Path) -> None:
    sampling = Sampling(temperature=0.5)
    gradient, _, metrics = updated(tiny_folder, "dpo", sampling=sampling)
    plain, _, _ = updated(tiny_folder, "dpo")
    assert not close(gradient, plain)
    learner = make_learner(tiny_folder, OBJECTIVES["dpo"])
    weight = learner.policy.get_output_embeddings().weight
    examples = examples_of(OBJECTIVES["dpo"], scored_groups(load_policy(str(tiny_folder))[0]))
    chosen = [example.rollouts[0] for example in examples]
    with torch.no_grad():
        logps = []
        for rollout in chosen:
            ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
            hidden = learner.policy.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
            logprobs = (hidden[len(rollout.prompt_ids) - 1 : -1] @ weight.T / 0.5).log_softmax(-1)
            logps.append(logprobs[torch.arange(len(rollout.completion_ids)), list(rollout.completion_ids)].sum().item())
    assert metrics["logps/chosen"] == pytest.approx(sum(logps) / len(logps), rel=1e-6)


@pytest.mark.parametrize("name", ["dpo", "grpo sequence"])
def test_without_examples_the_weights_stay_as_they_are(tiny_folder: Path, name: str) -> None:
    learner = make_learner(tiny_folder, OBJECTIVES[name], weight_decay=0.1)
    before = digest(weights_of(learner.policy))
    metrics = learner.update([], Totals(4, 16, 80, 0), step=0)
    assert digest(weights_of(learner.policy)) == before
    assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0)


def test_an_empty_step_does_not_repeat_the_last_one(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, OBJECTIVES["dpo"], adam_epsilon=1e-8)
    groups = scored_groups(load_policy(str(tiny_folder))[0])
    examples = examples_of(learner.objective, groups)
    learner.update(examples, totals_of(groups, examples), step=0)
    before = digest(weights_of(learner.policy))
    learner.update([], Totals(5, 20, 80, 0), step=1)
    assert digest(weights_of(learner.policy)) == before


def test_not_a_number_in_the_loss_stops_before_the_weights_change(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, OBJECTIVES["dpo"])
    assert learner.reference is not None
    with torch.no_grad():
        learner.reference.weights.model.get_parameter("model.norm.weight")[0] = torch.nan
    groups, before = scored_groups(load_policy(str(tiny_folder))[0]), digest(weights_of(learner.policy))
    examples = examples_of(learner.objective, groups)
    with pytest.raises(
        NonFiniteError, match=r"at step 17\b.*loss nan and gradient norm nan.*lower learning_rate \(now 0\.1\)"
    ):
        learner.update(examples, totals_of(groups, examples), step=17)
    assert digest(weights_of(learner.policy)) == before


def test_an_infinite_gradient_stops_before_the_weights_change(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, OBJECTIVES["dpo"])
    groups, before = scored_groups(load_policy(str(tiny_folder))[0]), digest(weights_of(learner.policy))
    examples = examples_of(learner.objective, groups)
    learner.policy.get_parameter("model.layers.0.mlp.up_proj.weight").register_hook(lambda g: g * torch.inf)
    with pytest.raises(NonFiniteError, match=r"at step 3.*gradient norm (nan|inf)"):
        learner.update(examples, totals_of(groups, examples), step=3)
    assert digest(weights_of(learner.policy)) == before


def test_learning_rate_warms_up_and_then_stays(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, OBJECTIVES["dpo"], warmup_steps=4, learning_rate=0.08)
    found = [learner.update([], Totals(1, 1, 1, 0), step)["learning_rate"] for step in range(7)]
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.08, 0.08, 0.08])
    learner = make_learner(tiny_folder, OBJECTIVES["dpo"], learning_rate=0.08)
    assert [learner.update([], Totals(1, 1, 1, 0), step)["learning_rate"] for step in range(2)] == [0.08, 0.08]


def test_the_first_step_is_adam_with_the_learning_rate_of_the_warm_up(tiny_folder: Path) -> None:
    # Adam's first step is rate * g / (|g| + eps): with eps = 1 and a rate of 0.1 / 4.
    start = torch.cat([p.detach().flatten() for p in make_learner(tiny_folder, DPO()).policy.parameters()])
    gradient, weights, _ = updated(tiny_folder, "dpo", warmup_steps=4)
    assert close(weights - start, -0.025 * gradient / (gradient.abs() + 1))


def test_gradients_are_scaled_down_to_the_largest_norm(tiny_folder: Path) -> None:
    free, _, metrics = updated(tiny_folder, "dpo")
    clipped, _, clipped_metrics = updated(tiny_folder, "dpo", max_grad_norm=0.01)
    assert clipped_metrics["grad_norm"] == pytest.approx(metrics["grad_norm"]) == free.norm().item()
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert close(clipped / clipped.norm(), free / free.norm())


def test_no_gradient_reaches_the_reference(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, OBJECTIVES["grpo kl"])
    groups = scored_groups(load_policy(str(tiny_folder))[0])
    examples = examples_of(learner.objective, groups)
    assert learner.reference is not None
    before = digest(learner.reference.weights.tensors())
    learner.update(examples, totals_of(groups, examples), step=0)
    assert digest(learner.reference.weights.tensors()) == before
    assert all(p.grad is None for p in learner.reference.weights.model.parameters())


def test_a_step_makes_the_chosen_completion_more_likely_than_the_rejected_one(tiny_folder: Path) -> None:
    learner = make_learner(tiny_folder, OBJECTIVES["dpo"], learning_rate=1e-3, adam_epsilon=1e-8)
    groups = scored_groups(load_policy(str(tiny_folder))[0])
    examples = examples_of(learner.objective, groups)
    margins = [learner.update(examples, totals_of(groups, examples), step)["rewards/margins"] for step in range(3)]
    assert margins[0] < margins[1] < margins[2]
