"""The dashboard beside a real run: what it shows, what its controls do at the next step, how its forks grow."""

import subprocess
import sys
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
from tests.conftest import happened, tiny_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def start(tiny_folder: Path, tmp_path: Path) -> Callable[..., Run]:
    def started(name: str = "run", **changes: Any) -> Run:
        return tiny_run(tiny_folder, tmp_path / name, **({"eval_steps": 99} | changes))

    return started


def steps(run: Run, count: int) -> None:
    for _ in run.steps(count):
        pass


def test_every_record_becomes_a_point_and_the_panels_are_those_that_the_run_has(start: Callable[..., Run]) -> None:
    run = start()
    dashboard = Dashboard(run)
    run.finish()
    logged = run.log.metrics()
    assert dashboard.curves.series[0].line("reward") == [(r["step"], r["reward"]) for r in logged if "reward" in r]
    titles = [chart.panel.title for chart in dashboard.curves.charts()]
    assert "Log-probabilities of a pair" in titles and "Clipped ratios" not in titles


def test_a_dashboard_made_late_has_the_first_steps_too(start: Callable[..., Run]) -> None:
    run = start()
    steps(run, 5)
    dashboard = Dashboard(run)
    steps(run, 2)
    assert [x for x, _ in dashboard.curves.series[0].line("reward")] == [0, 1, 2, 3, 4, 5, 6]


def test_a_slider_that_was_moved_is_in_force_at_the_next_step(start: Callable[..., Run]) -> None:
    run = start()
    dashboard = Dashboard(run)
    steps(run, 2)
    knob = dashboard.controls.knobs["learning_rate"]
    knob.control.value = 1e-4
    assert "in force 0.01" in knob.state.value and "0.0001" in knob.state.value
    steps(run, 1)
    assert run.log.metrics()[-1]["learning_rate"] == 1e-4
    assert "in force 0.0001" in knob.state.value and "next step" not in knob.state.value
    assert happened(run.log.path, "control")[0]["changes"] == {"learning_rate": 1e-4}
