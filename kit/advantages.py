"""Advantages: the reward of a completion relative to the other completions of its prompt.

A reward of NaN means that nobody could judge the completion (`None` in a reward function). It counts in no statistic
and stays NaN in the result. A completion that has nobody left to be compared with gets 0: no signal. So does a group of
equal rewards, exactly: a rounding error, divided by the standard deviation, would be a signal.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def centered(rewards_G: Float[Tensor, "prompt group"]) -> Float[Tensor, "prompt group"]:
    r"""Reward minus the mean of its group.

    .. math:: A_i = r_i - \frac1G \sum_j r_j

    Args:
        rewards_G: any unit; NaN = abstained.

    Returns:
        Advantages in the unit of the reward.

    Raises:
        ValueError: if the group size is 1, or a reward is infinite.

    Source: the paper's GRPO, Eq. 1 of arXiv 2506.21495; Dr. GRPO, Liu et al. 2025, arXiv 2503.20783.

    >>> centered(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    deviations, _, _ = _deviations(rewards_G)
    return deviations


def standardized(rewards_G: Float[Tensor, "prompt group"], *, eps: float = 1e-6) -> Float[Tensor, "prompt group"]:
    r"""Reward minus the mean of its group, over the group's *sample* standard deviation (n - 1 in the denominator).

    .. math:: A_i = \frac{r_i - \bar r}{s + \epsilon}, \qquad s^2 = \frac{1}{G-1} \sum_j (r_j - \bar r)^2

    Args:
        rewards_G: any unit; NaN = abstained.
        eps: added to the standard deviation, in the unit of the reward, >= 0. The authors' code has 1e-6, TRL 1e-4.

    Returns:
        Advantages in standard deviations.

    Raises:
        ValueError: if the group size is 1, a reward is infinite, or eps < 0.

    Source: GRPO, Shao et al. 2024, arXiv 2402.03300; with n - 1 in the authors' code and in TRL (`torch.std`).

    >>> standardized(torch.tensor([[3.0, 1.0, 2.0]]), eps=0.0).tolist()  # mean 2, s = sqrt((1 + 1 + 0) / 2) = 1
    [[1.0, -1.0, 0.0]]
    """
    if not eps >= 0:
        raise ValueError(f"expected eps >= 0, came {eps}: it is added to the standard deviation")
    deviations, counted, counts = _deviations(rewards_G)
    squares = torch.where(counted, deviations**2, 0.0).sum(-1, keepdim=True)
    std = (squares / (counts - 1).clamp(min=1)).sqrt()
    return torch.where(std == 0, deviations, deviations / (std + eps))  # std 0: the deviations are exactly 0


def leave_one_out(rewards_G: Float[Tensor, "prompt group"]) -> Float[Tensor, "prompt group"]:
    r"""Reward minus the mean of the *others* in its group: a baseline that does not depend on the completion itself.

    .. math:: A_i = r_i - \frac{1}{G-1} \sum_{j \ne i} r_j = \frac{G}{G-1} (r_i - \bar r)

    Args:
        rewards_G: any unit; NaN = abstained.

    Returns:
        Advantages in the unit of the reward.

    Raises:
        ValueError: if the group size is 1, or a reward is infinite.

    Source: RLOO, Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740.

    >>> leave_one_out(torch.tensor([[3.0, 1.0, 2.0]])).tolist()  # 3 - 1.5, 1 - 2.5, 2 - 2
    [[1.5, -1.5, 0.0]]
    """
    deviations, _, counts = _deviations(rewards_G)
    return deviations * counts / (counts - 1).clamp(min=1)


ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "centered": centered,
    "standardized": standardized,
    "leave_one_out": leave_one_out,
}  # for papermill, whose parameters are strings


def _deviations(
    rewards_G: Float[Tensor, "prompt group"],
) -> tuple[Float[Tensor, "prompt group"], Bool[Tensor, "prompt group"], Int[Tensor, "prompt 1"]]:
    """Deviations from the mean of the judged, who was judged, and how many; 0 for a group of equals, NaN unjudged."""
    if rewards_G.ndim != 2 or rewards_G.shape[1] < 2:
        raise ValueError(f"expected rewards (prompt, group) with a group of at least 2, came {tuple(rewards_G.shape)}")
    if bool(rewards_G.isinf().any()):
        raise ValueError("expected finite rewards or NaN (abstained), came an infinite one: bound the reward function")
    counted = ~rewards_G.isnan()
    counts = counted.sum(-1, keepdim=True)
    # Distances from the smallest reward: equal rewards become exact zeros, whatever their mean would round to.
    above_lowest = rewards_G - torch.where(counted, rewards_G, torch.inf).amin(-1, keepdim=True)
    mean = torch.where(counted, above_lowest, 0.0).sum(-1, keepdim=True) / counts.clamp(min=1)
    return above_lowest - mean, counted, counts
