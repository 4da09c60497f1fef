"""What a task is, for the run loop: prompts in three disjoint splits, and reward functions with their weights."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch

from kit.rewards.combine import RewardFunction
from kit.types import Prompt

Split = Literal["train", "validation", "test"]


@runtime_checkable
class Task(Protocol):
    """Anything with a name, prompts and reward functions; `split` must return the same prompts at every call."""

    @property
    def name(self) -> str: ...

    def split(self, name: Split) -> Sequence[Prompt]: ...

    def rewards(self) -> tuple[list[RewardFunction], list[float]]:
        """Reward functions on TRL's contract, and the weight of each in the total."""
        ...


def prompts_at(prompts: Sequence[Prompt], step: int, count: int, *, seed: int) -> list[Prompt]:
    """The prompts of optimizer step `step`: consecutive slices of a reshuffled pass over `prompts`.

    A function of (seed, step) alone, so that a resumed or forked run sees the same prompts without any saved position.

    Raises:
        ValueError: if there are fewer prompts than one step takes.
    """
    if not 1 <= count <= len(prompts):
        raise ValueError(
            f"a step takes {count} distinct prompts, but the split has {len(prompts)}: lower prompts_per_step"
        )
    steps_per_epoch = len(prompts) // count  # a remainder is left to the next shuffle
    epoch, position = divmod(step, steps_per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(prompts), generator=generator)[position * count : (position + 1) * count]
    return [prompts[index] for index in order.tolist()]
