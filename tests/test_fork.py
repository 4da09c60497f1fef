"""Forks: the same beginning, another end, and a parent that is not touched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.checkpoint import list_checkpoints
from kit.fork import free_sibling, recorded_controls
from kit.objectives import DPO, GRPO
from kit.run import Run
from kit.runlog import RunDirectoryError, read_jsonl
from kit.sync import Every, Never
from tests.conftest import contents, happened, untimed

Start = Callable[..., Run]


@pytest.fixture
def parent(start: Start, tmp_path: Path) -> Run:
    """After 8 of 12 steps, with checkpoints after 3 and 6."""
    run = start(tmp_path / "run", sync=Every(2))
    list(run.steps(8))
    return run


def test_a_fork_without_a_change_ends_like_its_parent(parent: Run, tmp_path: Path) -> None:
    fork = parent.fork(6)
    assert (fork.step, fork.log.path) == (6, tmp_path / "run_fork1")
    fork.finish()
    parent.finish()
    assert untimed(fork.log.path) == untimed(parent.log.path)
    for folder in ("rollouts", "evaluations"):
        files = {path.name: path.read_bytes() for path in (fork.log.path / folder).iterdir()}
        assert files == {path.name: path.read_bytes() for path in (parent.log.path / folder).iterdir()}


def test_a_fork_shares_its_beginning_and_goes_on_with_the_change(parent: Run, start: Start, tmp_path: Path) -> None:
    before = contents(parent.log.path)
    fork = parent.fork(3, sync_interval=None, learning_rate=5e-2)
    assert contents(parent.log.path) == before
    fork.finish()
    assert untimed(fork.log.path)[:3] == untimed(parent.log.path)[:3]
    records = read_jsonl(fork.log.path / "metrics.jsonl")
    assert [record["sync/staleness"] for record in records[:-1]] == [0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [record["learning_rate"] for record in records[:-1]] == [1e-2] * 3 + [5e-2] * 9
    assert recorded_controls(fork.log.path) == [(3, {"sync_interval": None, "learning_rate": 5e-2})]
    assert happened(fork.log.path) == ["start", "fork", "control", "resume"]


def test_a_fork_where_the_run_stands_makes_the_checkpoint_it_needs(parent: Run) -> None:
    fork = parent.fork(beta=0.5)
    assert (fork.step, fork.controls["beta"], parent.controls["beta"]) == (8, 0.5, 0.1)
    assert [path.name for path in list_checkpoints(parent.log.path / "checkpoints")] == ["step_000006", "step_000008"]
    fork.finish()
    parent.finish()
    assert untimed(fork.log.path)[:8] == untimed(parent.log.path)[:8]
    assert untimed(fork.log.path)[8] != untimed(parent.log.path)[8]


def test_parent_and_fork_may_advance_in_turn(parent: Run, start: Start, tmp_path: Path) -> None:
    fork = parent.fork(6, sync_interval=1)
    alone = parent.fork(6, sync_interval=1)
    for _ in zip(parent.steps(4), fork.steps(4), strict=True):
        pass
    list(alone.steps(4))
    assert untimed(fork.log.path) == untimed(alone.log.path)
    parent.finish()
    start(tmp_path / "undisturbed", sync=Every(2)).finish()
    assert untimed(parent.log.path) == untimed(tmp_path / "undisturbed")


def test_a_fork_can_be_longer_and_of_another_seed(parent: Run) -> None:
    fork = parent.fork(6, max_steps=15, seed=4)
    assert fork.finish()["step"] == 15
    assert json.loads((fork.log.path / "config.json").read_text())["max_steps"] == 15
    drawn = [(fork.log.path / "rollouts" / f"step_00000{step}.parquet").read_bytes() for step in (5, 6)]
    same = [(parent.log.path / "rollouts" / f"step_00000{step}.parquet").read_bytes() for step in (5, 6)]
    assert [a == b for a, b in zip(drawn, same, strict=True)] == [True, False]


def test_a_fork_of_a_fork_knows_all_that_was_changed(parent: Run) -> None:
    child = parent.fork(6, beta=0.2)
    list(child.steps(2))
    grandchild = child.fork(nll_coef=0.5)
    assert recorded_controls(grandchild.log.path) == [(6, {"beta": 0.2}), (8, {"nll_coef": 0.5})]
    assert grandchild.training.settings.objective == DPO(beta=0.2, nll_coef=0.5)
    assert [event["parent"] for event in read_jsonl(grandchild.log.path / "events.jsonl") if "parent" in event] == [
        "run", "run_fork1",
    ]  # fmt: skip


def test_a_fork_resumes_like_any_run(parent: Run, start: Start) -> None:
    fork = parent.fork(3, sync_interval=None)
    list(fork.steps(4))
    again = start(fork.log.path, sync=Every(2))
    assert (again.step, again.controls["sync_interval"]) == (6, None)
    again.finish()
    straight = parent.fork(3, sync_interval=None)
    straight.finish()
    assert untimed(again.log.path) == untimed(straight.log.path)


def test_more_checkpoints_are_kept_on_demand(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path / "run", save_total_limit=4)
    run.finish()
    assert [run.fork(step, max_steps=13).step for step in (3, 6, 9, 12)] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"step": 4}, RunDirectoryError, r"has a checkpoint \(3, 6\), came 4"),
        ({"step": 6, "group_size": 2}, ValueError, "nothing called 'group_size'"),
        ({"step": 6, "beta": -1}, ValueError, "DPO.beta must be above 0"),
        ({"step": 6, "temperature": 0}, ValueError, "greedy groups are all equal"),
        ({"step": 6, "max_steps": 6}, ValueError, "expected max_steps above 6"),
        ({"max_steps": 8}, ValueError, "expected max_steps above 8"),
    ],
)
def test_a_fork_that_cannot_be_leaves_nothing(
    parent: Run, tmp_path: Path, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    before = contents(tmp_path)
    with pytest.raises(error, match=message):
        parent.fork(**arguments)
    assert contents(tmp_path) == before


def test_a_directory_that_exists_is_not_written_into(parent: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunDirectoryError, match="exists already"):
        parent.fork(6, out_dir=tmp_path / "taken")
    assert list((tmp_path / "taken").iterdir()) == []
    assert free_sibling(tmp_path / "taken", "fork") == tmp_path / "taken_fork1"


def test_what_a_killed_fork_left_is_no_fork_and_no_obstacle(parent: Run, tmp_path: Path) -> None:
    (tmp_path / "run_fork1.partial" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run_fork1.partial" / "metrics.jsonl").write_text("half a li")
    assert parent.fork(6).log.path == tmp_path / "run_fork1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run_fork1"]


def test_no_fork_in_the_middle_of_a_batch(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path / "run", reuse_epochs=3)
    list(run.steps(4))
    with pytest.raises(ValueError, match="in the middle of a batch"):
        run.fork()
    list(run.steps(2))
    assert run.fork().step == 6


def test_a_run_without_a_reference_cannot_fork_into_one_that_needs_it(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path / "run", objective=GRPO(), sync=Never())
    list(run.steps(3))
    with pytest.raises(ValueError, match="started without one and has kept none"):
        run.fork(kl_coef=0.1)
