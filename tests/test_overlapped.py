"""Generation in another process: the same run to the bit, whatever happens to that process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit.config import Lora
from kit.importance import TIS
from kit.objectives import GRPO
from kit.run import Run
from kit.runlog import read_jsonl
from kit.samplers import Overlapped
from kit.sync import Every, Never, OnDrift
from tests.conftest import tiny_run, untimed

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # a process takes seconds to start


@pytest.fixture
def overlapped(tiny_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs that overlap, and ends their processes."""
    made: list[Run] = []

    def make(name: str = "overlapped", depth: int = 2, ahead: int = 0, deadline: float = 60.0, **changes: Any) -> Run:
        sampler = partial(Overlapped, depth=depth, ahead=ahead, deadline=deadline)
        made.append(tiny_run(tiny_folder, tmp_path / name, sampler=sampler, **changes))
        return made[-1]

    yield make
    for run in made:
        sampler_of(run).close()


def sampler_of(run: Run) -> Overlapped:
    assert isinstance(run.sampler, Overlapped)
    return run.sampler


def process_of(run: Run) -> int:
    return sampler_of(run).process_id()


def die(*_: Any) -> None:
    os._exit(1)


def incidents(run: Run) -> list[str]:
    return [e["incident"] for e in read_jsonl(run.log.path / "events.jsonl") if e["event"] == "sampler"]


CASES: dict[str, dict[str, Any]] = {
    "semi-online": {"sync": Every(4)},
    "offline": {"sync": Never(), "objective": GRPO(TIS())},
    "online, mixed precision": {"sync": Every(1), "bf16": True},
    "on drift": {"sync": OnDrift(max_m2=0.02, max_interval=6)},
    "batches used again": {"sync": Every(4), "reuse_epochs": 2, "objective": GRPO(), "save_steps": 4},
    "adapters, in batches": {
        "sync": Every(4),
        "ref_sync": Every(4),
        "lora": Lora(lora_r=4),
        "generation_batch_size": 8,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_is_that_of_a_blocking_sampler(
    case: str, overlapped: Callable[..., Run], tiny_folder: Path, tmp_path: Path
) -> None:
    blocking = tiny_run(tiny_folder, tmp_path / "blocking", **CASES[case])
    blocking.finish()
    run = overlapped(**CASES[case])
    run.finish()
    assert untimed(run.log.path) == untimed(blocking.log.path)
    receipts = [
        [{**r, "seconds": 0} for r in read_jsonl(path / "receipts.jsonl")] for path in (run.log.path, blocking.log.path)
    ]
    assert receipts[0] == receipts[1] and incidents(run) == []


def test_what_is_drawn_ahead_of_a_sync_is_one_window_staler(overlapped: Callable[..., Run]) -> None:
    run = overlapped(depth=3, ahead=2, sync=Every(4))
    run.finish()
    found = [r["sync/staleness"] for r in run.log.metrics() if "sync/staleness" in r]
    assert found == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 2, 3]


def test_ahead_of_every_sync_is_one_step_off_policy(overlapped: Callable[..., Run]) -> None:
    run = overlapped(depth=1, ahead=1, sync=Every(1))
    run.finish()
    assert [r["sync/staleness"] for r in run.log.metrics() if "sync/staleness" in r] == [0] + [1] * 11


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "stalls"])
def test_a_process_that_fails_is_replaced_and_nothing_changes(
    what: signal.Signals, overlapped: Callable[..., Run], tiny_folder: Path, tmp_path: Path
) -> None:
    blocking = tiny_run(tiny_folder, tmp_path / "blocking", sync=Every(4))
    blocking.finish()
    run, hit = overlapped(sync=Every(4)), []
    process_of(run)
    sampler_of(run).deadline = 60.0 if what == signal.SIGKILL else 5.0
    for record in run.steps(12):
        if record["step"] in (1, 7):  # in the middle of a window; at the end of one
            hit.append(process_of(run))
            os.kill(hit[-1], what)
    assert untimed(run.log.path) == untimed(blocking.log.path)
    how = "died" if what == signal.SIGKILL else "did not answer within 5 s"
    assert len(set(hit)) == 2 and len(incidents(run)) == 2 and all(how in text for text in incidents(run))
    assert not any(Path(f"/proc/{pid}").exists() for pid in hit)


def test_processes_that_die_again_and_again_are_an_error(
    overlapped: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = overlapped(sync=Every(4))
    monkeypatch.setattr("kit.samplers.overlapped._generate", die)
    with pytest.raises(RuntimeError, match="3 sampler processes one after another died while the batch of seed"):
        run.finish()
    assert json.loads((run.log.path / "status.json").read_text())["state"] == "failed"


def test_a_change_by_hand_is_in_force_at_once(
    overlapped: Callable[..., Run], tiny_folder: Path, tmp_path: Path
) -> None:
    """What was drawn ahead at the old temperature is not used."""
    blocking, run = tiny_run(tiny_folder, tmp_path / "blocking", sync=Every(6)), overlapped(sync=Every(6))
    for each in (blocking, run):
        for record in each.steps(12):
            if record["step"] == 2:
                each.controls.set(temperature=0.5, sync_interval=3)
    assert untimed(run.log.path) == untimed(blocking.log.path)


def test_it_goes_on_from_a_checkpoint(overlapped: Callable[..., Run], tiny_folder: Path, tmp_path: Path) -> None:
    blocking = tiny_run(tiny_folder, tmp_path / "blocking", sync=Every(4))
    blocking.finish()
    first = overlapped(sync=Every(4))
    for record in first.steps(12):
        if record["step"] == 7:  # the last checkpoint is of step 6, in the middle of a window
            break
    sampler_of(first).close()
    run = overlapped(sync=Every(4))
    assert run.step == 6
    run.finish()
    assert untimed(run.log.path) == untimed(blocking.log.path)


@pytest.mark.parametrize("wrong", [{"depth": -1}, {"ahead": -1}, {"depth": 1, "ahead": 2}, {"deadline": 0.0}])
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, Any], overlapped: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match=r"expected (depth >= 0 and 0 <= ahead <= depth|deadline > 0 seconds), came"):
        overlapped(**wrong)


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from kit.samplers import Overlapped
from kit.sync import Every
from tests.conftest import tiny_run

if __name__ == "__main__":
    run = tiny_run(Path(sys.argv[1]), Path(sys.argv[2]), sampler=partial(Overlapped, depth=2), sync=Every(4))
    for record in run.steps(2):
        pass
    print(run.sampler.process_id(), flush=True)
    if sys.argv[3] == "wait":
        sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["killed", "ends"])
def test_the_process_ends_with_its_run(how: str, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [
        sys.executable,
        tmp_path / "program.py",
        tiny_folder,
        tmp_path / "run",
        "wait" if how == "killed" else "",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdout and program.stderr
        child = int(program.stdout.readline())
        if how == "killed":
            program.kill()
        said = program.communicate(timeout=60)[1]
    assert how == "killed" or (program.returncode == 0 and "Exception" not in said)
    until = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
