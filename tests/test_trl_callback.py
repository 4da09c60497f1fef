"""The dashboard beside real trainings of TRL 1.16."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kit.runlog import is_defined
from kit.trl_callback import LiveCallback
from tests.trl_training import GROUP_SIZE, PROMPT_ROWS, STEPS, dpo_trainer, grpo_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's imports


def drawn(callback: LiveCallback, metric: str) -> list[tuple[float, float]]:
    return callback.curves.series[0].line(metric)


def test_grpo_of_trl_is_drawn_as_a_run_of_the_kit(seed_folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    trainer = grpo_trainer(seed_folder, tmp_path, logging_strategy="steps", logging_steps=1)
    callback = LiveCallback()
    trainer.add_callback(callback)
    trainer.eval_dataset = Dataset.from_list(PROMPT_ROWS[:GROUP_SIZE])
    trainer.train()
    trainer.evaluate()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == STEPS
    for metric in ("reward", "loss", "grad_norm", "entropy", "completions/mean_length"):
        assert is_defined(metric)
        assert drawn(callback, metric) == [(step, history[step][metric]) for step in range(STEPS)]
    (evaluation,) = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert drawn(callback, "eval/reward") == [(STEPS, evaluation["eval_reward"])]
    assert drawn(callback, "eval/entropy") == [(STEPS, evaluation["eval_entropy"])]
    assert all(seconds > 0 for _, seconds in drawn(callback, "time/train"))
    # The batches that the trainer used say the same.
    for step, batch in enumerate(trainer.generated[:STEPS]):  # then come those of the evaluation
        assert drawn(callback, "reward")[step][1] == pytest.approx(batch["rewards"].mean().item(), rel=1e-5)
        lengths = batch["completion_mask"].sum(1).float()
        assert drawn(callback, "completions/mean_length")[step][1] == pytest.approx(lengths.mean().item(), rel=1e-6)
    titles = [axes.get_title(loc="left") for axes in callback.curves.figure().axes]
    assert {"Reward", "Entropy", "Completion length", "Gradient norm"} <= set(titles)


def pairs() -> list[dict[str, Any]]:
    return [
        row | {"chosen": [{"role": "assistant", "content": "12"}], "rejected": [{"role": "assistant", "content": "7"}]}
        for row in PROMPT_ROWS[:16]
    ]


def test_dpo_of_trl_shows_its_margins(seed_folder: Path, tmp_path: Path) -> None:
    trainer = dpo_trainer(
        seed_folder, tmp_path, pairs(), logging_strategy="steps", logging_steps=2, per_device_train_batch_size=4
    )
    callback = LiveCallback("dpo of trl")
    trainer.add_callback(callback)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Each log is a mean over two updates, told at the later one, which had 1 and 3 updates before it.
    assert drawn(callback, "rewards/margins") == [
        (1, history[0]["rewards/margins"]),
        (3, history[1]["rewards/margins"]),
    ]
    assert history[0]["loss"] == pytest.approx(sum(trainer.losses[:2]) / 2, rel=1e-4)
    assert callback.doctor.setup.beta == trainer.args.beta
    assert "Implicit rewards" in [axes.get_title(loc="left") for axes in callback.curves.figure().axes]


def test_the_doctor_looks_at_what_trl_logs(seed_folder: Path, tmp_path: Path) -> None:
    def constant(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        return [0.0 for _ in completion_ids]

    trainer = grpo_trainer(seed_folder, tmp_path, constant, logging_strategy="steps", logging_steps=1, max_steps=6)
    callback = LiveCallback()
    trainer.add_callback(callback)
    trainer.train()
    assert {mark.rule for mark in callback.curves.marks()} & {"constant_reward", "verifier_always_zero", "no_contrast"}
