"""Accuracy, greedy accuracy and pass@k on canned completions, and entropy of the policy as it is now."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kit.config import Sampling
from kit.evaluate import evaluate, score_groups
from kit.run import Run
from kit.runlog import read_jsonl
from kit.samplers import Receipt
from kit.samplers.transformers import TransformersSampler
from kit.sync import Never
from kit.types import Group, Prompt, Rollout

SAMPLING = Sampling(max_completion_length=9)
PROMPTS = [
    Prompt("a", "1+1=", {"solution": "2"}),
    Prompt("b", "2+2=", {"solution": "4"}),
    Prompt("c", "0+0=", {"solution": "0"}),
]


@dataclass
class CannedSampler:
    """Says what it was given, sampled or greedy, and remembers how it was asked."""

    sampled: dict[str, list[str]]
    greedy: dict[str, str]
    asked: list[tuple[int, tuple[int, ...], Sampling]] = field(default_factory=list)
    version: int = 0

    def sync(self, policy: PreTrainedModel, version: int, *, step: int) -> Receipt:
        raise AssertionError("an evaluation syncs nothing")

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        self.asked.append((group_size, seed, sampling))
        texts = {p.id: self.sampled[p.id] if sampling.temperature else [self.greedy[p.id]] for p in prompts}
        return [Group(p, tuple(rollout(text) for text in texts[p.id])) for p in prompts]


def rollout(text: str) -> Rollout:
    """One token a character and an end; token i has entropy i."""
    length = len(text) + 1
    return Rollout((3, 4), (7,) * length, (-1.0,) * length, tuple(float(i) for i in range(length)), text, "stop", 0)


def is_solution(completions: Sequence[str], solution: Sequence[str], **columns: Any) -> list[float | None]:
    """None for a question mark."""
    return [None if text == "?" else float(text == right) for text, right in zip(completions, solution, strict=True)]


CANNED = {"a": ["2", "2", "2", "2"], "b": ["4", "5", "?", ""], "c": ["1", "no", "?", "9"]}
GREEDY = {"a": "2", "b": "5", "c": "?"}


def test_accuracies_by_hand() -> None:
    found = evaluate(
        CannedSampler(CANNED, GREEDY), PROMPTS, [is_solution], [1.0], samples=4, seed=(0,), sampling=SAMPLING
    )
    assert found.accuracy.mean == pytest.approx(5 / 12)  # 4 + 1 + 0 of 12; what nobody could judge counts as wrong
    assert found.pass_at_k.mean == pytest.approx(2 / 3)  # a and b were solved at least once
    assert found.k == 4
    # Wilson's interval for 1 of 3 with z = 1.959964: (1/3 + z²/6 ± z sqrt(2/27 + z²/36)) / (1 + z²/3)
    assert found.greedy_accuracy.mean == pytest.approx(1 / 3)
    assert (found.greedy_accuracy.low, found.greedy_accuracy.high) == pytest.approx((0.0614919, 0.7923404), abs=1e-6)
    assert (found.accuracy.n, found.greedy_accuracy.n, found.pass_at_k.n) == (3, 3, 3)


def test_intervals_are_over_problems() -> None:
    # Problem means are 1, 1/4 and 0. A bootstrap mean is that of 3 draws from them: the 2.5 and 97.5 % quantiles of its
    # 27 outcomes are the smallest (0, chance 1/27) and the largest (1, chance 1/27).
    found = evaluate(
        CannedSampler(CANNED, GREEDY), PROMPTS, [is_solution], [1.0], samples=4, seed=(0,), sampling=SAMPLING
    )
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((0.0, 1.0))
    assert (found.pass_at_k.low, found.pass_at_k.high) == pytest.approx((0.0, 1.0))


def test_metrics_carry_the_names_of_the_log() -> None:
    found = evaluate(
        CannedSampler(CANNED, GREEDY), PROMPTS, [is_solution], [1.0], samples=4, seed=(0,), sampling=SAMPLING
    )
    metrics = found.metrics()
    assert metrics["eval/accuracy"] == found.accuracy.mean
    assert (metrics["eval/pass_at_4_low"], metrics["eval/pass_at_4_high"]) == (
        found.pass_at_k.low,
        found.pass_at_k.high,
    )
    assert len(metrics) == 11


def test_length_and_entropy_are_means_of_the_sampled_completions() -> None:
    found = evaluate(
        CannedSampler(CANNED, GREEDY), PROMPTS, [is_solution], [1.0], samples=4, seed=(0,), sampling=SAMPLING
    )
    # 12 completions: ten of 2 tokens (entropies 0, 1), one of 1 token (0), one of 3 (0, 1, 2): 24 tokens, entropies 13.
    assert found.mean_length == pytest.approx(24 / 12)
    assert found.entropy == pytest.approx(13 / 24)


def test_one_round_is_sampled_as_in_training_and_one_is_greedy() -> None:
    sampler = CannedSampler(CANNED, GREEDY)
    sampling = Sampling(max_completion_length=9, temperature=0.7, top_p=0.9)
    evaluate(sampler, PROMPTS, [is_solution], [1.0], samples=4, seed=(3, 20, 1), sampling=sampling)
    greedy = Sampling(max_completion_length=9, temperature=0.0, top_p=0.9)
    assert sampler.asked == [(4, (3, 20, 1), sampling), (1, (3, 20, 1), greedy)]


def test_a_total_reward_of_one_is_right() -> None:
    def half(completions: Sequence[str], **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    arguments = {"samples": 4, "seed": (0,), "sampling": SAMPLING}
    canned = CannedSampler(CANNED, GREEDY)
    both = evaluate(canned, PROMPTS, [is_solution, half], [0.5, 1.0], **arguments)  # right 1.0, wrong 0.5, unjudged 0.5
    assert both.accuracy.mean == pytest.approx(5 / 12)
    assert evaluate(canned, PROMPTS, [is_solution], [0.9], **arguments).accuracy.mean == 0.0


def test_rewards_come_back_to_the_rollout_they_belong_to() -> None:
    def echo(completions: Sequence[str], solution: Sequence[str], **columns: Any) -> list[float]:
        return [10 * float(s) + len(c) for c, s in zip(completions, solution, strict=True)]

    groups = [Group(PROMPTS[0], (rollout(""), rollout("xx"))), Group(PROMPTS[1], (rollout("x"),))]
    found = score_groups(groups, [is_solution, echo], [0.0, 2.0])
    assert [group.rewards for group in found] == [(40.0, 44.0), (82.0,)]
    assert found[0].rewards_by_function == {"is_solution": (0.0, 0.0), "echo": (20.0, 22.0)}
    assert [group.rollouts for group in found] == [group.rollouts for group in groups]


def test_a_rollout_that_nobody_judged_has_no_reward() -> None:
    [found] = score_groups([Group(PROMPTS[0], (rollout("?"), rollout("2")))], [is_solution], [1.0])
    assert found.rewards == (None, 1.0)


def test_reward_functions_are_called_as_in_trl() -> None:
    seen: dict[str, Any] = {}

    def spy(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [0.0, 0.0]

    chat = [{"role": "user", "content": "1+1="}]
    prompt = Prompt("a", chat, {"solution": "2", "task": "t"})
    score_groups([Group(prompt, (rollout("x"), rollout("yz")))], [spy], [1.0])
    assert seen["prompts"] == [chat, chat]
    assert seen["completions"] == [[{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "yz"}]]
    assert seen["completion_ids"] == [[7, 7], [7, 7, 7]]
    assert (seen["solution"], seen["task"]) == (["2", "2"], ["t", "t"])
    score_groups([Group(PROMPTS[0], (rollout("x"), rollout("yz")))], [spy], [1.0])
    assert (seen["prompts"], seen["completions"]) == (["1+1=", "1+1="], ["x", "yz"])


def test_a_column_that_only_some_prompts_have_is_none_for_the_others() -> None:
    seen: dict[str, Any] = {}

    def spy(**arguments: Any) -> list[float]:
        seen.update(arguments)
        arguments["log_metric"]("seen", 2.0)
        return [0.0, 0.0]

    logged: dict[str, float] = {}
    prompts = [Prompt("a", "1+1=", {"solution": "2"}), Prompt("b", "hello", {"topic": "ice"})]
    groups = [Group(prompt, (rollout("x"),)) for prompt in prompts]
    score_groups(groups, [spy], [1.0], log_metric=logged.__setitem__)
    assert (seen["solution"], seen["topic"]) == (["2", None], [None, "ice"])
    assert logged == {"seen": 2.0}


def test_the_seed_model_is_as_accurate_greedily_as_its_greedy_completions(seed_folder: Path) -> None:
    from kit.models.policy import load_policy
    from kit.tasks import Arithmetic

    task, sampler = Arithmetic(), TransformersSampler(*load_policy(str(seed_folder)), share=True)
    prompts = [
        Prompt(text, [{"role": "user", "content": f"{text}="}], {"solution": answer})
        for text, answer in islice(task.problems(), 40)
    ]
    found = evaluate(sampler, prompts, *task.rewards(), samples=2, seed=(0,), sampling=Sampling())
    texts = [g.rollouts[0].text for g in sampler.generate(prompts, 1, seed=(0,), sampling=Sampling(temperature=0.0))]
    right = [rf"\boxed{{{p.columns['solution']}}}" in text for p, text in zip(prompts, texts, strict=True)]
    assert found.greedy_accuracy.mean == pytest.approx(sum(right) / 40)
    assert 0 < found.accuracy.mean < 1


def test_entropy_is_that_of_the_trained_policy_however_stale_the_sampler(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start(tmp_path, sync=Never(), eval_steps=1, max_steps=3)
    next(run.steps(1))
    with torch.no_grad():  # a policy that is almost sure of every token
        run.policy.get_parameter("model.norm.weight").mul_(40)
    run.finish()
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert records[0]["eval/entropy"] > 3
    assert records[1]["eval/entropy"] < 0.5
    assert records[1]["sampler/entropy"] > 3
