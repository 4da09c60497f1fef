"""A comparison as one web page that needs nothing else: no script, no network, light and dark."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from kit.compare.arms import Arm, SavedRun
from kit.compare.drawing import key_svg, panel_svg, range_svg, variables
from kit.compare.figures import logged_by
from kit.compare.table import ABSENT, COLUMNS, NOTE, Row
from kit.doctor import Finding
from kit.doctor.finding import SEVERITIES
from kit.plots import Curve, label_of
from kit.printable import printable
from kit.progress import X_AXES, duration

BY_MEASURE = ("measure", "first", "best", "last [95 % interval]", "entropy (nats/token)", "length (tokens)")
SPENT = {
    "completions": "completions",
    "tokens": "tokens",
    "syncs": "syncs",
    "wall-clock": "",
}  # and what to write behind


def shown(text: object) -> str:
    """Anything that came from a file, as text of a page."""
    return escape(printable(str(text)))


def table_of(rows: Sequence[Row], *, drawn: bool) -> str:
    """The table as HTML: what belongs to an arm as a whole in one cell beside all its measures.

    Args:
        drawn: with each arm's line and a picture of its last interval, in the page's colours.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("arm", *BY_MEASURE, "spent", "doctor"))
    body = ""
    for arm in dict.fromkeys(row.arm.label for row in rows):
        first, *more = (row for row in rows if row.arm.label == arm)
        span = f' rowspan="{1 + len(more)}"' if more else ""
        cells = [_arm_cell(first, span, drawn), _measured(first, rows, drawn), _spent_cell(first, span)]
        body += f'<tr>{"".join(cells)}<td class="text"{span}>{shown(COLUMNS["doctor"](first))}</td></tr>\n'
        body += "".join(f"<tr>{_measured(row, rows, drawn)}</tr>\n" for row in more)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _arm_cell(row: Row, span: str, drawn: bool) -> str:
    key = key_svg(row.curve) if drawn else ""
    about = "<br>".join(shown(COLUMNS[name](row)) for name in ("runs", "state"))
    return f'<th scope="row"{span}>{key}{shown(row.arm.label)}<div class="about">{about}</div></th>'


def _spent_cell(row: Row, span: str) -> str:
    found = [(COLUMNS[name](row), unit) for name, unit in SPENT.items()]
    lines = "<br>".join(f"{shown(text)} {unit}".strip() for text, unit in found if text != ABSENT)
    return f'<td class="spent"{span}>{lines or ABSENT}</td>'


def _measured(row: Row, rows: Sequence[Row], drawn: bool) -> str:
    cells = ""
    for name in BY_MEASURE:
        cell = shown(COLUMNS[name](row))
        if name.startswith("last") and row.points:
            mean, _, rest = cell.partition(" ")
            cell = f"<b>{mean}</b> {rest}{_range(row, rows) if drawn else ''}"
        cells += f'<td class="{name.partition(" ")[0]}">{cell}</td>'
    return cells


def _range(row: Row, rows: Sequence[Row]) -> str:
    """The last interval of a row on the scale of all rows with the same measure: that of their means, and a rate's."""
    of_measure = [point for other in rows if other.measure == row.measure for _, point in other.points]
    means = [point.mean for point in of_measure]
    lowest, highest = min(means), max(means)
    if lowest >= 0 and highest <= 1:
        lowest, highest = 0.0, 1.0
    return range_svg(row.points[-1][1], lowest, highest, row.curve)


