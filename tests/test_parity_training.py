"""Whole optimizer steps: TRL 1.16's trainers on the seed model, then the kit's learner on the batches that TRL used.

TRL generates, scores, shuffles and updates; the kit's learner then starts from the same seed weights and gets these
completions in this order. Everything else, log-probs, losses, clipped gradients and AdamW, and where a group is whole
its selection and advantages, each side computes on its own. `python -m tests.bench.parity` prints a table of it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from kit.advantages import centered, standardized
from kit.importance import TIS, IcePop, NoCorrection
from kit.kl import k2
from kit.learner import Learner
from kit.models.policy import load_policy, score
from kit.objectives import DPO, GRPO, Objective
from kit.reference import Reference
from kit.rollouts import totals_of
from kit.sync import Never
from kit.types import Example, Group, Prompt, Rollout, Totals
from tests.trl_training import (
    CONFIG,
    GROUP_SIZE,
    STEPS,
    TEXTS,
    LaggingEngine,
    dpo_trainer,
    grpo_trainer,
    rollout,
    rollouts_of,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's imports
TRL_STANDARDIZED = partial(standardized, eps=1e-4)


class Comparison(NamedTuple):
    """How far apart the two sides ended."""

    losses: float  # largest difference of a step's loss
    weights: float  # largest difference of a weight at the end
    moved: float  # largest change of a weight by TRL's training
    steps: list[dict[str, float]]  # what the kit logged


def compared(
    trainer: Any, seed_folder: Path, objective: Objective, step: Callable[[Learner, int], dict[str, float]]
) -> Comparison:
    """Train TRL, then the kit from the same start, by the batches that `step` takes from the trainer's record."""
    trainer.train()
    seed, policy = (load_policy(str(seed_folder))[0] for _ in range(2))
    learner = Learner(policy, objective, Reference(policy, Never()) if objective.needs_reference else None, CONFIG)
    records = [step(learner, number) for number in range(STEPS)]
    losses = max(abs(r["loss"] - theirs) for r, theirs in zip(records, trainer.losses, strict=True))
    return Comparison(losses, distance(policy, trainer.model), distance(seed, trainer.model), records)


