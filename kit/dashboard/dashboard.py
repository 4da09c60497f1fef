"""A run in a notebook: its curves while it trains, its controls, its forks; and what stays in the executed file."""

from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from kit.dashboard.controls import ControlPanel
from kit.dashboard.curves import LiveCurves
from kit.dashboard.forks import Feed, Forks
from kit.dashboard.messages import browser_poll
from kit.dashboard.summary import summary_html
from kit.run import Run
from kit.training import Record


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
        self._output = self.curves.output(self._caption, self.widget)
        if run.step == run.config.max_steps:
            self._output.end()
        run.listeners.append(self)
        self._answer_browser = browser_poll()
        run.controls.poll = self._between_steps

    def __call__(self, record: Record) -> None:
        """After each record: let the forks follow, and show what is in force; at the end keep the figure."""
        is_over = record["step"] == self.run.config.max_steps  # the evaluation after the last step
        if is_over:
            self.forks.end()
        else:
            self.forks.advance()
        self.controls.refresh()
        if is_over:
            self._output.end()

    def _between_steps(self) -> None:
        """On the run's thread before each step, and again and again while it is paused."""
        if self._answer_browser is not None:
            self._answer_browser()
        self.forks.make()
        if self.run.controls.is_paused:
            self.controls.refresh()

    def fork(self, **changes: Any) -> None:
        """Fork the run before its next step, with other values for some knobs; its curves grow beside the run's.

        What `Run.fork` refuses is told beside the buttons, and in `forks.trouble`.

        Raises:
            ValueError: if the run is at its end.
        """
        self.forks.ask(changes)

    def figure(self, axis: str = "step") -> Figure:
        """The curves so far as a matplotlib figure; `axis` is one of `kit.progress.X_AXES`."""
        return self.curves.figure(axis)

    def table(self) -> str:
        """Last numbers, changes by hand and findings, as HTML."""
        return summary_html(self.curves.charts(), self.curves.series)

    def close(self) -> None:
        """Replace the live view by the figure and the tables, so that the file reads well without a kernel.

        The end of a run does this by itself where no page has shown the curves; a loop that was left early does not.
        """
        self._output.close()

    def _ipython_display_(self) -> None:
        self._output.show()

    def _caption(self) -> str:
        return f"{self.run.step} of {self.run.config.max_steps} steps of {self.run.log.path}"
