"""How far the policy has moved from the sampler, measured on the sampler's own tokens.

With `r = pi / pi_old` at a token that the *sampler* drew, over such tokens: the mean of `r log r - r + 1` is
KL(policy || sampler), that of `r - 1 - log r` is KL(sampler || policy). Neither is ever negative, token by token. Both
are per token, on the sampler's prefixes: what the policy would have written instead is not among them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kit.importance import MAX_LOG_RATIO
from kit.masking import require_same_shape


def offpolicy_metrics(logprobs: Float[Tensor, " token"], old_logprobs: Float[Tensor, " token"]) -> dict[str, float]:
    r"""Distances between the policy and the sampler, before any clipping or truncation.

    Args:
        logprobs: of sampled tokens under the policy, nats.
        old_logprobs: under the sampler, at generation time, nats.

    Returns:
        `offpolicy/kl` (KL(policy || sampler), nats a token), `offpolicy/kl_reverse` (KL(sampler || policy)),
        `offpolicy/m2` (mean squared log-ratio, the second moment of M2PO, arXiv 2510.01161), `offpolicy/ess`
        (:math:`(\sum r)^2 / (n \sum r^2)`, effective sample size as a fraction of n, in (0, 1]), and
        `offpolicy/ratio_mean`, `/ratio_min`, `/ratio_max`.

    Raises:
        ValueError: if the shapes differ or there is no token.

    >>> found = offpolicy_metrics(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())  # r = 2 and 2/3
    >>> round(found["offpolicy/ratio_mean"], 4), round(found["offpolicy/ess"], 4)
    (1.3333, 0.8)
    """
    require_same_shape({"logprobs": logprobs, "old_logprobs": old_logprobs})
    if not len(logprobs):
        raise ValueError("expected at least one token, came none: there is no distance to measure")
    log_ratio = (logprobs.detach() - old_logprobs).double().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio, excess = log_ratio.exp(), torch.expm1(log_ratio)  # expm1 keeps the digits of ratios near 1
    found = {
        "kl": (ratio * log_ratio - excess).mean(),
        "kl_reverse": (excess - log_ratio).mean(),
        "m2": log_ratio.square().mean(),
        "ess": ratio.sum().square() / (len(ratio) * ratio.square().sum()),
        "ratio_mean": ratio.mean(),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
    }
    values = torch.stack(list(found.values())).tolist()  # one transfer from the device
    return {f"offpolicy/{name}": value for name, value in zip(found, values, strict=True)}
