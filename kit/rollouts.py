"""What is measured and kept of a step's rollouts."""

import statistics
from collections.abc import Sequence
from typing import Any

from kit.types import Example, Group, Rollout, Totals


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


def rollout_columns(groups: Sequence[Group], selected: Sequence[Sequence[Example]]) -> dict[str, list[Any]]:
    """One row a rollout, for the parquet file of a step."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("prompt_id", "completion", "reward", "version", "finish_reason", "old_logprob", "tokens", "role")
    }
    for group, examples in zip(groups, selected, strict=True):
        roles = roles_of(examples)
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
            row = (
                group.prompt.id,
                rollout.text,
                reward,
                rollout.version,
                rollout.finish_reason,
                sum(rollout.old_logprobs),
                len(rollout.completion_ids),
                roles.get(id(rollout), "unused"),
            )
            for values, value in zip(columns.values(), row, strict=True):
                values.append(value)
    return columns


def completion_columns(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """One row a rollout of an evaluation, for its parquet file."""
    rows = [(group, *pair) for group in groups for pair in zip(group.rollouts, group.rewards, strict=True)]
    return {
        "prompt_id": [group.prompt.id for group, _, _ in rows],
        "completion": [rollout.text for _, rollout, _ in rows],
        "tokens": [len(rollout.completion_ids) for _, rollout, _ in rows],
        "reward": [reward for _, _, reward in rows],
    }


def roles_of(examples: Sequence[Example]) -> dict[int, str]:
    """What each rollout (by identity) trains as: chosen, rejected, or advantage=..."""
    roles: dict[int, str] = {}
    for example in examples:
        names = [f"advantage={advantage:.3f}" for advantage in example.advantages]
        names = ["chosen" if is_chosen else "rejected" for is_chosen in example.is_chosen] or names
        roles |= {id(rollout): name for rollout, name in zip(example.rollouts, names, strict=True)}
    return roles
