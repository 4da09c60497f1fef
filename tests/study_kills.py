"""Killing processes of a study at random, to see that nothing is lost: for a test and a benchmark."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from os import kill
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("launcher", "run", "kernel")


def launch(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kit.cli", "study", "run", str(folder), "--workers", str(workers)]
    with (folder / "said.txt").open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)


def children(parents: set[int]) -> set[int]:
    """Processes that one of `parents` started, by Linux's own account."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) in parents:
                found.add(int(path.parent.name))
    return found


def finish_despite_kills(
    folder: Path, kills: int, generator: random.Random, *, workers: int = 2, pause: tuple[float, float],
    say: Callable[[str], None] = lambda text: None,
) -> Counter[str]:  # fmt: skip
    """Run a study until it is finished, with up to `kills` SIGKILLs on the way; returns how many of each kind.

    A killed launcher is started again at once, while what it had started may be at work still.
    """
    done: Counter[str] = Counter()
    launcher = launch(folder, workers)
    try:
        while True:
            until = time.monotonic() + generator.uniform(*pause)
            while time.monotonic() < until and launcher.poll() is None:
                time.sleep(0.02)
            if launcher.poll() is not None:
                if launcher.returncode == 0:
                    return done
                launcher = launch(folder, workers)  # runs whose process was killed count as failed
            elif done.total() < kills:
                kind = generator.choice(KINDS)
                runs = children({launcher.pid})
                victims = sorted({"launcher": {launcher.pid}, "run": runs, "kernel": children(runs)}[kind])
                if victims:
                    with suppress(ProcessLookupError):
                        kill(generator.choice(victims), signal.SIGKILL)
                        done[kind] += 1
                        say(f"killed a {kind}, {done.total()} of {kills}")
                if kind == "launcher":
                    launcher.wait()
                    launcher = launch(folder, workers)
    finally:
        launcher.kill()
        launcher.wait()