def distance(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """Largest difference of a weight."""
    theirs = dict(other.named_parameters())
    return max((p.detach() - theirs[name].detach()).abs().max().item() for name, p in one.named_parameters())


def require_same_weights(found: Comparison) -> None:
    """Apart by what float32 sums in another order come to, after four steps of 1e-3."""
    assert found.moved > 3e-3
    assert found.weights < 2e-3 * found.moved


# DPO on fixed pairs.

PAIRS = [
    {
        "prompt": [{"role": "user", "content": text}],
        "chosen": [{"role": "assistant", "content": rf"{text}\boxed{{{number}}}"}],
        "rejected": [{"role": "assistant", "content": rf"\boxed{{{'9' * (number % 5 + 1)}}}"}],
    }
    for number, text in enumerate(TEXTS)
]


def pairs_of(batch: dict[str, torch.Tensor]) -> list[Example]:
    """TRL's rows are all chosen completions, then all rejected ones."""
    rows: list[Rollout] = []
    for ids, counted in zip(batch["input_ids"], batch["completion_mask"].bool(), strict=True):
        completion = ids[counted].tolist()
        rows.append(rollout(ids[: int(counted.int().argmax())].tolist(), completion, [0.0] * len(completion)))
    half = len(rows) // 2
    return [Example(pair, is_chosen=(True, False)) for pair in zip(rows[:half], rows[half:], strict=True)]


def dpo_training(name: str, seed_folder: Path, folder: Path) -> Comparison:
    changes, objective = DPO_TRAININGS[name]
    trainer = dpo_trainer(seed_folder, folder, PAIRS, per_device_train_batch_size=8, beta=objective.beta, **changes)

    def step(learner: Learner, number: int) -> dict[str, float]:
        examples = pairs_of(trainer.batches[number])
        chosen_tokens = sum(len(example.rollouts[0].completion_ids) for example in examples)
        return learner.update(examples, Totals(len(examples), 0, 0, len(examples), chosen_tokens), number)

    return compared(trainer, seed_folder, objective, step)


WITH_SFT = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
DPO_TRAININGS: dict[str, tuple[dict[str, Any], DPO]] = {
    "offline DPO": ({"loss_type": ["sigmoid"]}, DPO(beta=0.05)),
    "offline DPO + NLL": (WITH_SFT, DPO(beta=0.05, nll_coef=0.5, nll_normalize="token")),
}


@pytest.mark.parametrize("name", DPO_TRAININGS)
def test_offline_dpo_ends_at_the_weights_of_trl(name: str, seed_folder: Path, tmp_path: Path) -> None:
    found = dpo_training(name, seed_folder, tmp_path)
    require_same_weights(found)
    assert found.losses < 1e-5


# GRPO on fresh completions, one step a batch.

FRESH_TRAININGS: dict[str, tuple[dict[str, Any], GRPO]] = {
    "on-policy GRPO": ({}, GRPO(NoCorrection(), advantages=TRL_STANDARDIZED)),
    "on-policy GRPO, clip": ({}, GRPO(advantages=TRL_STANDARDIZED)),
    "on-policy GRPO of the paper": (
        {"loss_type": "luspo", "scale_rewards": "none"},
        GRPO(NoCorrection(), aggregate="sum", advantages=centered),
    ),
    "on-policy GRPO, KL k3": (
        {"beta": 0.1, "use_bias_correction_kl": False},
        GRPO(NoCorrection(), advantages=TRL_STANDARDIZED, kl_coef=0.1),
    ),
    "on-policy GRPO, TRL's KL = k2": (
        {"beta": 0.1},
        GRPO(NoCorrection(), advantages=TRL_STANDARDIZED, kl_coef=0.1, kl_estimator=k2),
    ),
}


def fresh_training(name: str, seed_folder: Path, folder: Path) -> Comparison:
    """The kit gets completions and rewards in groups, as from its own sampler."""
    changes, objective = FRESH_TRAININGS[name]
    trainer = grpo_trainer(seed_folder, folder, **changes)

    def step(learner: Learner, number: int) -> dict[str, float]:
        batch = trainer.generated[number]
        rollouts, rewards = rollouts_of(batch), batch["rewards"][:, 0].tolist()
        old = [r.old_logprobs for r in logprobs_now(learner, rollouts)]
        rollouts = [replace(r, old_logprobs=row) for r, row in zip(rollouts, old, strict=True)]
        groups = [
            Group(Prompt(str(i), "", {}), tuple(rollouts[i : i + GROUP_SIZE]), tuple(rewards[i : i + GROUP_SIZE]))
            for i in range(0, len(rollouts), GROUP_SIZE)
        ]
        examples = [example for group in groups for example in objective.select(group, torch.Generator())]
        return learner.update(examples, totals_of(groups, examples), number)

    return compared(trainer, seed_folder, objective, step)


@torch.no_grad()
def logprobs_now(learner: Learner, rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts, sampled by the policy of now."""
    scores = score(learner.policy, rollouts)
    rows = zip(scores.logprobs, scores.completion_mask, strict=True)
    found = [tuple(row[counted].tolist()) for row, counted in rows]
    return [replace(r, old_logprobs=row) for r, row in zip(rollouts, found, strict=True)]


@pytest.mark.parametrize("name", FRESH_TRAININGS)
def test_on_policy_grpo_ends_at_the_weights_of_trl(name: str, seed_folder: Path, tmp_path: Path) -> None:
    found = fresh_training(name, seed_folder, tmp_path)
    require_same_weights(found)
    assert (found.losses < 1e-5) == (not name.endswith("k2"))  # TRL's KL has the value of k3 and the gradient of k2


# GRPO on stale completions.


def update_on(learner: Learner, rollouts: list[Rollout], advantages: torch.Tensor, number: int) -> dict[str, float]:
    """TRL shuffles groups over its steps, so a batch has no whole ones: its advantages are taken as they are."""
    examples = [Example((r,), (advantage,)) for r, advantage in zip(rollouts, advantages.tolist(), strict=True)]
    return learner.update(examples, Totals(0, len(examples), 0, len(examples)), number)


def semi_online_training(seed_folder: Path, folder: Path) -> Comparison:
    """s = 2: TRL generates two batches at once and takes a clipped step on each; so does the kit.

    The kit's old log-probs are those of its own policy when the weights were the generating ones.
    """
    trainer = grpo_trainer(seed_folder, folder, steps_per_generation=2, num_iterations=1)
    generated: dict[int, list[Rollout]] = {}

    def step(learner: Learner, number: int) -> dict[str, float]:
        if number % 2 == 0:
            for later in (number, number + 1):
                generated[later] = logprobs_now(learner, rollouts_of(trainer.batches[later]))
        return update_on(learner, generated[number], trainer.batches[number]["advantages"], number)

    return compared(trainer, seed_folder, GRPO(), step)


def test_semi_online_grpo_ends_at_the_weights_of_trl(seed_folder: Path, tmp_path: Path) -> None:
    found = semi_online_training(seed_folder, tmp_path)
    require_same_weights(found)
    assert found.losses < 1e-5
    clipped = [step["clip_ratio/region_mean"] for step in found.steps]
    assert clipped[0] == clipped[2] == 0.0 and min(clipped[1], clipped[3]) > 0.02  # fresh, one update old


LAGGING_TRAININGS: dict[str, tuple[dict[str, Any], GRPO]] = {
    "lagging sampler, token_truncate = TIS": (
        {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0},
        GRPO(TIS(2.0)),
    ),
    "lagging sampler, token_mask = IcePop": (
        {
            "vllm_importance_sampling_mode": "token_mask",
            "vllm_importance_sampling_clip_min": 0.5,
            "vllm_importance_sampling_clip_max": 2.0,
        },
        GRPO(IcePop(0.5, 2.0)),
    ),
}


def lagging_training(name: str, seed_folder: Path, folder: Path) -> Comparison:
    """TRL's own corrections for vLLM's samples, from a sampler that is synced at every second step."""
    changes, objective = LAGGING_TRAININGS[name]
    trainer = LaggingEngine.plugged_into(grpo_trainer(seed_folder, folder, **changes))

    def step(learner: Learner, number: int) -> dict[str, float]:
        batch = trainer.batches[number]
        return update_on(learner, rollouts_of(batch, batch["sampling_per_token_logps"]), batch["advantages"], number)

    return compared(trainer, seed_folder, objective, step)


@pytest.mark.parametrize("name", LAGGING_TRAININGS)
def test_grpo_with_a_lagging_sampler_ends_at_the_weights_of_trl(name: str, seed_folder: Path, tmp_path: Path) -> None:
    found = lagging_training(name, seed_folder, tmp_path)
    require_same_weights(found)
    corrected = [step["clip_ratio/region_mean"] for step in found.steps]
    assert corrected[0] == corrected[2] == 0.0 and min(corrected[1], corrected[3]) > 0.005


def test_weight_decay_spares_the_norms_in_trl_and_nothing_in_the_kit(seed_folder: Path, tmp_path: Path) -> None:
    """The seed model has 7 norms of 96 weights: two in each of three layers, and the last."""
    trainer = grpo_trainer(seed_folder, tmp_path, weight_decay=0.1)
    trainer.create_optimizer()
    spared = [group for group in trainer.optimizer.param_groups if not group["weight_decay"]]
    assert sum(p.numel() for group in spared for p in group["params"]) == 7 * 96
    policy = load_policy(str(seed_folder))[0]
    learner = Learner(policy, GRPO(), None, replace(CONFIG, weight_decay=0.1))
    assert [group["weight_decay"] for group in learner.optimizer.param_groups] == [0.1]
