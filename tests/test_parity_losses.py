"""The kit's losses against TRL 1.16's own code, on the same tensors; where they differ on purpose, by how much.

`python -m tests.bench.parity` prints the differences of all cases here as a table.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kit.importance import CISPO, GSPO, TIS, DecoupledPPO, IcePop, PPOClip
from kit.kl import k2
from kit.losses import dpo_loss, grpo_loss, nll_loss
from kit.objectives import DPO
from kit.types import Example, Rollout, TokenScores, Totals
from tests.trl_losses import Loss, trl_dpo_loss, trl_grpo_loss, trl_importance_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's imports

LENGTHS = torch.tensor([5, 1, 3, 4, 2, 5])
MASK = torch.arange(5) < LENGTHS[:, None]
LONGEST = 7  # what dr_grpo divides by: the longest completion allowed, which is longer than any here
CLIP_METRICS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
DPO_METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
)  # fmt: skip


def drawn(seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers, one a token."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(MASK.shape, generator=generator, dtype=torch.float64)


OLD = -drawn(0).abs()
REF = OLD + drawn(1, 0.5)
POLICY = OLD + drawn(6, 0.5)  # ratios from 0.4 to 2.6
PROX = OLD + drawn(3, 0.3)  # the policy before its first pass over samples of OLD
ADVANTAGES = torch.tensor([1.1, -0.8, 0.3, -1.5, 0.6, -0.2], dtype=torch.float64)


class Difference(NamedTuple):
    """Largest absolute differences between the kit and TRL."""

    loss: float
    gradient: float  # with respect to the log-probs
    metrics: float  # nan = none that mean the same


def difference(ours: Loss, theirs: Loss, names: Mapping[str, str], logprobs: Tensor) -> Difference:
    """`names`: the kit's metrics that TRL logs as well -> TRL's names for them."""
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss, _ in (ours, theirs)]
    assert gradients[0].any()  # two zeros would agree, too
    of_metrics = [abs(ours[1][name] - theirs[1][trl_name]) for name, trl_name in names.items()]
    of_gradients = (gradients[0] - gradients[1]).abs().max().item()
    return Difference(abs(ours[0].item() - theirs[0].item()), of_gradients, max(of_metrics, default=math.nan))


WITH_OLD: dict[str, Any] = {"old_logprobs": OLD}
KL = {"ref_logprobs": REF}
CONSTANT = {"aggregate": "constant", "max_completion_length": LONGEST}
DR_GRPO = {"loss_type": "dr_grpo", "max_completion_length": LONGEST}
# TRL's arguments, the kit's, and which shared metrics mean the same. Clip 0.2 on both sides unless it says otherwise.
GRPO_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "grpo = sequence": (WITH_OLD, {}, CLIP_METRICS),
    "bnpo = token": (WITH_OLD | {"loss_type": "bnpo"}, {"aggregate": "token"}, CLIP_METRICS),
    "dapo = token": (WITH_OLD | {"loss_type": "dapo"}, {"aggregate": "token"}, CLIP_METRICS),
    "dr_grpo = constant": (WITH_OLD | DR_GRPO, CONSTANT, CLIP_METRICS),
    "luspo by token = sum": (WITH_OLD | {"loss_type": "luspo"}, {"aggregate": "sum"}, CLIP_METRICS),
    "clip-higher": (WITH_OLD | {"epsilon_high": 0.3}, {"clip_eps_high": 0.3}, CLIP_METRICS),
    "two-sided clip": (WITH_OLD | {"delta": 1.3}, {"importance": PPOClip(ratio_max=1.3)}, CLIP_METRICS[:1]),
    "sequence ratio = GSPO": (
        WITH_OLD | {"level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
        {"importance": GSPO(0.05, 0.08)},
        (),
    ),
    "cispo = CISPO by token": (
        WITH_OLD | {"loss_type": "cispo", "epsilon_high": 1.3},
        {"importance": CISPO(1.3), "aggregate": "token"},
        (),
    ),
    "token_truncate = TIS": (
        {"importance_weights": trl_importance_weights(POLICY, OLD, "token_truncate", None, 1.3)},
        {"importance": TIS(1.3)},
        (),
    ),
    "token_mask = IcePop": (
        {"importance_weights": trl_importance_weights(POLICY, OLD, "token_mask", 0.8, 1.3)},
        {"importance": IcePop(0.8, 1.3)},
        (),
    ),
    "token_truncate, second pass = DecoupledPPO": (
        {
            "old_logprobs": PROX,
            "importance_weights": trl_importance_weights(PROX, OLD, "token_truncate", None, math.inf),
        },
        {"importance": DecoupledPPO(), "prox_logprobs": PROX},
        CLIP_METRICS,
    ),
    "no old log-probs = none": ({}, {"importance": "none"}, CLIP_METRICS),
}
GRPO_CASES |= {
    f"{name}, KL 0.3": (trl | KL | {"beta": 0.3}, kit | KL | {"kl_coef": 0.3}, (*names, "kl"))
    for name, (trl, kit, names) in GRPO_CASES.items()
}


def grpo_difference(name: str) -> Difference:
    trl, kit, names = GRPO_CASES[name]
    logprobs = POLICY.clone().requires_grad_()
    ours = grpo_loss(logprobs, OLD, ADVANTAGES, MASK, **kit)
    return difference(ours, trl_grpo_loss(logprobs, ADVANTAGES, MASK, **trl), {n: n for n in names}, logprobs)


@pytest.mark.parametrize("name", GRPO_CASES)
def test_grpo_loss_gradient_and_metrics_are_those_of_trl(name: str) -> None:
    found = grpo_difference(name)
    assert found.loss < 1e-14 and found.gradient < 1e-14
    assert not found.metrics > 1e-7  # TRL averages flags in float32


def test_the_cases_clip_on_every_side_and_no_two_of_them_are_one_loss() -> None:
    for kit in ({}, {"importance": IcePop(0.8, 1.3)}, {"importance": GSPO(0.05, 0.08)}):
        _, metrics = grpo_loss(POLICY, OLD, ADVANTAGES, MASK, **kit)
        assert metrics["clip_ratio/low_mean"] > 0.05 and metrics["clip_ratio/high_mean"] > 0.05
    losses = {name: trl_grpo_loss(POLICY, ADVANTAGES, MASK, **GRPO_CASES[name][0])[0].item() for name in GRPO_CASES}
    del losses["dapo = token"], losses["dapo = token, KL 0.3"]  # bnpo's, if nothing else was generated with this batch
    assert min(after - before for before, after in pairwise(sorted(losses.values()))) > 1e-4


def kl_difference() -> Difference:
    """Without an advantage TRL's loss is its KL term, k3; the kit's estimate of it is the metric, too."""
    logprobs, nothing = POLICY.clone().requires_grad_(), torch.zeros(len(MASK), dtype=torch.float64)
    ours = grpo_loss(logprobs, OLD, nothing, MASK, ref_logprobs=REF, kl_coef=1.0)
    theirs = trl_grpo_loss(logprobs, nothing, MASK, old_logprobs=OLD, ref_logprobs=REF, beta=1.0)
    return difference(ours, theirs, {"kl": "kl"}, logprobs)


def test_the_kl_term_alone_is_that_of_trl() -> None:
    assert max(kl_difference()) < 1e-14


def summed(logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Of the chosen and the rejected completions, which are the first and the second half of the rows."""
    chosen, rejected = torch.where(MASK, logprobs, 0.0).sum(1).chunk(2)
    return chosen, rejected


