"""A whole optimizer step, generation included: TRL's GRPOTrainer against the kit's run loop under GRPO and DPO.

All three train the same seed model on the same split with 32 prompts x 8 completions of at most 48 tokens at
temperature 1, with the kit's MathReward, AdamW and gradient clipping. TRL is set up for speed: one batch, no gradient
checkpointing, no reference model, float32, no logging in between. The kit does all that its users get: sync with
receipts, the run directory and every metric; its one evaluation falls into the warm-up. The learning rate is too
small to change the model much, so that the work in all blocks is that of the seed model. Blocks of steps run in turns
in one process, and what both generated is printed next to the times. Processor time is given as well: a busy machine
disturbs it less than wall-clock.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.measure import Row, Times, in_fresh_process, parser, peak_memory_bytes, ratios, report

PROMPTS, GROUP_SIZE, LIMIT = 32, 8, 48
BATCH = PROMPTS * GROUP_SIZE
NAMES = {"trl": "TRL GRPO", "grpo": "kit GRPO", "dpo": "kit DPO"}
LEARNING_RATE = 1e-6
WARM_UP = 2  # steps of each side that do not count
NEVER = 10**9  # steps


class CountedReward:
    """MathReward that remembers how many tokens each completion had."""

    __name__ = "math_reward"

    def __init__(self) -> None:
        from kit.rewards import MathReward

        self._reward, self.lengths = MathReward(), []
        start_verifiers(self._reward)

    def __call__(self, *, completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        self.lengths += [len(ids) for ids in completion_ids]
        return self._reward(**columns)


def start_verifiers(reward: Callable[..., list[float | None]]) -> None:
    """Have MathReward start its processes now, by an answer that needs them, and not within a timed block."""
    reward(completions=[r"\boxed{2+2}"], solution=["4"])


class KitSide:
    """A run of the kit that is taken a block of steps at a time."""

    def __init__(self, model: str, objective: str, folder: Path, threads: int) -> None:
        from kit.config import RunConfig, Sampling
        from kit.objectives import OBJECTIVES
        from kit.run import Run
        from kit.sync import Every
        from kit.tasks import Arithmetic

        config = RunConfig(
            model_name_or_path=model, prompts_per_step=PROMPTS, group_size=GROUP_SIZE, max_steps=NEVER,
            eval_steps=NEVER, save_steps=NEVER, eval_prompts=1, eval_samples=1, learning_rate=LEARNING_RATE,
            num_threads=threads, sampling=Sampling(max_completion_length=LIMIT),
        )  # fmt: skip
        self._run = Run(config, task=Arithmetic(), objective=OBJECTIVES[objective](), sync=Every(1), out_dir=folder)
        start_verifiers(self._run.training.workloads[0].functions[0])
        self.records: list[dict[str, Any]] = []

    def steps(self, count: int) -> None:
        self.records += self._run.steps(count)

    def rows(self, name: str) -> list[Row]:
        """What the steps consisted of."""
        completions = sum(r["num_tokens"] / r["completions/mean_length"] for r in self.records) / len(self.records)
        found = [Row(f"{name}: completions a step", "1", (round(completions),))]
        for what, metric in (("tokens a completion", "completions/mean_length"), ("examples trained on", "examples")):
            found.append(Row(f"{name}: {what}", "1", tuple(r[metric] for r in self.records)))
        for part in ("sync", "generate", "reward", "train", "log"):
            times = tuple(r[f"time/{part}"] for r in self.records[WARM_UP:])
            found.append(Row(f"{name}: of these, {part}", "s/step", times))
        return found


def trl_trainer(
    model: str, folder: Path, max_steps: int, on_step_end: Callable[[int], None]
) -> tuple[Any, CountedReward]:
    """A GRPOTrainer on the benchmark's task, and its reward function; `on_step_end` gets how many steps are done."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from kit.models.policy import load_policy
    from kit.tasks import Arithmetic

    class Hook(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_step_end(state.global_step)

    policy, tokenizer = load_policy(model)
    config = GRPOConfig(
        output_dir=str(folder), max_steps=max_steps, num_generations=GROUP_SIZE, max_completion_length=LIMIT,
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", max_grad_norm=1.0, temperature=1.0, top_p=1.0, top_k=0, beta=0.0,
        loss_type="grpo", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_dropout=True,
        dataloader_pin_memory=False, logging_steps=NEVER, save_strategy="no", report_to="none", disable_tqdm=True,
        seed=0,
    )  # fmt: skip
    rows = [{"prompt": prompt.content, **prompt.columns} for prompt in Arithmetic().split("train")]
    reward = CountedReward()
    trainer = GRPOTrainer(
        policy,
        reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Hook()],
    )
    return trainer, reward


