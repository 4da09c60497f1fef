"""DPO on pairs: offline, semi-online or online, as the sampler's schedule has it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kit.losses import dpo_loss, entropy_loss, nll_loss
from kit.masking import masked_mean, masked_sum
from kit.objectives.objective import DENOMINATORS, Loss, Objective, require, rewards_tensor
from kit.pairing import correct_incorrect
from kit.types import Example, Group, TokenScores, Totals

Pairing = Callable[[torch.Tensor, torch.Generator], list[tuple[int, int]]]
NLL_NORMALIZE = ("sequence", "token")


@dataclass(frozen=True)
class DPO(Objective):
    """DPO on the pairs of a prompt, by default a random correct completion against a random incorrect one.

    Nothing in it asks who sampled the completions, so no correction is needed when the sampler is stale. With a
    reference that equals the policy at every step (synced every step), every margin is 0: the loss is the constant
    log 2, and its gradient, -(beta/2)(grad log pi(chosen) - grad log pi(rejected)), a REINFORCE of two samples with no
    pull toward the seed model. `pairs/weight`, the mean sigma(-margin), is then 1/2.

    Attributes:
        beta: strength of the pull toward the reference, > 0.
        nll_coef: weight of the negative log-likelihood of the chosen completion, >= 0.
        nll_normalize: "sequence" (mean over each completion first) or "token" (over all chosen tokens of the step).
        entropy_coef: weight of the entropy bonus on chosen completions, >= 0.
        length_normalize: whether log-probs are averaged over tokens instead of summed; the paper sums.
        denominator: the sum over pairs is divided by the step's "prompts", as in the authors' code, so that a prompt
            without a pair makes the step smaller, or by its "pairs".
        pairing: rewards of a group -> (chosen, rejected) indices; see `kit.pairing`.

    Source: arXiv 2506.21495, Eq. 3 and sections 5.1 and 5.2.
    """

    beta: float = 0.1
    nll_coef: float = 0.0
    nll_normalize: str = "sequence"
    entropy_coef: float = 0.0
    length_normalize: bool = False
    denominator: str = "prompts"
    pairing: Pairing = correct_incorrect

    def __post_init__(self) -> None:
        require(self.beta > 0, "DPO.beta", "above 0", self.beta)
        require(self.nll_coef >= 0, "DPO.nll_coef", "0 or more", self.nll_coef)
        require(self.entropy_coef >= 0, "DPO.entropy_coef", "0 or more", self.entropy_coef)
        for name, known in (("nll_normalize", NLL_NORMALIZE), ("denominator", DENOMINATORS)):
            require(getattr(self, name) in known, f"DPO.{name}", f"one of {sorted(known)}", getattr(self, name))

    @property
    def needs_reference(self) -> bool:
        return True

    def check(self, group_size: int) -> None:
        require(group_size >= 2, "group_size", "at least 2 under DPO, which needs a pair", group_size)

    def select(self, group: Group, generator: torch.Generator) -> list[Example]:
        pairs = self.pairing(rewards_tensor(group), generator)
        return [
            Example((group.rollouts[chosen], group.rollouts[rejected]), is_chosen=(True, False))
            for chosen, rejected in pairs
        ]

    def loss(
        self, examples: Sequence[Example], scores: TokenScores, ref_scores: TokenScores | None, totals: Totals
    ) -> Loss:
        if ref_scores is None:
            raise ValueError("DPO needs the reference's log-probs, got none")
        reduce = masked_mean if self.length_normalize else masked_sum
        policy, reference = (reduce(s.logprobs, s.completion_mask, dim=-1) for s in (scores, ref_scores))
        loss, metrics = dpo_loss(policy[0::2], policy[1::2], reference[0::2], reference[1::2], beta=self.beta)
        denominator = DENOMINATORS[self.denominator](totals)
        chosen_mask, of_pairs = scores.completion_mask[0::2], len(examples) / denominator
        loss = loss * of_pairs
        if self.nll_coef:
            nll, nll_metrics = nll_loss(scores.logprobs[0::2], chosen_mask, normalize=self.nll_normalize)
            of_tokens = int(chosen_mask.sum()) / totals.chosen_tokens * totals.examples / denominator
            share = of_tokens if self.nll_normalize == "token" else of_pairs
            loss = loss + self.nll_coef * share * nll
            metrics["nll_loss"] = nll_metrics["nll_loss"] * share / of_pairs  # the learner weighs by pairs, not tokens
        if self.entropy_coef:
            bonus, _ = entropy_loss(scores.entropy[0::2], chosen_mask)
            loss = loss + self.entropy_coef * of_pairs * bonus
        return loss, metrics
