"""What a correction is, and what all of them are made of."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

# e^20 = 5e8. Beyond float32's range exp gives inf, and inf * 0 = NaN as gradient even where the clip removes the token.
MAX_LOG_RATIO = 20.0


class Tokens(NamedTuple):
    """What a correction may look at; what stands at masked positions is ignored."""

    logprobs: Float[Tensor, "seq tok"]  # under the policy, nats
    old_logprobs: Float[Tensor, "seq tok"]  # under the sampler, at generation time
    prox_logprobs: Float[Tensor, "seq tok"]  # under the policy before the first gradient pass over this batch
    advantages: Float[Tensor, "seq 1"]
    completion_mask: Bool[Tensor, "seq tok"]


class Surrogate(NamedTuple):
    """What a correction makes of the tokens."""

    loss: Float[Tensor, "seq tok"]
    is_low_clipped: Bool[Tensor, "seq tok"]  # the ratio was too small, and was bounded or took the gradient away
    is_high_clipped: Bool[Tensor, "seq tok"]  # too large, likewise


class Importance(ABC):
    """A correction: a frozen value with its constants. Most look at a token alone and leave the defaults."""

    @property
    def needs_prox_logprobs(self) -> bool:
        """Whether `surrogate` reads `prox_logprobs`."""
        return False

    @property
    def needs_fit(self) -> bool:
        """Whether `fitted` must see all log-ratios of a step before its micro-batches are trained on."""
        return False

    def fitted(self, log_ratios: Float[Tensor, " token"]) -> "Importance":
        """The correction with what it learns from all tokens of a step; itself if it learns nothing."""
        return self

    @abstractmethod
    def surrogate(self, tokens: Tokens) -> Surrogate:
        """Loss per token."""


def log_ratio_of(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log(pi / pi_old) per token, within what exp can take."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def ratio_of(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """pi / pi_old per token, finite."""
    return log_ratio_of(logprobs, old_logprobs).exp()


def one_with_gradient(logprobs: Tensor) -> Tensor:
    """1, with the gradient of log pi."""
    return (logprobs - logprobs.detach()).exp()


def require_positive(value: object, name: str) -> None:
    """Raise ValueError unless the field is above 0 or None."""
    constant = getattr(value, name)
    if constant is not None and not constant > 0:
        raise ValueError(f"expected {type(value).__name__}.{name} > 0, came {constant}")
