"""A run in a notebook: its curves while it trains, its controls, its forks; and what stays in the executed file."""

from typing import Any

import ipywidgets as widgets
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from kit.dashboard.curves import LiveCurves
from kit.dashboard.forks import Feed, Forks
from kit.dashboard.messages import browser_poll
from kit.dashboard.controls import ControlPanel
from kit.dashboard.summary import figure_html, summary_html
from kit.doctor.finding import printable
from kit.run import Run
from kit.training import Record

VIEW = "application/vnd.jupyter.widget-view+json"


class Dashboard:
    """Watches a run and lets a person change it; shown as the last expression of a cell, before the run's loop starts.

    In a page it is alive. In a file that nobody watched, as papermill makes, it becomes a figure and tables when the
    run ends.

    Args:
        run: its listener this becomes, on the run's own thread.

    Attributes:
        curves: the panels, fed with each record.
        controls: buttons, knobs and the row that forks.
        forks: the forks of this run that were made here.

    Example::

        run = Run(config, task=Arithmetic(...), objective=DPO(), sync=every(10), out_dir="runs/x")
        dashboard = Dashboard(run)
        dashboard                   # end of the cell; in the next one:
        run.finish()
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.curves = LiveCurves()
        Feed(run, self.curves, 0)
        self.forks = Forks(run, self.curves)
        self.controls = ControlPanel(run, self.forks)
        self.widget = widgets.VBox([self.controls.widget, self.curves])
        self.curves.when_seen = self._seen
        self._shown: list[tuple[DisplayHandle, ...]] = []
        self._is_over, self._is_closed = run.step == run.config.max_steps, False
        run.listeners.append(self)
        run.controls.poll = browser_poll()

    def __call__(self, record: Record) -> None:
        """After each record: let the forks follow, show what is in force; at the end leave the figure."""
        is_over = record["step"] == self.run.config.max_steps
        if not is_over:
            self.forks.advance()
        self.controls.refresh()
        if is_over:
            self._is_over = True
            self._update()

    def fork(self, **changes: Any) -> None:
        """Fork the run where it stands, after the step at hand, with other values for some knobs.

        Raises:
            ValueError: if the run is at its end.
        """
        self.forks.ask(changes)

    def figure(self, axis: str = "step") -> Figure:
        """The curves so far as a matplotlib figure; `axis` is one of `kit.progress.X_AXES`."""
        return self.curves.figure(axis)

    def table(self) -> str:
        """Last numbers, changes by hand and findings, as HTML."""
        return summary_html(self.curves.charts(), self.curves.series, self.curves.marks())

    def close(self) -> None:
        """Replace the live view by the figure and the tables, so that the file reads well without a kernel.

        The end of a run does this by itself where no browser has shown the curves; a loop that was left early does not.
        """
        self._is_closed = True
        self._update()

    def _ipython_display_(self) -> None:
        pair = (display(bundle, raw=True, display_id=True) for bundle in self._bundles())
        self._shown.append(tuple(handle for handle in pair if handle is not None))

    def _seen(self) -> None:
        if self._is_over:  # a page that asked while the last steps were made
            self._update()

    def _update(self) -> None:
        """Every output of this dashboard, as things stand now."""
        if self._shown:
            bundles = self._bundles()
            for handles in self._shown:
                for handle, bundle in zip(handles, bundles, strict=True):
                    handle.update(bundle, raw=True)

    def _bundles(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is shown: the live view, and below it what a file keeps. Without a view the latter moves up."""
        state = f"{self.run.step} of {self.run.config.max_steps} steps of {printable(str(self.run.log.path))}"
        nothing: dict[str, Any] = {"text/html": "", "text/plain": ""}
        live = {VIEW: {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}, "text/plain": state}
        if not self._is_over and not self._is_closed:
            return live, nothing
        kept = {"text/html": figure_html(self.figure()) + self.table(), "text/plain": state}
        if self._is_closed or not self.curves.is_seen:
            return kept, nothing
        folded = f"<details><summary>figure and tables, as kept in this file</summary>{kept['text/html']}</details>"
        return live, {"text/html": folded, "text/plain": state}