DPO_CASES: dict[str, dict[str, float]] = {  # losses and weights of TRL
    "sigmoid": {"sigmoid": 1.0}, "sigmoid + sft = NLL by token": {"sigmoid": 1.0, "sft": 0.5},
}  # fmt: skip


def kit_dpo_loss(logprobs: Tensor, nll_coef: float, nll_normalize: str) -> Loss:
    loss, metrics = dpo_loss(*summed(logprobs), *summed(REF), beta=0.5)
    if not nll_coef:
        return loss, metrics
    return loss + nll_coef * nll_loss(logprobs[:3], MASK[:3], normalize=nll_normalize)[0], metrics


def dpo_difference(name: str, nll_normalize: str = "token") -> Difference:
    logprobs, weights = POLICY.clone().requires_grad_(), DPO_CASES[name]
    ours = kit_dpo_loss(logprobs, weights.get("sft", 0.0), nll_normalize)
    theirs = trl_dpo_loss(logprobs, REF, MASK, beta=0.5, weights=weights)
    return difference(ours, theirs, {metric: metric for metric in DPO_METRICS}, logprobs)


@pytest.mark.parametrize("name", DPO_CASES)
def test_dpo_loss_gradient_and_metrics_are_those_of_trl(name: str) -> None:
    found = dpo_difference(name)
    assert found.loss < 1e-14 and found.gradient < 1e-14
    assert found.metrics < 1e-7  # TRL averages the accuracy in float32


