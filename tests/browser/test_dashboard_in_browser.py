"""The dashboard in JupyterLab while a run trains on the main thread: curves, buttons, sliders, a fork, Ctrl-C."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from kit.runlog import read_jsonl
from tests.browser.lab import Lab
from tests.browser.server import serve

WAIT_S = 60.0
MAKE = """
from kit.config import RunConfig
from kit.dashboard import Dashboard
from kit.objectives import DPO
from kit.run import Run
from kit.sync import Every
from kit.tasks import Arithmetic
config = RunConfig({model!r}, max_steps={steps}, prompts_per_step=8, group_size=4, eval_prompts=16, eval_samples=2,
                   eval_steps=10, num_threads=1)
run = Run(config, task=Arithmetic(), objective=DPO(), sync=Every(5), out_dir={out!r})
dashboard = Dashboard(run)
dashboard
"""


def make(seed_folder: Path, out_dir: Path, steps: int) -> str:
    return MAKE.format(model=str(seed_folder), steps=steps, out=str(out_dir))


def records(out_dir: Path) -> list[dict[str, Any]]:
    return read_jsonl(out_dir / "metrics.jsonl")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"expected within {WAIT_S:.0f} s, did not happen"
        time.sleep(0.05)


def rest(out_dir: Path, page: Locator) -> int:
    """The number of records once the run stands."""
    expect(page.locator(".kit-buttons")).to_contain_text("paused")
    return len(records(out_dir))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_run_is_watched_paused_changed_and_forked(lab: Lab, seed_folder: Path, tmp_path: Path, theme: str) -> None:
    out_dir = tmp_path / "run"
    cells = [make(seed_folder, out_dir, 40), "run.finish()['step']"]
    with lab.open(cells=cells, theme=theme) as notebook:  # pyright: ignore[reportArgumentType]
        notebook.run(0)
        page = notebook.output(0)
        expect(page.get_by_text("Curves appear with the first step.")).to_be_visible()
        notebook.start(1)
        curve = page.locator(".kit-panel", has_text="Reward").locator("path.kit-line").first
        expect(curve).to_be_attached()
        before = curve.get_attribute("d")
        expect(curve).not_to_have_attribute("d", before or "")  # it moves while the cell is busy

        page.get_by_role("button", name="Pause").click()
        stood = rest(out_dir, page)
        time.sleep(1.5)
        assert len(records(out_dir)) == stood < 40
        page.get_by_role("button", name="Step").click()
        until(lambda: len(records(out_dir)) == stood + 1)

        notebook.set_slider(0, "learning rate", 0.0003)
        knob = page.locator(".kit-knob", has_text="learning rate")
        expect(knob).to_contain_text("0.0003 from the next step")
        page.locator(".kit-fork input").fill("100")
        page.locator(".kit-fork input").press("Tab")
        page.get_by_role("button", name="Fork here").click()
        expect(page.locator(".kit-runs")).to_contain_text(f"s = 100 from step {stood + 1}")
        page.get_by_role("button", name="Step").click()
        until(lambda: len(records(out_dir)) == stood + 2)
        assert [r["learning_rate"] for r in records(out_dir)[-2:]] == [5e-5, 0.0003]
        expect(knob).to_contain_text("in force 0.0003")

        page.get_by_role("button", name="Resume").click()
        notebook.wait_for(1)
        assert len(records(out_dir)) == len(records(tmp_path / "run_fork1")) == 41
        staleness = page.locator(".kit-panel", has_text="Staleness")
        expect(staleness.locator("path.kit-line")).to_have_count(2)
        axis = page.locator(".kit-axis select")
        axis.select_option(label="completion tokens generated")
        expect(staleness.locator("text.kit-tick").last).not_to_have_text("40")
        axis.select_option(label="optimizer step")
        staleness.locator("svg.kit-plot").hover()
        expect(page.locator(".kit-at")).to_contain_text("at ")
        expect(page.locator(".kit-cursor[visibility=visible]")).to_have_count(page.locator(".kit-panel").count())
        notebook.screenshot(f"dashboard_{theme}", cell=0)
        events = read_jsonl(out_dir / "events.jsonl")
        assert [e["changes"] for e in events if e["event"] == "control"] == [{"learning_rate": 0.0003}]


def test_the_stop_button_of_jupyterlab_saves_a_run_and_it_goes_on(lab: Lab, seed_folder: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "run"
    cells = [make(seed_folder, out_dir, 400), "try:\n    run.finish()\nexcept KeyboardInterrupt:\n    print('stopped')",
             "next(run.steps(1))['step'], dashboard.close()"]  # fmt: skip
    with lab.open(cells=cells) as notebook:
        notebook.run(0)
        notebook.start(1)
        until(lambda: out_dir.exists() and len(records(out_dir)) >= 3)
        notebook.javascript("return panel.sessionContext.session.kernel.interrupt()")
        notebook.wait_for(1)
        assert "stopped" in notebook.text(1)
        stood = len(records(out_dir))
        assert (out_dir / "checkpoints" / f"step_{stood:06d}").is_dir()
        notebook.run(2)
        assert len(records(out_dir)) == stood + 1
        page = notebook.output(0)
        expect(page.get_by_role("img", name="the curves of the run")).to_be_visible()  # closed: the static twin
        expect(page.locator(".kit-controls")).to_have_count(0)


def test_a_page_that_asks_for_no_subshells_is_answered_too(lab: Lab, seed_folder: Path, tmp_path: Path) -> None:
    setting = {"@jupyterlab/apputils-extension:kernels-settings": {"commsOverSubshells": "disabled"}}
    browser, out_dir = lab.context.browser, tmp_path / "run"
    assert browser is not None
    cells = [make(seed_folder, out_dir, 40), "run.finish()['step']"]
    with serve(tmp_path / "lab", setting) as server, Lab.of(browser, server).open(cells=cells) as notebook:
        notebook.run(0)
        notebook.start(1)
        page = notebook.output(0)
        page.get_by_role("button", name="Pause").click()
        stood = rest(out_dir, page)
        time.sleep(1.0)
        assert len(records(out_dir)) == stood < 40
        page.get_by_role("button", name="Resume").click()
        notebook.wait_for(1)
        assert len(records(out_dir)) == 41


HOSTILE = """
from kit.dashboard import LiveCurves
bad = "<img src=x onerror=alert(1)><script>alert(2)\\u202e\\x1b[31m"
curves = LiveCurves(bad)
records = [{"step": i, f"task/{bad}/reward": i, f"task/{bad}2/reward": 1 - i, "offpolicy/kl": i / 9} for i in range(9)]
event = {"event": "doctor", "name": "far_off_policy", "step": 5}
event |= dict.fromkeys(["about", "severity", "seen", "remedy"], bad)
curves.extend(records, [event, {"event": "control", "step": 3, "changes": {bad: bad}}])
curves.add_run(bad)
curves
"""


def test_text_from_a_run_is_shown_and_does_nothing(lab: Lab) -> None:
    with lab.open(cells=[HOSTILE]) as notebook:  # an alert, or a request elsewhere, fails when the block ends
        notebook.run(0)
        page = notebook.output(0)
        expect(page.locator(".kit-legend").first).to_contain_text("<img src=x onerror=alert(1)>")
        page.locator(".kit-finding").first.hover()
        expect(page.locator(".kit-tip")).to_contain_text("<script>alert(2)\\u202e\\x1b[31m")
        page.locator("summary").click()
        expect(page.locator(".kit-told")).to_contain_text("<img src=x")
        assert page.locator(".kit-curves img, .kit-curves script").count() == 0
