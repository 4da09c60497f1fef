"""Buttons, knobs and the row that forks, in ipywidgets. Callbacks leave requests; the run does the work."""

from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets as widgets

from kit.dashboard.forks import Forks
from kit.dashboard.knobs import KNOBS, Knob, as_value
from kit.printable import printable
from kit.run import Run


class ControlPanel:
    """What a person changes of a run.

    Args:
        run: whose controls these are.
        forks: where a request to fork goes.

    Attributes:
        widget: all of it, to be shown.
        pause, step, resume, fork: buttons.
        knobs: by name, those of `kit.dashboard.knobs.KNOBS` that the run has.
        fork_knob, fork_value: what the fork changes, and to what.
        status: what the run does, and why a fork was refused.
    """

    def __init__(self, run: Run, forks: Forks) -> None:
        self._run, self._forks = run, forks
        self.pause = _button("Pause", "pause", "after the step at hand", self._pause)
        self.step = _button("Step", "step-forward", "make one step and stand again", self._step)
        self.resume = _button("Resume", "play", "go on", self._resume)
        self.status = widgets.HTML()
        has = run.controls.values()
        self.knobs = {name: Knob(name, run.controls) for name in KNOBS if name in has}
        self.fork_knob = widgets.Dropdown(options=[(KNOBS.get(name, name), name) for name in has])
        self.fork_value = widgets.Text(placeholder="value, such as 100")
        self.fork = _button("Fork here", "code-fork", "a second run from this step on, with this change", self._fork)
        row = [widgets.Label("fork here with"), self.fork_knob, widgets.Label("="), self.fork_value, self.fork]
        self.widget = widgets.VBox([
            _row("kit-buttons", [self.pause, self.step, self.resume, self.status]),
            _row("kit-knobs", [knob.row for knob in self.knobs.values()]),
            _row("kit-fork", row),
        ])  # fmt: skip
        self.widget.add_class("kit-controls")
        self.refresh()

    def refresh(self) -> None:
        """Show what is in force and what the run does; after each step."""
        for knob in self.knobs.values():
            knob.refresh()
        step, last, controls = self._run.step, self._run.config.max_steps, self._run.controls
        word = "finished" if step == last else "paused" if controls.is_paused else "running"
        self._say(f"{word} · {step} of {last} steps", self._forks.trouble)

    def _pause(self) -> None:
        self._run.controls.pause()
        self._say("stops after the step at hand")

    def _step(self) -> None:
        self._run.controls.step()
        self._say("one step, then it stands")

    def _resume(self) -> None:
        self._run.controls.resume()
        self._say("goes on")

    def _fork(self) -> None:
        name = str(self.fork_knob.value)
        try:
            changes: Mapping[str, Any] = {name: as_value(name, self.fork_value.value)}
            self._forks.ask(changes)
        except ValueError as error:
            self._say("no fork", str(error))
        else:
            self._say("forks before the next step")

    def _say(self, text: str, trouble: str = "") -> None:
        shown = f"<b>{escape(text)}</b>"
        if trouble:
            shown += f' <span class="kit-refused">{escape(printable(trouble))}</span>'
        if shown != self.status.value:
            self.status.value = shown


def _button(text: str, icon: str, tooltip: str, act: Any) -> widgets.Button:
    button = widgets.Button(description=text, icon=icon, tooltip=tooltip)
    button.on_click(lambda _: act())
    return button


def _row(name: str, children: list[widgets.Widget]) -> widgets.HBox:
    row = widgets.HBox(children)
    row.add_class(name)
    return row