# From here on: what differs on purpose.


def test_trl_averages_the_nll_over_tokens_and_the_kit_by_default_over_completions_first() -> None:
    """Chosen completions of 5, 1 and 3 tokens: in TRL they weigh 5/9, 1/9 and 3/9, in the kit 1/3 each."""
    found = dpo_difference("sigmoid + sft = NLL by token", "sequence")
    means = (torch.where(MASK, -POLICY, 0.0).sum(1) / LENGTHS)[:3]
    by_hand = 0.5 * abs(means.mean() - (means * torch.tensor([5, 1, 3]) / 9).sum())
    assert found.loss == pytest.approx(by_hand.item(), abs=1e-12)
    assert found.loss > 0.01


def objective_loss(objective: DPO, prompts: int) -> float:
    """Of three pairs that came from this many prompts, with the tensors above."""
    order = [row for pair in range(3) for row in (pair, pair + 3)]  # the kit alternates chosen and rejected
    scores, ref_scores = (TokenScores(t[order], torch.zeros_like(t), MASK[order]) for t in (POLICY, REF))
    rollout = Rollout((2,), (3,), (0.0,), (0.0,), "", "stop", 0)
    examples = [Example((rollout, rollout), is_chosen=(True, False))] * 3
    totals = Totals(prompts, 2 * prompts, int(MASK.sum()), examples=3, chosen_tokens=int(MASK[:3].sum()))
    return objective.loss(examples, scores, ref_scores, totals)[0].item()


@pytest.mark.parametrize("nll_coef", [0.0, 0.5])
def test_a_prompt_without_a_pair_makes_the_step_of_the_kit_smaller_and_trl_never_sees_it(nll_coef: float) -> None:
    weights = {"sigmoid": 1.0, "sft": nll_coef}
    theirs = trl_dpo_loss(POLICY, REF, MASK, beta=0.5, weights=weights)[0].item()
    by_prompts = DPO(beta=0.5, nll_coef=nll_coef, nll_normalize="token")
    by_pairs = DPO(beta=0.5, nll_coef=nll_coef, nll_normalize="token", denominator="pairs")
    assert objective_loss(by_prompts, prompts=4) == pytest.approx(theirs * 3 / 4, abs=1e-12)
    assert objective_loss(by_pairs, prompts=4) == pytest.approx(theirs, abs=1e-12)


