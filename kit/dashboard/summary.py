"""Last numbers, what was changed by hand, and findings, as HTML tables."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from kit.dashboard.panels import Chart
from kit.dashboard.series import Series

DPI = 100


def summary_html(charts: Sequence[Chart], series: Sequence[Series]) -> str:
    """Three tables; text from a run or a file is escaped."""
    numbers = [
        [chart.panel.title, line.label, chart.panel.unit, *(_last(one, line.metric) for one in series)]
        for chart in charts
        for line in chart.lines
    ]
    marks = sorted(((mark, one.label) for one in series for mark in one.marks), key=lambda pair: pair[0].step)
    changes = [[label, str(mark.step), mark.text] for mark, label in marks if mark.kind == "control"]
    findings = [[label, str(m.step), m.severity, m.name, m.text] for m, label in marks if m.kind == "finding"]
    return "".join([
        _table("Numbers", ["", "last value of", "unit", *(one.label for one in series)], numbers),
        _table("Changed by hand", ["run", "from step", "to"], changes),
        _table("The doctor's findings", ["run", "step", "severity", "finding", "seen, and what to do"], findings),
    ])  # fmt: skip


def figure_html(figure: Figure) -> str:
    """The figure as an image within the page."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    data = base64.b64encode(image.getvalue()).decode()
    return f'<img alt="the curves of the run" style="max-width: 100%" src="data:image/png;base64,{data}">'


def _last(one: Series, metric: str) -> str:
    points = one.line(metric)
    return f"{points[-1][1]:.4g}" if points else "–"


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return f"<p><b>{caption}:</b> none</p>"
    cells = "".join(f'<th style="text-align: left">{_text(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f'<td style="text-align: left">{_text(c)}</td>' for c in row) + "</tr>"
                   for row in rows)  # fmt: skip
    return f"<p><b>{caption}</b></p><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))
