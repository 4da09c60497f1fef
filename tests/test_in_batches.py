"""Completions drawn a few at a time are those drawn all at once."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kit.config import Sampling
from kit.models.policy import load_policy
from kit.samplers import InBatches, TransformersSampler
from kit.tasks import Arithmetic
from kit.types import Group, Prompt
from tests.conftest import tiny_run, untimed


class Counting(TransformersSampler):
    """Remembers how many completions it was asked for at a time."""

    def generate(
        self, prompts: Sequence[Prompt], group_size: int, *, seed: tuple[int, ...], sampling: Sampling
    ) -> list[Group]:
        self.asked = [*getattr(self, "asked", []), len(prompts) * group_size]
        return super().generate(prompts, group_size, seed=seed, sampling=sampling)


@pytest.mark.parametrize(
    ("size", "asked"), [(12, [12, 12, 4]), (15, [12, 12, 4]), (4, [4] * 7), (1, [4] * 7), (99, [28])]
)
def test_the_same_completions_in_batches_that_hold_whole_groups(seed_folder: Path, size: int, asked: list[int]) -> None:
    sampler = Counting(*load_policy(str(seed_folder)), share=True)
    prompts = Arithmetic().split("validation")[:7]
    whole = sampler.generate(prompts, 4, seed=(3,), sampling=Sampling(16))
    sampler.asked = []
    parts = InBatches(sampler, size).generate(prompts, 4, seed=(3,), sampling=Sampling(16))
    assert sampler.asked == asked
    for one, other in zip(whole, parts, strict=True):
        assert one.prompt == other.prompt
        for mine, yours in zip(one.rollouts, other.rollouts, strict=True):
            assert mine.completion_ids == yours.completion_ids
            assert mine.old_logprobs == pytest.approx(yours.old_logprobs, abs=1e-4)


def test_a_run_draws_in_batches_and_learns_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    tiny_run(tiny_folder, tmp_path / "whole", max_steps=3).finish()
    tiny_run(tiny_folder, tmp_path / "parts", max_steps=3, generation_batch_size=4).finish()
    pairs = zip(*([json.loads(line) for line in untimed(tmp_path / name)] for name in ("whole", "parts")), strict=True)
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert [other[name] for name in one] == pytest.approx(list(one.values()), rel=1e-3, abs=1e-4)


def test_a_batch_without_a_completion_is_refused(seed_folder: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 completion, came 0"):
        InBatches(TransformersSampler(*load_policy(str(seed_folder)), share=True), 0)
    with pytest.raises(ValueError, match="generation_batch_size must be at least 1, or None"):
        tiny_run(seed_folder, Path("nowhere"), generation_batch_size=0)
