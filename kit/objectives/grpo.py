"""GRPO on every completion of a group whose rewards differ."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from kit.advantages import standardized
from kit.importance import Importance, NoCorrection, PPOClip
from kit.kl import KLEstimator, k3
from kit.losses import entropy_loss, grpo_loss
from kit.masking import AGGREGATES
from kit.objectives.objective import Loss, Objective, require, rewards_tensor, token_rows
from kit.types import Example, Group, TokenScores, Totals

Advantages = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GRPO(Objective):
    """GRPO on every completion of a group whose rewards differ.

    The paper's: `GRPO(importance=NoCorrection(), aggregate="sum", advantages=centered)`; its code: `standardized`.

    Attributes:
        importance: what to do about a stale sampler; see `kit.importance`.
        aggregate: "sequence", "sum", "token" or "constant"; see `kit.masking.aggregate_tokens`.
        max_completion_length: tokens, the divisor of "constant"; none otherwise.
        advantages: (prompt, group) rewards -> advantages; see `kit.advantages`.
        kl_coef: weight of the estimate of KL(policy || reference), >= 0.
        kl_estimator: per-token estimate; see `kit.kl`.
        entropy_coef: weight of the entropy bonus, >= 0: the mean over completions of each one's mean over tokens,
            whatever `aggregate` is, as in DPO.

    Source: Shao et al. 2024 (arXiv 2402.03300); arXiv 2506.21495, Eq. 1.
    """

    importance: Importance = field(default_factory=PPOClip)
    aggregate: str = "sequence"
    max_completion_length: int | None = None
    advantages: Advantages = standardized
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = k3
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        require(self.kl_coef >= 0, "GRPO.kl_coef", "0 or more", self.kl_coef)
        require(self.entropy_coef >= 0, "GRPO.entropy_coef", "0 or more", self.entropy_coef)
        require(self.aggregate in AGGREGATES, "GRPO.aggregate", f"one of {sorted(AGGREGATES)}", self.aggregate)
        given, needed = self.max_completion_length is not None, self.aggregate == "constant"
        expected = "given with aggregate='constant', and with nothing else, and at least 1"
        is_right = given == needed and (self.max_completion_length is None or self.max_completion_length >= 1)
        require(is_right, "GRPO.max_completion_length", expected, self.max_completion_length)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def needs_old_logprobs(self) -> bool:
        return not isinstance(self.importance, NoCorrection)

    @property
    def needs_prox_logprobs(self) -> bool:
        return self.importance.needs_prox_logprobs

    @property
    def needs_fit(self) -> bool:
        return self.importance.needs_fit

    def fitted(self, log_ratios: torch.Tensor) -> "GRPO":
        return replace(self, importance=self.importance.fitted(log_ratios))

    def check(self, group_size: int) -> None:
        expected = "at least 2 under GRPO: an advantage is relative to the other completions of the group"
        require(group_size >= 2, "group_size", expected, group_size)

    def select(self, group: Group, generator: torch.Generator) -> list[Example]:
        advantages = self.advantages(rewards_tensor(group)[None])[0].tolist()
        judged = [(r, a) for r, a in zip(group.rollouts, advantages, strict=True) if not math.isnan(a)]
        # Without a KL term or a bonus, a group of equal rewards has a gradient of exactly zero: why compute it?
        if not self.kl_coef and not self.entropy_coef and not any(advantage for _, advantage in judged):
            return []
        return [Example((rollout,), (advantage,)) for rollout, advantage in judged]

    def loss(
        self, examples: Sequence[Example], scores: TokenScores, ref_scores: TokenScores | None, totals: Totals
    ) -> Loss:
        rollouts = [rollout for example in examples for rollout in example.rollouts]
        advantages = [advantage for example in examples for advantage in example.advantages]
        has_prox = self.needs_prox_logprobs and all(rollout.prox_logprobs for rollout in rollouts)
        loss, metrics = grpo_loss(
            scores.logprobs,
            token_rows([rollout.old_logprobs for rollout in rollouts], scores),
            torch.tensor(advantages).to(scores.logprobs),
            scores.completion_mask,
            importance=self.importance,
            aggregate=self.aggregate,
            max_completion_length=self.max_completion_length,
            ref_logprobs=None if ref_scores is None else ref_scores.logprobs,
            kl_coef=self.kl_coef,
            kl_estimator=self.kl_estimator,
            prox_logprobs=token_rows([r.prox_logprobs for r in rollouts], scores) if has_prox else None,
        )
        by_token, of_rollouts = self.aggregate == "token", len(rollouts) / totals.rollouts
        share = int(scores.completion_mask.sum()) / totals.tokens if by_token else of_rollouts
        loss = loss * share
        if self.entropy_coef:
            bonus, _ = entropy_loss(scores.entropy, scores.completion_mask)
            loss = loss + self.entropy_coef * of_rollouts * bonus
        return loss, metrics | {"policy_loss": metrics["policy_loss"] * share}
