"""What a task is, for the run loop: prompts in three disjoint splits, and reward functions with their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from kit.rewards import MathReward
from kit.rewards.combine import RewardFunction, function_name
from kit.types import Prompt

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Judging:
    """How completions are judged where no answer is right or wrong. Nothing here is seen by what trains.

    Attributes:
        pairwise: on TRL's contract, with a column `baseline`: 1 if the completion wins, 0 if it loses, 0.5 for a tie,
            None where it cannot say. Without one there is no win rate, only means.
        baseline: prompt id -> the completions to win against, in the order of the samples.
        pointwise: on TRL's contract; means are logged beside those of the task's own reward functions.
    """

    pairwise: RewardFunction | None = None
    baseline: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pointwise: tuple[RewardFunction, ...] = ()

    def describe(self) -> dict[str, Any]:
        """For the configuration of a run: a digest stands for the baseline."""
        digest = sha256(repr(sorted((key, list(texts)) for key, texts in self.baseline.items())).encode()).hexdigest()
        names = [function_name(function) for function in self.pointwise]
        pairwise = None if self.pairwise is None else function_name(self.pairwise)
        return {"pairwise": pairwise, "pointwise": names, "baseline_digest": digest[:16]}


@runtime_checkable
class Task(Protocol):
    """Anything with a name, prompts and reward functions; `split` must return the same prompts at every call."""

    @property
    def name(self) -> str: ...

    def split(self, name: Split) -> Sequence[Prompt]: ...

    def rewards(self) -> tuple[list[RewardFunction], list[float]]:
        """Reward functions on TRL's contract, and the weight of each in the total."""
        ...

    @property
    def judging(self) -> Judging | None:
        """How held-out completions are judged; None where a total reward of 1 means that the answer is right."""
        ...


class Verified:
    """What tasks share whose column `solution` says what is right: math-verify rewards it, and accuracy evaluates."""

    def rewards(self) -> tuple[list[RewardFunction], list[float]]:
        return [MathReward()], [1.0]

    @property
    def judging(self) -> None:
        return None


@dataclass(frozen=True)
class Portion:
    """One of several tasks of a run, and its share of every optimizer step.

    Attributes:
        task: its prompts carry its name in the column `task`.
        prompts_per_step: 0 = the task is evaluated and not trained on.
        group_size, max_completion_length: None = the run's own.
    """

    task: Task
    prompts_per_step: int
    group_size: int | None = None
    max_completion_length: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.group_size, self.max_completion_length)
        if self.prompts_per_step < 0 or any(size is not None and size < 1 for size in sizes):
            raise ValueError(
                f"expected prompts_per_step >= 0, group_size and max_completion_length >= 1 or None, came "
                f"{self.prompts_per_step}, {self.group_size} and {self.max_completion_length} for {self.task.name}"
            )


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
