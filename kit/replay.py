"""A run made again without anybody there: the same steps, with the same changes by hand at the same steps."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.fork import free_sibling, recorded_controls
from kit.recipe import RecipeError, run_arguments
from kit.run import Run
from kit.runlog import MEASURED, RunDirectoryError, read_jsonl


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Attributes:
        path: its run directory.
        records: how many records of the two runs are identical to the byte, timing apart, from the first on.
        difference: the first one that is not, in words; None = all are.
    """

    path: Path
    records: int
    difference: str | None

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.records} records, identical to the byte (time/* and memory/* apart): {self.path}"
        return f"{self.records} records are identical, then {self.difference}: {self.path}"


def replay(
    run_dir: str | Path, *, out_dir: str | Path | None = None, make: Callable[[Path], Run] | None = None
) -> Replay:
    """Make a run again, as far as it came, and compare the metrics.

    Changes by hand are taken from its `events.jsonl`. A fork is replayed from its very start.

    Args:
        run_dir: of a run that is finished or not.
        out_dir: for the new run; default `{run_dir}_replay1`, or the next number.
        make: makes the run, given its directory; needed where it was made of a task or functions of the user's own.

    Raises:
        RunDirectoryError: if there is no run, no record, or `out_dir` exists.
        RecipeError: if the kit cannot make such a run; if what it makes is configured differently.
    """
    source = Path(run_dir)
    recorded = read_jsonl(source / "metrics.jsonl")
    arguments = run_arguments(source) if make is None else {}
    if not recorded:
        raise RunDirectoryError(f"expected a run with at least one record in metrics.jsonl, came {source}")
    target = free_sibling(source, "replay") if out_dir is None else Path(out_dir)
    if target.exists():
        raise RunDirectoryError(f"{target} exists already. Nothing was changed: choose another directory")
    target.mkdir(parents=True)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())  # the new run refuses to be another
    controls = [{"event": "control", "step": step, "changes": made} for step, made in recorded_controls(source)]
    events = [{"event": "replay", "step": 0, "of": str(source)}, *controls]
    (target / "events.jsonl").write_text("".join(json.dumps(e | {"time": time.time()}) + "\n" for e in events))
    try:
        run = Run(out_dir=target, **arguments) if make is None else make(target)
    except RunDirectoryError as error:
        raise RecipeError(f"what can be made here is another run than that in {source}: {error}") from error
    for _ in run.steps(recorded[-1]["step"] + 1 - run.step):
        pass
    return _compared(target, recorded, read_jsonl(target / "metrics.jsonl"))


def _compared(path: Path, recorded: list[dict[str, Any]], came: list[dict[str, Any]]) -> Replay:
    for number, (before, after) in enumerate(zip(map(_untimed, recorded), map(_untimed, came), strict=False)):
        if json.dumps(before) != json.dumps(after):
            names = [name for name in before | after if before.get(name) != after.get(name)]
            first = names[0] if names else "the order of its fields"
            values = f"{before.get(first)!r} became {after.get(first)!r}" if names else "differs"
            return Replay(path, number, f"at step {before['step']} {first}: {values}")
    shared = min(len(recorded), len(came))
    missing = None if len(recorded) == len(came) else f"{len(recorded)} records became {len(came)}"
    return Replay(path, shared, missing)


def _untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.startswith(MEASURED)}