def page_of(
    arms: Sequence[Arm], rows: Sequence[Row], curves: Sequence[Curve], metrics: Sequence[str], x: str,
    command: str | None,
) -> str:  # fmt: skip
    """The whole page."""
    light, dark = variables(curves)
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    css += f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    title = f"{len(arms)} arm{'s' if len(arms) != 1 else ''} compared"
    parts = [
        f"<h1>{title}</h1>{_summary(arms)}",
        f'<h2>Results</h2><div class="card">{table_of(rows, drawn=True)}</div><p class="caption">{escape(NOTE)}</p>',
        f"<h2>Curves</h2>{_panels(curves, metrics, x)}",
        f"<h2>What differs</h2>{_differences(arms, curves)}",
        f"<h2>What the doctor found</h2>{_findings(arms)}",
        f"<h2>How to reproduce</h2>{''.join(map(_recipe, arms))}",
        f'<footer class="soft">{_origin(command)}</footer>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{css}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _summary(arms: Sequence[Arm]) -> str:
    runs = [run for arm in arms for run in arm.runs]
    unfinished = [run for run in runs if not run.is_finished]
    spent = sum(
        value for run in runs for record in run.records for name, value in record.items() if name[:5] == "time/"
    )
    steps = sum(run.diagnosis.steps for run in runs)
    count = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    text = f"{count}, {steps:,} optimizer steps, {duration(spent)} of computing."
    names = ", ".join(f"{shown(run.path.name)} ({shown(run.diagnosis.state)})" for run in unfinished)
    return f'<p class="soft">{text}{f" Not finished: {names}." if unfinished else ""}</p>'


def _panels(curves: Sequence[Curve], metrics: Sequence[str], x: str) -> str:
    legend = "".join(f"<li>{key_svg(curve)}{shown(curve.label)}</li>" for curve in curves)
    panels = ""
    for metric in metrics:
        lacking = [shown(curve.label) for curve in curves if curve.runs and metric not in logged_by(curve)]
        note = f'<p class="caption">Not logged by: {"; ".join(lacking)}.</p>' if lacking else ""
        title = f"<figcaption>{shown(label_of(metric))} <code>{shown(metric)}</code></figcaption>"
        panels += f'<figure class="card">{title}{panel_svg(curves, metric, x)}{note}</figure>\n'
    about = (
        f"Against: {X_AXES[x]}. Bands are 95 % intervals as in the table, cut where they leave a panel. The curve of a "
        "fork starts with a dot where it left its parent."
    )
    return f'<p class="caption">{about}</p><ul class="legend">{legend}</ul><div class="panels">{panels}</div>'


def _differences(arms: Sequence[Arm], curves: Sequence[Curve]) -> str:
    names = list(dict.fromkeys(name for arm in arms for name in arm.differs))
    if not names and not any(arm.changes for arm in arms):
        return "<p>Nothing but the seed.</p>"
    head = "".join(f"<th>{shown(name)}</th>" for name in ("arm", *names, "changed by hand"))
    body = ""
    for arm, curve in zip(arms, curves, strict=True):
        cells = "".join(f"<td>{shown(arm.differs.get(name, ABSENT))}</td>" for name in names)
        cells += f"<td>{shown(arm.changes or ABSENT)}</td>"
        body += f'<tr><th scope="row">{key_svg(curve)}{shown(arm.label)}</th>{cells}</tr>'
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _findings(arms: Sequence[Arm]) -> str:
    found = [(run, finding) for arm in arms for run in arm.runs for finding in run.diagnosis.findings]
    if not found:
        return "<p>Nothing.</p>"
    found.sort(key=lambda pair: SEVERITIES.index(pair[1].severity))
    return f'<div class="card">{"".join(_finding(run, finding) for run, finding in found)}</div>'


def _finding(run: SavedRun, finding: Finding) -> str:
    cleared = " It cleared later." if finding in run.diagnosis.cleared else ""
    when = "before the run" if finding.step is None else f"step {finding.step}"
    about = f" ({shown(finding.about)})" if finding.about else ""
    return (
        f'<div class="finding"><b class="{finding.severity}">{finding.severity}: {shown(finding.name)}</b>{about}, '
        f'<span class="soft">{shown(run.path.name)}, {when}.{cleared}</span><br>{shown(finding.seen)}<br>'
        f'<span class="soft">To do: {shown(finding.remedy)}</span></div>\n'
    )


def _recipe(arm: Arm) -> str:
    """The configuration of an arm, where its runs lie, and what they ran on."""
    lines = []
    for run in arm.runs:
        text = f"seed {run.config.get('seed', '?')}: <code>{shown(run.path)}</code>"
        if run.origin is not None:
            text += f", a fork of <code>{shown(run.origin.parent)}</code> at step {run.origin.step}"
        revision, python = run.environment.get("git_revision"), run.environment.get("python")
        text += f"; Python {shown(python)}, revision <code>{shown(revision)}</code>"
        lines.append(f"<li>{text}</li>")
    changed = f"<p>Changed by hand: {shown(arm.changes)}.</p>" if arm.changes else ""
    config = escape("\n".join(map(printable, json.dumps(arm.runs[0].config, indent=2).splitlines())))
    body = f"<ul>{''.join(lines)}</ul>{changed}<pre>{config}</pre>"
    return f'<details class="card"><summary>{shown(arm.label)}</summary>{body}</details>\n'


def _origin(command: str | None) -> str:
    return "Made by the kit." if command is None else f"Made by <code>{shown(command)}</code>"
