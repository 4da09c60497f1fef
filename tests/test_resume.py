"""Killed at any instant, or stopped by Ctrl-C, a run resumes to the metrics of an uninterrupted one.

Run as a program, this file trains: one process imports everything once and forks a child for every attempt.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import happened, tiny_run, untimed

ROOT = Path(__file__).parents[1]
CHANGES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate")  # as Python's auditing calls them


def arguments(name: str) -> dict[str, Any]:
    """What the runs of a test are made of, in this process and in its children."""
    from kit.importance import DecoupledPPO
    from kit.objectives import GRPO
    from kit.sync import Every, OnDrift

    semi_online = {"sync": Every(2), "ref_sync": Every(3)}
    return {
        "random": {  # everything that a checkpoint must hold: a measured drift, a mixed reference, batches used again
            "objective": GRPO(DecoupledPPO(), kl_coef=0.1), "sync": OnDrift(max_m2=0.02, max_interval=6),
            "ref_sync": Every(1), "ref_mixup_alpha": 0.3, "reuse_epochs": 3,
        },
        "file operations": semi_online | {"max_steps": 3, "save_steps": 1, "eval_steps": 2, "eval_prompts": 2},
        "ctrl-c": {"sync": Every(2), "objective": GRPO(), "max_steps": 30, "save_steps": 1000, "eval_steps": 7},
    }[name]  # fmt: skip


def train(folder: Path, out_dir: Path, name: str) -> None:
    tiny_run(folder, out_dir, **arguments(name)).finish()


@contextmanager
def child(folder: Path, out_dir: Path, name: str, kill_before: int | None = None) -> Iterator[int]:
    """A forked process that trains, killed at the end of the block unless it ended before; it may also kill itself."""
    pid = os.fork()
    if not pid:
        if kill_before is not None:
            die_before_change(out_dir, kill_before)
        train(folder, out_dir, name)
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def is_running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def outcome(pid: int) -> int:
    """0 if the child finished, else the signal that ended it."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status


def die_before_change(out_dir: Path, number: int) -> None:
    """SIGKILL this process just before it changes the run directory for the `number`-th time, from 1."""
    seen = 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        is_in_tree = event in ("os.rmdir", "os.remove") and details[-1] != -1  # of a folder that is being deleted
        if event not in CHANGES or not (is_in_tree or str(details[0]).startswith(str(out_dir))):
            return
        if event == "open" and not details[2] & (os.O_WRONLY | os.O_RDWR):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def kill_at_random(folder: Path, root: Path, kills: int) -> list[str]:
    """Train in one directory after another, killing 20 times in all; a directory is left when its run has finished."""
    started = time.monotonic()
    with child(folder, root / "timed", "random") as pid:
        assert outcome(pid) == 0
    full_s = time.monotonic() - started
    rng, killed, number = random.Random(0), 0, 0
    while killed < kills:
        with child(folder, root / str(number), "random") as pid:
            time.sleep(rng.uniform(0, 0.8 * full_s))
            is_killed = is_running(pid)
        killed, number = killed + is_killed, number + (not is_killed)
    with child(folder, root / str(number), "random") as pid:
        assert outcome(pid) == 0
    return [str(n) for n in range(number + 1)]


def kill_before_every_change(folder: Path, root: Path) -> list[str]:
    """A run is killed before its n-th change of a file, then resumed to its end; for every n that it reaches."""
    number = 0
    while True:
        number += 1
        with child(folder, root / str(number), "file operations", kill_before=number) as pid:
            if outcome(pid) == 0:
                return [str(n) for n in range(1, number + 1)]
        with child(folder, root / str(number), "file operations") as pid:
            assert outcome(pid) == 0


def program(*words: object) -> list[str]:
    return [sys.executable, "-m", "tests.test_resume", *map(str, words)]


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["at random", "before every change of a file"])
def test_a_killed_run_resumes_to_the_metrics_of_an_uninterrupted_one(
    tiny_folder: Path, tmp_path: Path, how: str
) -> None:
    found = subprocess.run(
        program(how, tiny_folder, tmp_path), cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    directories = json.loads(found.stdout.splitlines()[-1])
    assert len(directories) >= (1 if how == "at random" else 30)
    expected = untimed(tmp_path / "straight")
    for name in directories:
        assert untimed(tmp_path / name) == expected, name
        assert json.loads((tmp_path / name / "status.json").read_text())["state"] == "finished"
        assert set(happened(tmp_path / name)) <= {"start", "resume", "finish"}
    if how == "at random":
        starts = sum(len(happened(tmp_path / name)) for name in directories)
        assert starts > len(directories)  # some were killed in the middle of their work, not only while they started


def test_ctrl_c_ends_with_a_checkpoint_and_the_run_resumes(
    start: Callable[..., Any], tiny_folder: Path, tmp_path: Path
) -> None:
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    process = subprocess.Popen(
        program("train", tiny_folder, tmp_path / "stopped"), cwd=ROOT, env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    status = json.loads((tmp_path / "stopped" / "status.json").read_text())
    step = status["step"]
    assert status["state"] == "interrupted" and 3 <= step < 30
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"step_{step:06d}"]
    assert len(untimed(tmp_path / "stopped")) == step
    run = start(tmp_path / "stopped", **arguments("ctrl-c"))
    assert run.step == step
    run.finish()
    start(tmp_path / "straight", **arguments("ctrl-c")).finish()
    assert untimed(tmp_path / "stopped") == untimed(tmp_path / "straight")
    assert not (tmp_path / "stopped" / "discarded").exists()  # nothing had to be done again
    assert happened(tmp_path / "stopped")[:3] == ["start", "interrupt", "resume"]


def test_ctrl_c_in_this_process_pauses_the_run(start: Callable[..., Any], tmp_path: Path) -> None:
    def press_ctrl_c(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        if run.step == 2 and not (tmp_path / "run" / "checkpoints" / "step_000003").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return [float(ids[0] % 2 == 0) for ids in completion_ids]

    from tests.conftest import TinyTask

    changes: dict[str, Any] = {
        "task": TinyTask(reward=press_ctrl_c),
        "max_steps": 6,
        "save_steps": 100,
        "eval_steps": 9,
    }
    run = start(tmp_path / "run", **changes)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert run.step == 3 and len(untimed(tmp_path / "run")) == 3  # the step that was running is done
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
    run.finish()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert [json.loads(line)["step"] for line in untimed(tmp_path / "run")] == list(range(7))


def test_ctrl_c_in_the_last_step_leaves_a_finished_run(start: Callable[..., Any], tmp_path: Path) -> None:
    def press_ctrl_c(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return [float(ids[0] % 2 == 0) for ids in completion_ids]

    from tests.conftest import TinyTask

    run = start(tmp_path, task=TinyTask(reward=press_ctrl_c), max_steps=3, eval_steps=9)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def main(how: str, folder: str, target: str) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if how == "train":
        return train(Path(folder), Path(target), "ctrl-c")
    name, kill = {
        "at random": ("random", partial(kill_at_random, kills=20)),
        "before every change of a file": ("file operations", kill_before_every_change),
    }[how]
    train(Path(folder), Path(target) / "straight", name)  # here, so that no child has to import anything
    print(json.dumps(kill(Path(folder), Path(target))))


if __name__ == "__main__":
    main(*sys.argv[1:])
