"""Curves that grow in the browser while records come in: `curves.js` draws, and Python sends it the new numbers."""

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
from matplotlib.figure import Figure

from kit.dashboard.figure import draw
from kit.dashboard.panels import Chart, charts
from kit.dashboard.series import Mark, Series
from kit.dashboard.summary import figure_html, summary_html
from kit.output import Output
from kit.printable import printable
from kit.progress import X_AXES


class LiveCurves(anywidget.AnyWidget):
    """Panels of one run, or of several on the same axes, fed with records by whoever makes them.

    Show it as the last expression of a cell. A page that opens it late, or once more, gets everything so far.

    Args:
        label: what the first run is called.

    Attributes:
        series: the runs, in the order in which they were added.
        is_seen: whether a browser has asked for the curves.
        when_seen: called, with nothing, when a browser first asks; on the thread that handles its messages.

    >>> curves = LiveCurves("a run")
    >>> curves.push({"step": 0, "reward": 0.5, "eval/accuracy": 0.4})
    >>> [axes.get_title(loc="left") for axes in curves.figure().axes]
    ['Held-out score', 'Reward']
    """

    _esm = Path(__file__).with_name("curves.js")
    _css = Path(__file__).with_name("curves.css")

    def __init__(self, label: str = "this run") -> None:
        super().__init__()
        self.series: list[Series] = []
        self.is_seen = False
        self.when_seen: Callable[[], None] | None = None
        self._metrics: set[str] = set()
        self._lock = threading.RLock()  # a browser's question may come on a thread of its own
        self.on_msg(self._answer)
        self.add_run(label)

    def add_run(self, label: str, *, start: int = 0) -> int:
        """A further run on the same axes; returns its number for `push`.

        Args:
            label: what it is called.
            start: of a fork, the step from which it is another run than the first one.
        """
        with self._lock:
            self.series.append(Series(printable(label), start))
            self._tell_everything()
            return len(self.series) - 1

    def push(self, record: Mapping[str, Any], events: Iterable[Mapping[str, Any]] = (), *, run: int = 0) -> None:
        """Add a run's next record, and what happened since the one before.

        Args:
            record: as in metrics.jsonl: `step` and numbers under the names of `kit.runlog.METRICS`; others are ignored.
            events: as in events.jsonl: findings of the doctor and changes by hand become marks.
            run: number of the run, as `add_run` gave it.

        Raises:
            KeyError: for a record without `step`.
        """
        with self._lock:
            point = self.series[run].push(record)
            marks = self.series[run].mark(events)
            if point.values.keys() <= self._metrics:
                place = {"run": run, "index": len(self.series[run].points) - 1}
                new = {"point": point.as_json(), "marks": [mark.as_json() for mark in marks]}
                self._tell({"kind": "point"} | place | new)
            else:
                self._metrics |= point.values.keys()
                self._tell_everything()

    def extend(
        self, records: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]], *, run: int = 0
    ) -> None:
        """Add many records at once, as those of a run that goes on."""
        with self._lock:
            for record in records:
                self._metrics |= self.series[run].push(record).values.keys()
            self.series[run].mark(events)
            self._tell_everything()

    def charts(self) -> list[Chart]:
        """The panels that these runs have."""
        return charts(self._metrics)

    def figure(self, axis: str = "step") -> Figure:
        """The same panels as a matplotlib figure, which belongs to the caller.

        Args:
            axis: what runs along x, one of `kit.progress.X_AXES`.
        """
        with self._lock:
            return draw(self.charts(), self.series, axis)

    def marks(self) -> list[Mark]:
        """The doctor's findings and the changes by hand, of all runs, in the order of their steps."""
        found = dict.fromkeys(mark for series in self.series for mark in series.marks)
        return sorted(found, key=lambda mark: mark.step)

    def html(self) -> str:
        """Figure and tables, for a file."""
        return figure_html(self.figure()) + summary_html(self.charts(), self.series)

    def output(self, caption: Callable[[], str], view: widgets.Widget | None = None) -> Output:
        """How they are shown in a cell and kept in a file, alone or as a part of `view`."""
        made = Output(self if view is None else view, self.html, lambda: self.is_seen, caption)
        self.when_seen = made.seen
        return made

    def _answer(self, widget: Any, message: Any, buffers: Any) -> None:
        """A browser asks for everything: it has just opened, or has missed something."""
        if not isinstance(message, dict) or message.get("kind") != "ready":
            return
        with self._lock:
            first, self.is_seen = not self.is_seen, True
            self._tell_everything()
        if first and self.when_seen is not None:
            self.when_seen()

    def _tell_everything(self) -> None:
        if self.is_seen:
            parts = {"charts": [chart.as_json() for chart in self.charts()], "axes": X_AXES}
            self._tell({"kind": "all", "series": [one.as_json() for one in self.series]} | parts)

    def _tell(self, message: dict[str, Any]) -> None:
        if self.is_seen:  # before that nobody listens
            self.send(message)
