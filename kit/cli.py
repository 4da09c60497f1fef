"""The command line: `kit demo`, `kit execute NOTEBOOK OUTPUT -p NAME VALUE`, `kit study FOLDER`, `kit doctor RUN_DIR`,
`kit doctor --model FOLDER`, `kit compare RUN_DIR...`. Where the kit is not installed, `python -m kit.cli` is the same.
"""

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from kit.config import Lora
from kit.doctor import check_parts, examine_run, model_parts
from kit.doctor.before import read_prompts
from kit.doctor.finding import printable
from kit.progress import X_AXES
from kit.study import ParameterError, execute_notebook, parse_value, run_study

ROOT = Path(__file__).resolve().parent.parent


def demo() -> None:
    """Execute the tour on the embedded model and print its headline table."""
    started = time.perf_counter()
    out_dir = ROOT / "papermill_runs" / "tour"
    shutil.rmtree(out_dir, ignore_errors=True)  # a demo shows this machine's own run, never an earlier one
    executed = execute_notebook(
        ROOT / "notebooks" / "00_tour.ipynb", out_dir / "00_tour.ipynb", {"out_dir": str(out_dir / "runs")}
    )
    print((out_dir / "runs" / "headline.md").read_text())
    print(f"Executed notebook: {executed.relative_to(ROOT)} ({time.perf_counter() - started:.0f} s)")


def diagnose(chosen: argparse.Namespace) -> int:
    """Print what the doctor finds; 1 if any of it is an error, 2 if there was nothing that it could read."""
    try:
        if chosen.run_dir is not None:
            diagnosis = examine_run(chosen.run_dir)
            print(diagnosis)
            return int(diagnosis.has_errors)
        prompts = [] if chosen.prompts is None else read_prompts(chosen.prompts)
        lora = None if chosen.lora is None else Lora(lora_target_modules=tuple(chosen.lora))
        findings = check_parts(model_parts(chosen.model, prompts, lora))
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    checked = "end and padding tokens, chat template, dropout, vocabulary, generation settings"
    checked += (f", {len(prompts)} prompts" if prompts else "") + (", tied weights under LoRA" if lora else "")
    print("\n".join([printable(str(chosen.model)), *map(str, findings or ["nothing found"]), f"checked: {checked}"]))
    return int(any(finding.severity == "error" for finding in findings))


def compare_runs(chosen: argparse.Namespace) -> int:
    """Print the table of a comparison, or write its page; 2 if there was nothing to compare or nowhere to write it."""
    from kit.compare import compare  # 1 s to import

    run_dirs = [path for path in chosen.run_dirs if not path.is_file()]  # runs/* names files too
    if left_out := [printable(str(path)) for path in chosen.run_dirs if path.is_file()]:
        print(f"left out, because it is a file: {', '.join(left_out)}", file=sys.stderr)
    try:
        comparison = compare(run_dirs, x=chosen.x, metrics=chosen.metric)
        if chosen.out is None:
            print(comparison)
            return 0
        shown = "".join(f" --metric {shlex.quote(name)}" for name in chosen.metric)
        runs = " ".join(shlex.quote(str(path)) for path in run_dirs)
        comparison.save(chosen.out, f"kit compare {runs} --x {chosen.x}{shown} --out {shlex.quote(str(chosen.out))}")
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    print(f"comparison: {printable(str(chosen.out))}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="execute notebooks/00_tour.ipynb and print its headline table")
    execute = commands.add_parser("execute", help="execute a notebook; unknown or mistyped parameters are refused")
    execute.add_argument("notebook", type=Path)
    execute.add_argument("output", type=Path)
    execute.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    study = commands.add_parser(
        "study", help="execute the unfinished runs of a folder's study.yaml, collect results.csv"
    )
    study.add_argument("folder", type=Path)
    study.add_argument("--jobs", type=int, default=1, help="runs at a time")
    doctor = commands.add_parser(
        "doctor", help="what is wrong with a run, or with a model before one; 1 if an error is"
    )
    what = doctor.add_mutually_exclusive_group(required=True)
    what.add_argument("run_dir", nargs="?", type=Path, help="of a run that is finished or under way")
    what.add_argument("--model", type=Path, help="a model's folder; its weights are not read")
    doctor.add_argument("--prompts", type=Path, help="with --model: JSON lines with a column `prompt`")
    doctor.add_argument("--lora", nargs="+", metavar="LAYER", help="with --model: the layers that get adapters")
    beside = commands.add_parser("compare", help="runs beside each other, as a table here or as a web page in a file")
    beside.add_argument("run_dirs", nargs="+", type=Path, metavar="run_dir", help="of runs that are finished or not")
    beside.add_argument("--out", type=Path, metavar="REPORT.html", help="write one HTML file that needs nothing else")
    beside.add_argument("--x", choices=X_AXES, default="step", help="what the curves are drawn against")
    beside.add_argument(
        "--metric", nargs="+", action="extend", default=[], metavar="NAME", help="what is drawn; default: what all have"
    )
    chosen = parser.parse_args(arguments)
    if chosen.command == "compare":
        return compare_runs(chosen)
    if chosen.command == "doctor":
        if chosen.run_dir is not None and (chosen.prompts or chosen.lora):
            parser.error("--prompts and --lora go with --model")
        return diagnose(chosen)
    if chosen.command == "demo":
        demo()
        return 0
    try:
        if chosen.command == "study":
            print(f"results: {run_study(chosen.folder, jobs=chosen.jobs)}")
            return 0
        execute_notebook(chosen.notebook, chosen.output, {name: parse_value(text) for name, text in chosen.parameter})
    except (ParameterError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
