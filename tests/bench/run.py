"""All benchmarks, each in a process of its own; prints min / median / max, versions, processor and date.

    python tests/bench/run.py --repeats 3 --steps 2 --only step sampler
    python tests/bench/run.py --json results.json

A ratio is taken between neighbouring turns of one process, so it holds on a busy machine where seconds do not.
Nothing here passes or fails. Without --json nothing is written.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)  # of a script it is its own folder

from tests.bench.measure import OFFLINE, cpu_model, parser  # noqa: E402

BENCHMARKS = ("step", "sampler", "logprob_path", "scaling", "dashboard")
PACKAGES = ("torch", "transformers", "trl", "accelerate", "math-verify")


def environment(threads: int) -> dict[str, str]:
    """What the numbers depend on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{cpu_model()}, {os.cpu_count()} cores, {threads} threads used",
        "load average": f"{load} when this began",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def run_one(name: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Run a benchmark, which prints its own table, and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        options = {"--model": arguments.model, "--repeats": arguments.repeats, "--steps": arguments.steps}
        options |= {"--threads": arguments.threads, "--json": path}
        command = [sys.executable, "-W", "ignore", "-m", f"tests.bench.{name}"]
        command += [str(text) for option in options.items() for text in option]
        threads = {"OMP_NUM_THREADS": str(arguments.threads)}
        finished = subprocess.run(
            command, cwd=ROOT, env=os.environ | OFFLINE | threads, stderr=subprocess.PIPE, text=True
        )
        if finished.returncode:
            sys.exit(f"{name} ended with {finished.returncode}:\n{finished.stderr[-4000:]}")
        return json.loads(path.read_text())


def main(arguments: argparse.Namespace) -> None:
    facts = environment(arguments.threads)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    results = {}
    for name in arguments.only:
        started = time.perf_counter()
        print(f"\n== {name}", flush=True)
        results[name] = run_one(name, arguments)
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="which benchmarks")
    main(options.parse_args())
