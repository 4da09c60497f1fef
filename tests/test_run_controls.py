"""Changing a run while it trains: in force at the next step, written down, and made again by a resumed run."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.fork import recorded_controls
from kit.objectives import DPO, GRPO
from kit.run import Run
from kit.runlog import read_jsonl
from kit.sync import Every, Never, OnDrift
from tests.conftest import happened, untimed

Start = Callable[..., Run]


def column(out_dir: Path, name: str) -> list[Any]:
    return [record[name] for record in read_jsonl(out_dir / "metrics.jsonl") if name in record]


def test_a_change_is_in_force_at_the_next_step_and_is_an_event(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, sync=Never())
    for record in run.steps(12):
        if record["step"] == 4:
            run.controls.set(sync_interval=2, learning_rate=1e-3)
    assert column(tmp_path, "sync/staleness") == [0, 1, 2, 3, 4, 0, 1, 0, 1, 0, 1, 0]
    assert column(tmp_path, "learning_rate") == [1e-2] * 5 + [1e-3] * 7
    assert recorded_controls(tmp_path) == [(5, {"sync_interval": 2, "learning_rate": 1e-3})]


def test_a_change_from_the_start_is_the_run_configured_so(start: Start, tmp_path: Path) -> None:
    changes = {"beta": 0.7, "nll_coef": 0.2, "entropy_coef": 0.05, "learning_rate": 3e-3, "sync_interval": 3}
    changed = start(tmp_path / "changed")
    changed.controls.set(**changes)
    changed.finish()
    objective = DPO(beta=0.7, nll_coef=0.2, entropy_coef=0.05)
    start(tmp_path / "so", objective=objective, learning_rate=3e-3, sync=Every(3)).finish()
    assert untimed(tmp_path / "changed") == untimed(tmp_path / "so")


def test_temperature_is_that_of_training_and_evaluations_keep_theirs(start: Start, tmp_path: Path) -> None:
    for name, temperature in (("a", 1.0), ("b", 0.3)):
        run = start(tmp_path / name)
        run.controls.set(temperature=temperature)
        list(run.steps(1))
    entropies = [column(tmp_path / name, "sampler/entropy")[0] for name in "ab"]
    assert entropies[1] < 0.8 * entropies[0]
    assert column(tmp_path / "a", "eval/entropy") == column(tmp_path / "b", "eval/entropy")
    for name in "ab":  # online: the policy is scored at the temperature it was sampled at
        assert column(tmp_path / name, "offpolicy/ratio_mean")[0] == pytest.approx(1, abs=1e-5)


def test_another_seed_from_some_step_on_draws_other_prompts(start: Start, tmp_path: Path) -> None:
    for name in "ab":
        run = start(tmp_path / name)
        list(run.steps(3))
        if name == "b":
            run.controls.set(seed=9)
        list(run.steps(2))
    a, b = (untimed(tmp_path / name) for name in "ab")
    assert [x == y for x, y in zip(a, b, strict=True)] == [True, True, True, False, False]


def test_a_resumed_run_makes_the_changes_again(start: Start, tmp_path: Path) -> None:
    def watched(run: Run, last: int) -> None:
        for record in run.steps(last):
            if record["step"] == 1:
                run.controls.set(beta=0.4)
            if record["step"] == 6:
                run.controls.set(sync_interval=None)

    watched(start(tmp_path / "straight"), 12)
    watched(start(tmp_path / "killed"), 8)  # a checkpoint after 6 steps: the change at 7 is after it
    again = start(tmp_path / "killed")
    assert (again.step, again.controls["beta"], again.controls["sync_interval"]) == (6, 0.4, 1)
    again.finish()
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "straight")
    assert recorded_controls(tmp_path / "killed") == [(2, {"beta": 0.4}), (7, {"sync_interval": None})]


def test_a_batch_that_serves_several_steps_is_used_up_first(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, reuse_epochs=3, sync=Never())
    for record in run.steps(12):
        if record["step"] == 3:
            run.controls.set(learning_rate=1e-3, temperature=0.5)
    assert column(tmp_path, "learning_rate") == [1e-2] * 6 + [1e-3] * 6
    assert [step for step, _ in recorded_controls(tmp_path)] == [6]


def test_a_schedule_by_drift_gives_way_to_an_interval(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, sync=OnDrift(max_kl=1e9))
    list(run.steps(4))
    run.controls.set(sync_interval=1)
    list(run.steps(3))
    assert column(tmp_path, "sync/staleness") == [0, 1, 2, 3, 0, 0, 0]


def test_what_the_run_cannot_be_is_refused_and_it_goes_on(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path, objective=GRPO(), max_age=0)
    list(run.steps(1))
    for changes, message in (
        ({"sync_interval": 5}, "expected max_age >= 4"),
        ({"temperature": 0}, "greedy groups are all equal"),
        ({"kl_coef": 0.1}, "started without one and has kept none"),
    ):
        with pytest.raises(ValueError, match=message):
            run.controls.set(**changes)
    run.finish()
    assert recorded_controls(tmp_path) == []


def test_listeners_hear_every_record_on_the_thread_of_the_run(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path)
    heard: list[tuple[int, threading.Thread]] = []
    run.listeners.append(lambda record: heard.append((record["step"], threading.current_thread())))
    run.finish()
    assert heard == [(step, threading.current_thread()) for step in range(13)]  # the last one is the final evaluation
    assert [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(13))


def test_a_pause_holds_the_run_between_two_steps_and_shows_in_its_status(start: Start, tmp_path: Path) -> None:
    run = start(tmp_path)
    seen: list[tuple[int, str]] = []

    def poll() -> None:
        seen.append((run.step, (tmp_path / "status.json").read_text()))
        if run.controls.is_paused and len([step for step, _ in seen if step == 5]) == 2:
            run.controls.resume()

    def pause(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            run.controls.pause()

    run.controls.poll = poll
    run.listeners.append(pause)
    run.finish()
    at_pause = [status for step, status in seen if step == 5]
    assert ['"paused"' in status for status in at_pause] == [False, True]  # it stands after the first look
    assert '"finished"' in (tmp_path / "status.json").read_text()


def test_a_pause_that_comes_with_a_poll_shows_in_the_status_too(start: Start, tmp_path: Path) -> None:
    """As from a browser whose messages are only handled between two steps."""
    run, states = start(tmp_path), []

    def poll() -> None:
        if run.step == 3 and not states:
            run.controls.pause()
        if run.controls.is_paused:
            states.append((tmp_path / "status.json").read_text())
        if len(states) == 3:
            run.controls.resume()

    run.controls.poll = poll
    list(run.steps(4))
    assert ['"paused"' in state for state in states] == [False, True, True]


@pytest.mark.parametrize("where", ["pause", "listener"])
def test_ctrl_c_between_two_steps_keeps_what_was_trained(start: Start, tmp_path: Path, where: str) -> None:
    start(tmp_path / "straight").finish()
    run = start(tmp_path / "run")

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 4 and where == "listener":
            os.kill(os.getpid(), signal.SIGINT)
        elif record["step"] == 4:
            run.controls.pause()
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    run.listeners.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert happened(tmp_path / "run") == ["start", "interrupt"]
    assert '"interrupted"' in (tmp_path / "run" / "status.json").read_text()
    again = start(tmp_path / "run")
    assert again.step == 5
    again.finish()
    assert untimed(tmp_path / "run") == untimed(tmp_path / "straight")
