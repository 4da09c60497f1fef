"""Group relative policy optimization.

Shao et al. 2024, "DeepSeekMath", https://arxiv.org/abs/2402.03300. The paper, arXiv 2506.21495, trains strictly
on-policy, without importance ratios and without length normalization: `importance="none", aggregate="sum"` with
`advantages.centered`. Another correction for a stale sampler is one more function that returns a `Surrogate`, and a
line in `IMPORTANCE`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kit.kl import k3
from kit.masking import aggregate_tokens, masked_mean, require_same_shape

# e^20 = 5e8. Beyond float32's range exp gives inf, and inf * 0 = NaN as gradient even where the clip removes the token.
MAX_LOG_RATIO = 20.0


class Clip(NamedTuple):
    """The ratios that count as close: 1 - low to 1 + high."""

    low: float
    high: float


class Surrogate(NamedTuple):
    """What an importance mode makes of the tokens: their loss, and where the clip removed the gradient."""

    loss: Float[Tensor, "seq tok"]
    is_low_clipped: Bool[Tensor, "seq tok"]
    is_high_clipped: Bool[Tensor, "seq tok"]


Tokens = Float[Tensor, "seq tok"]
SurrogateFunction = Callable[[Tokens, Tokens, Tensor, Tensor, Clip], Surrogate]


def on_policy_surrogate(
    logprobs: Tokens, old_logprobs: Tokens, advantages: Tensor, completion_mask: Tensor, clip: Clip
) -> Surrogate:
    r"""Policy gradient without a correction: a ratio that is 1 and has the gradient of log pi, as in the authors' code.

    .. math:: \ell_t = -e^{\log\pi - sg(\log\pi)} A
    """
    nowhere = torch.zeros_like(completion_mask)
    return Surrogate(-torch.exp(logprobs - logprobs.detach()) * advantages, nowhere, nowhere)


def clipped_surrogate(
    logprobs: Tokens, old_logprobs: Tokens, advantages: Tensor, completion_mask: Tensor, clip: Clip
) -> Surrogate:
    r"""PPO's clipped surrogate per token (Eq. 7 of Schulman et al. 2017, arXiv 1707.06347): the worse of the two.

    .. math:: \ell_t = -\min\big(\rho_t A, \, clip(\rho_t, 1 - \epsilon, 1 + \epsilon_{high}) A\big), \quad
              \rho_t = e^{\log\pi - \log\pi_{old}}
    """
    ratio = _ratio(logprobs, old_logprobs)
    clipped_ratio = ratio.clamp(1 - clip.low, 1 + clip.high)
    is_low_clipped = (ratio < 1 - clip.low) & (advantages < 0)
    is_high_clipped = (ratio > 1 + clip.high) & (advantages > 0)
    return Surrogate(-torch.min(ratio * advantages, clipped_ratio * advantages), is_low_clipped, is_high_clipped)


# `advantages` arrive as (seq, 1). What comes out at masked positions is ignored, and no gradient leaves through them.
IMPORTANCE: dict[str, SurrogateFunction] = {"none": on_policy_surrogate, "clip": clipped_surrogate}


def grpo_loss(
    logprobs: Float[Tensor, "seq tok"],
    old_logprobs: Float[Tensor, "seq tok"],
    advantages: Float[Tensor, " seq"],
    completion_mask: Bool[Tensor, "seq tok"],
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    importance: str = "clip",
    aggregate: str = "sequence",
    ref_logprobs: Float[Tensor, "seq tok"] | None = None,
    kl_coef: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    r"""GRPO: an advantage per sequence, a ratio per token.

    .. math:: \ell = agg_t\big[\ell_t(\rho_t, A)\big] + c_{KL}\, agg_t\big[k_3(\log\pi, \log\pi_{ref})\big]

    Args:
        logprobs: per token under the policy, nats.
        old_logprobs: under the distribution that sampled the tokens, at generation time.
        advantages: one a sequence, shared by its tokens.
        completion_mask: True = counts.
        clip_eps: clip half-width below 1, and above unless `clip_eps_high` is given, > 0, in ratio units.
        clip_eps_high: half-width above 1, > 0.
        importance: "clip" (PPO) or "none" (ratio 1: right only for fresh samples); see `IMPORTANCE`.
        aggregate: "sequence", "sum" (no length normalization) or "token": `kit.masking.aggregate_tokens`.
        ref_logprobs: under the reference; needed if kl_coef > 0.
        kl_coef: weight of k3, the estimate of KL(policy || reference) on samples of the policy, >= 0.

    Returns:
        Scalar loss, and metrics over all tokens that count: `clip_ratio/low_mean`, `/high_mean`, `/region_mean`
        (fractions whose gradient the clip removed), `offpolicy/ratio_mean`, `_min`, `_max` (pi / pi_old in every mode),
        `kl` (mean k3, nats, with a reference), and `policy_loss` (the loss without the KL term).

    Raises:
        ValueError: constants out of range, unknown names, shapes that differ, NaN advantages, no reference for the KL.

    >>> zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    >>> grpo_loss(zeros, zeros, torch.tensor([3.0]), mask)[0].item()  # ratio 1, advantage 3
    -3.0
    """
    clip = Clip(clip_eps, clip_eps if clip_eps_high is None else clip_eps_high)
    _require_valid(logprobs, old_logprobs, advantages, completion_mask)
    _require_constants(clip, importance, kl_coef, has_reference=ref_logprobs is not None)
    policy, old = torch.where(completion_mask, logprobs, 0.0), old_logprobs.detach()
    surrogate = IMPORTANCE[importance](policy, old, advantages.detach()[:, None], completion_mask, clip)
    loss = aggregate_tokens(surrogate.loss, completion_mask, aggregate)
    means = {"policy_loss": loss.detach()} | _offpolicy_metrics(policy.detach(), old, surrogate, completion_mask)
    if ref_logprobs is not None:
        require_same_shape({"logprobs": logprobs, "ref_logprobs": ref_logprobs})
        kl = k3(policy, ref_logprobs.detach())
        means["kl"] = masked_mean(kl.detach(), completion_mask)
        if kl_coef > 0:
            loss = loss + kl_coef * aggregate_tokens(kl, completion_mask, aggregate)
    return loss, dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))  # one transfer


def _ratio(logprobs: Tokens, old_logprobs: Tokens) -> Tokens:
    """pi / pi_old per token, finite."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _offpolicy_metrics(
    logprobs: Tokens, old_logprobs: Tokens, surrogate: Surrogate, completion_mask: Bool[Tensor, "seq tok"]
) -> dict[str, Float[Tensor, ""]]:
    """How far the policy is from the sampler, and what the clip took away, over the tokens that count."""
    ratio = _ratio(logprobs, old_logprobs)[completion_mask]
    low, high = (
        is_clipped[completion_mask].to(ratio.dtype).mean()
        for is_clipped in (surrogate.is_low_clipped, surrogate.is_high_clipped)
    )
    return {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,  # a token is clipped on one side at most
        "offpolicy/ratio_mean": ratio.mean(),
        "offpolicy/ratio_min": ratio.min(),
        "offpolicy/ratio_max": ratio.max(),
    }


