"""Group relative policy optimization.

Shao et al. 2024, "DeepSeekMath", https://arxiv.org/abs/2402.03300. The paper, arXiv 2506.21495, trains strictly
on-policy, without importance ratios and without length normalization: `importance="none", aggregate="sum"` with
`advantages.centered`. What can be done about a stale sampler is in `kit.importance`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kit.importance import IMPORTANCE, Importance, PPOClip, Surrogate, Tokens
from kit.kl import KLEstimator, k3
from kit.masking import aggregate_tokens, masked_mean, require_same_shape


def grpo_loss(
    logprobs: Float[Tensor, "seq tok"],
    old_logprobs: Float[Tensor, "seq tok"],
    advantages: Float[Tensor, " seq"],
    completion_mask: Bool[Tensor, "seq tok"],
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    importance: str | Importance = "clip",
    aggregate: str = "sequence",
    max_completion_length: int | None = None,
    ref_logprobs: Float[Tensor, "seq tok"] | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = k3,
    prox_logprobs: Float[Tensor, "seq tok"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    r"""GRPO: an advantage per sequence, a ratio per token.

    .. math:: \ell = agg_t\big[\ell_t(\rho_t, A)\big] + c_{KL}\, agg_t\big[k(\log\pi, \log\pi_{ref})\big]

    Args:
        logprobs: per token under the policy, nats.
        old_logprobs: under the distribution that sampled the tokens, at generation time.
        advantages: one a sequence, shared by its tokens.
        completion_mask: True = counts.
        clip_eps, clip_eps_high: of `importance="clip"`, see `kit.importance.PPOClip`.
        importance: a name in `kit.importance.IMPORTANCE` with its published constants, or a value with yours.
        aggregate: "sequence", "sum" (no length normalization), "token" or "constant": `kit.masking.aggregate_tokens`.
        max_completion_length: tokens, the divisor of "constant" (Dr. GRPO, arXiv 2503.20783).
        ref_logprobs: under the reference; needed if kl_coef > 0.
        kl_coef: weight of the estimate of KL(policy || reference) on samples of the policy, >= 0.
        kl_estimator: `kit.kl.k3` (usual), `k2` (whose gradient is that of this KL) or `k1` (whose expected one is 0).
        prox_logprobs: under the policy before the first pass over this batch, for "decoupled"; None = this is it.

    Returns:
        Scalar loss, and metrics over all tokens that count: `clip_ratio/low_mean`, `/high_mean`, `/region_mean`
        (fractions that the correction clipped, truncated or masked), `kl` (mean estimate, nats, with a reference), and
        `policy_loss` (the loss without the KL term). How far the samples are off: `kit.offpolicy.offpolicy_metrics`.

    Raises:
        ValueError: constants out of range, unknown names, shapes that differ, NaN advantages, no reference for the KL.

    >>> zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    >>> grpo_loss(zeros, zeros, torch.tensor([3.0]), mask)[0].item()  # ratio 1, advantage 3
    -3.0
    """
    _require_valid(logprobs, old_logprobs, prox_logprobs, ref_logprobs, advantages, completion_mask)
    _require_reference(kl_coef, has_reference=ref_logprobs is not None)
    correction = _correction(importance, clip_eps, clip_eps_high)
    policy = torch.where(completion_mask, logprobs, 0.0)
    old, prox = old_logprobs.detach(), (policy if prox_logprobs is None else prox_logprobs).detach()
    surrogate = correction.surrogate(Tokens(policy, old, prox, advantages.detach()[:, None], completion_mask))
    loss = aggregate_tokens(surrogate.loss, completion_mask, aggregate, constant=max_completion_length)
    means = {"policy_loss": loss.detach()} | _clip_ratios(surrogate, completion_mask, loss.dtype)
    if ref_logprobs is not None:
        kl = kl_estimator(policy, ref_logprobs.detach())
        means["kl"] = masked_mean(kl.detach(), completion_mask)
        if kl_coef > 0:
            loss = loss + kl_coef * aggregate_tokens(kl, completion_mask, aggregate, constant=max_completion_length)
    return loss, dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))  # one transfer


def _correction(importance: str | Importance, clip_eps: float, clip_eps_high: float | None) -> Importance:
    """The value that a name stands for; a clip that would be ignored is refused."""
    if importance == "clip":
        return PPOClip(clip_eps, clip_eps_high)
    if (clip_eps, clip_eps_high) != (0.2, None):
        raise ValueError(
            f"expected clip_eps and clip_eps_high with importance='clip' only, came {clip_eps} and {clip_eps_high} "
            f"with {importance!r}: pass a value of kit.importance with its own constants"
        )
    if not isinstance(importance, str):
        return importance
    if importance not in IMPORTANCE:
        raise ValueError(f"expected importance to be one of {sorted(IMPORTANCE)}, came {importance!r}")
    return IMPORTANCE[importance]()


def _clip_ratios(surrogate: Surrogate, completion_mask: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Fractions of the tokens that count."""
    low, high = (
        masked_mean(is_clipped.to(dtype), completion_mask)
        for is_clipped in (surrogate.is_low_clipped, surrogate.is_high_clipped)
    )
    names = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
    return dict(zip(names, (low, high, low + high), strict=True))  # a token is clipped on one side at most


def _require_reference(kl_coef: float, *, has_reference: bool) -> None:
    """Raise ValueError for a KL weight that pushes away, or that has nothing to pull to."""
    if not kl_coef >= 0:
        raise ValueError(f"expected kl_coef >= 0, came {kl_coef}: a negative one would push away from the reference")
    if kl_coef > 0 and not has_reference:
        raise ValueError(f"expected ref_logprobs because kl_coef is {kl_coef}, came None: pass them, or kl_coef=0")


def _require_valid(
    logprobs: Tensor,
    old_logprobs: Tensor,
    prox_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completion_mask: Tensor,
) -> None:
    """Raise ValueError for shapes that would broadcast, and for rollouts that nobody judged."""
    per_token = {"logprobs": logprobs, "old_logprobs": old_logprobs, "prox_logprobs": prox_logprobs}
    per_token |= {"ref_logprobs": ref_logprobs, "completion_mask": completion_mask}
    require_same_shape({name: tensor for name, tensor in per_token.items() if tensor is not None})
    if advantages.shape != logprobs.shape[:1]:
        expected = tuple(logprobs.shape[:1])
        raise ValueError(f"expected one advantage a sequence, {expected}, came {tuple(advantages.shape)}")
    if bool(advantages.isnan().any()):
        raise ValueError("came an advantage of NaN, an abstained reward: leave these rollouts out of the batch")
