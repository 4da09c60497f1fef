"""Makes each formula of the kit wrong in every way `mutants` knows, and counts how often the tests notice.

    python tests/mutation/run.py --jobs 2
    python tests/mutation/run.py --only kit/kl.py kit/losses/dpo.py
    python tests/mutation/run.py --list --only kit/kl.py

A mutant is killed if its tests fail, cannot be collected or do not come to an end. One that survives needs a test, or a
reason in targets.toml why it is no mistake. The score is killed / (all - explained). Exit status 1: a score under 95 %,
a survivor without a reason, or a reason without a survivor. No file is written: each mutant exists in one process,
forked from this one, which has imported what the tests need.
"""

import argparse
import ast
import gc
import importlib
import os
import re
import signal
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)  # of a script it is its own folder
os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads cannot be forked
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import pytest  # noqa: E402

from tests.mutation.mutants import Mutant, mutants  # noqa: E402

LEAST_SCORE = 0.95
KILLED = {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}  # interrupted by a test file that cannot import
NOT_IMPORTED, BROKEN = 90, 91  # exit statuses that pytest does not have
PYTEST_ARGS = ["-x", "-q", "--no-header", "-p", "no:cacheprovider"]
PYTEST_ARGS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # pytest's plugins are imported before it starts


@dataclass(frozen=True)
class Target:
    """A file of the kit, the tests that must notice, and the survivors that are no mistakes."""

    path: str
    tests: tuple[str, ...]
    reasons: dict[tuple[str, str, str], str]  # (scope, line, change) -> why nothing can notice it

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@dataclass(frozen=True)
class Trial:
    """One run of a target's tests."""

    target: Target
    mutant: Mutant | None  # None = the module as it is, for the time that its tests take
    source: str
    limit: float  # seconds; more counts as killed


class Injected:
    """Plugin of pytest that lets one module be imported from a text instead of from its file."""

    def __init__(self, module: str, source: str) -> None:
        self.module, self.source, self.is_imported = module, source, False

    def pytest_sessionstart(self) -> None:
        """After the hook that checks shapes, which keeps working, is in place; before any test file is imported."""
        sys.meta_path.insert(0, self)  # pyright: ignore[reportArgumentType]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(spec for spec in specs if spec is not None)
        loader: Any = spec.loader
        # In place of what reads the file, or the compiled file of the true module.
        loader.get_code = lambda _: loader.source_to_code(self.source.encode(), loader.path)
        self.is_imported = True
        return spec


def read_targets(root: Path) -> list[Target]:
    """tests/mutation/targets.toml."""
    table = tomllib.loads((root / "tests/mutation/targets.toml").read_text())
    return [
        Target(
            path,
            tuple(entry["tests"]),
            {(item.get("scope", ""), item["line"], item["change"]): item["reason"] for item in entry.get("same", [])},
        )
        for path, entry in table.items()
    ]


