"""Negative log-likelihood: imitate these completions.

Pang et al. 2024, https://arxiv.org/abs/2404.19733, add it to DPO on the chosen completions. arXiv 2506.21495 tries that
with weight 1 and finds no benefit.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from kit.masking import aggregate_tokens

AGGREGATE_OF = {"sequence": "sequence", "token": "token", "none": "sum"}


def nll_loss(
    logprobs: Float[Tensor, "seq tok"], completion_mask: Bool[Tensor, "seq tok"], *, normalize: str = "sequence"
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    r"""Negative log-likelihood of completions.

    .. math:: \ell = -\frac1N \sum_i \frac{1}{|y_i|} \sum_t \log\pi(y_{i,t} | x_i, y_{i,<t})

    Args:
        logprobs: of the completion tokens under the policy, nats.
        completion_mask: True = counts.
        normalize: "sequence" (the equation: mean over sequences of the mean over tokens), "token" (mean over all tokens
            of the batch: long completions weigh more), "none" (mean over sequences of the *sum* over tokens).

    Returns:
        Scalar loss in nats per token (per sequence with "none"), and the metric `nll_loss`, its value.

    Raises:
        ValueError: if `normalize` is none of these, or a sequence has no token that counts.

    >>> import torch
    >>> logprobs, mask = torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, True]])
    >>> nll_loss(logprobs, mask)[0].item(), nll_loss(logprobs, mask, normalize="none")[0].item()
    (2.0, 4.0)
    """
    if normalize not in AGGREGATE_OF:
        raise ValueError(f"expected normalize to be one of {sorted(AGGREGATE_OF)}, came {normalize!r}")
    loss = -aggregate_tokens(logprobs, completion_mask, AGGREGATE_OF[normalize])
    return loss, {"nll_loss": loss.item()}
