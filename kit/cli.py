"""The command line: `kit demo | execute | study | doctor | replay | compare`, or `python -m kit.cli` for `kit`.

`kit COMMAND --help` says what each takes.
"""

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from kit.config import Lora
from kit.printable import printable
from kit.progress import X_AXES

ROOT = Path(__file__).resolve().parent.parent


def demo(chosen: argparse.Namespace) -> int:
    """Execute the tour on the embedded model and print its headline table."""
    from kit.study import execute_notebook  # papermill takes seconds to import

    started = time.perf_counter()
    out_dir = ROOT / "papermill_runs" / "tour"
    shutil.rmtree(out_dir, ignore_errors=True)  # a demo shows this machine's own run, never an earlier one
    executed = execute_notebook(
        ROOT / "notebooks" / "00_tour.ipynb", out_dir / "00_tour.ipynb", {"out_dir": str(out_dir / "runs")}
    )
    print((out_dir / "runs" / "headline.md").read_text())
    print(f"Executed notebook: {executed.relative_to(ROOT)} ({time.perf_counter() - started:.0f} s)")
    return 0


def execute(chosen: argparse.Namespace) -> int:
    """Execute a notebook; unknown or mistyped parameters are refused."""
    from kit.study import execute_notebook, parse_value  # as above

    execute_notebook(chosen.notebook, chosen.output, {name: parse_value(text) for name, text in chosen.parameter})
    return 0


def study(chosen: argparse.Namespace) -> int:
    """What is to be done with a study: a command of its own."""
    from kit.study import command  # as above

    return {"plan": command.plan, "run": command.run, "status": command.status}[chosen.what](chosen)


def report(chosen: argparse.Namespace) -> int:
    """Make the report of a study."""
    from kit.report import make_report  # as above

    for path in make_report(chosen.study, baseline=chosen.baseline, margin=chosen.margin):
        print(f"report: {printable(str(path))}")
    return 0


def doctor(chosen: argparse.Namespace) -> int:
    """Print what the doctor finds; 1 if any of it is an error."""
    from kit.doctor import check_parts, examine_run, model_parts  # transformers takes seconds to import
    from kit.doctor.before import read_prompts

    if chosen.run_dir is not None:
        if chosen.prompts or chosen.lora:
            raise ValueError("--prompts and --lora go with --model")
        diagnosis = examine_run(chosen.run_dir)
        print(diagnosis)
        return int(diagnosis.has_errors)
    prompts = [] if chosen.prompts is None else read_prompts(chosen.prompts)
    lora = None if chosen.lora is None else Lora(lora_target_modules=tuple(chosen.lora))
    findings = check_parts(model_parts(chosen.model, prompts, lora))
    checked = "end and padding tokens, chat template, dropout, vocabulary, generation settings"
    checked += (f", {len(prompts)} prompts" if prompts else "") + (", tied weights under LoRA" if lora else "")
    print("\n".join([printable(str(chosen.model)), *map(str, findings or ["nothing found"]), f"checked: {checked}"]))
    return int(any(finding.severity == "error" for finding in findings))


def replay(chosen: argparse.Namespace) -> int:
    """Make a run again and say whether it is the same; 1 if it is not."""
    from kit.replay import replay as make_again  # as above

    found = make_again(chosen.run_dir, out_dir=chosen.out)
    print(printable(str(found)))
    return int(found.difference is not None)


def compare(chosen: argparse.Namespace) -> int:
    """Print the table of a comparison, or write its page."""
    from kit.compare import compare as beside_each_other  # as above

    run_dirs = [path for path in chosen.run_dirs if not path.is_file()]  # runs/* names files too
    if left_out := [printable(str(path)) for path in chosen.run_dirs if path.is_file()]:
        print(f"left out, because it is a file: {', '.join(left_out)}", file=sys.stderr)
    comparison = beside_each_other(run_dirs, x=chosen.x, metrics=chosen.metric)
    if chosen.out is None:
        print(comparison)
        return 0
    shown = "".join(f" --metric {shlex.quote(name)}" for name in chosen.metric)
    runs = " ".join(shlex.quote(str(path)) for path in run_dirs)
    comparison.save(chosen.out, f"kit compare {runs} --x {chosen.x}{shown} --out {shlex.quote(str(chosen.out))}")
    print(f"comparison: {printable(str(chosen.out))}")
    return 0


