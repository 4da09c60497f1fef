"""Corrections that weigh tokens: the ratio, left out, truncated or masked, is a factor that no gradient passes."""

from dataclasses import dataclass

import torch

from kit.importance.correction import Importance, Surrogate, Tokens, one_with_gradient, ratio_of, require_positive


@dataclass(frozen=True)
class NoCorrection(Importance):
    r"""Takes every sample for a fresh one: a ratio that is 1 and has the gradient of log pi.

    .. math:: \ell_t = -e^{\log\pi - sg(\log\pi)} A

    Helps when samples are fresh; on stale ones it pushes down what the policy has long stopped saying.
    Source: the authors' code of arXiv 2506.21495, at every s.
    """

    def surrogate(self, tokens: Tokens) -> Surrogate:
        nowhere = torch.zeros_like(tokens.completion_mask)
        return Surrogate(-one_with_gradient(tokens.logprobs) * tokens.advantages, nowhere, nowhere)


@dataclass(frozen=True)
class TIS(Importance):
    r"""Truncated importance sampling: the ratio, up to a cap, as a weight that no gradient passes.

    .. math:: \ell_t = -sg\big(\min(\rho_t, \rho_{max})\big) \, e^{\log\pi - sg(\log\pi)} A

    Helps when sampler and policy differ a little everywhere (another engine, a short lag): exact below the cap, bounded
    variance above. Without the stop-gradient the unclipped gradient would be twice too large.

    Attributes:
        ratio_max: the cap, > 0, in ratio units.

    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; cap 2 as there.
    """

    ratio_max: float = 2.0

    def __post_init__(self) -> None:
        require_positive(self, "ratio_max")

    def surrogate(self, tokens: Tokens) -> Surrogate:
        ratio = ratio_of(tokens.logprobs, tokens.old_logprobs).detach()
        weight = ratio.clamp(max=self.ratio_max)
        nowhere = torch.zeros_like(tokens.completion_mask)
        loss = -weight * one_with_gradient(tokens.logprobs) * tokens.advantages
        return Surrogate(loss, nowhere, ratio > self.ratio_max)


@dataclass(frozen=True)
class IcePop(Importance):
    r"""Masked importance sampling: tokens whose ratio leaves an interval do not train at all.

    .. math:: \ell_t = -sg\big(\rho_t \, 1[\rho_{min} \le \rho_t \le \rho_{max}]\big) \, e^{\log\pi - sg(\log\pi)} A

    Helps when a few tokens are off by orders of magnitude, as with another engine; under staleness it also drops what
    the policy has learned to avoid.

    Attributes:
        ratio_min, ratio_max: the interval, 0 <= ratio_min < 1 < ratio_max.

    Source: Ling team 2025, "Small Leak Can Sink a Great Ship: Boost RL Training on MoE with IcePop!"; [0.5, 5].
    """

    ratio_min: float = 0.5
    ratio_max: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.ratio_min < 1 < self.ratio_max:
            raise ValueError(
                f"expected 0 <= ratio_min < 1 < ratio_max in IcePop, came {self.ratio_min} and {self.ratio_max}: "
                "fresh samples, whose ratio is 1, must count"
            )

    def surrogate(self, tokens: Tokens) -> Surrogate:
        ratio = ratio_of(tokens.logprobs, tokens.old_logprobs).detach()
        is_low, is_high = ratio < self.ratio_min, ratio > self.ratio_max
        weight = torch.where(is_low | is_high, 0.0, ratio)
        return Surrogate(-weight * one_with_gradient(tokens.logprobs) * tokens.advantages, is_low, is_high)


@dataclass(frozen=True)
class CISPO(Importance):
    r"""REINFORCE with a truncated ratio as weight: every token keeps a gradient.

    .. math:: \ell_t = -sg\big(\min(\rho_t, \rho_{max})\big) \, A \log\pi

    Helps where PPO's clip would silence the rare tokens on which reasoning turns. Its gradient is that of TIS with the
    same cap; the loss itself has another value, which means nothing.

    Attributes:
        ratio_max: the cap, > 0.

    Source: MiniMax-M1, arXiv 2506.13585, Eqs. 4 and 5; cap 5 as in ScaleRL, arXiv 2510.13786.
    """

    ratio_max: float = 5.0

    def __post_init__(self) -> None:
        require_positive(self, "ratio_max")

    def surrogate(self, tokens: Tokens) -> Surrogate:
        ratio = ratio_of(tokens.logprobs, tokens.old_logprobs).detach()
        weight = ratio.clamp(max=self.ratio_max)
        nowhere = torch.zeros_like(tokens.completion_mask)
        return Surrogate(-weight * tokens.advantages * tokens.logprobs, nowhere, ratio > self.ratio_max)
