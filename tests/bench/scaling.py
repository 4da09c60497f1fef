"""How the kit's step grows with its completions and their tokens; and its memory, not at all with the number of steps.

The work is made to be as large as it is said to be: a coin rewards completions, so that every one of them trains, and
for the growth in tokens no completion ends before its limit. Attention reads every earlier token, so the cost of a
token is constant only while attention costs less than the matrices: in a model as narrow as the embedded one, up to
about a hundred tokens.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.measure import Row, in_fresh_process, in_turns, memory_bytes, parser, report

GROUP_SIZE, LIMIT = 8, 48
COMPLETIONS = (64, 128, 256, 512)  # a step, at most LIMIT tokens each
TOKENS = (32, 64, 128, 256)  # of each of 64 completions
FEW, MANY = 5, 50  # steps, between which memory is compared
NEVER = 10**9  # steps


@dataclass(frozen=True)
class CoinToss:
    """Arithmetic prompts whose every second completion is rewarded."""

    name: str = "coin"

    def split(self, name: Any) -> Sequence[Any]:
        from kit.tasks import Arithmetic

        return Arithmetic().split(name)

    def rewards(self) -> tuple[list[Any], list[float]]:
        return [coin], [1.0]

    @property
    def judging(self) -> None:
        return None


def coin(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1, 0, 1, 0, ..."""
    return [float(index % 2) for index in range(len(completions))]


def make_run(model: str, folder: Path, threads: int, completions: int, limit: int) -> Any:
    """A GRPO run that is taken a few steps at a time."""
    from kit.config import RunConfig, Sampling
    from kit.objectives import GRPO
    from kit.run import Run
    from kit.sync import Every

    config = RunConfig(
        model_name_or_path=model, prompts_per_step=completions // GROUP_SIZE, group_size=GROUP_SIZE, max_steps=NEVER,
        eval_steps=NEVER, save_steps=NEVER, eval_prompts=1, eval_samples=1, learning_rate=1e-9, num_threads=threads,
        sampling=Sampling(max_completion_length=limit),
    )  # fmt: skip
    return Run(config, task=CoinToss(), objective=GRPO(), sync=Every(1), out_dir=folder)


def endless_copy(model: str, folder: Path) -> str:
    """The same model, whose completions end with a token beyond its vocabulary, so never."""
    shutil.copytree(model, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return str(folder)


def measure(model: str, repeats: int, steps: int, threads: int) -> list[Row]:
    """Every size is a run of its own, and they take their steps in turns."""
    with tempfile.TemporaryDirectory() as folder:
        by_count = {f"{n} completions": make_run(model, Path(folder, f"c{n}"), threads, n, LIMIT) for n in COMPLETIONS}
        endless = endless_copy(model, Path(folder, "endless"))
        by_tokens = {
            f"64 completions of {n} tokens": make_run(endless, Path(folder, f"t{n}"), threads, 64, n) for n in TOKENS
        }
        runs = by_count | by_tokens
        times = in_turns({name: lambda run=run: list(run.steps(steps)) for name, run in runs.items()}, repeats)
        found = []
        for names, sizes in ((list(by_count), COMPLETIONS), (list(by_tokens), TOKENS)):
            found += [Row(name, "s/step", tuple(t / steps for t in times[name])) for name in names]
            grown = tuple(last / first for first, last in zip(times[names[0]], times[names[-1]], strict=True))
            found.append(Row(f"the largest / the smallest of these (linear: {sizes[-1] // sizes[0]})", "ratio", grown))
    return found


def resident_memory(model: str, threads: int) -> dict[str, float]:
    """Memory of this process after a few and after many steps, bytes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(model, Path(folder, "run"), threads, 64, LIMIT)
        for count in (FEW, MANY):
            list(run.steps(count - run.step))
            found[str(count)] = float(memory_bytes())
    return found


def main(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.memory_only:
        print(json.dumps(resident_memory(arguments.model, arguments.threads)))
        return
    rows = measure(arguments.model, arguments.repeats, arguments.steps, arguments.threads)
    options = ("--memory-only", "--model", arguments.model, "--threads", str(arguments.threads))
    memory = in_fresh_process("tests.bench.scaling", *options)
    rows += [
        Row(f"memory after {count} steps of 64 completions", "MB", (size / 1e6,)) for count, size in memory.items()
    ]
    report(rows, arguments.json)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument(
        "--memory-only", action="store_true", help="only this: memory after few and many steps, as JSON"
    )
    main(options.parse_args())
