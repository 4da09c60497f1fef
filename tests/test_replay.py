"""A replay: the same metrics to the byte without anybody there, and a plain word where they differ."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.cli import main
from kit.config import RunConfig, Sampling
from kit.objectives import DPO
from kit.recipe import RecipeError
from kit.replay import replay
from kit.run import Run
from kit.runlog import RunDirectoryError, read_jsonl
from kit.sync import Every, Never
from kit.tasks import Arithmetic
from tests.conftest import contents, untimed

Start = Callable[..., Run]


def changed_by_hand(run: Run, last: int) -> None:
    for record in run.steps(last):
        if record["step"] == 2:
            run.controls.set(sync_interval=1, beta=0.3)
        if record["step"] == 5:
            run.controls.set(learning_rate=1e-3, temperature=0.8)


@pytest.fixture
def make(start: Start) -> Callable[[Path], Run]:
    return lambda out_dir: start(out_dir, sync=Never())


@pytest.mark.parametrize("last", [12, 7])
def test_a_run_that_was_changed_by_hand_replays_to_the_byte(
    make: Callable[[Path], Run], tmp_path: Path, last: int
) -> None:
    changed_by_hand(make(tmp_path / "run"), last)
    before = contents(tmp_path / "run")
    found = replay(tmp_path / "run", make=make)
    assert (found.path, found.difference) == (tmp_path / "run_replay1", None)
    assert found.records == len(untimed(tmp_path / "run")) == (13 if last == 12 else 7)
    assert untimed(found.path) == untimed(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    assert replay(tmp_path / "run", make=make).path == tmp_path / "run_replay2"


def test_a_run_that_was_interrupted_in_between_replays_too(make: Callable[[Path], Run], tmp_path: Path) -> None:
    changed_by_hand(make(tmp_path / "run"), 8)
    again = make(tmp_path / "run")  # back at step 6
    again.controls.set(nll_coef=0.1)
    again.finish()
    assert replay(tmp_path / "run", make=make).difference is None


def test_a_fork_replays_from_its_very_start(make: Callable[[Path], Run], tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    changed_by_hand(run, 6)
    fork = run.fork(sync_interval=None, nll_coef=0.2)
    fork.finish()
    assert replay(fork.log.path, make=make).difference is None


def test_a_difference_is_told_with_step_metric_and_values(make: Callable[[Path], Run], tmp_path: Path) -> None:
    changed_by_hand(make(tmp_path / "run"), 12)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    truth = records[9]["grad_norm"]
    records[9]["grad_norm"] = 7.0
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = replay(tmp_path / "run", make=make)
    assert (found.records, found.difference) == (9, f"at step 9 grad_norm: 7.0 became {truth}")


def test_a_change_that_was_left_out_makes_a_difference(make: Callable[[Path], Run], tmp_path: Path) -> None:
    changed_by_hand(make(tmp_path / "run"), 12)
    events = tmp_path / "run" / "events.jsonl"
    kept = [line for line in events.read_text().splitlines() if '"sync_interval"' not in line]
    events.write_text("\n".join(kept) + "\n")
    found = replay(tmp_path / "run", make=make)
    assert found.records == 3 and "at step 3" in str(found.difference)


def test_a_run_of_the_kits_own_parts_replays_from_its_directory_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(
        max_steps=4, prompts_per_step=4, group_size=4, eval_steps=4, eval_prompts=4, eval_samples=1, num_threads=1,
        sampling=Sampling(max_completion_length=24),
    )  # fmt: skip
    run = Run(config, task=Arithmetic(), objective=DPO(), sync=Every(2), out_dir=tmp_path / "run")
    for _ in run.steps(2):
        run.controls.set(beta=0.5)
    run.finish()
    assert main(["replay", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 0
    assert "5 records, identical to the byte" in capsys.readouterr().out
    assert untimed(tmp_path / "again") == untimed(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines[:-1]).replace('"reward": ', '"reward": 1') + "\n")
    assert main(["replay", str(tmp_path / "run")]) == 1
    assert "0 records are identical, then at step 0 reward" in capsys.readouterr().out


def test_what_cannot_be_replayed_says_why(
    make: Callable[[Path], Run], start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="at least one record"):
        replay(tmp_path / "run", make=make)
    list(run.steps(1))
    with pytest.raises(RunDirectoryError, match="exists already"):
        replay(tmp_path / "run", out_dir=tmp_path, make=make)
    with pytest.raises(RecipeError, match=r"another run .*beta"):
        replay(tmp_path / "run", make=lambda out_dir: start(out_dir, sync=Never(), objective=DPO(beta=0.9)))
    assert main(["replay", str(tmp_path / "nothing")]) == 2
    assert main(["replay", str(tmp_path / "run")]) == 2  # made of a task that is not the kit's
    errors = capsys.readouterr().err
    assert "config.json" in errors and "'TinyTask'" in errors
