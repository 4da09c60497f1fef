"""A trust region on the second moment of a whole step's log-ratios."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kit.importance.correction import (
    MAX_LOG_RATIO,
    Importance,
    Surrogate,
    Tokens,
    log_ratio_of,
    require_positive,
)


@dataclass(frozen=True)
class M2PO(Importance):
    r"""Leaves out the tokens with the largest squared log-ratios until their mean is small enough; no clip.

    .. math:: \ell_t = -m_t \rho_t A, \qquad m_t = 1[\,|\log\rho_t| < b\,], \qquad
              \frac{\sum_t m_t \log^2\rho_t}{\sum_t m_t} \le \bar m_2

    Helps when samples are very stale: few tokens are left out, where PPO's clip would silence many.

    Attributes:
        max_m2: bound on the second moment, > 0, squared nats.
        bound: b, halfway from the last token that may stay to the next; None = found in the batch at hand. `fitted`
            sets it from a whole step, so that micro-batches leave out what the step would.

    Source: Zheng et al. 2025, "Prosperity before Collapse", arXiv 2510.01161; 0.04 as there.
    """

    max_m2: float = 0.04
    bound: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "max_m2")
        require_positive(self, "bound")

    @property
    def needs_fit(self) -> bool:
        return True

    def fitted(self, log_ratios: Float[Tensor, " token"]) -> "M2PO":
        return replace(self, bound=self._bound(log_ratios))

    def surrogate(self, tokens: Tokens) -> Surrogate:
        log_ratio = log_ratio_of(tokens.logprobs, tokens.old_logprobs)
        bound = self._bound(log_ratio[tokens.completion_mask]) if self.bound is None else self.bound
        is_out = log_ratio.detach().double().abs() >= bound
        loss = torch.where(is_out, 0.0, -log_ratio.exp() * tokens.advantages)
        return Surrogate(loss, is_out & (log_ratio < 0), is_out & (log_ratio > 0))

    def _bound(self, log_ratios: Float[Tensor, " token"]) -> float:
        """Halfway between the last distance that may stay and the first that must not; of equal ones all go."""
        distances = log_ratios.detach().double().abs().clamp(max=MAX_LOG_RATIO).sort().values  # as in `log_ratio_of`
        means = distances.square().cumsum(0) / torch.arange(1, len(distances) + 1, device=distances.device)
        kept = int((means <= self.max_m2).sum())  # the means of a sorted sequence never fall
        if kept == len(distances):
            return math.inf
        return float(distances[kept - 1 : kept + 1].mean() if kept else distances[0] / 2)