def _require_valid(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, completion_mask: Tensor) -> None:
    """Raise ValueError for shapes that would broadcast, and for rollouts that nobody judged."""
    require_same_shape({"logprobs": logprobs, "old_logprobs": old_logprobs, "completion_mask": completion_mask})
    if advantages.shape != logprobs.shape[:1]:
        expected = tuple(logprobs.shape[:1])
        raise ValueError(f"expected one advantage a sequence, {expected}, came {tuple(advantages.shape)}")
    if bool(advantages.isnan().any()):
        raise ValueError("came an advantage of NaN, an abstained reward: leave these rollouts out of the batch")


def _require_constants(clip: Clip, importance: str, kl_coef: float, *, has_reference: bool) -> None:
    """Raise ValueError for a constant out of range."""
    if not (clip.low > 0 and clip.high > 0):
        raise ValueError(f"expected clip_eps > 0 and clip_eps_high > 0, came {clip.low} and {clip.high}")
    if importance not in IMPORTANCE:
        raise ValueError(f"expected importance to be one of {sorted(IMPORTANCE)}, came {importance!r}")
    if not kl_coef >= 0:
        raise ValueError(f"expected kl_coef >= 0, came {kl_coef}: a negative one would push away from the reference")
    if kl_coef > 0 and not has_reference:
        raise ValueError(f"expected ref_logprobs because kl_coef is {kl_coef}, came None: pass them, or kl_coef=0")
