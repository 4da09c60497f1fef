"""What the runs of a study cost: from their directories, and kept in `costs.csv` for when these are gone.

It is no part of results.csv, which is the same wherever and however often a study is executed.
"""

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit.costs import Costs
from kit.report.scores import study_folder
from kit.study.results import write_rows

COUNTS = ("completions", "tokens", "trained_tokens", "syncs", "flops", "peak_memory", "sync_bytes")
PARTS = "seconds/"


def study_costs(folder: str | Path, runs: Mapping[str, Mapping[int, Path]]) -> dict[str, dict[int, Costs]]:
    """Arm -> training seed -> costs. Of runs whose directories are there they are written to costs.csv first."""
    path = study_folder(folder) / "costs.csv"
    found = read_costs(folder)
    there = [(arm, seed, out_dir) for arm, of_seed in runs.items() for seed, out_dir in of_seed.items()]
    there = [(arm, seed, out_dir) for arm, seed, out_dir in there if (out_dir / "config.json").is_file()]
    for arm, seed, out_dir in there:
        found.setdefault(arm, {})[seed] = Costs.read(out_dir)
    ordered = {arm: {seed: found[arm][seed] for seed in of if seed in found.get(arm, {})} for arm, of in runs.items()}
    if there:
        _write(path, ordered)
    return ordered


def read_costs(folder: str | Path) -> dict[str, dict[int, Costs]]:
    """Arm -> training seed -> costs, as a study's costs.csv has them; empty if it has none."""
    path = study_folder(folder) / "costs.csv"
    found: dict[str, dict[int, Costs]] = {}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                parts = {name: text for name, text in row.items() if name.startswith(PARTS) and text}
                seconds = {name.removeprefix(PARTS): float(text) for name, text in parts.items()}
                counts: dict[str, Any] = {name: int(row[name]) if row.get(name) else None for name in COUNTS}
                found.setdefault(row["arm"], {})[int(row["seed"])] = Costs(seconds, **counts)
    return found


def _write(path: Path, costs: Mapping[str, Mapping[int, Costs]]) -> None:
    rows = []
    for arm, of_seed in costs.items():
        for seed, cost in of_seed.items():
            made = asdict(cost)
            seconds = {f"{PARTS}{part}": round(value, 1) for part, value in made.pop("seconds").items()}
            made["flops"] = None if cost.flops is None else round(cost.flops)
            rows.append({"arm": arm, "seed": seed, **{name: made[name] for name in COUNTS}, **seconds})
    write_rows(path, rows)
