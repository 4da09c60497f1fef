"""The dashboard beside a real run: what its controls do at the next step, how its forks grow, what a file keeps."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.dashboard import Dashboard
from kit.objectives import GRPO
from kit.run import Run
from kit.runlog import read_jsonl
from kit.sync import Every, Never, OnDrift
from tests.conftest import tiny_run, untimed

Start = Callable[..., Run]
MINUTE = 60.0


@pytest.fixture
def begin(tiny_folder: Path, tmp_path: Path) -> Start:
    def started(name: str = "run", **changes: Any) -> Run:
        return tiny_run(tiny_folder, tmp_path / name, **({"eval_steps": 99} | changes))

    return started


def steps(run: Run, count: int) -> None:
    for _ in run.steps(count):
        pass


def changes_of(run: Run) -> list[tuple[int, dict[str, Any]]]:
    events = read_jsonl(run.log.path / "events.jsonl")
    return [(event["step"], event["changes"]) for event in events if event["event"] == "control"]


def test_every_record_becomes_a_point(begin: Start) -> None:
    run = begin()
    dashboard = Dashboard(run)
    run.finish()
    logged = run.log.metrics()
    assert dashboard.curves.series[0].line("reward") == [(r["step"], r["reward"]) for r in logged if "reward" in r]
    titles = [chart.panel.title for chart in dashboard.curves.charts()]
    assert "Log-probs of pairs" in titles and "Clipped ratios" not in titles


def test_grpo_has_other_panels_than_dpo(begin: Start) -> None:
    run = begin(objective=GRPO(kl_coef=0.1))
    dashboard = Dashboard(run)
    steps(run, 2)
    titles = [chart.panel.title for chart in dashboard.curves.charts()]
    assert "Clipped ratios" in titles and "Divergence from the reference" in titles
    assert "Log-probs of pairs" not in titles
    assert {"kl_coef", "temperature"} < set(dashboard.controls.knobs) and "beta" not in dashboard.controls.knobs


def test_a_dashboard_changes_nothing_of_a_run(begin: Start) -> None:
    watched, alone = begin("watched", max_steps=4), begin("alone", max_steps=4)
    Dashboard(watched)
    watched.finish()
    alone.finish()
    assert untimed(watched.log.path) == untimed(alone.log.path)


def test_a_dashboard_made_late_has_the_first_steps_too(begin: Start) -> None:
    run = begin()
    steps(run, 5)
    dashboard = Dashboard(run)
    steps(run, 2)
    assert [x for x, _ in dashboard.curves.series[0].line("reward")] == [0, 1, 2, 3, 4, 5, 6]


def test_what_the_doctor_says_during_the_run_is_marked_at_its_step(begin: Start) -> None:
    run = begin()
    dashboard = Dashboard(run)
    steps(run, 8)
    told = [(e["step"], e["name"]) for e in read_jsonl(run.log.path / "events.jsonl") if e["event"] == "doctor"]
    assert any(step > 0 for step, _ in told)  # the untrained model never ends its completions
    marks = [(mark.step, mark.rule) for mark in dashboard.curves.marks() if mark.kind == "finding"]
    assert marks == sorted(dict.fromkeys(told), key=lambda mark: mark[0])


def test_a_slider_that_was_moved_is_in_force_at_the_next_step(begin: Start) -> None:
    run = begin()
    dashboard = Dashboard(run)
    steps(run, 2)
    knob = dashboard.controls.knobs["learning_rate"]
    knob.control.value = 1e-4
    assert "in force 0.01" in knob.state.value and "0.0001</b> from the next step" in knob.state.value
    steps(run, 1)
    assert run.log.metrics()[-1]["learning_rate"] == 1e-4
    assert "in force 0.0001" in knob.state.value and "next step" not in knob.state.value
    assert changes_of(run) == [(2, {"learning_rate": 1e-4})]
    (mark,) = [mark for mark in dashboard.curves.marks() if mark.kind == "control"]
    assert (mark.step, mark.text) == (2, "learning_rate = 0.0001")


@pytest.mark.parametrize(("shown", "value", "staleness"), [("never", None, [3, 4]), ("1", 1, [0, 0])])
def test_the_interval_can_be_turned_to_never(begin: Start, shown: str, value: int | None, staleness: list[int]) -> None:
    run = begin(sync=Every(5))
    dashboard = Dashboard(run)
    steps(run, 3)
    dashboard.controls.knobs["sync_interval"].control.value = shown
    steps(run, 2)
    assert run.controls["sync_interval"] == value
    assert [record["sync/staleness"] for record in run.log.metrics()[3:]] == staleness


def test_an_interval_and_a_schedule_that_no_slider_has_are_shown_all_the_same(begin: Start) -> None:
    assert Dashboard(begin("a", sync=Every(7))).controls.knobs["sync_interval"].control.value == "7"
    assert Dashboard(begin("b", sync=Never())).controls.knobs["sync_interval"].control.value == "never"
    run = begin("c", sync=OnDrift(max_kl=0.5))
    assert Dashboard(run).controls.knobs["sync_interval"].control.value == str(OnDrift(max_kl=0.5))
    assert run.controls.pending() == {}


def test_a_value_set_by_code_moves_the_control_and_does_not_come_back(begin: Start) -> None:
    run = begin()
    dashboard = Dashboard(run)
    run.controls.set(learning_rate=3e-9, sync_interval=44, temperature=5.0)
    steps(run, 1)
    shown = {name: knob.control.value for name, knob in dashboard.controls.knobs.items()}
    assert (shown["learning_rate"], shown["sync_interval"], shown["temperature"]) == (3e-9, "44", 5.0)
    steps(run, 1)
    assert changes_of(run) == [(0, {"learning_rate": 3e-9, "sync_interval": 44, "temperature": 5.0})]


def test_a_refused_value_says_why_and_changes_nothing(begin: Start) -> None:
    run = begin()
    dashboard = Dashboard(run)
    knob = dashboard.controls.knobs["nll_coef"]
    knob.control.value = -1.0
    assert "refused" in knob.state.value and "nll_coef" in knob.state.value
    steps(run, 1)
    assert "refused" in knob.state.value and run.controls["nll_coef"] == 0 and changes_of(run) == []
    knob.control.value = 0.5
    steps(run, 1)
    assert "in force 0.5" in knob.state.value and changes_of(run) == [(1, {"nll_coef": 0.5})]


def test_pause_step_and_resume_from_another_thread(begin: Start) -> None:
    run = begin(max_steps=6)
    dashboard = Dashboard(run)
    buttons, seen = dashboard.controls, []
    dashboard.controls.pause.click()
    is_waiting = threading.Event()
    usual = run.controls.poll
    assert usual is not None

    def poll() -> None:
        usual()
        if run.controls.is_paused:
            is_waiting.set()

    run.controls.poll = poll

    def hand() -> None:
        assert is_waiting.wait(MINUTE)
        seen.append((run.step, buttons.status.value))
        is_waiting.clear()
        buttons.step.click()
        while run.step < 1:
            is_waiting.wait(0.01)
        is_waiting.clear()
        assert is_waiting.wait(MINUTE)
        seen.append((run.step, buttons.status.value))
        buttons.knobs["beta"].control.value = 0.5
        buttons.resume.click()

    other = threading.Thread(target=hand)
    other.start()
    run.finish()
    other.join(MINUTE)
    assert seen == [(0, "<b>paused · 0 of 6 steps</b>"), (1, "<b>paused · 1 of 6 steps</b>")]
    assert "finished · 6 of 6" in buttons.status.value and changes_of(run) == [(1, {"beta": 0.5})]


def test_a_fork_grows_beside_the_run(begin: Start) -> None:
    run = begin(sync=Every(3))
    dashboard = Dashboard(run)
    steps(run, 4)
    dashboard.controls.fork_knob.value, dashboard.controls.fork_value.value = "sync_interval", "100"
    dashboard.controls.fork.click()
    assert len(dashboard.curves.series) == 1  # nothing is done in the callback
    steps(run, 3)
    (label, fork), own = *dashboard.forks.runs.items(), dashboard.curves.series[1]
    assert label == own.label == "s = 100 from step 4"
    assert (run.step, fork.step) == (7, 7) and fork.controls["sync_interval"] == 100
    # The sampler was synced at step 3: under s = 3 again at 6, under s = 100 not.
    assert dashboard.curves.series[0].line("sync/staleness")[4:] == [(4, 1), (5, 2), (6, 0)]
    assert own.line("sync/staleness") == [(3, 0), (4, 1), (5, 2), (6, 3)]
    run.finish()
    assert fork.step == 12 and len(own.points) == len(dashboard.curves.series[0].points) == 13


def test_a_fork_changes_nothing_of_its_parent_and_is_what_run_fork_makes(begin: Start, tmp_path: Path) -> None:
    watched, alone = begin("watched", max_steps=6), begin("alone", max_steps=6)
    dashboard = Dashboard(watched)
    for run in (watched, alone):
        steps(run, 2)
    dashboard.fork(learning_rate=1e-4)
    watched.finish()
    by_hand = alone.fork(learning_rate=1e-4, out_dir=tmp_path / "by_hand")
    by_hand.finish()
    alone.finish()
    assert untimed(watched.log.path) == untimed(alone.log.path)
    (fork,) = dashboard.forks.runs.values()
    assert untimed(fork.log.path) == untimed(by_hand.log.path)


def test_a_paused_run_is_forked_where_it_stands(begin: Start) -> None:
    run = begin(max_steps=4)
    dashboard = Dashboard(run)
    steps(run, 2)
    dashboard.controls.pause.click()
    dashboard.fork(beta=0.5)

    def hand() -> None:
        while not dashboard.forks.runs:
            made.wait(0.02)
        made.set()
        assert run.step == 2
        dashboard.controls.resume.click()

    made = threading.Event()
    other = threading.Thread(target=hand)
    other.start()
    run.finish()
    other.join(MINUTE)
    assert made.is_set() and [fork.step for fork in dashboard.forks.runs.values()] == [4]


@pytest.mark.parametrize(
    ("knob", "value", "reason"),
    [
        ("beta", "-1", "beta"),
        ("beta", "<b>x", "could not convert"),
        ("sync_interval", "0", "0"),
        ("seed", "0.5", "seed"),
    ],
)
def test_a_fork_that_is_refused_leaves_the_run_going(begin: Start, knob: str, value: str, reason: str) -> None:
    run = begin()
    dashboard = Dashboard(run)
    steps(run, 1)
    dashboard.controls.fork_knob.value, dashboard.controls.fork_value.value = knob, value
    dashboard.controls.fork.click()
    told = dashboard.controls.status.value
    steps(run, 2)
    told += dashboard.controls.status.value
    assert "kit-refused" in told and reason in told and "<b>x" not in told
    assert run.step == 3 and dashboard.forks.runs == {}


def test_two_forks_of_one_name_are_told_apart_and_a_finished_run_has_none(begin: Start) -> None:
    run = begin(max_steps=3)
    dashboard = Dashboard(run)
    steps(run, 1)
    dashboard.fork(beta=0.5)
    dashboard.fork(beta=0.5)
    run.finish()
    assert list(dashboard.forks.runs) == ["beta = 0.5 from step 1", "beta = 0.5 from step 1 (run_fork2)"]
    with pytest.raises(ValueError, match="finished"):
        dashboard.fork(beta=0.5)


def test_ctrl_c_while_forks_grow_saves_the_run(begin: Start) -> None:
    run = begin()
    dashboard = Dashboard(run)
    steps(run, 2)
    dashboard.fork(beta=0.5)
    steps(run, 1)
    (fork,) = dashboard.forks.runs.values()

    def interrupted(record: Any) -> None:
        raise KeyboardInterrupt

    fork.listeners.append(interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps(run, 5)
    for stopped in (run, fork):
        assert stopped.step == 4 and (stopped.log.path / "checkpoints" / "step_000004").is_dir()


def test_a_table_has_last_numbers_changes_and_findings(begin: Start) -> None:
    run = begin(max_steps=3)
    dashboard = Dashboard(run)
    run.controls.set(beta=0.25)
    run.finish()
    table = dashboard.table()
    assert f"{run.log.metrics()[2]['reward']:.4g}" in table and "beta = 0.25" in table and "this run" in table
    assert "nats, summed over tokens" in table and "The doctor's findings" in table
