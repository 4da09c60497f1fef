"""Three estimators of KL(policy || reference) from tokens that the *policy* sampled.

With `d = log pi_ref - log pi` at a sampled token: k1 and k3 are unbiased; k3 is never negative and varies much less
when the two are close; k2 is biased. On samples from any other distribution, a stale sampler's among them, none of them
estimates this KL. As a loss they behave differently. The expected gradient through `logprobs` is 0 for k1, that of
KL(policy || reference) for k2, and that of the *other* direction, KL(reference || policy), for k3.

Source: Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kit.masking import require_same_shape

KLEstimator = Callable[[Tensor, Tensor], Tensor]  # (logprobs, ref_logprobs) -> one estimate a token


def k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Log-ratio: unbiased, of either sign, with a large variance.

    .. math:: k_1 = \log\pi - \log\pi_{ref}

    Args:
        logprobs: of the sampled tokens under the policy that sampled them, nats.
        ref_logprobs: of the same tokens under the reference, nats.

    Returns:
        One estimate a token, nats.

    Raises:
        ValueError: if the shapes differ.

    >>> k1(torch.tensor([-1.0]), torch.tensor([-3.0])).tolist()
    [2.0]
    """
    require_same_shape({"logprobs": logprobs, "ref_logprobs": ref_logprobs})
    return logprobs - ref_logprobs


def k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Half the squared log-ratio: biased, never negative; its expected gradient is that of the KL.

    .. math:: k_2 = \tfrac12 (\log\pi - \log\pi_{ref})^2

    Args:
        logprobs: of the sampled tokens under the policy that sampled them, nats.
        ref_logprobs: of the same tokens under the reference, nats.

    Returns:
        One estimate a token, nats.

    Raises:
        ValueError: if the shapes differ.

    >>> k2(torch.tensor([-1.0]), torch.tensor([-3.0])).tolist()
    [2.0]
    """
    require_same_shape({"logprobs": logprobs, "ref_logprobs": ref_logprobs})
    return 0.5 * (logprobs - ref_logprobs) ** 2


def k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Log-ratio with a control variate: unbiased, never negative. The KL term of GRPO.

    .. math:: k_3 = e^{d} - d - 1, \qquad d = \log\pi_{ref} - \log\pi

    Args:
        logprobs: of the sampled tokens under the policy that sampled them, nats.
        ref_logprobs: of the same tokens under the reference, nats.

    Returns:
        One estimate a token, nats.

    Raises:
        ValueError: if the shapes differ.

    >>> round(k3(torch.tensor([0.5]).log(), torch.tensor([0.25]).log()).item(), 4)  # 1/2 - log(1/2) - 1
    0.1931
    """
    require_same_shape({"logprobs": logprobs, "ref_logprobs": ref_logprobs})
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio  # expm1: exp(d) - 1 would lose all digits where the two are close


KL_ESTIMATORS: dict[str, KLEstimator] = {"k1": k1, "k2": k2, "k3": k3}  # for papermill, whose parameters are strings
