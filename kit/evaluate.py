"""Evaluation on held-out prompts: accuracy where answers are right or wrong, else win rate over a baseline.

Every rate has an interval over prompts.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kit.config import Sampling
from kit.rewards.combine import RewardFunction, ignore, score
from kit.rollouts import mean_entropy
from kit.samplers import Sampler
from kit.statistics import Interval, cluster_bootstrap, pass_at_k, wilson_interval
from kit.tasks.task import Judging
from kit.types import Group, Messages, Prompt
from kit.winrate import FOLDS, length_controlled_win_rate

RESAMPLES = 1000  # of the bootstrap over problems


@dataclass(frozen=True)
class Samples:
    """Scored completions of the held-out prompts, sampled as in training."""

    groups: tuple[Group, ...]

    @property
    def entropy(self) -> float:
        """Mean over tokens, in nats."""
        return mean_entropy([rollout for group in self.groups for rollout in group.rollouts])

    @property
    def mean_length(self) -> float:
        """Tokens, end marker included."""
        return statistics.fmean(len(rollout.completion_ids) for group in self.groups for rollout in group.rollouts)

    def metrics(self) -> dict[str, float]:
        """Flat, as they are logged."""
        return {"eval/entropy": self.entropy, "eval/mean_length": self.mean_length}


@dataclass(frozen=True)
class Evaluation(Samples):
    """What an evaluation found. A completion is right if its total reward is 1 or more; unjudged counts as wrong."""

    accuracy: Interval  # of completions sampled as in training; interval over problems
    greedy_accuracy: Interval  # one completion a problem, Wilson
    pass_at_k: Interval  # at least one of k right, k = samples a problem
    k: int

    def metrics(self) -> dict[str, float]:
        found = super().metrics() | _flat("accuracy", self.accuracy) | _flat("greedy_accuracy", self.greedy_accuracy)
        return found | _flat(f"pass_at_{self.k}", self.pass_at_k)


@dataclass(frozen=True)
class WinRates:
    """Of completions against the baseline's. A comparison that the judge could not decide is left out, and counted."""

    plain: Interval  # over prompts
    length_controlled: float | None  # at equal length, in characters; None for fewer than five comparisons
    unjudged: float  # fraction of the comparisons

    def metrics(self) -> dict[str, float]:
        """Flat, as they are logged."""
        found = {"eval/unjudged": self.unjudged} | _flat("win_rate", self.plain)
        controlled = self.length_controlled
        return found | ({} if controlled is None else {"eval/length_controlled_win_rate": controlled})


@dataclass(frozen=True)
class JudgedEvaluation(Samples):
    """What an evaluation found where no answer is right or wrong."""

    win_rates: WinRates | None  # None without a judge that compares
    means: Mapping[str, float]  # of each reward and pointwise function
    reward: float | None  # mean total reward; None if no function could judge any

    def metrics(self) -> dict[str, float]:
        found = super().metrics() | ({} if self.reward is None else {"eval/reward": self.reward})
        found |= {f"eval/rewards/{name}/mean": mean for name, mean in self.means.items()}
        return found | (self.win_rates.metrics() if self.win_rates else {})


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {f"eval/{name}": interval.mean, f"eval/{name}_low": interval.low, f"eval/{name}_high": interval.high}


def score_groups(
    groups: Sequence[Group], functions: Sequence[RewardFunction], weights: Sequence[float],
    *, log_metric: Callable[[str, float], None] = ignore,
) -> list[Group]:  # fmt: skip
    """The groups with their rewards, all completions in one call of each function.

    Completions are conversational (`[{"role": "assistant", "content": ...}]`) where the prompt is, as in TRL. A column
    that a prompt does not have is None in its place. `log_metric` is handed to every function, as TRL does.
    """
    flat = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    totals, by_function = score(
        functions, weights,
        prompts=[prompt.content for prompt, _ in flat],
        completions=[_as_completion(prompt, rollout.text) for prompt, rollout in flat],
        completion_ids=[list(r.completion_ids) for _, r in flat],
        columns=_columns([prompt for prompt, _ in flat]),
        log_metric=log_metric,
    )  # fmt: skip
    scored, start = [], 0
    for group in groups:
        end = start + len(group.rollouts)
        by_name = {name: tuple(values[start:end]) for name, values in by_function.items()}
        scored.append(replace(group, rewards=tuple(totals[start:end]), rewards_by_function=by_name))
        start = end
    return scored


