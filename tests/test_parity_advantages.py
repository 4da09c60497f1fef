"""Advantages that TRL 1.16 computes in the middle of its generation, against the kit's, on the same rewards."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kit.advantages import centered, standardized
from tests.trl_training import GROUP_SIZE, PROMPT_ROWS, PROMPTS, grpo_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's imports

REWARDS = [(1.0, 0.0, 0.0, 0.0), (0.3, 0.1, 0.2, 0.9), (None, 1.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0)]
ABSTAINED = 2, 0  # where the None is
ADVANTAGES = {"group": partial(standardized, eps=1e-4), "none": centered}  # TRL's scale_rewards -> the kit's


def trl_advantages(seed_folder: Path, folder: Path, rewards: list[tuple[float | None, ...]], scale: str) -> Tensor:
    """(prompt, group): TRL generates, its reward function returns what is given here."""
    given = [reward for row in rewards for reward in row]
    trainer = grpo_trainer(seed_folder, folder, lambda **_: given, scale_rewards=scale, max_completion_length=2)
    trainer.model.train()
    inputs = [row for row in PROMPT_ROWS[:PROMPTS] for _ in range(GROUP_SIZE)]
    return trainer._generate_and_score_completions(inputs)["advantages"].view(PROMPTS, GROUP_SIZE)


def kit_advantages(rewards: list[tuple[float | None, ...]], scale: str) -> Tensor:
    return ADVANTAGES[scale](torch.tensor([[math.nan if r is None else r for r in row] for row in rewards]))


def advantage_difference(scale: str, seed_folder: Path, folder: Path) -> float:
    """The kit leaves out who abstained, TRL gives them 0."""
    theirs = trl_advantages(seed_folder, folder, REWARDS, scale)
    return (kit_advantages(REWARDS, scale).nan_to_num(0.0) - theirs).abs().max().item()


@pytest.mark.parametrize("scale", ADVANTAGES)
def test_advantages_are_those_of_trl(scale: str, seed_folder: Path, tmp_path: Path) -> None:
    assert advantage_difference(scale, seed_folder, tmp_path) < 1e-6
    assert kit_advantages(REWARDS, scale).isnan().nonzero().tolist() == [list(ABSTAINED)]


def test_trl_adds_1e_4_to_the_standard_deviation_and_the_kit_1e_6_by_default(seed_folder: Path, tmp_path: Path) -> None:
    """1, 0, 0, 0: mean 1/4, s = sqrt(3/4 / 3) = 1/2. A thousandth of it: s is 5e-4, and 1e-4 is a sixth of the sum."""
    scales = (1.0, 1e-1, 1e-2, 1e-3)
    rewards: list[tuple[float | None, ...]] = [(scale, 0.0, 0.0, 0.0) for scale in scales]
    theirs = trl_advantages(seed_folder, tmp_path, rewards, "group")[:, 0]
    ours = standardized(torch.tensor(rewards))[:, 0]
    assert theirs.tolist() == pytest.approx([0.75 * scale / (0.5 * scale + 1e-4) for scale in scales], rel=1e-5)
    assert ours.tolist() == pytest.approx([0.75 * scale / (0.5 * scale + 1e-6) for scale in scales], rel=1e-5)
    assert (ours / theirs)[[0, 3]].tolist() == pytest.approx([1.0002, 1.1976], abs=1e-4)


def test_equal_rewards_are_exactly_no_signal_in_the_kit_and_rounding_in_trl(seed_folder: Path, tmp_path: Path) -> None:
    equal: list[tuple[float | None, ...]] = [(None, r, r, r) for r in (0.7, 0.1, 0.3, 0.9)]
    theirs = trl_advantages(seed_folder, tmp_path, equal, "group")
    assert not kit_advantages(equal, "group")[:, 1:].any()
    assert 0 < theirs.abs().max() < 1e-3
