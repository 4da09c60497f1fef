"""Executing notebooks with parameters, one or a grid of them, strictly: papermill only warns about an unknown name.

A study is a folder with a `study.yaml`: a notebook, the parameters that all runs share, the arms, and the training
seeds. Its run directories and executed notebooks go to `runs/`, its numbers to `results.csv`.
"""

import ast
import csv
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml

from kit.runlog import read_jsonl

TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
}

EVALUATED = re.compile(r"(task/[^/]+/)?eval/")
AVERAGED = ("offpolicy/", "clip_ratio/", "pairs/weight", "sync/staleness")  # metrics that start like these


class ParameterError(ValueError):
    """A notebook was given a parameter that it does not have, or a value of the wrong type."""


def notebook_parameters(notebook: str | Path) -> dict[str, dict[str, Any]]:
    """What the notebook's `parameters` cell declares: name -> papermill's record (type, default, help).

    Raises:
        FileNotFoundError: if there is no such notebook.
    """
    if not Path(notebook).is_file():
        raise FileNotFoundError(f"there is no notebook {str(notebook)!r}")
    return papermill.inspect_notebook(str(notebook))


def checked_parameters(notebook: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, once every name is declared in the notebook and every value has the declared type.

    Raises:
        ParameterError: naming what was expected, what came, and the parameters there are.
    """
    declared = notebook_parameters(notebook)
    for name, value in given.items():
        if name not in declared:
            known = ", ".join(f"{key}: {entry['inferred_type_name']}" for key, entry in declared.items())
            raise ParameterError(f"{Path(notebook).name} has no parameter {name!r}. It has: {known}")
        annotation = declared[name]["inferred_type_name"]
        allowed = tuple(kind for part in annotation.split("|") for kind in TYPES.get(part.strip(), ()))
        is_wrong = not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        if allowed and is_wrong:
            raise ParameterError(
                f"{Path(notebook).name}: parameter {name!r} must be {annotation}, "
                f"got {value!r} ({type(value).__name__})"
            )
    return dict(given)


def parse_value(text: str) -> Any:
    """A command-line value as the Python literal that it is, or else as a string.

    >>> [parse_value(text) for text in ("10", "1e-4", "None", "dpo", "True")]
    [10, 0.0001, None, 'dpo', True]
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def execute_notebook(notebook: str | Path, output: str | Path, parameters: Mapping[str, Any]) -> Path:
    """Run a notebook through papermill in a fresh kernel, in its own folder; returns where the executed copy lies."""
    parameters = checked_parameters(notebook, parameters)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook), str(output), parameters, kernel_name="python3", cwd=str(Path.cwd()), progress_bar=False,
        log_output=True,
    )  # fmt: skip
    _drop_widgets(output)
    return output


def _drop_widgets(path: Path) -> None:
    """Leave of every widget the text beside it: its kernel is gone, and papermill keeps the whole state of each."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, path)


def study_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Every run of a study, name -> parameters, checked before any starts.

    `after: ARM` in an arm starts it from the policy that the arm of that name, earlier in the file, saved with the
    same seed.

    Raises:
        ParameterError: if the notebook does not take an arm's parameters, or `after` names no earlier arm that saves.
    """
    study = yaml.safe_load((folder / "study.yaml").read_text())
    runs: dict[str, dict[str, Any]] = {}
    for seed in study["seeds"]:  # the outer loop: an interrupted study has all arms at equal numbers of seeds
        for arm, own in study["arms"].items():
            parameters = {**study["shared"], **own, "seed": seed, "out_dir": str(_out_dir(folder, arm, seed))}
            if (before := parameters.pop("after", None)) is not None:
                if not runs.get(f"{before}_seed{seed}", {}).get("save_policy"):
                    raise ParameterError(f"{arm}: `after` must name an arm above it with save_policy, got {before!r}")
                parameters["model_name_or_path"] = str(_out_dir(folder, before, seed) / "policy")
            runs[f"{arm}_seed{seed}"] = checked_parameters(study["notebook"], parameters)
    return runs


def _out_dir(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / f"{arm}_seed{seed}"


def run_study(folder: Path, *, jobs: int = 1) -> Path:
    """Execute the runs of a study that are not finished, `jobs` at a time, and collect `results.csv`.

    Each run is a notebook in a process of its own; one that fails is named, and does not stop the others.

    Raises:
        RuntimeError: naming the runs that failed and where their notebooks lie, after the others are done.
    """
    study, runs = yaml.safe_load((folder / "study.yaml").read_text()), study_runs(folder)

    started: dict[str, Future[bool]] = {}

    def execute(name: str) -> bool:
        before = study["arms"][name.rpartition("_seed")[0]].get("after")
        if before is not None and not started[f"{before}_seed{runs[name]['seed']}"].result():
            return False  # an earlier arm is handed out first, so waiting for it cannot block
        output = folder / "runs" / f"{name}.ipynb"
        flags = [word for key, value in runs[name].items() for word in ("-p", key, str(value))]
        command = [sys.executable, "-m", "kit.cli", "execute", study["notebook"], str(output), *flags]
        is_done = subprocess.run(command, capture_output=True).returncode == 0
        print(f"{name}: {'done' if is_done else 'failed'}", flush=True)
        return is_done

    with ThreadPoolExecutor(jobs) as pool:
        for name in runs:
            started[name] = pool.submit(execute, name)
        failed = [name for name, future in started.items() if not future.result()]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(runs)} runs failed; see the last cells of {folder / 'runs'}/NAME.ipynb: {failed}"
        )
    return collect(folder)


def collect(folder: Path) -> Path:
    """Write `results.csv`: one row an evaluation, with the arm and the seed that it belongs to.

    Beside what was evaluated, a row holds the means of `AVERAGED` over the steps since the evaluation before, and
    `syncs`, the copies into the sampler so far; a cell is empty where an arm has no such metric.
    """
    rows: list[dict[str, Any]] = []
    for name, parameters in study_runs(folder).items():
        arm = name.removesuffix(f"_seed{parameters['seed']}")
        out_dir = Path(parameters["out_dir"])
        synced_at = [receipt["step"] for receipt in read_jsonl(out_dir / "receipts.jsonl")]
        since: list[Mapping[str, Any]] = []
        for record in read_jsonl(out_dir / "metrics.jsonl"):
            found = {key: round(value, 5) for key, value in record.items() if EVALUATED.match(key)}
            if found:
                syncs = sum(step <= record["step"] for step in synced_at)
                row = {"arm": arm, "seed": parameters["seed"], "step": record["step"], "syncs": syncs}
                rows.append(row | found | _means(since))
                since = []
            since.append(record)
    path = folder / "results.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric of `AVERAGED` over the records that have it."""
    names = dict.fromkeys(key for record in records for key in record if key.startswith(AVERAGED))
    values = {name: [record[name] for record in records if name in record] for name in names}
    return {name: float(f"{statistics.fmean(found):.5g}") for name, found in values.items()}
