"""Runs that were recorded: what is kept of a run directory so that a notebook can draw its figures without training.

`python -m kit.recorded runs/tour data/recorded/00_tour` keeps every run below a folder.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from kit.runlog import MEASURED, RunDirectoryError, read_jsonl

KEPT = ("config.json", "receipts.jsonl", "events.jsonl")
COMPLETIONS = ("rollouts", "evaluations")


def keep(run_dir: Path, target: Path, completions: Sequence[str] = ()) -> None:
    """Copy records without what was measured on the machine, and completions if asked; no weights.

    Args:
        run_dir: of a run.
        target: the folder that is made; a file of the same name in it is replaced.
        completions: "rollouts", of the last step, and "evaluations", all of them.

    Raises:
        RunDirectoryError: if run_dir is none.
    """
    if not (run_dir / "config.json").is_file():
        raise RunDirectoryError(f"expected a run directory, with a config.json, came {run_dir}")
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (run_dir / name).is_file():  # an offline run has no receipts
            shutil.copy(run_dir / name, target / name)
    records = read_jsonl(run_dir / "metrics.jsonl")
    plain = [{name: value for name, value in r.items() if not name.startswith(MEASURED)} for r in records]
    (target / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in plain))
    for kind in completions:
        (target / kind).mkdir(exist_ok=True)
        files = sorted((run_dir / kind).glob("*.parquet"))
        for file in files[-1:] if kind == "rollouts" else files:
            shutil.copy(file, target / kind / file.name)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", type=Path, help="folder with run directories in it, at any depth")
    options.add_argument("target", type=Path, help="folder that gets the same folders")
    options.add_argument("--completions", nargs="*", default=[], choices=COMPLETIONS)
    given = options.parse_args(arguments)
    found = sorted(path.parent for path in given.runs.rglob("config.json") if (path.parent / "metrics.jsonl").is_file())
    if not found:
        raise SystemExit(f"expected run directories below {given.runs}, came none")
    for run_dir in found:
        keep(run_dir, given.target / run_dir.relative_to(given.runs), given.completions)
        print(f"kept {run_dir}", flush=True)


if __name__ == "__main__":
    main()
