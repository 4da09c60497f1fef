"""The worker pool: a judge that hangs, explodes or is killed costs one item; nothing else is lost or left over."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.rewards.pool import WorkerPool

ROOT = Path(__file__).parents[1]

JUDGE = r"""
import os, signal, sys, time
from pathlib import Path
from kit.rewards.worker import serve

def descend():
    return descend()

def judge(item):
    action, argument = item
    if action == "echo":
        return argument
    if action == "echo after":
        time.sleep(argument / 1000)
        return argument
    if action == "pid":
        return os.getpid()
    if action in ("sleep", "answer late"):
        Path(argument).write_text(str(os.getpid()))
        time.sleep(600 if action == "sleep" else 1)
        return "late"
    if action == "power":
        return len(str(argument ** argument ** argument))
    if action == "raise":
        raise KeyError(argument)
    if action == "exit":
        os._exit(argument)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "allocate":
        return len(bytearray(argument))
    if action == "descend":
        return descend()
    if action == "print":
        print("noise")
        os.write(1, b'{"value": "forged"}\n')
        return argument

serve(judge)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Starts a worker whose judge does what an item tells it to."""
    script = tmp_path / "judge.py"
    script.write_text(JUDGE)
    return [sys.executable, "-P", str(script)]


@pytest.fixture
def pool(command: list[str]) -> Iterator[WorkerPool]:
    pool = WorkerPool(command, timeout_s=20.0)
    yield pool
    pool.close()


def is_running(pid: int) -> bool:
    """Whether the process lives; one that nobody has reaped yet is dead."""
    status = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_until_gone(*pids: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids)), f"still running: {[pid for pid in pids if is_running(pid)]}"


def wait_for_pid(path: Path) -> int:
    """The process id that a sleeping judge has written."""
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "the judge never started"
        time.sleep(0.01)
    return int(path.read_text())


@pytest.mark.parametrize(
    ("action", "argument", "counted"),
    [
        (
            "power",
            999,
            "timeouts",
        ),  # big-integer C code: holds the interpreter lock, so no signal handler of Python runs
        ("sleep", os.devnull, "timeouts"),
        ("exit", 0, "crashes"),  # an exit that claims success
        ("kill", None, "crashes"),  # as the kernel does when memory is short
        ("allocate", 8 << 30, "crashes"),  # beyond the memory limit
        ("descend", None, "crashes"),  # RecursionError
        ("raise", "x", "errors"),  # the worker lives on
    ],
)
def test_bad_item_is_lost_alone_and_counted(command: list[str], action: str, argument: object, counted: str) -> None:
    pool = WorkerPool(command, workers=1, timeout_s=1.0)
    start = time.monotonic()
    items = [("echo", 1), (action, argument), ("echo", 2), (action, argument), ("echo", 3)]
    assert pool.run(items) == [1, None, 2, None, 3]
    assert time.monotonic() - start < 8  # two deadlines and three starts, on a busy machine
    assert pool.counts == {"timeouts": 0, "crashes": 0, "errors": 0} | {counted: 2}
    pool.close()


def test_only_the_first_loss_of_a_kind_is_a_warning(pool: WorkerPool, caplog: pytest.LogCaptureFixture) -> None:
    pool.run([("raise", "x" * 1000), ("raise", "y")])
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "errors" in record.message and "KeyError" in record.message and len(record.message) < 800


def test_answers_keep_the_order_of_the_items(pool: WorkerPool) -> None:
    milliseconds = [30, 0, 10, 0, 0, 20, 1, 5, 0, 3] * 3
    assert pool.run([("echo after", value) for value in milliseconds]) == milliseconds


def test_empty_batch_starts_nothing() -> None:
    assert WorkerPool(["/no/such/program"]).run([]) == []


def test_items_and_answers_of_any_size_and_script_arrive(pool: WorkerPool) -> None:
    # Beyond what a pipe buffers (64 KiB); outside ASCII; a lone surrogate, which UTF-8 cannot encode; line breaks.
    values = ["x" * 3_000_000, "∫é😀\u2028", "\ud800", "a\nb\r\n", "", None, [1.5, {"a": True}]]
    assert pool.run([("echo", value) for value in values]) == values


def test_what_a_judge_prints_is_no_answer(pool: WorkerPool) -> None:
    assert pool.run([("print", 1), ("print", 2), ("echo", 3)]) == [1, 2, 3]


def test_worker_killed_from_outside_costs_its_item_only(command: list[str], tmp_path: Path) -> None:
    pool = WorkerPool(command, timeout_s=30.0)
    killer = threading.Thread(target=lambda: os.kill(wait_for_pid(tmp_path / "pid"), signal.SIGKILL))
    killer.start()
    items = [("sleep", str(tmp_path / "pid")), *[("echo", value) for value in range(20)]]
    assert pool.run(items) == [None, *range(20)]
    killer.join()
    assert pool.counts == {"timeouts": 0, "crashes": 1, "errors": 0}
    pool.close()


def test_worker_killed_between_batches_costs_nothing(command: list[str]) -> None:
    pool = WorkerPool(command, workers=1, timeout_s=20.0)
    (before,) = pool.run([("pid", None)])
    os.kill(before, signal.SIGKILL)
    wait_until_gone(before)
    (after,) = pool.run([("pid", None)])
    assert after not in (None, before)
    assert pool.counts["crashes"] == 0
    pool.close()


def test_workers_are_kept_between_batches_and_end_with_close(command: list[str]) -> None:
    pool = WorkerPool(command, workers=1, timeout_s=20.0)
    (first,), (second,) = pool.run([("pid", None)]), pool.run([("pid", None)])
    assert first == second
    pool.close()
    wait_until_gone(first)
    (third,) = pool.run([("pid", None)])  # a closed pool starts anew
    assert third != first
    del pool
    gc.collect()
    wait_until_gone(third)  # so does one that nobody holds any more


def test_threads_may_share_a_pool(pool: WorkerPool) -> None:
    answers: dict[int, list[int]] = {}

    def ask(thread: int) -> None:
        answers[thread] = pool.run([("echo", 100 * thread + value) for value in range(30)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {thread: [100 * thread + value for value in range(30)] for thread in range(4)}


def test_interrupted_batch_leaves_no_answers_for_the_next(command: list[str], tmp_path: Path) -> None:
    pool = WorkerPool(command, timeout_s=30.0)
    seen: list[int] = []

    def interrupt() -> None:
        seen.append(wait_for_pid(tmp_path / "pid"))
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        pool.run([("answer late", str(tmp_path / "pid"))])
    interrupter.join()
    assert pool.run([("echo", value) for value in range(10)]) == list(range(10))
    wait_until_gone(*seen)
    assert pool.counts == {"timeouts": 0, "crashes": 0, "errors": 0}
    pool.close()


ORPHANS = """
import sys, threading
from kit.rewards.pool import WorkerPool
busy, idle = (WorkerPool(sys.argv[1:4], workers=1, timeout_s=1.0) for _ in range(2))
print(idle.run([("pid", None)])[0], flush=True)
print(busy.run([("pid", None)])[0], flush=True)
sys.stdin.readline()
busy.run([("power", 999)])
"""


def test_killed_parent_leaves_no_workers(command: list[str]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdin is not None and parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.stdin.write("go\n")
    parent.stdin.flush()
    time.sleep(0.3)  # one of them is now in the middle of a power that would take hours
    assert all(map(is_running, pids))
    parent.kill()
    parent.communicate()
    wait_until_gone(*pids)


FORK = """
import os, sys
from kit.rewards.pool import WorkerPool
pool = WorkerPool(sys.argv[1:4], timeout_s=20.0)
pool.run([("echo", 1)])
child = os.fork()
if child == 0:
    try:
        pool.run([("echo", 2)])
    except RuntimeError as error:
        print(error, flush=True)
    sys.exit(0)  # the exit handlers of the child must not end the parent's workers
os.waitpid(child, 0)
print(pool.run([("echo", 3)]), pool.counts["crashes"])
"""


def test_fork_of_the_owner_is_refused_and_harmless(command: list[str]) -> None:
    script = [sys.executable, "-c", FORK, *command]
    lines = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()
    assert "make a new pool there" in lines[0]
    assert lines[1] == "[3] 0"


def test_worker_that_cannot_start_is_an_error_with_its_reason() -> None:
    pool = WorkerPool([sys.executable, "-c", "import no_such_module"])
    with pytest.raises(RuntimeError, match=r"(?s)ready within.*exit code 1.*No module named 'no_such_module'"):
        pool.run([1])


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout_s": 0.0}, {"memory_bytes": 0}])
def test_impossible_limits_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"got.*{next(iter(wrong))}=0"):
        WorkerPool(["true"], **wrong)
