"""What is known of a run beside its run directory: what it was made with, and how far its notebook came.

`runs/NAME.json` is written by the process of the run, while it holds `runs/NAME.lock`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.study.file import Study, StudyRun

FINISHED, FAILED, INTERRUPTED, RUNNING = "finished", "failed", "interrupted", "running"


@dataclass(frozen=True)
class Record:
    """`defaults` are the notebook's when the run was made; a difference in them is a difference in the run."""

    notebook: str  # its file's name
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]
    state: str = RUNNING
    cause: str | None = None  # of a failure
    seconds: float = 0.0  # of all executions that were not killed
    has_directory: bool = False  # whether the notebook made its out_dir

    def ended(self, state: str, *, seconds: float, cause: str | None = None, has_directory: bool = False) -> "Record":
        total = round(self.seconds + seconds, 1)
        return replace(self, state=state, cause=cause, seconds=total, has_directory=has_directory)

    def differences(self, earlier: "Record") -> list[str]:
        """What is not as it was, one text a parameter.

        >>> Record("a.ipynb", {"s": 2}, {"s": 1, "t": 0}).differences(Record("a.ipynb", {}, {"s": 1}))
        ['s: 1 there, 2 in the study']
        """
        found = [] if self.notebook == earlier.notebook else [f"notebook: {earlier.notebook} there"]
        there, here = {**earlier.defaults, **earlier.given}, {**self.defaults, **self.given}
        both = earlier.defaults.keys() & self.defaults.keys()
        for name in dict.fromkeys((*earlier.given, *self.given, *(name for name in self.defaults if name in both))):
            was = there[name] if name in there else self.defaults.get(name)  # a parameter that is new had no effect
            if was != here.get(name):
                found.append(f"{name}: {was!r} there, {here.get(name)!r} in the study")
        return found


def record_path(run: StudyRun) -> Path:
    return run.out_dir.with_name(f"{run.name}.json")


def asked_record(study: Study, run: StudyRun) -> Record:
    """The record that the run would begin with."""
    defaults = {name: parameter.default for name, parameter in study.declared.items() if name != "out_dir"}
    plain = json.loads(json.dumps({"given": dict(run.given), "defaults": defaults}, default=str))
    return Record(study.notebook.name, **plain)


def read_record(path: Path) -> Record | None:
    """None if the run has not been started, or by an earlier version of the kit."""
    if not path.is_file():
        return None
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no record of a run: {error}. Remove it: its run goes on") from error


def is_finished(run: StudyRun) -> bool:
    """Whether the notebook ran to its end, and nobody has removed what came out."""
    record = read_record(record_path(run))
    if record is None or record.state != FINISHED or not run.output.is_file():
        return False
    return run.out_dir.is_dir() or not record.has_directory
