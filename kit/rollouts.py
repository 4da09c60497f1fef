"""What is measured of a step's rollouts; what is kept of them is in `kit.recording`."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kit.types import Example, Group, Rollout, Totals


@dataclass(frozen=True)
class Batch:
    """What one generation yields, for one optimizer step or for several."""

    groups: Sequence[Group]
    selected: Sequence[Sequence[Example]]  # of each group
    examples: Sequence[Example]  # of all groups, in the same order, as the learner receives them
    totals: Totals
    metrics: dict[str, float]

    @property
    def version(self) -> int:
        """Optimizer updates in the oldest weights that generated it."""
        return min(rollout.version for group in self.groups for rollout in group.rollouts)


def totals_of(groups: Sequence[Group], examples: Sequence[Example]) -> Totals:
    """The sizes that a step's losses are divided by."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    chosen = [
        rollout
        for example in examples
        for rollout, is_chosen in zip(example.rollouts, example.is_chosen, strict=False)
        if is_chosen
    ]
    tokens, chosen_tokens = (sum(len(rollout.completion_ids) for rollout in some) for some in (rollouts, chosen))
    return Totals(len(groups), len(rollouts), tokens, len(examples), chosen_tokens)


def task_metrics(groups: Sequence[Group], selected: Sequence[Sequence[Example]]) -> dict[str, float]:
    """`group_metrics` of each task's groups alone, under `task/{name}/`; the column `task` says which."""
    by_task: dict[str, list[tuple[Group, Sequence[Example]]]] = {}
    for group, examples in zip(groups, selected, strict=True):
        by_task.setdefault(group.prompt.columns["task"], []).append((group, examples))
    return {
        f"task/{task}/{name}": value
        for task, rows in by_task.items()
        for name, value in group_metrics([group for group, _ in rows], [examples for _, examples in rows]).items()
    }


def group_metrics(groups: Sequence[Group], selected: Sequence[Sequence[Example]]) -> dict[str, float]:
    """Metrics of the generated groups; see `kit.runlog.METRICS` for each."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    judged = [reward for reward in rewards if reward is not None]
    found: dict[str, float] = {"rewards/unjudged": len(rewards) - len(judged)}
    if judged:
        found["reward"] = statistics.fmean(judged)
    for name in dict.fromkeys(name for group in groups for name in group.rewards_by_function):
        values = [v for group in groups for v in group.rewards_by_function.get(name, ()) if v is not None]
        if values:
            found[f"rewards/{name}/mean"] = statistics.fmean(values)
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    return found | {
        "frac_reward_zero_std": statistics.fmean(len(set(group.rewards) - {None}) <= 1 for group in groups),
        "groups/used": sum(bool(examples) for examples in selected),
        "groups/ties": sum(len(set(group.rewards) - {None}) == 1 for group in groups),
        "examples": sum(len(examples) for examples in selected),
        "completions/mean_length": statistics.fmean(lengths),
        "completions/clipped_ratio": statistics.fmean(rollout.finish_reason == "length" for rollout in rollouts),
        "num_completions": len(rollouts),
        "num_tokens": sum(lengths),
        "sampler/entropy": mean_entropy(rollouts),
    }


def mean_entropy(rollouts: Sequence[Rollout]) -> float:
    """Of the distributions that the tokens were drawn from, nats a token.

    Where the engine does not tell entropies it is the mean of -log p of the tokens drawn, which estimates the same
    without bias: an entropy is the expectation of -log p.
    """
    known = [e for rollout in rollouts for e in rollout.entropies]
    return statistics.fmean(known or (-logprob for rollout in rollouts for logprob in rollout.old_logprobs))