def _columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """Every column that one of the prompts has, one entry a prompt."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def _as_completion(prompt: Prompt, text: str) -> str | Messages:
    return text if isinstance(prompt.content, str) else [{"role": "assistant", "content": text}]


def evaluate(
    sampler: Sampler, prompts: Sequence[Prompt], functions: Sequence[RewardFunction], weights: Sequence[float],
    *, samples: int, seed: tuple[int, ...], sampling: Sampling,
) -> Evaluation:  # fmt: skip
    """Sample `samples` completions of every prompt, and one greedily.

    Args:
        sampler: of the policy to judge, fresh: `TransformersSampler(policy, tokenizer, share=True)`.
        samples: completions a prompt, >= 1.
    """
    sampled = score_groups(sampler.generate(prompts, samples, seed=seed, sampling=sampling), functions, weights)
    greedy_sampling = replace(sampling, temperature=0.0)
    greedy = score_groups(sampler.generate(prompts, 1, seed=seed, sampling=greedy_sampling), functions, weights)
    right = torch.tensor([_is_right(group) for group in sampled], dtype=torch.float64)
    any_right = torch.tensor(
        [[pass_at_k(int(n), samples, samples)] for n in right.sum(1).tolist()], dtype=torch.float64
    )
    greedy_right = sum(_is_right(group)[0] for group in greedy)
    return Evaluation(
        accuracy=cluster_bootstrap(right, seed=0, resamples=RESAMPLES),
        greedy_accuracy=wilson_interval(greedy_right, len(prompts)),
        pass_at_k=cluster_bootstrap(any_right, seed=0, resamples=RESAMPLES),
        k=samples,
        groups=tuple(sampled),
    )


def evaluate_by_judging(
    sampler: Sampler, prompts: Sequence[Prompt], functions: Sequence[RewardFunction], weights: Sequence[float],
    judging: Judging, *, samples: int, seed: tuple[int, ...], sampling: Sampling,
) -> JudgedEvaluation:  # fmt: skip
    """Sample `samples` completions of every prompt; the i-th is compared with the baseline's i-th, cyclically.

    Raises:
        ValueError: if a prompt has no baseline, or not one comparison could be decided.
    """
    require_baseline(judging, prompts)
    groups = score_groups(sampler.generate(prompts, samples, seed=seed, sampling=sampling), functions, weights)
    judged = score_groups(groups, judging.pointwise, [1.0] * len(judging.pointwise)) if judging.pointwise else []
    rewards = [reward for group in groups for reward in group.rewards if reward is not None]
    return JudgedEvaluation(
        win_rates=_win_rates(groups, judging.pairwise, judging.baseline) if judging.pairwise else None,
        means=_means([*groups, *judged]),
        reward=statistics.fmean(rewards) if rewards else None,
        groups=tuple(groups),
    )


def _win_rates(groups: Sequence[Group], pairwise: RewardFunction, baseline: Mapping[str, Sequence[str]]) -> WinRates:
    rows = [
        (group.prompt, rollout.text, baseline[group.prompt.id][index % len(baseline[group.prompt.id])])
        for group in groups
        for index, rollout in enumerate(group.rollouts)
    ]
    outcomes = compare(pairwise, rows)
    decided = [(o, len(text) - len(other)) for o, (_, text, other) in zip(outcomes, rows, strict=True) if o is not None]
    if not decided:
        raise ValueError(f"expected the judge to decide at least one of {len(outcomes)} comparisons, came none")
    by_prompt: dict[str, list[float]] = {}
    for (prompt, _, _), outcome in zip(rows, outcomes, strict=True):
        if outcome is not None:
            by_prompt.setdefault(prompt.id, []).append(outcome)
    rates = [[statistics.fmean(of_prompt)] for of_prompt in by_prompt.values()]
    return WinRates(
        plain=cluster_bootstrap(torch.tensor(rates, dtype=torch.float64), seed=0, resamples=RESAMPLES),
        length_controlled=_at_equal_length(decided),
        unjudged=1 - len(decided) / len(outcomes),
    )


def compare(judge: RewardFunction, rows: Sequence[tuple[Prompt, str, str]]) -> list[float | None]:
    """What a pairwise judge says of (prompt, completion, completion to win against); it receives no token ids."""
    outcomes, _ = score(
        [judge], [1.0],
        prompts=[prompt.content for prompt, _, _ in rows],
        completions=[_as_completion(prompt, text) for prompt, text, _ in rows],
        completion_ids=[[] for _ in rows],
        columns=_columns([prompt for prompt, _, _ in rows])
        | {"baseline": [_as_completion(prompt, other) for prompt, _, other in rows]},
    )  # fmt: skip
    return outcomes


def require_baseline(judging: Judging, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError if a prompt has no completion to win against, though there is a judge that compares."""
    if judging.pairwise is None:
        return
    missing = [prompt.id for prompt in prompts if not judging.baseline.get(prompt.id)]
    if missing:
        raise ValueError(
            f"expected completions to win against for every held-out prompt, came none for {len(missing)} of "
            f"{len(prompts)}, such as {missing[0]!r}: add them to the baseline, or evaluate on fewer prompts"
        )


def _at_equal_length(decided: Sequence[tuple[float, int]]) -> float | None:
    """From (outcome, characters more than the baseline's)."""
    outcomes, differences = zip(*decided, strict=True)
    return length_controlled_win_rate(outcomes, differences) if len(decided) >= FOLDS else None


def _means(groups: Sequence[Group]) -> dict[str, float]:
    """Mean of every function over the completions that it judged."""
    values: dict[str, list[float]] = {}
    for group in groups:
        for name, rewards in group.rewards_by_function.items():
            values.setdefault(name, []).extend(reward for reward in rewards if reward is not None)
    return {name: statistics.fmean(found) for name, found in values.items() if found}


def _is_right(group: Group) -> list[bool]:
    return [reward is not None and reward >= 1.0 for reward in group.rewards]
