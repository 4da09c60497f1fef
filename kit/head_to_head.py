"""Runs against each other: the completions of two evaluations on the same prompts, compared by a judge."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from kit.evaluate import compare
from kit.ranking import Comparison
from kit.rewards.combine import RewardFunction
from kit.types import Prompt

Completions = Mapping[str, Sequence[str]]  # prompt id -> the completions for it, in the order of the samples


def read_completions(out_dir: str | Path, task: str, step: int | None = None) -> dict[str, list[str]]:
    """The completions of one of a run's evaluations of a task, the last one unless told otherwise.

    Raises:
        FileNotFoundError: if there is none; it names the steps there are.
    """
    import pyarrow.parquet as pq  # 0.2 s to import

    folder = Path(out_dir) / "evaluations"
    named = re.compile(rf"{re.escape(task)}_step_(\d+)\.parquet")
    files = {int(found[1]): path for path in sorted(folder.glob("*.parquet")) if (found := named.fullmatch(path.name))}
    wanted = max(files, default=None) if step is None else step
    if wanted is None or wanted not in files:
        raise FileNotFoundError(
            f"expected an evaluation of {task!r} at step {'any' if step is None else step} in {folder}, came steps "
            f"{sorted(files)}: name another step or task, or evaluate the run"
        )
    completions: dict[str, list[str]] = {}
    for row in pq.read_table(files[wanted]).to_pylist():
        completions.setdefault(row["prompt_id"], []).append(row["completion"])
    return completions


def head_to_head(runs: Mapping[str, Completions], prompts: Sequence[Prompt], judge: RewardFunction) -> list[Comparison]:
    """Every run against every other on every prompt: the mean outcome over the samples, the i-th against the i-th.

    Args:
        runs: name -> completions; `task.judging.baseline` may be one of them.
        prompts: those to compare on; the judge receives their columns.
        judge: on TRL's contract, with a column `baseline`: 1 if the completion wins, 0 if it loses, 0.5 for a tie,
            None where it cannot say. A prompt's samples are averaged; one of which nothing was said is left out.

    Raises:
        ValueError: if there are fewer than two runs, or a run has no completions for a prompt.
    """
    if len(runs) < 2:
        raise ValueError(f"expected at least two runs to compare, came {list(runs)}")
    for name, completions in runs.items():
        missing = [prompt.id for prompt in prompts if not completions.get(prompt.id)]
        if missing:
            raise ValueError(
                f"expected completions of {name!r} for every prompt, came none for {len(missing)} of {len(prompts)}, "
                f"such as {missing[0]!r}: compare on the prompts that all runs were evaluated on"
            )
    comparisons = []
    for first, second in combinations(runs, 2):
        for prompt, outcome in zip(prompts, _outcomes(runs[first], runs[second], prompts, judge), strict=True):
            if outcome is not None:
                comparisons.append(Comparison(prompt.id, first, second, outcome))
    return comparisons


def _outcomes(
    first: Completions, second: Completions, prompts: Sequence[Prompt], judge: RewardFunction
) -> list[float | None]:
    """One a prompt, all in one call of the judge."""
    rows = [(prompt, *texts) for prompt in prompts for texts in zip(first[prompt.id], second[prompt.id], strict=False)]
    said: dict[str, list[float]] = {prompt.id: [] for prompt in prompts}
    for (prompt, _, _), outcome in zip(rows, compare(judge, rows), strict=True):
        if outcome is not None:
            said[prompt.id].append(outcome)
    return [fmean(outcomes) if outcomes else None for outcomes in said.values()]
