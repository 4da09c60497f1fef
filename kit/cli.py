"""The command line: `python -m kit.cli demo`, `... execute NOTEBOOK OUTPUT -p NAME VALUE`, `... study FOLDER`,
`... doctor RUN_DIR`, `... doctor --model FOLDER`.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from kit.config import Lora
from kit.doctor import check_parts, examine_run, model_parts
from kit.doctor.before import read_prompts
from kit.doctor.finding import printable
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


def replay_run(chosen: argparse.Namespace) -> int:
    """Make a run again and say whether it is the same; 1 if it is not, 2 if it could not be made."""
    from kit.replay import replay  # imports torch, which takes seconds

    try:
        found = replay(chosen.run_dir, out_dir=chosen.out)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    print(printable(str(found)))
    return int(found.difference is not None)


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
    doctor = commands.add_parser(
        "doctor", help="what is wrong with a run, or with a model before one; 1 if an error is"
    )
    what = doctor.add_mutually_exclusive_group(required=True)
    what.add_argument("run_dir", nargs="?", type=Path, help="of a run that is finished or under way")
    what.add_argument("--model", type=Path, help="a model's folder; its weights are not read")
    doctor.add_argument("--prompts", type=Path, help="with --model: JSON lines with a column `prompt`")
    doctor.add_argument("--lora", nargs="+", metavar="LAYER", help="with --model: the layers that get adapters")
    again = commands.add_parser("replay", help="make a run again, with its changes by hand; 1 if a metric differs")
    again.add_argument("run_dir", type=Path)
    again.add_argument("--out", type=Path, help="the new run's directory; default RUN_DIR_replay1")
    chosen = parser.parse_args(arguments)
    if chosen.command == "replay":
        return replay_run(chosen)
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
