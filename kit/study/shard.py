"""A part of a study, for schedulers that start many jobs with a number each, such as a Slurm array (docs/slurm.md)."""

import re
from dataclasses import replace

from kit.study.file import Study, StudyRun


def shard_of(study: Study, text: str) -> Study:
    """The runs of `I/N`, the I-th of N parts of nearly equal size, counted from 1 as test runners do.

    Runs are dealt out in the study's order; one that starts from another's policy goes where that one is. Every run is
    in exactly one shard, whatever N is; a shard can be empty.

    Raises:
        ValueError: if the text is no `I/N` with 1 <= I <= N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"expected --shard I/N with 1 <= I <= N, such as 2/8, came {text!r}")
    first = {name: _first(study, run).name for name, run in study.runs.items()}
    order = list(dict.fromkeys(first.values()))
    own = set(order[number - 1 :: count])
    return replace(study, runs={name: run for name, run in study.runs.items() if first[name] in own}, shard=text)


def _first(study: Study, run: StudyRun) -> StudyRun:
    """That starts the chain of arms in which a run is."""
    while run.after is not None:
        run = study.runs[run.after]
    return run
