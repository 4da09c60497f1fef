"""A person at a running run: curves move, a pause holds, a knob takes effect, a fork grows, completions are shown."""

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from kit.fork import recorded_controls
from kit.replay import replay
from kit.runlog import read_jsonl
from tests.browser.lab import Lab, Notebook
from tests.test_notebooks import PARAMETERS, ROOT

expect.set_options(timeout=120_000)  # on a busy machine
STEPS = 400  # more than the run makes while somebody does all this; it is stopped before
SMALL = PARAMETERS["05_one_run.ipynb"] | {
    "max_steps": STEPS, "eval_steps": 5, "save_steps": 50, "prompts_per_step": 8, "sync_interval": 2,
}  # fmt: skip


def records(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path / "metrics.jsonl")


def await_step(notebook: Notebook, path: Path, step: int) -> None:
    """Wait until a run's log holds a step."""
    for _ in range(600):
        if records(path) and records(path)[-1]["step"] >= step:
            return
        notebook.page.wait_for_timeout(200)
    raise AssertionError(f"expected step {step} in {path}, came {len(records(path))} records\n{notebook.describe()}")


def curve(notebook: Notebook, cell: int) -> str:
    """The drawn path of the first line of the first panel that has one."""
    return notebook.output(cell).locator("path.kit-line").first.get_attribute("d") or ""


def test_a_run_is_watched_paused_changed_forked_and_replayed(lab: Lab, tmp_path: Path) -> None:
    run, fork = tmp_path / "run", tmp_path / "run_fork1"
    with lab.open(ROOT / "notebooks" / "05_one_run.ipynb", parameters=SMALL | {"out_dir": str(run)}) as notebook:
        notebook.start_all()
        shown, loop = notebook.find("Dashboard(run)"), notebook.find("run.steps(max_steps)")
        output = notebook.output(shown)
        output.scroll_into_view_if_needed()

        # A curve moves.
        expect(output.locator("path.kit-line").first).to_be_attached()
        await_step(notebook, run, 3)
        before = curve(notebook, shown)
        await_step(notebook, run, 8)
        expect(output.locator("path.kit-line").first).not_to_have_attribute("d", before)
        notebook.screenshot("dashboard_running_light", cell=shown)

        # Pause holds the run, Step makes one step.
        output.get_by_role("button", name="Pause").click()
        expect(output.get_by_text("paused")).to_be_visible()
        stood = len(records(run))
        notebook.page.wait_for_timeout(1500)
        assert len(records(run)) == stood and notebook.is_running(loop)
        assert json.loads((run / "status.json").read_text())["state"] == "paused"
        output.get_by_role("button", name="Step").click()
        await_step(notebook, run, stood)
        notebook.page.wait_for_timeout(1000)
        assert len(records(run)) == stood + 1

        # A changed knob waits while the run stands and is in force at the very next step.
        s = output.locator(".kit-knob", has_text="sync every s steps")
        s.locator(".noUi-handle").focus()
        notebook.page.keyboard.press("End")  # never
        expect(s.get_by_text("from the next step")).to_be_visible()
        output.get_by_role("button", name="Resume").click()
        await_step(notebook, run, stood + 6)
        (changed,) = recorded_controls(run)
        assert changed == (stood + 1, {"sync_interval": None})
        staleness = [record["sync/staleness"] for record in records(run)]
        assert max(staleness[: stood + 1]) <= 1
        assert staleness[stood + 1 : stood + 6] == list(range(staleness[stood + 1], staleness[stood + 1] + 5))

        # A fork with s = 1 grows beside it.
        output.locator(".kit-fork select").select_option("sync every s steps")
        output.locator(".kit-fork input").fill("1")
        output.get_by_role("button", name="Fork here").click()
        for _ in range(600):
            if fork.exists():
                break
            notebook.page.wait_for_timeout(200)
        start = next(event["step"] for event in read_jsonl(fork / "events.jsonl") if event["event"] == "fork")
        await_step(notebook, fork, start + 6)
        expect(output.get_by_text(f"from step {start}").first).to_be_attached()
        assert {record["sync/staleness"] for record in records(fork)[start:]} == {0}
        notebook.screenshot("dashboard_fork_light", cell=shown)
        notebook.set_theme("dark")
        notebook.screenshot("dashboard_fork_dark", cell=shown)
        notebook.set_theme("light")

        # The stop button of JupyterLab ends both at a step's end; what was done is on disk.
        notebook.javascript("jupyterapp.commands.execute('notebook:interrupt-kernel')")
        notebook.wait("return failed(argument)", loop)
        idle = "return kernel() === 'idle' && panel.content.widgets.every(w => w.model.executionState !== 'running')"
        notebook.wait(idle)  # the cells that waited behind the loop are given up
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"

        # The microscope shows what was drawn: one that was chosen, by how far the policy has moved since.
        microscope = notebook.find("Microscope(run)")
        notebook.run(microscope)
        output = notebook.output(microscope)
        output.get_by_label("role", exact=True).select_option("chosen")
        output.get_by_label("sort by").select_option("age")
        output.get_by_label("descending").click()
        expect(output.locator(".completion .chip", has_text="chosen").first).to_be_visible()
        output.locator(".list > *").first.click()
        output.get_by_role("radio", name="ratio").click()
        output.locator(".completion.chosen .t").first.hover()
        expect(output.get_by_text("Token 1 of")).to_be_visible()
        notebook.screenshot("microscope_light", cell=microscope)
        notebook.set_theme("dark")
        notebook.screenshot("microscope_dark", cell=microscope)
        notebook.set_theme("light")
    for path in (run, fork):
        found = replay(path)
        assert found.difference is None and found.records == len(records(path))
