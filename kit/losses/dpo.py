"""Direct preference optimization.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
https://arxiv.org/abs/2305.18290. As used in arXiv 2506.21495, with sequence log-probabilities *summed* over tokens.
Nothing here depends on who sampled the completions: that is why DPO can be trained offline, semi-online and online.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kit.masking import require_same_shape


def dpo_loss(
    chosen_logprobs: Float[Tensor, " pair"],
    rejected_logprobs: Float[Tensor, " pair"],
    ref_chosen_logprobs: Float[Tensor, " pair"],
    ref_rejected_logprobs: Float[Tensor, " pair"],
    *,
    beta: float = 0.1,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    r"""Mean DPO loss over preference pairs.

    .. math:: \ell = -\log\sigma\big(\beta[(\log\pi_w - \log\pi^{ref}_w) - (\log\pi_l - \log\pi^{ref}_l)]\big)

    Args:
        chosen_logprobs: log pi(y_w | x), *summed* over completion tokens, nats.
        rejected_logprobs: log pi(y_l | x), likewise.
        ref_chosen_logprobs: log pi_ref(y_w | x), likewise; no gradient flows into the reference.
        ref_rejected_logprobs: log pi_ref(y_l | x), likewise.
        beta: strength of the pull toward the reference, > 0. Larger stays closer.

    Returns:
        Scalar loss in nats, *mean over pairs*, and metrics, means over pairs: `rewards/chosen`, `rewards/rejected` and
        `rewards/margins` (implicit rewards, beta * log-ratio, nats), `rewards/accuracies` (fraction with margin > 0),
        `logps/chosen`, `logps/rejected` (nats), `pairs/weight` (sigma(-margin), in (0, 1), which scales the gradient).

    Raises:
        ValueError: if beta <= 0, there are no pairs, or the shapes differ.

    Source: Eq. 7 of Rafailov et al. At pi = pi_ref the loss is log 2, whatever beta is.

    >>> zeros = torch.zeros(3)
    >>> round(dpo_loss(zeros, zeros, zeros, zeros)[0].item(), 4)
    0.6931
    """
    _require_pairs(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta)
    chosen_rewards = beta * (chosen_logprobs - ref_chosen_logprobs.detach())
    rejected_rewards = beta * (rejected_logprobs - ref_rejected_logprobs.detach())
    margins = chosen_rewards - rejected_rewards
    per_pair = {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).to(margins.dtype),
        "logps/chosen": chosen_logprobs,
        "logps/rejected": rejected_logprobs,
        "pairs/weight": torch.sigmoid(-margins),
    }
    means = torch.stack(list(per_pair.values())).detach().mean(dim=1).tolist()  # one transfer from the device
    return -F.logsigmoid(margins).mean(), dict(zip(per_pair, means, strict=True))


def _require_pairs(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> None:
    """Raise ValueError for a beta that is not positive, or log-probabilities that are not one number a pair."""
    if not beta > 0:
        raise ValueError(f"expected beta > 0, came {beta}: at 0 the loss is log 2 and nothing is learned")
    require_same_shape(
        {
            "chosen_logprobs": chosen,
            "rejected_logprobs": rejected,
            "ref_chosen_logprobs": ref_chosen,
            "ref_rejected_logprobs": ref_rejected,
        }
    )
    if chosen.ndim != 1 or not len(chosen):
        raise ValueError(
            f"expected one summed log-probability a pair, (pair,), came {tuple(chosen.shape)}: "
            "sum over tokens with sequence_logprob, and skip a batch without pairs"
        )
