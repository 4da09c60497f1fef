"""Objectives: which rollouts of a scored group train, as what, and under which loss.

An objective is a frozen value that is passed to the run. Adding one takes a class here or in a file of its own, its
tests, and a line in `OBJECTIVES`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from kit.advantages import standardized
from kit.logprobs import sequence_logprob
from kit.losses import dpo_loss, entropy_loss, grpo_loss, nll_loss
from kit.losses.grpo import IMPORTANCE
from kit.masking import AGGREGATES
from kit.pairing import correct_incorrect
from kit.types import Example, Group, TokenScores, Totals

Pairing = Callable[[torch.Tensor, torch.Generator], list[tuple[int, int]]]
Advantages = Callable[[torch.Tensor], torch.Tensor]
Loss = tuple[torch.Tensor, dict[str, float]]


@runtime_checkable
class Objective(Protocol):
    """What the run loop asks of a training objective."""

    @property
    def needs_reference(self) -> bool:
        """Whether `loss` reads the reference's log-probs."""
        ...

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether `loss` compares the policy with the distribution that was sampled from."""
        ...

    def check(self, group_size: int) -> None:
        """Raises ValueError if groups of this size can give no signal."""
        ...

    def select(self, group: Group, generator: torch.Generator) -> list[Example]:
        """The training examples of a scored group; none if its rewards give no signal."""
        ...

    def loss(
        self, examples: Sequence[Example], scores: TokenScores, ref_scores: TokenScores | None, totals: Totals
    ) -> Loss:
        """This micro-batch's share of the step's loss, and metrics averaged over its examples.

        The rows of `scores` are the examples' rollouts in order. Shares add up to the loss of the whole step.
        """
        ...


@dataclass(frozen=True)
class DPO:
    """Online DPO on one pair a prompt: a random correct completion against a random incorrect one.

    The sum over pairs is divided by the number of *prompts*, as in the authors' code, so a prompt without a pair makes
    the step smaller instead of the remaining pairs heavier.

    Attributes:
        beta: strength of the pull toward the reference, > 0.
        nll_coef: weight of the length-normalised negative log-likelihood of the chosen completion, >= 0.
        entropy_coef: weight of the entropy bonus on chosen completions, >= 0.
        pairing: rewards of a group -> (chosen, rejected) indices.

    Source: arXiv 2506.21495, eq. 3 and sections 5.1 and 5.2.
    """

    beta: float = 0.1
    nll_coef: float = 0.0
    entropy_coef: float = 0.0
    pairing: Pairing = correct_incorrect

    def __post_init__(self) -> None:
        _require(self.beta > 0, "DPO.beta", "above 0", self.beta)
        _require(self.nll_coef >= 0, "DPO.nll_coef", "0 or more", self.nll_coef)
        _require(self.entropy_coef >= 0, "DPO.entropy_coef", "0 or more", self.entropy_coef)

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_old_logprobs(self) -> bool:
        return False

    def check(self, group_size: int) -> None:
        _require(group_size >= 2, "group_size", "at least 2 under DPO, which needs a pair", group_size)

    def select(self, group: Group, generator: torch.Generator) -> list[Example]:
        pairs = self.pairing(rewards_tensor(group), generator)
        return [Example((group.rollouts[chosen], group.rollouts[rejected])) for chosen, rejected in pairs]

    def loss(
        self, examples: Sequence[Example], scores: TokenScores, ref_scores: TokenScores | None, totals: Totals
    ) -> Loss:
        if ref_scores is None:
            raise ValueError("DPO needs the reference's log-probs, got none")
        policy, reference = (sequence_logprob(s.logprobs, s.completion_mask) for s in (scores, ref_scores))
        loss, metrics = dpo_loss(policy[0::2], policy[1::2], reference[0::2], reference[1::2], beta=self.beta)
        chosen_mask = scores.completion_mask[0::2]
        if self.nll_coef:
            nll, nll_metrics = nll_loss(scores.logprobs[0::2], chosen_mask)
            loss, metrics = loss + self.nll_coef * nll, metrics | nll_metrics
        if self.entropy_coef:
            bonus, _ = entropy_loss(scores.entropy[0::2], chosen_mask)
            loss = loss + self.entropy_coef * bonus
        return loss * (len(examples) / totals.prompts), metrics


@dataclass(frozen=True)
class GRPO:
    """GRPO on every completion of a group whose rewards differ.

    Attributes:
        clip_eps, clip_eps_high: clip half-widths below and above 1, in ratio units; `None` above means the same.
        kl_coef: weight of the k3 estimate of KL(policy || reference), >= 0.
        importance, aggregate: see `kit.losses.grpo_loss`.
        advantages: (prompt, group) rewards -> advantages.

    Source: Shao et al. 2024 (arXiv 2402.03300); arXiv 2506.21495, eq. 1.
    """

    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    kl_coef: float = 0.0
    importance: str = "clip"
    aggregate: str = "sequence"
    advantages: Advantages = standardized

    def __post_init__(self) -> None:
        _require(self.clip_eps > 0, "GRPO.clip_eps", "above 0", self.clip_eps)
        _require(self.kl_coef >= 0, "GRPO.kl_coef", "0 or more", self.kl_coef)
        high = self.clip_eps_high
        _require(high is None or high > 0, "GRPO.clip_eps_high", "above 0 or None", high)
        _require(self.importance in IMPORTANCE, "GRPO.importance", f"one of {sorted(IMPORTANCE)}", self.importance)
        _require(self.aggregate in AGGREGATES, "GRPO.aggregate", f"one of {sorted(AGGREGATES)}", self.aggregate)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def needs_old_logprobs(self) -> bool:
        return self.importance != "none"

    def check(self, group_size: int) -> None:
        expected = "at least 2 under GRPO: an advantage is relative to the other completions of the group"
        _require(group_size >= 2, "group_size", expected, group_size)

    def select(self, group: Group, generator: torch.Generator) -> list[Example]:
        advantages = self.advantages(rewards_tensor(group)[None])[0].tolist()
        judged = [(r, a) for r, a in zip(group.rollouts, advantages, strict=True) if not math.isnan(a)]
        # Without a KL term a group of equal rewards has a gradient of exactly zero: leaving it out saves its passes.
        if not self.kl_coef and not any(advantage for _, advantage in judged):
            return []
        return [Example((rollout,), (advantage,)) for rollout, advantage in judged]

    def loss(
        self, examples: Sequence[Example], scores: TokenScores, ref_scores: TokenScores | None, totals: Totals
    ) -> Loss:
        old_logprobs = torch.zeros_like(scores.logprobs).masked_scatter(
            scores.completion_mask,
            torch.tensor([x for example in examples for x in example.rollouts[0].old_logprobs]).to(scores.logprobs),
        )
        advantages = torch.tensor([example.advantages[0] for example in examples]).to(scores.logprobs)
        loss, metrics = grpo_loss(
            scores.logprobs, old_logprobs, advantages, scores.completion_mask, clip_eps=self.clip_eps,
            clip_eps_high=self.clip_eps_high, importance=self.importance, aggregate=self.aggregate,
            ref_logprobs=None if ref_scores is None else ref_scores.logprobs, kl_coef=self.kl_coef,
        )  # fmt: skip
        by_token = self.aggregate == "token"
        share = int(scores.completion_mask.sum()) / totals.tokens if by_token else len(examples) / totals.rollouts
        return loss * share, metrics | {"policy_loss": metrics["policy_loss"] * share}


def rewards_tensor(group: Group) -> torch.Tensor:
    """Rewards of a group as (group,), NaN where no function could judge."""
    return torch.tensor([math.nan if reward is None else reward for reward in group.rewards])


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got!r}")


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "dpo": DPO,
    "grpo": GRPO,
}  # for papermill, whose parameters are strings
