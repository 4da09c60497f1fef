r"""Which checkpoint to keep, from the rewards and lengths of its completions on the same validation prompts.

The paper (arXiv 2506.21495) keeps the one with the highest length-normalised reward, to hold growth in length in check:

.. math:: \text{normalised}_c = \bar r_c / \bar\ell_c

A reward model's zero is arbitrary, and a quotient depends on it: where the mean reward is negative, longer completions
look *better*. What is divided away is not the effect of length on reward but length itself. Subtracting that effect is
safe:

.. math:: \text{adjusted}_c = \bar r_c - b\,(\bar\ell_c - \ell_0), \qquad
          b = \frac{\sum_{c,p} \ddot\ell_{cp}\,\ddot r_{cp}}{\sum_{c,p} \ddot\ell_{cp}^2}, \qquad
          \ddot x_{cp} = x_{cp} - \bar x_c - \bar x_p + \bar x

b is the slope of reward on length among completions of one checkpoint, with what the prompt explains taken out as well:
a checkpoint that got better *and* longer does not pay for getting better, and a prompt that calls for long, highly
rewarded answers does not count as length bias.
"""

from jaxtyping import Float
from torch import Tensor


def length_normalised_rewards(
    rewards: Float[Tensor, "checkpoint prompt"], lengths: Float[Tensor, "checkpoint prompt"]
) -> Float[Tensor, " checkpoint"]:
    """The paper's rule: mean reward over mean length. It needs positive mean rewards, and a zero that means none.

    Args:
        rewards: of one completion a prompt, any unit.
        lengths: of the same completions, in tokens, > 0.

    Returns:
        Reward per token. Depends on the reward's zero.

    Raises:
        ValueError: no rewards, shapes that differ, a number that is not finite, or a length that is not positive.

    Source: arXiv 2506.21495; the authors' code takes this ratio for each validation batch and averages the ratios.

    Two checkpoints equally good, the second twice as long. It loses, as it should, where rewards are positive:

    >>> import torch
    >>> lengths = torch.tensor([[8.0, 8.0], [16.0, 16.0]])
    >>> length_normalised_rewards(torch.tensor([[2.0, 2.0], [2.0, 2.0]]), lengths).tolist()
    [0.25, 0.125]

    but with 4 taken off every reward, which changes no preference, it wins:

    >>> length_normalised_rewards(torch.tensor([[-2.0, -2.0], [-2.0, -2.0]]), lengths).tolist()
    [-0.25, -0.125]
    """
    _check(rewards, lengths)
    return rewards.mean(dim=1) / lengths.mean(dim=1)


def length_adjusted_rewards(
    rewards: Float[Tensor, "checkpoint prompt"],
    lengths: Float[Tensor, "checkpoint prompt"],
    *,
    at_length: float | None = None,
) -> Float[Tensor, " checkpoint"]:
    """The mean reward that each checkpoint would have at one common length; the rule to use.

    A constant added to all rewards is added to all scores, a positive factor multiplies them, and a constant added to
    the rewards of one checkpoint is added to its score alone, because b does not see it. So the choice depends neither
    on the reward's zero nor on its unit, and a checkpoint does not fall behind for being better. Where lengths differ
    only by checkpoint and by prompt, b cannot be told and is 0: nothing is adjusted.

    Args:
        rewards: of one completion a prompt, any unit.
        lengths: of the same completions, in tokens, > 0.
        at_length: l_0, the common length, such as the baseline's mean; shifts all scores alike. None = the mean length.

    Returns:
        Scores in the reward's unit.

    Raises:
        ValueError: as `length_normalised_rewards`, or an at_length that is not positive and finite.

    Source: ours: a two-way analysis of covariance, Fisher 1932, "Statistical Methods for Research Workers".

    The first rises by 0.1 a token on its own completions, and the second is no better than that, only longer:

    >>> import torch
    >>> lengths = torch.tensor([[10.0, 20.0], [40.0, 30.0]])
    >>> length_adjusted_rewards(0.1 * lengths, lengths, at_length=10.0).tolist()
    [1.0, 1.0]
    """
    _check(rewards, lengths)
    if at_length is not None and not 0 < at_length < float("inf"):
        raise ValueError(f"expected at_length > 0 and finite, came {at_length}")
    rewards, lengths = rewards.double(), lengths.double()
    own_reward, own_length = _own(rewards), _own(lengths)
    scatter, rounding = own_length.square().sum(), 1e-18 * lengths.square().sum()
    slope = (own_length * own_reward).sum() / scatter if scatter > rounding else 0.0
    common = lengths.mean() if at_length is None else at_length
    return rewards.mean(dim=1) - slope * (lengths.mean(dim=1) - common)


def best_checkpoint(scores: Float[Tensor, " checkpoint"]) -> int:
    """Index of the highest score, the earliest of equals.

    >>> import torch
    >>> best_checkpoint(torch.tensor([0.1, 0.3, 0.3]))
    1
    """
    if not len(scores) or not bool(scores.isfinite().all()):
        raise ValueError(f"expected a finite score for each of one or more checkpoints, came {scores.tolist()!r:.200}")
    return scores.tolist().index(scores.max().item())


def _own(values: Tensor) -> Tensor:
    """What is neither the checkpoint's nor the prompt's mean."""
    return values - values.mean(dim=1, keepdim=True) - values.mean(dim=0) + values.mean()


def _check(rewards: Tensor, lengths: Tensor) -> None:
    if not rewards.numel() or rewards.shape != lengths.shape or not bool((lengths > 0).all()):
        raise ValueError(
            f"expected rewards and positive lengths (checkpoint, prompt), came shapes {tuple(rewards.shape)} and "
            f"{tuple(lengths.shape)}, lengths {lengths.tolist()!r:.100}"
        )
    if not bool(rewards.isfinite().all() and lengths.isfinite().all()):
        raise ValueError("expected finite rewards and lengths, came one that is not: leave out what was not judged")
