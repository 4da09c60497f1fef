"""The static twin of the curves: the same panels as one matplotlib figure, for an executed notebook or a paper.

Nothing here touches pyplot: the figure belongs to the caller, and no state is shared with the user's own figures.
"""

import textwrap
from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from kit.dashboard.panels import Chart
from kit.dashboard.series import JUDGED, Series
from kit.progress import X_AXES

# Okabe and Ito's, told apart by colour-blind readers; `curves.css` has the same ones, and lighter ones for dark pages.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#7F7F7F")
STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
SEVERITY_COLOURS = {"error": "#C62828", "warning": "#E69F00", "note": "#7F7F7F"}
COLUMNS = 3
MANY_SYNCS = 25  # beyond, only their upper ends are drawn
KEY = "grey lines: syncs of the sampler · dotted lines: changes by hand · shaded: what the doctor found suspicious"
LONGEST_NAME = 28  # characters beside a mark
INK, MUTED, FAINT = "#222222", "#666666", "#c8c8c8"


def draw(charts: Sequence[Chart], series: Sequence[Series], axis: str = "step") -> Figure:
    """All panels of these runs.

    Raises:
        ValueError: for an unknown axis.
    """
    if axis not in X_AXES:
        raise ValueError(f"expected an x axis out of {', '.join(X_AXES)}, came {axis!r}")
    rows = ceil(len(charts) / COLUMNS) or 1
    figure = Figure(figsize=(13.5, 3.0 * rows + 0.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.1)  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]
    if not charts:
        figure.text(0.5, 0.5, "no records yet", ha="center", color=MUTED)
        return figure
    for place, chart in enumerate(charts, 1):
        ax = figure.add_subplot(rows, COLUMNS, place)
        _frame(ax, chart, axis)
        (_stack if chart.panel.is_stacked else _curves)(ax, chart, series, axis)
        _marks(ax, chart, series, axis)
        if chart.panel.has_zero:
            ax.set_ylim(0, ax.get_ylim()[1] if ax.dataLim.y1 > 0 else 1)
    figure.supxlabel(KEY, fontsize=8, color=MUTED)
    if len(series) > 1:
        handles = [Line2D([], [], color=INK, linestyle=_style(number)) for number in range(len(series))]
        named = figure.legend(handles, [""] * len(series), loc="outside upper left", ncols=4, frameon=False)
        _name(named, [one.label for one in series])
    return figure


def _frame(ax: Axes, chart: Chart, axis: str) -> None:
    reading = textwrap.wrap(chart.panel.reading, 66)
    title = {"loc": "left", "fontsize": 10.5, "fontweight": "bold", "color": INK}
    ax.set_title(chart.panel.title, pad=6 + 10.2 * len(reading), **title)
    ax.text(
        0, 1.03, "\n".join(reading), transform=ax.transAxes, va="bottom", fontsize=7.5, color=MUTED, parse_math=False
    )
    ax.set_ylabel(chart.panel.unit, fontsize=8, color=MUTED)
    ax.set_xlabel(X_AXES[axis], fontsize=8, color=MUTED)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    ax.tick_params(labelsize=7.5, colors=MUTED, length=2.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.grid(axis="y", color="#eeeeee", linewidth=0.8)
    ax.set_axisbelow(True)


def _curves(ax: Axes, chart: Chart, series: Sequence[Series], axis: str) -> None:
    handles = []
    for line in chart.lines:
        for number, one in enumerate(series):
            points = one.line(line.metric, axis)
            x, y = [x for x, _ in points], [y for _, y in points]
            colour = COLOURS[(line.colour + (number if len(chart.lines) == 1 else 0)) % len(COLOURS)]
            few = "o" if len(points) < len(one.points) / 2 or len(points) < 3 else ""
            style = {"color": colour, "linestyle": _style(number + line.style), "marker": few, "markersize": 2.6}
            (drawn,) = ax.plot(x, y, linewidth=1.5, **style)
            handles += [drawn] if number == 0 else []
            low, high = (one.line(f"{line.metric}_{end}", axis) for end in ("low", "high"))
            if low and len(low) == len(high):
                band = {"color": colour, "alpha": 0.13, "linewidth": 0}
                ax.fill_between([x for x, _ in low], [y for _, y in low], [y for _, y in high], **band)
    _legend(ax, chart, handles)


def _stack(ax: Axes, chart: Chart, series: Sequence[Series], axis: str) -> None:
    """Of the first run: parts of a whole of several runs cannot be told apart on one axis."""
    points = [point for point in series[0].points if any(line.metric in point.values for line in chart.lines)]
    x = [point.x[axis] for point in points]
    parts = [[point.values.get(line.metric, 0.0) for point in points] for line in chart.lines]
    tops = list(accumulate(parts, lambda below, part: [a + b for a, b in zip(below, part, strict=True)]))
    handles = []
    for line, bottom, top in zip(chart.lines, [[0.0] * len(x), *tops], tops, strict=False):
        colour = COLOURS[line.colour % len(COLOURS)]
        handles.append(ax.fill_between(x, bottom, top, color=colour, alpha=0.75, linewidth=0))
    _legend(ax, chart, handles)


def _legend(ax: Axes, chart: Chart, handles: list) -> None:
    style = {"handlelength": 1.6, "labelspacing": 0.25, "framealpha": 0.5, "edgecolor": "none"}
    legend = ax.legend(handles, [""] * len(handles), loc="best", **style)
    _name(legend, [line.label for line in chart.lines])


def _name(legend: Legend, labels: Sequence[str]) -> None:
    """Set as plain text: `$` is no mathematics in a task's name, and a first `_` hides nothing."""
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(parse_math=False, text=label, fontsize=7.5, color=INK)


def _marks(ax: Axes, chart: Chart, series: Sequence[Series], axis: str) -> None:
    if chart.panel.has_syncs:
        syncs = series[0].syncs(axis)
        foot = 0.94 if len(syncs) > MANY_SYNCS else 0.0
        for x in syncs:
            ax.axvline(x, foot, color=FAINT, linewidth=0.7, zorder=0, gid="sync")
    for one in series:
        for mark in one.marks:
            x = one.place(mark.step, axis)
            if mark.kind == "control":
                ax.axvline(x, color=MUTED, linewidth=0.8, linestyle=":", zorder=1, gid="control")
            elif mark.rule in chart.panel.findings:
                colour = SEVERITY_COLOURS[mark.severity]
                start = one.place(max(0, mark.step - JUDGED + 1), axis)
                ax.axvspan(start, x, color=colour, alpha=0.16, linewidth=0, gid="finding")
                ax.axvline(x, color=colour, linewidth=1, gid="finding edge")
                text = f"{mark.name[:LONGEST_NAME]}, step {mark.step}"
                place = {"xytext": (2, -2), "textcoords": "offset points", "va": "top", "rotation": 90}
                place |= {"xycoords": ("data", "axes fraction"), "in_layout": False, "parse_math": False}
                ax.annotate(text, (x, 1), fontsize=6.5, color=colour, **place)


def _style(number: int) -> Any:  # matplotlib's own type for it is not public
    return STYLES[number % len(STYLES)]
