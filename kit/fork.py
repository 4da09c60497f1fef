"""A run directory that begins like another one: the files of a fork."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kit.checkpoint import list_checkpoints
from kit.runlog import RunDirectoryError, read_jsonl, write_json

STEPS = {"rollouts": "step_*.parquet", "evaluations": "*_step_*.parquet"}  # what belongs to a step ends in its number


class Origin(NamedTuple):
    """Where a fork comes from."""

    parent: str  # its directory, as seen from the folder that holds the fork
    step: int  # the first that is the fork's own


def origin_of(path: Path) -> Origin | None:
    """The origin that a run directory records; None for a run that is no fork."""
    forks = [event for event in read_jsonl(path / "events.jsonl") if event["event"] == "fork"]
    return Origin(forks[-1]["parent"], forks[-1]["step"]) if forks else None  # earlier ones are its parent's


def recorded_controls(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(step, changes) of every change by hand that a run directory records."""
    events = read_jsonl(path / "events.jsonl")
    return [(event["step"], event["changes"]) for event in events if event["event"] == "control"]


def free_sibling(path: Path, kind: str) -> Path:
    """The first of `{name}_{kind}1`, `{name}_{kind}2`, ... beside a run directory that does not exist."""
    number = 1
    while (found := path.with_name(f"{path.name}_{kind}{number}")).exists():
        number += 1
    return found


def fork_directory(
    parent: Path, target: Path, step: int, changes: Mapping[str, Any], *, max_steps: int | None = None
) -> None:
    """Make `target` the directory of a run that shares its parent's first `step` steps and has `changes` from there on.

    Raises:
        RunDirectoryError: if the parent has no checkpoint at that step, naming those it has, or the target exists.
    """
    checkpoints = {int(path.name.removeprefix("step_")): path for path in list_checkpoints(parent / "checkpoints")}
    if step not in checkpoints:
        there = ", ".join(map(str, checkpoints)) or "none"
        raise RunDirectoryError(
            f"expected a step at which {parent} has a checkpoint ({there}), came {step}: fork from one of them, keep "
            "more of them with RunConfig.save_total_limit, or fork a run in memory where it stands (step=None)"
        )
    if target.exists():
        raise RunDirectoryError(f"{target} exists already. Nothing was changed: choose another out_dir for the fork")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed fork left
    shutil.copytree(checkpoints[step], partial / "checkpoints" / checkpoints[step].name)
    for folder, pattern in STEPS.items():
        (partial / folder).mkdir()
        for file in (parent / folder).glob(pattern):
            if int(file.stem.rpartition("_")[2]) < step:
                shutil.copy2(file, partial / folder)
    for name in ("metrics", "receipts", "events"):
        kept = [entry for entry in read_jsonl(parent / f"{name}.jsonl") if entry["step"] < step]
        if name == "events":
            origin = os.path.relpath(parent, target.parent)
            kept.append({"event": "fork", "time": time.time(), "step": step, "parent": origin})
            kept += [{"event": "control", "time": time.time(), "step": step, "changes": dict(changes)}] * bool(changes)
        (partial / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    config = json.loads((parent / "config.json").read_text())
    write_json(partial / "config.json", config | ({} if max_steps is None else {"max_steps": max_steps}))
    os.replace(partial, target)
