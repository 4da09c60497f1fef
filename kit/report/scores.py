"""A study's evaluations, and one score a run from them: that of the last checkpoint, or of the best one, fairly."""

import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

Records = list[dict[str, float]]  # of a run's evaluations, in the order of their steps
Runs = dict[int, Records]  # training seed -> records
Results = dict[str, Runs]  # arm -> its runs, in the study's order

TEXTS = ("arm", "seed")
ROOT = Path(__file__).resolve().parents[2]
MAIN = ("eval/win_rate", "eval/accuracy")  # what a study is about, the first that it has


def read_results(folder: str | Path) -> Results:
    """The rows of a study's results.csv.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = study_folder(folder) / "results.csv"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: execute the study first (kit study run {folder})")
    found: Results = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            numbers = {name: float(text) for name, text in row.items() if name not in TEXTS and text}
            found.setdefault(row["arm"], {}).setdefault(int(row["seed"]), []).append(numbers)
    return found


def study_folder(folder: str | Path) -> Path:
    """A study's folder, from here or from the kit's own folder: a notebook's current folder is its own."""
    return next((path for path in (Path(folder), ROOT / folder) if path.is_dir()), Path(folder))


def main_metrics(results: Results) -> list[str]:
    """The held-out scores that a study is about: of each task where there are several, else its first of `MAIN`."""
    names = {name: None for runs in results.values() for records in runs.values() for r in records for name in r}
    of_tasks = [name for name in names if name.startswith("task/") and name.endswith(MAIN)]
    return of_tasks or [name for name in MAIN if name in names][:1]


def at_end(runs: Mapping[int, Records], metric: str) -> dict[int, float]:
    """Training seed -> value after the last step; seeds that do not have the metric are left out.

    >>> at_end({0: [{"step": 0, "x": 1.0}, {"step": 9, "x": 2.0}], 1: [{"step": 0}]}, "x")
    {0: 2.0}
    """
    return {seed: records[-1][metric] for seed, records in runs.items() if metric in records[-1]}


def at_best(runs: Mapping[int, Records], metric: str) -> dict[int, tuple[float, float]]:
    """Training seed -> (value, step) at the checkpoint that is best by the mean of the *other* seeds.

    The largest of a run's own evaluations is too good: it is chosen for its luck on the held-out problems as well. What
    the other seeds choose has no part in this seed's luck. Where there is one seed, nothing can be said.

    >>> of = lambda *values: [{"step": 10.0 * i, "x": value} for i, value in enumerate(values)]
    >>> at_best({0: of(0.0, 0.75, 0.25), 1: of(0.0, 0.25, 0.5)}, "x")  # seed 1 is best at 20, seed 0 at 10
    {0: (0.25, 20.0), 1: (0.25, 10.0)}
    """
    by_step = {seed: {r["step"]: r[metric] for r in records if metric in r} for seed, records in runs.items()}
    found: dict[int, tuple[float, float]] = {}
    for seed, own in by_step.items():
        others = [scores for other, scores in by_step.items() if other != seed]
        shared = [step for step in own if others and all(step in scores for scores in others)]
        if shared:
            best = max(shared, key=lambda step: fmean(scores[step] for scores in others))
            found[seed] = own[best], best
    return found
