"""From the rewards of one prompt's completions to preference pairs, as indices (chosen, rejected) into the group.

No contrast, no pair: the list is empty. A reward of NaN (abstained) is never chosen nor rejected. A truncated
completion is no special case: without an answer its reward is 0, so it can be rejected.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def correct_incorrect(rewards_G: Float[Tensor, " group"], generator: torch.Generator) -> list[tuple[int, int]]:
    """A random correct and a random incorrect completion: the paper's pair on verifiable tasks.

    Args:
        rewards_G: of one prompt, 1 = correct, 0 = incorrect, NaN = abstained.
        generator: on the CPU; two numbers are drawn from it if there is a pair, else none.

    Returns:
        One pair, or none if all that were judged are correct, or all incorrect.

    Raises:
        ValueError: if a reward is neither 0 nor 1 nor NaN.

    Source: arXiv 2506.21495 (its code takes the first of each: `first_correct_incorrect`).

    >>> correct_incorrect(torch.tensor([0.0, 1.0, float("nan")]), torch.Generator())
    [(1, 0)]
    """
    correct, incorrect = _correct_and_incorrect(rewards_G)
    if not (correct and incorrect):
        return []
    return [(_random_one(correct, generator), _random_one(incorrect, generator))]


def first_correct_incorrect(
    rewards_G: Float[Tensor, " group"], generator: torch.Generator | None = None
) -> list[tuple[int, int]]:
    """The first correct and the first incorrect completion: what the authors' code does.

    With completions drawn independently this is as good as a random pair; with any order among them it is not.

    Args:
        rewards_G: of one prompt, 1 = correct, 0 = incorrect, NaN = abstained.

    Returns:
        One pair, or none if all that were judged are correct, or all incorrect.

    Raises:
        ValueError: if a reward is neither 0 nor 1 nor NaN.

    Source: the code of arXiv 2506.21495, branch online_training of fairseq2.

    >>> first_correct_incorrect(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    [(1, 0)]
    """
    correct, incorrect = _correct_and_incorrect(rewards_G)
    return [(correct[0], incorrect[0])] if correct and incorrect else []


def best_worst(rewards_G: Float[Tensor, " group"], generator: torch.Generator | None = None) -> list[tuple[int, int]]:
    """The completion with the highest reward and the one with the lowest: the paper's pair on non-verifiable tasks.

    Args:
        rewards_G: of one prompt, any unit, NaN = abstained. Of equal rewards, the first index counts.

    Returns:
        One pair, or none if all rewards are equal.

    Source: arXiv 2506.21495, footnote 2.

    >>> best_worst(torch.tensor([0.5, 2.0, -1.0, 2.0]))
    [(1, 2)]
    """
    rewards = _judged(rewards_G)
    if len({reward for _, reward in rewards}) < 2:
        return []
    best, _ = max(rewards, key=lambda scored: scored[1])  # max and min return the first of equals
    worst, _ = min(rewards, key=lambda scored: scored[1])
    return [(best, worst)]


def all_pairs(rewards_G: Float[Tensor, " group"], generator: torch.Generator | None = None) -> list[tuple[int, int]]:
    """Every completion with every strictly worse one; for binary rewards the pairs of GroupDPO, correct x incorrect.

    Args:
        rewards_G: of one prompt, any unit, NaN = abstained.

    Returns:
        At most group * (group - 1) / 2 pairs, ordered by chosen, then by rejected index.

    Source: Eq. 4 of arXiv 2506.21495.

    >>> all_pairs(torch.tensor([1.0, 0.0, 1.0]))
    [(0, 1), (2, 1)]
    """
    rewards = _judged(rewards_G)
    return [(chosen, rejected) for chosen, better in rewards for rejected, worse in rewards if better > worse]


PAIRINGS: dict[str, Callable[[Tensor, torch.Generator], list[tuple[int, int]]]] = {
    "correct_incorrect": correct_incorrect,
    "first_correct_incorrect": first_correct_incorrect,
    "best_worst": best_worst,
    "all_pairs": all_pairs,
}  # for papermill, whose parameters are strings


def _correct_and_incorrect(rewards_G: Float[Tensor, " group"]) -> tuple[list[int], list[int]]:
    """Indices of reward 1 and of reward 0."""
    rewards = _judged(rewards_G)
    other = [reward for _, reward in rewards if reward not in (0.0, 1.0)]
    if other:
        raise ValueError(f"expected rewards 0 or 1 (NaN = abstained), came {other[0]}: use best_worst for graded ones")
    correct = [index for index, reward in rewards if reward == 1.0]
    return correct, [index for index, reward in rewards if reward == 0.0]


def _judged(rewards_G: Float[Tensor, " group"]) -> list[tuple[int, float]]:
    """Index and reward of those who were judged."""
    if rewards_G.ndim != 1:
        raise ValueError(f"expected the rewards of one group, (group,), came {tuple(rewards_G.shape)}: pass one row")
    return [(index, reward) for index, reward in enumerate(rewards_G.tolist()) if reward == reward]  # NaN != NaN


def _random_one(indices: list[int], generator: torch.Generator) -> int:
    """One of the indices, each equally likely."""
    return indices[int(torch.randint(len(indices), (), generator=generator))]
