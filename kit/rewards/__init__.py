"""Reward functions on TRL's contract: `fn(prompts, completions, completion_ids, **columns) -> list[float | None]`.

`None` abstains. Any reward function written for TRL works here, and these work in TRL. Nothing heavy is imported: the
verifier lives in processes of its own.
"""

from collections.abc import Callable

from kit.rewards.combine import RewardFunction, score
from kit.rewards.format import boxed_format_reward
from kit.rewards.length import soft_overlong_punishment
from kit.rewards.limited import TimeLimited
from kit.rewards.math import MathReward

REWARDS: dict[str, Callable[..., RewardFunction]] = {  # a papermill parameter is a string: its constructor is here
    "math": MathReward,
    "boxed_format": lambda: boxed_format_reward,
    "soft_overlong": soft_overlong_punishment,
}

__all__ = [
    "REWARDS",
    "MathReward",
    "RewardFunction",
    "TimeLimited",
    "boxed_format_reward",
    "score",
    "soft_overlong_punishment",
]
