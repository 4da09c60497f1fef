"""A task as one run uses it: the prompts of a step, and how completions are sampled, scored and evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from kit.config import RunConfig, Sampling
from kit.evaluate import Evaluation, JudgedEvaluation, evaluate, evaluate_by_judging, require_baseline, score_groups
from kit.objectives import Objective
from kit.rollouts import Batch, group_metrics, task_metrics, totals_of
from kit.runlog import Clock, describe
from kit.samplers import InBatches, Request, Sampler
from kit.samplers.in_batches import prompt_batches
from kit.tasks.task import Portion, Task, prompts_at
from kit.types import Group, Prompt


class Workload:
    """One task of a run.

    Args:
        portion: the task and its share of a step.
        config: supplies what the portion leaves open.

    Raises:
        ValueError: if the task has fewer held-out prompts than an evaluation takes, or fewer prompts than a step, or
            held-out prompts without a baseline.
    """

    def __init__(self, portion: Portion, config: RunConfig) -> None:
        task = portion.task
        self.name, self.judging, self.config = task.name, task.judging, config
        self.count = portion.prompts_per_step
        self.group_size = config.group_size if portion.group_size is None else portion.group_size
        self.limit = portion.max_completion_length
        self.eval_sampling = self.sampling  # stays, so that evaluations remain comparable whatever is changed by hand
        self.prompts, self.held_out = task.split("train"), task.split("validation")[: config.eval_prompts]
        if len(self.held_out) < config.eval_prompts:
            raise ValueError(
                f"expected eval_prompts <= {len(self.held_out)}, the held-out prompts of {self.name}, came "
                f"{config.eval_prompts}"
            )
        if self.judging:
            require_baseline(self.judging, self.held_out)
        self.functions, self.weights = task.rewards()
        if self.count:
            self.prompts_of(0)  # refuses a step larger than the split

    @property
    def sampling(self) -> Sampling:
        """Of training completions, under the settings in force."""
        sampling = self.config.sampling
        return sampling if self.limit is None else replace(sampling, max_completion_length=self.limit)

    def prompts_of(self, number: int) -> list[Prompt]:
        """Those of the run's batch with this number."""
        return prompts_at(self.prompts, number, self.count, seed=self.config.seed)

    def requests(self, number: int, *, seed: tuple[int, ...]) -> list[Request]:
        """What a sampler is asked for the batch with this number; nothing if the task is only evaluated."""
        prompts = self.prompts_of(number) if self.count else []
        size = self.config.generation_batch_size or max(1, len(prompts) * self.group_size)
        batches = prompt_batches(prompts, self.group_size, size)
        return [Request(tuple(some), self.group_size, seed, self.sampling) for some in batches]

    def generate(self, sampler: Sampler, number: int, *, seed: tuple[int, ...]) -> list[Group]:
        """A group for each of the batch's prompts, not yet scored."""
        return [
            group
            for asked in self.requests(number, seed=seed)
            for group in sampler.generate(asked.prompts, asked.group_size, seed=asked.seed, sampling=asked.sampling)
        ]

    def score(self, groups: Sequence[Group], *, log_metric: Callable[[str, float], None]) -> list[Group]:
        """The groups with the rewards of this task's functions, which may call `log_metric`, as in TRL."""
        return score_groups(groups, self.functions, self.weights, log_metric=log_metric) if groups else []

    def evaluate(self, sampler: Sampler, *, seed: tuple[int, ...]) -> Evaluation | JudgedEvaluation:
        """On the held-out prompts: by the reward where it says what is right, else by the task's judges."""
        size = self.config.generation_batch_size
        sampler = sampler if size is None else InBatches(sampler, size)
        samples, held_out = self.config.eval_samples, (self.held_out, self.functions, self.weights)
        sizes = {"samples": samples, "seed": seed, "sampling": self.eval_sampling}
        if self.judging is None:
            return evaluate(sampler, *held_out, **sizes)
        return evaluate_by_judging(sampler, *held_out, self.judging, **sizes)


def workloads_of(task: Task | Sequence[Portion], config: RunConfig) -> list[Workload]:
    """The workloads of a run on one task or on several.

    Raises:
        ValueError: if several tasks share a name, their shares do not add up to `prompts_per_step`, or as `Workload`.
        TypeError: if it is neither a task nor portions; it says what is missing.
    """
    if isinstance(task, Task):
        return [Workload(Portion(task, config.prompts_per_step), config)]
    if not isinstance(task, Sequence):
        missing = [name for name in ("name", "split", "rewards", "judging") if not hasattr(task, name)]
        raise TypeError(
            f"expected a task, or portions of several, came {type(task).__name__} without {missing}: add them (judging "
            "is None where a total reward of 1 means that the answer is right)"
        )
    names, total = [portion.task.name for portion in task], sum(portion.prompts_per_step for portion in task)
    if len(set(names)) < len(names) or total != config.prompts_per_step:
        raise ValueError(
            f"expected tasks of different names whose prompts_per_step add up to the run's {config.prompts_per_step}, "
            f"came {names} with {[portion.prompts_per_step for portion in task]}"
        )
    return [Workload(portion, config) for portion in task]


def described(task: Task | Sequence[Portion]) -> Any:
    """The task or tasks of a run, for its configuration."""
    return describe(task) if isinstance(task, Task) else [describe(portion) for portion in task]


def new_batch(
    workloads: Sequence[Workload], sampler: Sampler, objective: Objective, number: int, *, seed: tuple[int, int],
    clock: Clock,
) -> Batch:  # fmt: skip
    """Generate, score and select the run's batch with this number; randomness derives from `seed` (run, step)."""
    generated = [workload.generate(sampler, number, seed=seed) for workload in workloads]
    clock.lap("generate")
    logged: dict[str, float] = {}
    pairs = zip(workloads, generated, strict=True)
    scored = [workload.score(groups, log_metric=logged.__setitem__) for workload, groups in pairs]
    groups = [group for of_task in scored for group in of_task]
    clock.lap("reward")
    generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    selected = [objective.select(group, generator) for group in groups]
    examples = [example for group_examples in selected for example in group_examples]
    metrics = group_metrics(groups, selected) | {f"logged/{name}": value for name, value in logged.items()}
    if len(workloads) > 1:
        metrics |= task_metrics(groups, selected)
    clock.lap("select")
    return Batch(groups, selected, examples, totals_of(groups, examples), metrics)


def evaluate_all(
    workloads: Sequence[Workload], sampler: Sampler, *, seed: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Sequence[Group]]]:
    """Every task's evaluation as metrics, under `task/{name}/` where there are several, and its groups by task."""
    record: dict[str, Any] = {}
    groups: dict[str, Sequence[Group]] = {}
    for workload in workloads:
        found = workload.evaluate(sampler, seed=seed)
        prefix = f"task/{workload.name}/" if len(workloads) > 1 else ""
        record |= {f"{prefix}{name}": value for name, value in found.metrics().items()}
        groups[workload.name] = found.groups
    return record, groups
