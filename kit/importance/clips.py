"""Corrections that clip: a trust region around the sampler, or around a recent policy."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kit.importance.correction import Importance, Surrogate, Tokens, log_ratio_of, ratio_of, require_positive
from kit.masking import masked_mean


@dataclass(frozen=True)
class PPOClip(Importance):
    r"""The worse of the ratio and the clipped ratio: no gradient once a token moved far enough in the wanted direction.

    .. math:: \ell_t = -\min\big(\min(\rho_t, \rho_{max}) A, \; clip(\rho_t, 1 - \epsilon, 1 + \epsilon_{high}) A\big)

    Helps when samples are somewhat stale, or passed over several times. A `clip_eps_high` above `clip_eps`
    (clip-higher) lets rare tokens grow; `ratio_max` (two-sided clipping) bounds the pull of negative advantages.

    Attributes:
        clip_eps: half-width below 1, and above unless `clip_eps_high` is given, > 0, in ratio units.
        clip_eps_high: half-width above 1, > 0.
        ratio_max: bound on the ratio where the advantage is negative, > 1 + clip_eps_high; None is no bound.

    Source: Schulman et al. 2017 (arXiv 1707.06347, Eq. 7); clip-higher: DAPO, arXiv 2503.14476, Eq. 10; two-sided:
    INTELLECT-2, arXiv 2505.07291.
    """

    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    ratio_max: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "clip_eps")
        require_positive(self, "clip_eps_high")
        if self.ratio_max is not None and not self.ratio_max > 1 + self.high:
            name = type(self).__name__
            raise ValueError(
                f"expected {name}.ratio_max > {1 + self.high}, the upper end of the clip, came {self.ratio_max}"
            )

    @property
    def high(self) -> float:
        """Half-width above 1."""
        return self.clip_eps if self.clip_eps_high is None else self.clip_eps_high

    def surrogate(self, tokens: Tokens) -> Surrogate:
        return self.clipped(ratio_of(tokens.logprobs, tokens.old_logprobs), tokens.advantages)

    def clipped(self, ratio: Float[Tensor, "seq tok"], advantages: Float[Tensor, "seq 1"]) -> Surrogate:
        """The equation, for any ratio."""
        bounded = ratio if self.ratio_max is None else ratio.clamp(max=self.ratio_max)
        clipped = ratio.clamp(1 - self.clip_eps, 1 + self.high)
        is_low = (ratio < 1 - self.clip_eps) & (advantages < 0)
        is_high = (ratio > 1 + self.high) & (advantages > 0)
        if self.ratio_max is not None:
            is_high = is_high | ((ratio > self.ratio_max) & (advantages < 0))
        return Surrogate(-torch.min(bounded * advantages, clipped * advantages), is_low, is_high)


@dataclass(frozen=True)
class GSPO(Importance):
    r"""One ratio a sequence, the geometric mean of its tokens' ratios, clipped like PPO's.

    .. math:: s = \Big(\frac{\pi(y|x)}{\pi_{old}(y|x)}\Big)^{1/|y|}, \qquad
              \ell_t = -\min\big(s A, \; clip(s, 1 - \epsilon, 1 + \epsilon_{high}) A\big)

    Helps with long completions, where single ratios are noise: a sequence trains whole or not at all. It is a trust
    region, not an unbiased weight. Meant for `aggregate="sequence"`.

    Attributes:
        clip_eps, clip_eps_high: half-widths, > 0, in units of s, which varies far less than a token's ratio.

    Source: Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv 2507.18071, Eqs. 5 to 7; 3e-4 and 4e-4.
    """

    clip_eps: float = 3e-4
    clip_eps_high: float = 4e-4

    def __post_init__(self) -> None:
        require_positive(self, "clip_eps")
        require_positive(self, "clip_eps_high")

    def surrogate(self, tokens: Tokens) -> Surrogate:
        log_ratio = log_ratio_of(tokens.logprobs, tokens.old_logprobs)
        ratio = masked_mean(log_ratio, tokens.completion_mask, dim=-1).exp()[:, None]
        clipped = PPOClip(self.clip_eps, self.clip_eps_high).clipped(ratio, tokens.advantages)
        return Surrogate(*(part.expand_as(tokens.logprobs) for part in clipped))


@dataclass(frozen=True)
class DecoupledPPO(PPOClip):
    r"""PPO's clip around a recent policy, and an unclipped weight from the sampler to that policy.

    .. math:: \ell_t = -sg\Big(\frac{\pi_{prox}}{\pi_{old}}\Big) \min\big(r_t A, \; clip(r_t) A\big), \qquad
              r_t = \frac{\pi}{\pi_{prox}}

    Helps when stale batches are passed over several times: the trust region moves along instead of staying where the
    sampler was. `prox` is the policy before the first pass over the batch.

    Source: Hilton et al. 2021 (arXiv 2110.00641); AReaL, arXiv 2505.24298, Eq. 5.
    """

    @property
    def needs_prox_logprobs(self) -> bool:
        return True

    def surrogate(self, tokens: Tokens) -> Surrogate:
        prox = tokens.prox_logprobs.detach()
        loss, is_low, is_high = self.clipped(ratio_of(tokens.logprobs, prox), tokens.advantages)
        return Surrogate(ratio_of(prox, tokens.old_logprobs) * loss, is_low, is_high)
