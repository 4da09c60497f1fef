"""GroupDPO, alone or with a GRPO term on the same completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from kit.importance import NoCorrection
from kit.logprobs import sequence_logprob
from kit.losses import group_dpo_loss
from kit.objectives.grpo import GRPO
from kit.objectives.objective import DENOMINATORS, Loss, Objective, require, rewards_tensor
from kit.pairing import correct_incorrect
from kit.types import Example, Group, TokenScores, Totals


@dataclass(frozen=True)
class GroupDPO(Objective):
    """All correct completions of a prompt against all incorrect ones, plus `grpo_coef` times GRPO on the same.

    .. math:: L = L_{GroupDPO}(x, Y_c, Y_r) + \\alpha L_{GRPO}(x, Y_c \\cup Y_r)

    GRPO's terms are per token here. The authors' code fed it sequence sums, so that each sequence's term was multiplied
    by its length; their null result for alpha of 0.01 and 0.001 may rest on that.

    Attributes:
        beta: strength of the pull toward the reference, > 0.
        grpo_coef: alpha, weight of the GRPO term, >= 0.
        grpo: the GRPO term; a KL term belongs to `beta`, so its `kl_coef` must be 0.
        denominator: the sum over groups is divided by the step's "prompts", or by the groups with a pair ("pairs").

    Source: arXiv 2506.21495, Eqs. 4 and 5.
    """

    beta: float = 0.1
    grpo_coef: float = 0.0
    grpo: GRPO = field(default_factory=lambda: GRPO(importance=NoCorrection(), aggregate="sum"))
    denominator: str = "prompts"

    def __post_init__(self) -> None:
        require(self.beta > 0, "GroupDPO.beta", "above 0", self.beta)
        require(self.grpo_coef >= 0, "GroupDPO.grpo_coef", "0 or more", self.grpo_coef)
        require(self.grpo.kl_coef == 0, "GroupDPO.grpo.kl_coef", "0: beta already pulls", self.grpo.kl_coef)
        known = self.denominator in DENOMINATORS
        require(known, "GroupDPO.denominator", f"one of {sorted(DENOMINATORS)}", self.denominator)

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_old_logprobs(self) -> bool:
        return self.grpo_coef > 0 and self.grpo.needs_old_logprobs

    @property
    def needs_prox_logprobs(self) -> bool:
        return self.grpo_coef > 0 and self.grpo.needs_prox_logprobs

    @property
    def needs_fit(self) -> bool:
        return self.grpo_coef > 0 and self.grpo.needs_fit

    def fitted(self, log_ratios: torch.Tensor) -> "GroupDPO":
        return replace(self, grpo=self.grpo.fitted(log_ratios))

    def check(self, group_size: int) -> None:
        require(group_size >= 2, "group_size", "at least 2 under GroupDPO, which needs a pair", group_size)

    def select(self, group: Group, generator: torch.Generator) -> list[Example]:
        rewards = rewards_tensor(group)
        if not correct_incorrect(rewards, generator):  # which also refuses rewards that are not 0 or 1
            return []
        advantages = self.grpo.advantages(rewards[None])[0].tolist()
        rows = zip(group.rollouts, advantages, group.rewards, strict=True)
        judged = [(rollout, advantage, reward == 1) for rollout, advantage, reward in rows if reward is not None]
        rollouts, advantages, is_chosen = zip(*judged, strict=True)
        return [Example(rollouts, advantages, is_chosen)]

    def loss(
        self, examples: Sequence[Example], scores: TokenScores, ref_scores: TokenScores | None, totals: Totals
    ) -> Loss:
        if ref_scores is None:
            raise ValueError("GroupDPO needs the reference's log-probs, got none")
        policy, reference = (sequence_logprob(s.logprobs, s.completion_mask) for s in (scores, ref_scores))
        sizes = [len(example.rollouts) for example in examples]
        found = [
            group_dpo_loss(own, ref, torch.tensor(example.is_chosen, device=own.device), beta=self.beta)
            for own, ref, example in zip(policy.split(sizes), reference.split(sizes), examples, strict=True)
        ]
        loss = torch.stack([group_loss for group_loss, _ in found]).sum() / DENOMINATORS[self.denominator](totals)
        metrics = {name: sum(group[name] for _, group in found) / len(found) for name in found[0][1]}
        if self.grpo_coef:
            grpo, grpo_metrics = self.grpo.loss(examples, scores, None, totals)
            loss, metrics = loss + self.grpo_coef * grpo, metrics | grpo_metrics
        return loss, metrics