def measure(model: str, repeats: int, steps: int, threads: int) -> list[Row]:
    """TRL trains; after every block of its steps the kit takes blocks of its own, while TRL's clock stands still."""
    times: dict[str, list[Times]] = {"trl": [], "grpo": [], "dpo": []}
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: KitSide(model, name, Path(folder, name), threads) for name in ("grpo", "dpo")}
        started = Times.now()

        def on_step_end(step: int) -> None:
            nonlocal started
            if step < WARM_UP or (step - WARM_UP) % steps:
                return
            if step > WARM_UP:
                times["trl"].append(Times.since(started))
            for name, side in sides.items():
                started = Times.now()
                side.steps(WARM_UP if step == WARM_UP else steps)
                if step > WARM_UP:
                    times[name].append(Times.since(started))
            started = Times.now()

        trainer, reward = trl_trainer(model, Path(folder, "trl"), WARM_UP + repeats * steps, on_step_end)
        trainer.train()
    return _time_rows(times, steps) + _work_rows(sides, reward.lengths)


def _time_rows(times: dict[str, list[Times]], steps: int) -> list[Row]:
    wall = {side: [t.wall / steps for t in blocks] for side, blocks in times.items()}
    processor = {side: [t.processor / steps for t in blocks] for side, blocks in times.items()}
    return [
        *(Row(NAMES[side], "s/step", tuple(values)) for side, values in wall.items()),
        *(Row(NAMES[side], "completions/s", tuple(BATCH / t for t in values)) for side, values in wall.items()),
        *(Row(f"{NAMES[side]}: processor time", "s/step", tuple(values)) for side, values in processor.items()),
        *(ratios(f"TRL / {NAMES[side]}: time", wall["trl"], wall[side]) for side in ("grpo", "dpo")),
        *(
            ratios(f"TRL / {NAMES[side]}: processor time", processor["trl"], processor[side])
            for side in ("grpo", "dpo")
        ),
    ]


def _work_rows(sides: dict[str, KitSide], lengths: list[int]) -> list[Row]:
    """That all sides generated as much."""
    means = [statistics.fmean(lengths[start : start + BATCH]) for start in range(0, len(lengths), BATCH)]
    found = [Row("TRL GRPO: completions a step", "1", (len(lengths) / len(means),))]
    found.append(Row("TRL GRPO: tokens a completion", "1", tuple(means)))
    return found + [row for side in sides for row in sides[side].rows(NAMES[side])]


def memory_of(side: str, model: str, steps: int, threads: int) -> int:
    """Peak memory of this process after some steps of one side alone, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        if side == "trl":
            trl_trainer(model, Path(folder), steps, lambda step: None)[0].train()
        else:
            KitSide(model, side, Path(folder, "run"), threads).steps(steps)
    return peak_memory_bytes()


def memory_rows(model: str, steps: int, threads: int) -> list[Row]:
    """Peak memory of each side in a process of its own."""
    peaks = {}
    for side in NAMES:
        options = ("--memory-of", side, "--model", model, "--steps", str(steps), "--threads", str(threads))
        peaks[side] = in_fresh_process("tests.bench.step", *options)["bytes"]
    return [Row(f"{NAMES[side]}: peak memory of its process", "MB", (peak / 1e6,)) for side, peak in peaks.items()]


def main(arguments: argparse.Namespace) -> None:
    import torch

    model, steps, threads = arguments.model, arguments.steps, arguments.threads
    torch.set_num_threads(threads)
    if arguments.memory_of:
        print(json.dumps({"bytes": memory_of(arguments.memory_of, model, steps, threads)}))
    else:
        rows = measure(model, arguments.repeats, steps, threads) + memory_rows(model, steps, threads)
        report(rows, arguments.json)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--memory-of", choices=NAMES, help="only this: one side's peak memory, as JSON")
    main(options.parse_args())
