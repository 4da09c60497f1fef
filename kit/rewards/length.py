"""Length reward: a penalty that grows over the last tokens before the limit.

Source: Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv 2503.14476, eq. 13.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SoftOverlongPunishment:
    r"""DAPO's soft punishment of overlong completions; make it with `soft_overlong_punishment`.

    .. math:: R(y) = \max(-1, \min(0, (L_{max} - L_{cache} - |y|) / L_{cache}))
    """

    max_completion_length: int
    cache_length: int
    __name__ = "soft_overlong_punishment"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        return [self._punishment(len(ids)) for ids in completion_ids]

    def _punishment(self, length: int) -> float:
        excess = length - (self.max_completion_length - self.cache_length)
        if excess <= 0:
            return 0.0
        return -min(1.0, excess / self.cache_length) if self.cache_length else -1.0


def soft_overlong_punishment(max_completion_length: int, cache_length: int) -> SoftOverlongPunishment:
    """Reward in [-1, 0]: 0 up to `max_completion_length - cache_length` tokens, then linear, -1 at the limit.

    Args:
        max_completion_length: tokens, end of sequence included.
        cache_length: tokens over which the punishment grows, from 0 (a step at the limit) to `max_completion_length`.

    Raises:
        ValueError: if the cache is negative or longer than the limit.

    Source: eq. 13 of DAPO; equals TRL's `get_soft_overlong_punishment`.

    >>> soft_overlong_punishment(100, 20)(completion_ids=[[1] * 80, [1] * 90, [1] * 100])
    [0.0, -0.5, -1.0]
    """
    if not 0 <= cache_length <= max_completion_length:
        raise ValueError(
            f"expected 0 <= cache_length <= max_completion_length, got cache_length={cache_length} and "
            f"max_completion_length={max_completion_length}"
        )
    return SoftOverlongPunishment(max_completion_length, cache_length)
