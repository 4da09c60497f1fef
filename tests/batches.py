"""Small groups and scores by hand, for tests of the objectives."""

from collections.abc import Sequence

import torch

from kit.types import Group, Prompt, Rollout, TokenScores

PROMPT = Prompt("p", "1+1=", {})


def rollout(index: int, length: int = 2, old: float = -1.0) -> Rollout:
    return Rollout((3, 4), (index + 5,) * length, (old,) * length, (0.0,) * length, str(index), "stop", 0)


def group(*rewards: float | None) -> Group:
    return Group(PROMPT, tuple(rollout(i) for i in range(len(rewards))), rewards)


def scores(rows: Sequence[Sequence[float]], entropy: float = 0.5) -> TokenScores:
    """Log-probs of rows of unequal length, padded with a number that must not matter."""
    width = max(len(row) for row in rows)
    logprobs = torch.tensor([[*row, *[7.0] * (width - len(row))] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    return TokenScores(logprobs, torch.full_like(logprobs, entropy), mask)
