"""What the run loop and the learner ask of an objective."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kit.types import Example, Group, TokenScores, Totals

Loss = tuple[torch.Tensor, dict[str, float]]


class Objective(ABC):
    """A way to train on groups of scored rollouts: a frozen value. What it does not need, it need not mention."""

    @property
    def needs_reference(self) -> bool:
        """Whether `loss` reads the reference's log-probs."""
        return False

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether `loss` compares the policy with the distribution that was sampled from."""
        return False

    @property
    def needs_prox_logprobs(self) -> bool:
        """Whether `loss` compares the policy with what it was before the first gradient pass over the batch."""
        return False

    @property
    def needs_fit(self) -> bool:
        """Whether `fitted` must see all tokens of a step before `loss` sees its micro-batches."""
        return False

    def fitted(self, log_ratios: Float[Tensor, " token"]) -> "Objective":
        """The objective for one step, given log(pi / pi_old) of all its tokens; itself if that teaches it nothing."""
        return self

    @abstractmethod
    def check(self, group_size: int) -> None:
        """Raises ValueError if groups of this size can give no signal."""

    @abstractmethod
    def select(self, group: Group, generator: torch.Generator) -> list[Example]:
        """The training examples of a scored group; none if its rewards give no signal."""

    @abstractmethod
    def loss(
        self, examples: Sequence[Example], scores: TokenScores, ref_scores: TokenScores | None, totals: Totals
    ) -> Loss:
        """This micro-batch's share of the step's loss, and metrics averaged over its examples.

        The rows of `scores` are the examples' rollouts in order. Shares add up to the loss of the whole step.
        """


# What the sum over a step's pairs is divided by.
DENOMINATORS: dict[str, Callable[[Totals], int]] = {
    "prompts": lambda totals: totals.prompts,  # a prompt without a pair makes the step smaller: the authors' code
    "pairs": lambda totals: totals.examples,  # it makes the remaining ones heavier
}


def rewards_tensor(group: Group) -> torch.Tensor:
    """Rewards of a group as (group,), NaN where no function could judge."""
    return torch.tensor([math.nan if reward is None else reward for reward in group.rewards])


def token_rows(rows: Sequence[Sequence[float]], scores: TokenScores) -> torch.Tensor:
    """Numbers that belong to the tokens of each rollout, laid out like `scores`; 0 elsewhere."""
    flat = torch.tensor([value for row in rows for value in row]).to(scores.logprobs)
    return torch.zeros_like(scores.logprobs).masked_scatter(scores.completion_mask, flat)


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError for a constant out of range."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {got!r}")
