"""Every fault breaks what it says, by hand, and nothing that a run writes down gives it away."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kit.config import Sampling
from kit.faults import FAULTS, SETTINGS, Parts, broken
from kit.faults.cases import CASES, parts_of
from kit.importance import TIS, Importance, PPOClip
from kit.importance.correction import Tokens
from kit.kl import k3
from kit.models.policy import load_policy
from kit.objectives import DPO, GRPO
from kit.run import Run
from kit.runlog import as_json, describe
from kit.samplers import SyncError, TransformersSampler
from kit.sync import Every, Never, timeline
from kit.tasks import Arithmetic
from tests.conftest import TinyTask

SAMPLING = Sampling(max_completion_length=8)


def loss_and_slope(correction: Importance, ratio: float, advantage: float, logprob: float) -> tuple[float, float]:
    """Of one token that the sampler gave logprob - log(ratio)."""
    logprobs = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)
    old = logprobs.detach() - math.log(ratio)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = correction.surrogate(Tokens(logprobs, old, old, torch.tensor([[advantage]]).double(), mask)).loss.sum()
    (slope,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), slope.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # as it should be
        (0.5, 1.0, -0.5, -0.5),
        (1.5, -1.0, 1.2, 0.0),  # should be 1.5 with a gradient: a bad token that became likelier
        (0.5, -1.0, 0.5, 0.5),  # should be 0.8 without: it is pushed on
        (1.1, -1.0, 1.1, 1.1),  # within the clip both are one
    ],
)
def test_inverted_clip(ratio: float, advantage: float, loss: float, slope: float) -> None:
    assert loss_and_slope(broken.InvertedClip(), ratio, advantage, -1.0) == pytest.approx((loss, slope))


@pytest.mark.parametrize(
    ("logprob", "slope"),
    [(-0.5, -0.5), (-1.0, 0.0), (-3.0, 2.0)],  # of -exp(x - old) x: -(1 + x) at ratio 1; it should be -1
)
def test_gradient_through_the_weight(logprob: float, slope: float) -> None:
    found = loss_and_slope(broken.GradientThroughWeight(), 1.0, 1.0, logprob)
    assert found == pytest.approx((-logprob, slope), abs=1e-12)
    assert loss_and_slope(TIS(), 1.0, 1.0, logprob)[1] == pytest.approx(-1.0)


def test_kl_estimators() -> None:
    own, ref = torch.tensor([-1.0]), torch.tensor([-2.0])
    assert k3(own, ref).item() == pytest.approx(math.exp(-1))  # d = -1: e^-1 + 1 - 1
    assert broken.reversed_k3(own, ref).item() == pytest.approx(math.e - 2)  # d = 1: e - 1 - 1
    assert broken.negated_k3(own, ref).item() == pytest.approx(-math.exp(-1))


def test_a_dropped_sync_leaves_the_sampler_as_it_was(tiny_folder: Path) -> None:
    policy, tokenizer = load_policy(str(tiny_folder))
    sampler = broken.DroppedSync(policy, tokenizer)
    prompts = TinyTask().split("train")[:3]
    before = sampler.generate(prompts, 2, seed=(0,), sampling=SAMPLING)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    receipt = sampler.sync(policy, 1, step=1)
    with pytest.raises(SyncError, match="did not reach the sampler"):  # what whoever reads it would have known
        receipt.check()
    assert receipt.probe_moved == 0.0 < receipt.probe_parity and sampler.version == 1
    after = sampler.generate(prompts, 2, seed=(0,), sampling=SAMPLING)
    assert [[r.completion_ids for r in g.rollouts] for g in after] == [
        [r.completion_ids for r in g.rollouts] for g in before
    ]


def test_truncation_left_on_gives_every_token_more_than_the_policy_does(tiny_folder: Path) -> None:
    policy, tokenizer = load_policy(str(tiny_folder))
    prompts = TinyTask().split("train")[:6]
    whole, cut = (
        kind(policy, tokenizer).generate(prompts, 4, seed=(0,), sampling=SAMPLING)
        for kind in (TransformersSampler, broken.TruncationLeftOn)
    )
    first = [[rollout.old_logprobs[0] for group in groups for rollout in group.rollouts] for groups in (whole, cut)]
    spread = [[rollout.entropies[0] for group in groups for rollout in group.rollouts] for groups in (whole, cut)]
    assert all(c < w for w, c in zip(*spread, strict=True)) and sum(first[1]) > sum(first[0])


def test_a_masked_end_token_takes_one_token_from_what_stopped(seed_folder: Path) -> None:
    policy, tokenizer = load_policy(str(seed_folder))
    prompts = Arithmetic().split("validation")[:4]
    for limit in (48, 12):  # at 12 tokens nothing stops
        right, wrong = (
            kind(policy, tokenizer).generate(prompts, 2, seed=(0,), sampling=Sampling(max_completion_length=limit))
            for kind in (TransformersSampler, broken.EndTokenMasked)
        )
        for one, other in zip(right, wrong, strict=True):
            for whole, short in zip(one.rollouts, other.rollouts, strict=True):
                end = len(whole.completion_ids) - (limit == 48)
                assert short.completion_ids == whole.completion_ids[:end] and short.text == whole.text
                assert short.old_logprobs == whole.old_logprobs[:end] and short.entropies == whole.entropies[:end]


def test_a_reference_that_follows() -> None:
    assert timeline(broken.FollowingReference(), 4) == [0, 0, 0, 0] and timeline(Never(), 4) == [0, 1, 2, 3]


def test_rewards_by_hand() -> None:
    def as_given(*, completions: list[str], solution: list[str]) -> list[float]:
        return [float(completion == answer) for completion, answer in zip(completions, solution, strict=True)]

    given = {"completions": ["7", "120", "5", "9"], "solution": ["7", "120", "6", "9"]}
    asked = {"solution": given["solution"], "columns": {"completions": given["completions"]}}
    assert as_given(**given) == [1.0, 1.0, 0.0, 1.0]
    assert broken.long_answers_are_zero(as_given, **asked) == [1.0, 0.0, 0.0, 1.0]
    assert broken.shifted_by_one(as_given, **asked) == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("letter", CASES)
def test_a_case_writes_down_what_the_right_run_writes(letter: str) -> None:
    setting, _ = CASES[letter]
    written = [
        {name: as_json(value) for name, value in vars(parts).items()} | {"task": describe(parts.task)}
        for parts in (SETTINGS[setting], parts_of(letter))
    ]
    assert written[0] == written[1]
    rewards = [[as_json(function) for function in p.task.rewards()[0]] for p in (SETTINGS[setting], parts_of(letter))]
    assert rewards[0] == rewards[1]


def test_every_fault_has_a_letter() -> None:
    assert sorted(fault for _, fault in CASES.values()) == sorted(FAULTS) and len(FAULTS) >= 8


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("inverted clip", Parts(DPO(), Every(1))),
        ("inverted clip", Parts(GRPO(importance=TIS()), Every(1))),
        ("gradient through the weight", Parts(GRPO(importance=PPOClip()), Every(1))),
        ("KL reversed", Parts(GRPO(), Every(1))),
        ("KL negated", Parts(DPO(), Every(1))),
    ],
)
def test_a_fault_that_would_break_nothing_is_refused(fault: str, parts: Parts) -> None:
    with pytest.raises(TypeError, match="which this fault breaks"):
        FAULTS[fault].into(parts)


def test_constants_survive() -> None:
    parts = Parts(GRPO(importance=PPOClip(0.1, 0.3), kl_coef=0.2), Every(5))
    objective = FAULTS["inverted clip"].into(parts).objective
    assert isinstance(objective, GRPO) and isinstance(objective.importance, broken.InvertedClip)
    assert vars(objective.importance) == vars(PPOClip(0.1, 0.3)) and objective.kl_coef == 0.2


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(KeyError, match="expected one of"):
        parts_of("Z")


def test_faults_run_with_any_task(start: Callable[..., Run], tmp_path: Path) -> None:
    parts = Parts(DPO(), Every(1), task=TinyTask())
    for name in ("dropped sync", "reference follows", "rewards shifted", "truncation left on", "end token masked"):
        run = start(tmp_path / name, max_steps=2, **vars(FAULTS[name].into(parts)))
        assert run.finish()["step"] == 2


def test_settings_are_right() -> None:
    assert all(not isinstance(parts.task, broken.Misjudged) for parts in SETTINGS.values())
    assert replace(SETTINGS["DPO, s = 1"], objective=GRPO()).ref_sync == Never()
