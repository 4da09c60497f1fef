"""The command line: `python -m kit.cli demo`, `... execute NOTEBOOK OUTPUT -p NAME VALUE`, `... study FOLDER`."""

import argparse
import shutil
import sys
import time
from pathlib import Path

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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kit.cli", description=__doc__)
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
    chosen = parser.parse_args(arguments)
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
