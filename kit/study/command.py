"""`kit study plan | run | status`."""

import argparse
import sys
from functools import partial

from kit.printable import printable
from kit.study.execute import Outcome, refuse_changes, run_study
from kit.study.file import Study, read_study
from kit.study.local import Subprocesses
from kit.study.on_ray import RayTasks
from kit.study.plan import plan_text, table
from kit.study.progress import StudyProgress, read_state
from kit.study.record import is_finished, read_record, record_path
from kit.study.results import collect
from kit.study.shard import shard_of


def plan(chosen: argparse.Namespace) -> int:
    """Print the runs with the time and memory that they will take; nothing starts."""
    study = chosen_study(chosen)
    refuse_changes(study)
    print(printable_lines(plan_text(study, 1 if chosen.workers is None else chosen.workers)))
    return 0


def run(chosen: argparse.Namespace) -> int:
    """Execute what is not finished; 0 if all is, 1 if a run failed, 128 and the signal's number if one came."""
    study = chosen_study(chosen)
    if chosen.ray is None:
        executor = Subprocesses(1 if chosen.workers is None else chosen.workers)
    else:
        executor = RayTasks(chosen.ray, max(1, len(study.runs)) if chosen.workers is None else chosen.workers)
    write = partial(print, end="", flush=True)
    watch = StudyProgress(study, write, redraws=sys.stdout.isatty(), workers=executor.workers)
    outcome = run_study(study, executor, watch)
    for line in ending(study, outcome):
        print(printable(line), file=sys.stderr)
    if study.shard is not None:
        print(f"{len(outcome.finished)} of the {len(study.runs)} runs of shard {study.shard} are finished; "
              f"when all shards are: kit study run {printable(str(study.path))}")  # fmt: skip
    elif outcome.signal is None and outcome.finished:  # else what an earlier time found stays
        results = collect(study)
        print(f"results of {len(outcome.finished)} of {len(study.runs)} runs: {printable(str(results))}")
    return outcome.status


def chosen_study(chosen: argparse.Namespace) -> Study:
    study = read_study(chosen.study)
    return study if chosen.shard is None else shard_of(study, chosen.shard)


def ending(study: Study, outcome: Outcome) -> list[str]:
    """What went wrong, and how to go on."""
    lines = [f"failed: {name}: {cause} ({study.runs[name].output})" for name, cause in outcome.failed.items()]
    blocked = outcome.waiting.items()
    lines += [f"not started: {name} waits for {other}, which is not finished" for name, other in blocked]
    if outcome.interrupted:
        lines.append(f"interrupted: {len(outcome.interrupted)} of {len(study.runs)} runs are not finished")
    if lines:
        part = "" if study.shard is None else f" --shard {study.shard}"
        lines.append(f"go on with: kit study run {study.path}{part}")
    return lines


def status(chosen: argparse.Namespace) -> int:
    """Print how far each run is; 1 if one failed."""
    study, rows, has_failed = read_study(chosen.study), [["run", "state", "", ""]], False
    for name, each in study.runs.items():
        record = read_record(record_path(each))
        state = "not started" if record is None else record.state
        if state == "finished" and not is_finished(each):
            state = "finished, but removed"
        has_failed |= state == "failed"
        rows.append([name, state, str(read_state(each)), (record.cause if record else None) or ""])
    print(printable_lines("\n".join(table(rows))))
    return int(has_failed)


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
