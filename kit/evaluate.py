"""Evaluation on held-out prompts: sampled accuracy, greedy accuracy and pass@k, each with an interval."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kit.config import Sampling
from kit.rewards.combine import RewardFunction, score
from kit.samplers import Sampler
from kit.statistics import Interval, cluster_bootstrap, pass_at_k, wilson_interval
from kit.types import Group, Messages, Prompt

RESAMPLES = 1000  # of the bootstrap over problems


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. A completion is right if its total reward is 1 or more; unjudged counts as wrong."""

    accuracy: Interval  # of completions sampled as in training; interval over problems
    greedy_accuracy: Interval  # one completion a problem, Wilson
    pass_at_k: Interval  # at least one of k right, k = samples a problem
    k: int
    entropy: float  # nats per token, on these samples
    mean_length: float  # tokens, end marker included

    def metrics(self) -> dict[str, float]:
        """Flat, as they are logged."""
        found = {"eval/entropy": self.entropy, "eval/mean_length": self.mean_length}
        intervals = {
            "accuracy": self.accuracy,
            "greedy_accuracy": self.greedy_accuracy,
            f"pass_at_{self.k}": self.pass_at_k,
        }
        for name, interval in intervals.items():
            found |= {
                f"eval/{name}": interval.mean,
                f"eval/{name}_low": interval.low,
                f"eval/{name}_high": interval.high,
            }
        return found


def score_groups(groups: Sequence[Group], functions: Sequence[RewardFunction], weights: Sequence[float]) -> list[Group]:
    """The groups with their rewards, all completions in one call of each function.

    Completions are conversational (`[{"role": "assistant", "content": ...}]`) where the prompt is, as in TRL.
    """
    flat = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    names = list(groups[0].prompt.columns)
    totals, by_function = score(
        functions, weights,
        prompts=[prompt.content for prompt, _ in flat],
        completions=[_as_completion(prompt, rollout.text) for prompt, rollout in flat],
        completion_ids=[list(r.completion_ids) for _, r in flat],
        columns={name: [prompt.columns[name] for prompt, _ in flat] for name in names},
    )  # fmt: skip
    scored, start = [], 0
    for group in groups:
        end = start + len(group.rollouts)
        by_name = {name: tuple(values[start:end]) for name, values in by_function.items()}
        scored.append(replace(group, rewards=tuple(totals[start:end]), rewards_by_function=by_name))
        start = end
    return scored


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
    rollouts = [rollout for group in sampled for rollout in group.rollouts]
    any_right = torch.tensor(
        [[pass_at_k(int(n), samples, samples)] for n in right.sum(1).tolist()], dtype=torch.float64
    )
    greedy_right = sum(_is_right(group)[0] for group in greedy)
    return Evaluation(
        accuracy=cluster_bootstrap(right, seed=0, resamples=RESAMPLES),
        greedy_accuracy=wilson_interval(greedy_right, len(prompts)),
        pass_at_k=cluster_bootstrap(any_right, seed=0, resamples=RESAMPLES),
        k=samples,
        entropy=statistics.fmean(e for rollout in rollouts for e in rollout.entropies),
        mean_length=statistics.fmean(len(rollout.completion_ids) for rollout in rollouts),
    )


def _is_right(group: Group) -> list[bool]:
    return [reward is not None and reward >= 1.0 for reward in group.rewards]
