"""Group DPO: every correct completion of a prompt against every incorrect one.

Lanchantin et al. 2025, https://arxiv.org/abs/2506.21495, Eq. 4. One random pair in expectation is the same loss; all
pairs have less variance, and cost no further forward pass, since each completion is scored once.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kit.masking import require_same_shape


def group_dpo_loss(
    logprobs: Float[Tensor, " group"],
    ref_logprobs: Float[Tensor, " group"],
    is_correct: Bool[Tensor, " group"],
    *,
    beta: float = 0.1,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    r"""Mean DPO loss over all correct x incorrect pairs of *one* prompt.

    .. math:: \ell = \frac{1}{|Y_c||Y_r|} \sum_{c \in Y_c} \sum_{r \in Y_r}
              -\log\sigma\Big(\beta\big[(\log\pi_c - \log\pi^{ref}_c) - (\log\pi_r - \log\pi^{ref}_r)\big]\Big)

    Args:
        logprobs: log pi(y | x) of each completion, *summed* over its tokens, nats.
        ref_logprobs: under the reference, likewise; no gradient flows into it.
        is_correct: True = one of Y_c.
        beta: strength of the pull toward the reference, > 0.

    Returns:
        Scalar loss in nats, *mean over pairs*, and the metrics of `dpo_loss`: implicit rewards and log-probs averaged
        over the correct (`chosen`) and the incorrect (`rejected`), margins and weights over pairs.

    Raises:
        ValueError: if beta <= 0, the shapes differ, or all or none are correct.

    Source: Eq. 4 of arXiv 2506.21495. At pi = pi_ref the loss is log 2.

    >>> zeros = torch.zeros(3)
    >>> round(group_dpo_loss(zeros, zeros, torch.tensor([True, False, False]))[0].item(), 4)
    0.6931
    """
    if not beta > 0:
        raise ValueError(f"expected beta > 0, came {beta}: at 0 the loss is log 2 and nothing is learned")
    require_same_shape({"logprobs": logprobs, "ref_logprobs": ref_logprobs, "is_correct": is_correct})
    if not is_correct.any() or is_correct.all():
        raise ValueError(
            f"expected correct and incorrect completions, came {int(is_correct.sum())} correct of {len(is_correct)}: "
            "skip a group without contrast"
        )
    rewards = beta * (logprobs - ref_logprobs.detach())
    chosen, rejected = rewards[is_correct], rewards[~is_correct]
    margins = chosen[:, None] - rejected[None, :]
    means = {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).to(margins.dtype).mean(),
        "logps/chosen": logprobs[is_correct].mean(),
        "logps/rejected": logprobs[~is_correct].mean(),
        "pairs/weight": torch.sigmoid(-margins).mean(),
    }
    values = torch.stack(list(means.values())).tolist()  # one transfer from the device
    return -F.logsigmoid(margins).mean(), dict(zip(means, values, strict=True))
