"""Differences between the kit and TRL 1.16, case by case: those that the tests in tests/test_parity_*.py bound.

Losses: the same float64 tensors through both; largest absolute difference of loss, gradient and shared metrics, which
TRL averages in float32. Advantages: float32. Training: four AdamW steps on the seed model in float32; largest absolute
difference of a step's loss and of a final weight, next to how far the weights moved. "-" = nothing to compare.
"TRL's KL = k2" is the one loss of another value: only its gradient is the same.
"""

import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from tests.bench.measure import OFFLINE, ROOT

COLUMNS = ("loss", "gradient", "metrics", "advantages", "weights", "moved")
HEADER = f"{'largest absolute difference':<64}" + "".join(f"{column:>11}" for column in COLUMNS)


def line(name: str, **differences: float) -> str:
    values = [differences.get(column, math.nan) for column in COLUMNS]
    return f"{name:<64}" + "".join(f"{'-' if math.isnan(value) else f'{value:.1e}':>11}" for value in values)


def loss_lines() -> Iterator[str]:
    from tests.test_parity_losses import DPO_CASES, GRPO_CASES, dpo_difference, grpo_difference, kl_difference

    for name in GRPO_CASES:
        yield line(f"GRPO loss: {name}", **grpo_difference(name)._asdict())
    yield line("GRPO loss: the KL term alone", **kl_difference()._asdict())
    for name in DPO_CASES:
        yield line(f"DPO loss: {name}", **dpo_difference(name)._asdict())


def advantage_lines() -> Iterator[str]:
    from tests.test_parity_advantages import ADVANTAGES, advantage_difference

    for scale in ADVANTAGES:
        action = partial(advantage_difference, scale, ROOT / "data" / "seed")
        yield line(f"advantages: scale_rewards={scale}", advantages=in_silence(action))


def training_lines() -> Iterator[str]:
    from tests import test_parity_training as training

    actions = {name: partial(training.dpo_training, name) for name in training.DPO_TRAININGS}
    actions |= {name: partial(training.fresh_training, name) for name in training.FRESH_TRAININGS}
    actions |= {"semi-online GRPO, clip, s = 2": training.semi_online_training}
    actions |= {name: partial(training.lagging_training, name) for name in training.LAGGING_TRAININGS}
    for name, action in actions.items():
        found = in_silence(partial(action, ROOT / "data" / "seed"))
        yield line(f"training: {name}", loss=found.losses, weights=found.weights, moved=found.moved)


def in_silence(action: Callable[[Path], Any]) -> Any:
    """What trainers print about themselves is dropped."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return action(Path(folder))


def main() -> None:
    os.environ.update(OFFLINE)  # before any library is imported
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(HEADER)
    for lines in (loss_lines, advantage_lines, training_lines):
        for text in lines():
            print(text, flush=True)


if __name__ == "__main__":
    main()