def arguments_parser() -> argparse.ArgumentParser:
    """Every command with its arguments; `act` is the function above that carries it out."""
    parser = argparse.ArgumentParser(prog="kit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("demo", help="execute notebooks/00_tour.ipynb and print its headline table")
    one.set_defaults(act=demo)

    one = commands.add_parser("execute", help="execute a notebook; unknown or mistyped parameters are refused")
    one.set_defaults(act=execute)
    one.add_argument("notebook", type=Path)
    one.add_argument("output", type=Path)
    one.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))

    what = commands.add_parser("study", help="grids of runs that resume").add_subparsers(required=True, metavar="WHAT")
    for name, help in (
        ("plan", "print the runs of a study, and the time and memory that they will take"),
        ("run", "execute those that are not finished, collect results.csv; 1 if a run failed"),
        ("status", "print how far each run is; 1 if one failed"),
    ):
        one = what.add_parser(name, help=help)
        one.set_defaults(act=study, what=name)
        one.add_argument("study", type=Path, help="a study.yaml, or the folder that holds one")
        if name != "status":
            one.add_argument("--workers", type=int, metavar="W", help="runs at a time; default 1, with --ray all")
            one.add_argument("--shard", metavar="I/N", help="only the I-th of N parts, for an array of jobs")
        if name == "run":
            one.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster that executes them; auto finds it")

    one = what.add_parser("report", help="execute its report notebook, and write it as a web page as well")
    one.set_defaults(act=report)
    one.add_argument("study", type=Path, help="the study's folder")
    one.add_argument("--baseline", metavar="ARM", help="with which the other arms are compared; default: the first")
    one.add_argument("--margin", type=float, help="differences below it count as none, in the unit of the score")

    one = commands.add_parser("doctor", help="what is wrong with a run, or with a model before one; 1 if an error is")
    one.set_defaults(act=doctor)
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("run_dir", nargs="?", type=Path, help="of a run that is finished or under way")
    what.add_argument("--model", type=Path, help="a model's folder; its weights are not read")
    one.add_argument("--prompts", type=Path, help="with --model: JSON lines with a column `prompt`")
    one.add_argument("--lora", nargs="+", metavar="LAYER", help="with --model: the layers that get adapters")

    one = commands.add_parser("replay", help="make a run again, with its changes by hand; 1 if a metric differs")
    one.set_defaults(act=replay)
    one.add_argument("run_dir", type=Path)
    one.add_argument("--out", type=Path, help="the new run's directory; default RUN_DIR_replay1")

    one = commands.add_parser("compare", help="runs beside each other, as a table here or as a web page in a file")
    one.set_defaults(act=compare)
    one.add_argument("run_dirs", nargs="+", type=Path, metavar="run_dir", help="of runs that are finished or not")
    one.add_argument("--out", type=Path, metavar="REPORT.html", help="write one HTML file that needs nothing else")
    one.add_argument("--x", choices=X_AXES, default="step", help="what the curves are drawn against")
    one.add_argument("--metric", nargs="+", action="extend", default=[], metavar="NAME",
                     help="what is drawn; default: what all have")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Carry out a command; 2 if it could not be, with the reason on stderr."""
    chosen = arguments_parser().parse_args(arguments)
    try:
        return chosen.act(chosen)
    except (OSError, RuntimeError, ValueError) as error:
        for line in str(error).split("\n"):
            print(f"error: {printable(line)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
