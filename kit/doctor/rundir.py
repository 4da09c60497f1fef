"""The doctor on a run directory, of a finished run or one that is under way. Reads only."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.doctor.finding import SEVERITIES, Finding
from kit.doctor.live import Doctor
from kit.doctor.window import Record, Setup, number, tasks_in
from kit.printable import printable
from kit.runlog import RunDirectoryError, read_jsonl
from kit.types import Group, Prompt, Rollout

COLUMNS = ["prompt_id", "completion", "reward", "finish_reason"]
CHECKED = (
    "errors of the run, numbers that are not finite; truncated completions; constant, absent and abstaining rewards; "
    "groups without contrast; a stale sampler, distance from it; entropy, length, evaluations, displaced log-probs"
)


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found in a run directory."""

    path: Path
    steps: int  # records with an optimizer step
    state: str  # of status.json
    findings: tuple[Finding, ...]  # in the order in which they came up
    cleared: frozenset[Finding]  # those that were gone at the end

    def __str__(self) -> str:
        order = sorted(self.findings, key=lambda finding: SEVERITIES.index(finding.severity))
        told = [f"{finding}" + ("\n  (cleared later)" if finding in self.cleared else "") for finding in order]
        head = f"{printable(str(self.path))}: {self.steps} steps, {printable(self.state)}"
        return "\n".join([head, *(told or ["nothing found"]), f"checked: {CHECKED}"])

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)


def examine_run(folder: str | Path) -> Diagnosis:
    """Go through a run's records as the live doctor does, and through its events.

    Raises:
        FileNotFoundError: if the folder holds no run.
        RunDirectoryError: if a file of it cannot be read.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"expected a run directory with config.json, came {str(folder)!r}: give the out_dir of a run"
        )
    doctor, records = Doctor(Setup.read(_json(path / "config.json"))), _lines(path / "metrics.jsonl")
    steps = {finding.step for finding in Doctor(doctor.setup).replay(records)}
    found = []
    for record in records:  # once more, with the completions where there is something to say
        step = int(number(record, "step") or 0)
        found += doctor.examine(record, _groups(path, step, tasks_in(record)) if step in steps else ())
    cleared = frozenset(finding for finding in found if not doctor.holds(finding))
    found += _failures(_lines(path / "events.jsonl"))
    status = _json(path / "status.json") if (path / "status.json").is_file() else {}
    trained = sum("loss" in record for record in records)
    return Diagnosis(path, trained, str(status.get("state", "not started")), tuple(found), cleared)


def _failures(events: Sequence[Record]) -> list[Finding]:
    """`run_failed` (error): the last thing that happened to the run is an error. `non_finite` (error): it is that of a
    loss or a gradient that is no number, which the learner refuses to apply.
    """
    happened = [event for event in events if event.get("event") in ("start", "resume", "interrupt", "error")]
    if not happened or happened[-1]["event"] != "error":
        return []
    text, step = str(happened[-1].get("error")), int(number(happened[-1], "step") or 0)
    if text.startswith("NonFiniteError"):
        return [Finding("non_finite", "error", text, "lower learning_rate or max_grad_norm, and resume", step)]
    return [Finding("run_failed", "error", text, "mend it, and make the run again with this out_dir to go on", step)]


def _groups(path: Path, step: int, tasks: Sequence[str]) -> list[Group]:
    """The completions of a step, as far as a finding shows them; none if their file is not there."""
    import pyarrow.parquet as pq  # 0.2 s to import
    from pyarrow import ArrowInvalid

    file = path / "rollouts" / f"step_{step:06d}.parquet"
    if not file.is_file():
        return []
    try:
        rows = pq.read_table(file, columns=COLUMNS).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise RunDirectoryError(f"expected a parquet file, came {file} that cannot be read: {error}") from error
    groups = []
    for row in rows:
        text, how = str(row["completion"]), "length" if row["finish_reason"] == "length" else "stop"
        task = next((name for name in tasks if str(row["prompt_id"]).startswith(f"{name}/")), None)
        prompt = Prompt(str(row["prompt_id"]), "", {"task": task})
        groups.append(Group(prompt, (Rollout((), (), (), (), text, how, 0),), (row["reward"],)))
    return groups


def _lines(path: Path) -> list[Record]:
    try:
        records = read_jsonl(path)
    except ValueError as error:  # of JSON, or of text that is not UTF-8
        raise RunDirectoryError(
            f"expected a JSON object a line in {path}, came {error}: cut the damaged line out"
        ) from error
    if not all(isinstance(record, dict) for record in records):
        raise RunDirectoryError(f"expected a JSON object a line in {path}, came another value: cut that line out")
    return list(records)


def _json(path: Path) -> Record:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise RunDirectoryError(f"expected JSON in {path}, came {error}: restore the file") from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"expected a JSON object in {path}, came {type(value).__name__}: restore the file")
    return value
