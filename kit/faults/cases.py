"""The bug hunt: runs with one fault each, under a letter, and the runs without it that they are compared with.

`python -m kit.faults.cases data/recorded/13_bug_hunt` trains them all and keeps what a notebook shows of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kit.config import RunConfig
from kit.faults import FAULTS, SETTINGS, Parts
from kit.recorded import keep
from kit.run import Run

# letter -> (setting, fault); from loud to silent
CASES = {
    "A": ("DPO, s = 1", "rewards shifted"),
    "B": ("GRPO with TIS, s = 1", "gradient through the weight"),
    "C": ("DPO, s = 1", "dropped sync"),
    "D": ("DPO, s = 1", "truncation left on"),
    "E": ("GRPO with a KL term, s = 1", "KL negated"),
    "F": ("DPO, s = 1", "verifier silently 0"),
    "G": ("GRPO with PPO's clip, s = 10", "inverted clip"),
    "H": ("DPO, s = 1", "reference follows"),
    "I": ("DPO, s = 1", "end token masked"),
    "J": ("GRPO with a KL term, s = 1", "KL reversed"),
}


def parts_of(case: str) -> Parts:
    """Of a letter with its fault, or of a setting without one.

    Raises:
        KeyError: for anything else, with what there is.
    """
    if case in SETTINGS:
        return SETTINGS[case]
    if case not in CASES:
        raise KeyError(f"expected one of {[*CASES, *SETTINGS]}, came {case!r}")
    setting, fault = CASES[case]
    return FAULTS[fault].into(SETTINGS[setting])


def folder_of(root: str | Path, case: str, seed: int) -> Path:
    """Of a case's run."""
    return Path(root) / "".join(c for c in case.replace(" ", "_") if c.isalnum() or c == "_") / f"seed{seed}"


def train(case: str, config: RunConfig, root: str | Path) -> Path:
    """Run a case to its end; returns the run directory."""
    out_dir = folder_of(root, case, config.seed)
    Run(config, out_dir=out_dir, **vars(parts_of(case))).finish()
    return out_dir


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("target", type=Path, help="folder that keeps what a notebook shows")
    options.add_argument("--runs", type=Path, default=Path("runs/bug_hunt"), help="folder of the whole run directories")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--max-steps", type=int, default=40)
    given = options.parse_args(arguments)
    for seed in given.seeds:
        config = RunConfig(
            prompts_per_step=16, group_size=8, max_steps=given.max_steps, learning_rate=5e-5, eval_prompts=128,
            eval_samples=2, eval_steps=10, save_steps=given.max_steps, seed=seed,
        )  # fmt: skip
        for case in [*SETTINGS, *CASES]:
            completions = ["rollouts"] if seed == given.seeds[0] else []
            keep(train(case, config, given.runs), folder_of(given.target, case, seed), completions)
            print(f"{case}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
