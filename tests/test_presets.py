"""The paper's configurations hold the paper's numbers, and every number says where it comes from."""

from dataclasses import fields

import pytest

from kit.config import Sampling
from kit.importance import NoCorrection
from kit.objectives import DPO, GRPO
from kit.pairing import best_worst, correct_incorrect
from kit.presets import REGIMES, Preset, paper_math, paper_mixed, paper_wildchat
from kit.sync import Every, Never, WithSampler

PRESETS = {"math": paper_math, "wildchat": paper_wildchat, "mixed": paper_mixed}
# What the kit needs and the paper has no word for: how often to look, how to fit into memory.
OURS = {
    "eval_steps", "eval_prompts", "eval_samples", "save_steps", "micro_batch_size", "num_threads", "drift_prompts",
    "gap_steps", "lora", "quantization", "bf16", "gradient_checkpointing", "optim", "device", "generation_batch_size",
    "save_total_limit",
}  # fmt: skip

# Table 4 of arXiv 2506.21495: task, regime, beta (DPO) or KL weight (GRPO), Adam epsilon, reference follows, longest
# completion, prompts a step. The learning rate is 1e-6 and the gradient clip 0.1 in every row that can be read.
TABLE_4 = [
    ("math", "offline", 0.1, 1e-4, False, 2048, 64),
    ("math", "semi_online", 0.1, 1e-4, True, 2048, 64),
    ("math", "online", 0.1, 1e-4, True, 2048, 64),
    ("math", "grpo", 0.001, 1e-4, False, 2048, 64),
    ("wildchat", "offline", 0.01, 1e-8, False, 1024, 32),
    ("wildchat", "semi_online", 0.01, 1e-8, False, 1024, 32),
    ("wildchat", "online", 0.01, 1e-8, False, 1024, 32),
    ("wildchat", "grpo", 0.001, 1e-8, False, 1024, 32),
    ("mixed", "online", 0.01, 1e-8, False, 1024, 32),
]


def every_preset() -> list[Preset]:
    return [make(regime) for make in PRESETS.values() for regime in REGIMES]


@pytest.mark.parametrize(("task", "regime", "pull", "epsilon", "follows", "longest", "prompts"), TABLE_4)
def test_a_preset_has_the_numbers_of_table_4(
    task: str, regime: str, pull: float, epsilon: float, follows: bool, longest: int, prompts: int
) -> None:
    preset = PRESETS[task](regime)
    config, objective = preset.config, preset.objective
    assert (config.learning_rate, config.adam_epsilon, config.max_grad_norm) == (1e-6, epsilon, 0.1)
    assert (config.sampling.max_completion_length, config.prompts_per_step) == (longest, prompts)
    assert (config.sampling.temperature, config.sampling.top_p, config.group_size) == (1.0, 1.0, 8)
    assert preset.ref_sync == (WithSampler() if follows else Never())
    if isinstance(objective, GRPO):
        assert objective.kl_coef == pull
        assert (objective.aggregate, objective.importance) == ("sum", NoCorrection())
        assert objective.advantages.__name__ == "centered"  # the class of functions that shape checks wrap
    else:
        assert isinstance(objective, DPO)
        assert objective.beta == pull
        pairing = correct_incorrect if task == "math" else best_worst
        assert objective.pairing is pairing


def test_the_regime_sets_the_interval() -> None:
    found = [paper_math(regime, sync_interval=100).sync for regime in REGIMES]
    assert found == [Never(), Every(100), Every(1), Every(1)]


def test_every_value_has_a_source_and_what_the_paper_leaves_open_says_ours() -> None:
    for preset in every_preset():
        of_run = {field.name for field in fields(preset.config)} - {"sampling"} - OURS
        of_sampling = {field.name for field in fields(Sampling)}
        assert of_run | of_sampling <= set(preset.sources)
        assert all(source for source in preset.sources.values())
        assert "ours" in paper_math("online").sources["max_steps"]
        assert "ours" in paper_math("grpo").sources["learning_rate"]  # that row of the table cannot be read
        assert "ours" not in paper_math("online").sources["learning_rate"]


def test_the_regimes_of_the_mixed_task_that_the_paper_did_not_run_are_ours() -> None:
    assert "ours" not in paper_mixed("online").sources["learning_rate"]
    assert "ours" in paper_mixed("offline").sources["learning_rate"]


@pytest.mark.parametrize(("regime", "interval"), [("iterative", 10), ("", 10), ("semi_online", 1), ("semi_online", 0)])
@pytest.mark.parametrize("task", PRESETS)
def test_another_regime_or_interval_is_refused(task: str, regime: str, interval: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        PRESETS[task](regime, sync_interval=interval)