def test_trl_by_default_weighs_k3_by_the_ratio_which_on_fresh_samples_has_the_gradient_of_k2() -> None:
    """d(rho k3) = rho log(pi / pi_ref) dlog(pi), since k3 = e^d - d - 1 with d = log(pi_ref / pi): rho times k2's."""
    nothing = torch.zeros(len(MASK), dtype=torch.float64)
    by_hand = torch.where(MASK, POLICY - REF, 0.0) / LENGTHS[:, None] / len(MASK)
    settings: dict[str, Any] = {"ref_logprobs": REF, "beta": 1.0, "bias_correction": True}
    for old, ratio in ((None, torch.ones_like(POLICY)), (OLD, (POLICY - OLD).exp())):
        logprobs = POLICY.clone().requires_grad_()
        theirs, _ = trl_grpo_loss(logprobs, nothing, MASK, old_logprobs=old, **settings)
        torch.testing.assert_close(torch.autograd.grad(theirs, logprobs)[0], ratio * by_hand, rtol=0, atol=1e-14)
    logprobs = POLICY.clone().requires_grad_()
    ours, _ = grpo_loss(logprobs, OLD, nothing, MASK, ref_logprobs=REF, kl_coef=1.0, kl_estimator=k2)
    torch.testing.assert_close(torch.autograd.grad(ours, logprobs)[0], by_hand, rtol=0, atol=1e-14)


def one_row(ratios: list[float], advantage: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs whose ratio to an old log-prob of 0 is given, the advantage, and the mask."""
    logprobs = torch.tensor([ratios], dtype=torch.float64).log()
    return logprobs, torch.tensor([advantage], dtype=torch.float64), torch.ones(1, len(ratios), dtype=torch.bool)


def test_a_ratio_beyond_the_two_sided_clip_counts_as_clipped_in_the_kit_only() -> None:
    """Its gradient is zero on both sides; TRL counts positive advantages on the high side and no others."""
    logprobs, advantage, mask = one_row([2.0, 1.0, 1.0, 1.0], -1.0)
    old = torch.zeros_like(logprobs)
    _, ours = grpo_loss(logprobs, old, advantage, mask, importance=PPOClip(ratio_max=1.3))
    _, theirs = trl_grpo_loss(logprobs, advantage, mask, old_logprobs=old, delta=1.3)
    assert (ours["clip_ratio/high_mean"], theirs["clip_ratio/high_mean"]) == (0.25, 0.0)


def test_a_capped_weight_counts_at_any_advantage_in_the_kit_and_at_positive_ones_in_trls_cispo() -> None:
    logprobs, advantage, mask = one_row([2.0, 1.0, 1.0, 1.0], -1.0)
    old = torch.zeros_like(logprobs)
    _, ours = grpo_loss(logprobs, old, advantage, mask, importance=CISPO(1.3), aggregate="token")
    _, theirs = trl_grpo_loss(
        logprobs, advantage, mask, old_logprobs=old, loss_type="cispo", epsilon_high=1.3, generation_tokens=4
    )
    assert (ours["clip_ratio/high_mean"], theirs["cispo_clip_ratio"]) == (0.25, 0.0)


def test_a_clipped_sequence_counts_by_its_tokens_in_the_kit_and_once_in_trl() -> None:
    """A sequence of 3 tokens is clipped, one of 1 token is not: 3/4 of the tokens, 1/2 of the sequences."""
    logprobs = torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64).log()
    old, advantages = torch.zeros_like(logprobs), torch.ones(2, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    _, ours = grpo_loss(logprobs, old, advantages, mask, importance=GSPO(0.1, 0.1))
    _, theirs = trl_grpo_loss(
        logprobs, advantages, mask, old_logprobs=old, level="sequence", epsilon_low=0.1, epsilon_high=0.1
    )
    assert (ours["clip_ratio/high_mean"], theirs["clip_ratio/high_mean"]) == (0.75, 0.5)


def test_dapo_and_cispo_in_trl_divide_by_the_mean_tokens_of_all_batches_generated_together() -> None:
    """20 tokens here and 28 in the other batch of the generation: TRL divides by 24, the kit by the step's own 20."""
    ours, _ = grpo_loss(POLICY, OLD, ADVANTAGES, MASK, aggregate="token")
    together = {"generation_tokens": 48, "steps_per_generation": 2}
    theirs, _ = trl_grpo_loss(POLICY, ADVANTAGES, MASK, old_logprobs=OLD, loss_type="dapo", **together)
    assert theirs.item() == pytest.approx(ours.item() * 20 / 24, abs=1e-14)
