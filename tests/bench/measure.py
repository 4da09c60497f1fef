"""What the benchmarks share: time, memory, and rows of a table.

A machine that does other things as well is slow in one minute and fast in the next. So what is compared runs in
turns, one ratio comes from two neighbouring turns, and every number is reported as min / median / max over them.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MEMORY_UNITS = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Row:
    """One measured quantity; `values` holds every repetition."""

    name: str
    unit: str
    values: tuple[float, ...]

    def __str__(self) -> str:
        spread = f"{min(self.values):>11.4g}{statistics.median(self.values):>11.4g}{max(self.values):>11.4g}"
        return f"{self.name:<58}{self.unit:<15}{spread}{len(self.values):>4}"


HEADER = f"{'':<58}{'unit':<15}{'min':>11}{'median':>11}{'max':>11}{'n':>4}"


@dataclass(frozen=True)
class Times:
    """Seconds of wall-clock and of this process's threads together."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Times":
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, started: "Times") -> "Times":
        now = cls.now()
        return cls(now.wall - started.wall, now.processor - started.processor)


def ratios(name: str, slow: Sequence[float], fast: Sequence[float]) -> Row:
    """How many times `fast` goes into `slow`, turn by turn."""
    return Row(name, "ratio", tuple(a / b for a, b in zip(slow, fast, strict=True)))


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turns(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, ...]]:
    """Seconds of every action in every round, all of them once a round, after one round that does not count."""
    for action in actions.values():
        action()
    rounds = [{name: seconds(action) for name, action in actions.items()} for _ in range(repeats)]
    return {name: tuple(times[name] for times in rounds) for name in actions}


def memory_bytes() -> int:
    """Resident memory of this process now (Linux; elsewhere its highest so far)."""
    return _from_status("VmRSS") or peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far.

    Not `ru_maxrss` where there is better: on Linux that starts from the memory of the process that started this one.
    """
    return _from_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNITS


def _from_status(field: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    [line] = [line for line in status.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def in_fresh_process(module: str, *arguments: str) -> dict[str, float]:
    """The JSON object that `python -m module` prints last: memory is measured where nothing else took any."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    finished = subprocess.run(command, cwd=ROOT, env=os.environ | OFFLINE, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=str(ROOT / "data" / "seed"), help="folder of a causal language model")
    options.add_argument("--repeats", type=int, default=5, help="rounds of turns")
    options.add_argument("--steps", type=int, default=5, help="optimizer steps in one turn")
    options.add_argument("--threads", type=int, default=2, help="of torch")
    options.add_argument("--json", type=Path, help="also write every single measurement to this file")
    return options


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print the rows and, if asked, write them."""
    print(HEADER)
    for row in rows:
        print(row)
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