def warm_up(tests: set[str]) -> None:
    """Import, once for all processes, what the test files import from other packages."""
    names = {"torch", "jaxtyping", "beartype", "hypothesis"}
    for path in sorted(tests):
        names |= set(re.findall(r"^\s*(?:from|import) ([\w.]+)", Path(path).read_text(), re.MULTILINE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sorted(names):
            package = name.split(".")[0]
            if not Path(package).exists() and not Path(f"{package}.py").exists():
                importlib.import_module(name)
    import hypothesis
    import torch

    torch.set_num_threads(1)
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # imports more the first time
    # The same examples for every mutant, none remembered; what fails need not be made smaller.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutation", database=None, derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutation")
    gc.collect()
    gc.freeze()


def run_tests(trial: Trial, folder: Path) -> int:
    """In a process of its own: exit status of pytest; its output goes to a file in the folder."""
    output = os.open(folder / f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    plugin = Injected(trial.target.module, trial.source)
    arguments = [*PYTEST_ARGS, f"--basetemp={folder / str(os.getpid())}", *trial.target.tests]
    status = pytest.main(arguments, plugins=[plugin])
    sys.stdout.flush()
    return status if plugin.is_imported or status != pytest.ExitCode.OK else NOT_IMPORTED


def start(trial: Trial, folder: Path) -> int:
    """Fork; the process that runs the tests."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TRL leaves a thread that only sleeps
        pid = os.fork()
    if pid:
        return pid
    status = BROKEN
    try:
        os.setsid()  # so that a limit also ends what a test started
        status = run_tests(trial, folder)
    finally:
        if status == BROKEN:
            traceback.print_exc()
        os._exit(status)


def outcomes(trials: list[Trial], jobs: int) -> Iterator[tuple[Trial, bool, float]]:
    """(trial, whether all tests passed, seconds) of each, as they end."""
    waiting, running = deque(trials), dict[int, tuple[Trial, float]]()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    trial = waiting.popleft()
                    running[start(trial, folder)] = (trial, time.monotonic())
                time.sleep(0.01)
                for pid, (trial, started) in list(running.items()):
                    seconds = time.monotonic() - started
                    if seconds > trial.limit:
                        os.killpg(pid, signal.SIGKILL)
                    ended, status = os.waitpid(pid, 0 if seconds > trial.limit else os.WNOHANG)
                    if ended:
                        del running[pid]
                        output = (folder / f"{pid}.txt").read_text(errors="replace")
                        yield trial, seconds <= trial.limit and _passed(trial, status, output), seconds
        finally:
            for pid in running:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _passed(trial: Trial, status: int, output: str) -> bool:
    """Whether pytest was content; whatever is neither that nor a failed test ends the program."""
    code = os.waitstatus_to_exitcode(status)
    if code == pytest.ExitCode.OK or code in KILLED or code < 0:  # a mutant may crash its process
        if code != pytest.ExitCode.OK and trial.mutant is None:
            sys.exit(f"{trial.target.path}: its tests fail without any mutation\n{output[-3000:]}")
        return code == pytest.ExitCode.OK
    reason = f"no test file imported {trial.target.module}" if code == NOT_IMPORTED else f"exit status {code}"
    sys.exit(f"{trial.target.path}: the tests could not run: {reason}\n{output[-3000:]}")


def report(targets: list[Target], survivors: list[tuple[Target, Mutant]], totals: dict[str, int]) -> bool:
    """Print the survivors and the score of each file; whether all is well."""
    unexplained, used = dict.fromkeys(totals, 0), dict.fromkeys(totals, 0)
    stale = {(target.path, key) for target in targets for key in target.reasons}
    for target, mutant in survivors:
        key = (mutant.scope, mutant.text, mutant.change)
        reason = target.reasons.get(key)
        stale.discard((target.path, key))
        (unexplained if reason is None else used)[target.path] += 1
        if reason is None:
            print(f"survived: {target.path}:{mutant.line} {mutant.scope}: {mutant.text}\n    {mutant.change}")
    for path, (scope, text, change) in sorted(stale):
        print(f"killed, although targets.toml has a reason why it cannot be: {path} {scope}: {text}\n    {change}")
    print(f"{'':32}mutants   killed  explained  survived   score")
    for path in [*totals, "all"]:
        pick = list(totals) if path == "all" else [path]
        total, bad, same = (sum(count[name] for name in pick) for count in (totals, unexplained, used))
        score = (total - bad - same) / (total - same) if total > same else 1.0
        print(f"{path:32}{total:7}  {total - bad - same:7}  {same:9}  {bad:8}  {score:6.1%}")
    return score >= LEAST_SCORE and not sum(unexplained.values()) and not stale


def main(arguments: argparse.Namespace) -> bool:
    os.chdir(arguments.root)
    targets = read_targets(arguments.root)
    if unknown := set(arguments.only or ()) - {target.path for target in targets}:
        sys.exit(f"not in targets.toml: {', '.join(sorted(unknown))}")
    targets = [target for target in targets if not arguments.only or target.path in arguments.only]
    sources = {target.path: Path(target.path).read_text() for target in targets}
    found = {target.path: mutants(sources[target.path]) for target in targets}
    if arguments.list:
        for path in found:
            print("\n".join(f"{path}:{mutant.line} {mutant.kind}: {mutant.change}" for mutant in found[path]))
        return True
    warm_up({test for target in targets for test in target.tests})
    began = time.monotonic()
    unchanged = [Trial(target, None, ast.unparse(ast.parse(sources[target.path])), 600.0) for target in targets]
    limits = {trial.target.path: 10 + 5 * seconds for trial, _, seconds in outcomes(unchanged, arguments.jobs)}
    trials = [Trial(t, mutant, mutant.source, limits[t.path]) for t in targets for mutant in found[t.path]]
    survivors: list[tuple[Target, Mutant]] = []
    for done, (trial, has_passed, _) in enumerate(outcomes(trials, arguments.jobs), start=1):
        if has_passed and trial.mutant is not None:
            survivors.append((trial.target, trial.mutant))
        if done % 50 == 0:
            print(f"{done} of {len(trials)} mutants, {len(survivors)} survived, {time.monotonic() - began:.0f} s")
    survivors.sort(key=lambda survivor: (survivor[0].path, survivor[1].line))
    is_well = report(targets, survivors, {path: len(found[path]) for path in found})
    print(f"{time.monotonic() - began:.0f} s with {arguments.jobs} at a time")
    return is_well


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="FILE", help="some of the files in targets.toml")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    sys.exit(not main(parser.parse_args()))
