"""results.csv: what a study's runs were evaluated to, one row an evaluation."""

import csv
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.runlog import read_jsonl
from kit.study.file import Study, StudyRun
from kit.study.record import FINISHED, read_record, record_path

EVALUATED = re.compile(r"(task/[^/]+/)?eval/")
AVERAGED = ("offpolicy/", "clip_ratio/", "pairs/weight", "sync/staleness")  # metrics that start like these


def collect(study: Study) -> Path:
    """Write `results.csv` from the runs that are finished, in the study's order, with the arm and the seed of each.

    Beside what was evaluated, a row holds the means of `AVERAGED` over the steps since the evaluation before, and
    `syncs`, the copies into the sampler so far; a cell is empty where an arm has no such metric. Nothing in it depends
    on when or how fast the runs were made, or on what was killed meanwhile.
    """
    rows = [row for run in study.runs.values() if _counts(run) for row in _rows(run)]
    path = study.folder / "results.csv"
    write_rows(path, rows)
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file in one step: a column for each name, in the order in which the rows have them."""
    temporary = path.with_suffix(".partial")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _counts(run: StudyRun) -> bool:
    """Whether it is finished; runs of earlier versions of the kit have no record."""
    record = read_record(record_path(run))
    return record is None or record.state == FINISHED


def _rows(run: StudyRun) -> Iterator[dict[str, Any]]:
    synced_at = [receipt["step"] for receipt in read_jsonl(run.out_dir / "receipts.jsonl")]
    since: list[Mapping[str, Any]] = []
    for record in read_jsonl(run.out_dir / "metrics.jsonl"):
        found = {key: round(value, 5) for key, value in record.items() if EVALUATED.match(key)}
        if found:
            syncs = sum(step <= record["step"] for step in synced_at)
            row = {"arm": run.arm, "seed": run.seed, "step": record["step"], "syncs": syncs}
            yield row | found | _means(since)
            since = []
        since.append(record)


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric of `AVERAGED` over the records that have it."""
    names = dict.fromkeys(key for record in records for key in record if key.startswith(AVERAGED))
    values = {name: [record[name] for record in records if name in record] for name in names}
    return {name: float(f"{statistics.fmean(found):.5g}") for name, found in values.items()}
