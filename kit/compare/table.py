"""A comparison as a table: a row for each arm and what it is judged by, in the order of `COLUMNS`."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from statistics import fmean

from kit.compare.arms import Arm
from kit.compare.figures import QUALITY, logged_by
from kit.doctor.finding import SEVERITIES
from kit.plots import Curve, label_of
from kit.printable import printable
from kit.progress import axes_of, duration, spent
from kit.statistics import Interval

ABSENT = "–"
Points = list[tuple[float, Interval]]


@dataclass(frozen=True)
class Row:
    """One arm by one measure; arms of several tasks have several.

    Attributes:
        measure: the metric; None for an arm that has none.
        points: of it over steps, over all seeds.
    """

    arm: Arm
    curve: Curve
    measure: str | None
    points: Points

    def beside(self, name: str) -> Points:
        """Another metric of the same evaluations, such as `entropy`; empty if it was not logged."""
        measure = self.measure or ""
        return _points(self.curve, measure[: measure.rfind("/") + 1] + name)


def rows_of(arms: Sequence[Arm], curves: Sequence[Curve]) -> list[Row]:
    """The rows of all arms; one by its reward in training where it was never evaluated."""
    rows = []
    for arm, curve in zip(arms, curves, strict=True):
        logged = logged_by(curve)
        measures: dict[str, str] = {}  # of each task the first that it has
        for name in [name for pattern in QUALITY for name in sorted(logged) if fnmatch(name, pattern)]:
            measures.setdefault(name.rpartition("eval/")[0], name)
        found = [(name, _points(curve, name)) for name in measures.values() or ["reward"]]
        rows += [Row(arm, curve, name, points) for name, points in found if points] or [Row(arm, curve, None, [])]
    return rows


def _points(curve: Curve, metric: str) -> Points:
    try:
        return curve.points(metric)
    except KeyError:  # not logged, or at no step by all seeds
        return []


def _runs(row: Row) -> str:
    seeds = ", ".join(str(run.config.get("seed", "?")) for run in row.arm.runs)
    return printable(f"{len(row.arm.runs)} seed{'s' if len(row.arm.runs) > 1 else ''} ({seeds})")


def _state(row: Row) -> str:
    states = Counter(
        f"{run.diagnosis.state}, {run.diagnosis.steps} of {run.config.get('max_steps', '?')} steps"
        for run in row.arm.runs
    )
    return printable("; ".join(f"{count} × {text}" if count > 1 else text for text, count in states.items()))


def _number(value: float) -> str:
    """
    >>> _number(0.74), _number(1234.5)
    ('0.740', '1,234')
    """
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _first(row: Row) -> str:
    return _number(row.points[0][1].mean) if row.points else ABSENT


def _best(row: Row) -> str:
    if not row.points:
        return ABSENT
    step, best = max(row.points, key=lambda point: point[1].mean)
    return f"{_number(best.mean)} (step {step})"


def _last(row: Row) -> str:
    if not row.points:
        return ABSENT
    step, last = row.points[-1]
    return f"{_number(last.mean)} [{_number(last.low)}, {_number(last.high)}] (step {step})"


def _change(name: str, digits: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        points = row.beside(name)
        return f"{points[0][1].mean:{digits}} → {points[-1][1].mean:{digits}}" if points else ABSENT

    return text


def _spent(axis: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        if not all(axis in axes_of(run.records) for run in row.arm.runs):
            return ABSENT
        mean = fmean(spent(run.records)[axis] for run in row.arm.runs)
        return duration(mean) if axis == "seconds" else f"{mean:,.0f}"

    return text


def _doctor(row: Row) -> str:
    """The names of what was found, the gravest first."""
    findings = [finding for run in row.arm.runs for finding in run.diagnosis.findings]
    by_severity = {s: sorted({f.name for f in findings if f.severity == s}) for s in SEVERITIES}
    return "; ".join(f"{severity}: {', '.join(names)}" for severity, names in by_severity.items() if names) or "nothing"


def _by_hand(row: Row) -> str:
    return printable(row.arm.changes) or ABSENT


COLUMNS: dict[str, Callable[[Row], str]] = {
    "arm": lambda row: row.arm.label,
    "runs": _runs,
    "state": _state,
    "measure": lambda row: ABSENT if row.measure is None else printable(label_of(row.measure)),
    "first": _first,
    "best": _best,
    "last [95 % interval]": _last,
    "entropy (nats/token)": _change("entropy", ".3f"),
    "length (tokens)": _change("mean_length", ".1f"),
    "completions": _spent("completions"),
    "tokens": _spent("tokens"),
    "syncs": _spent("syncs"),
    "wall-clock": _spent("seconds"),
    "doctor": _doctor,
    "changed by hand": _by_hand,
}
NOTE = (
    "Intervals are over training seeds where an arm has several, else over held-out prompts; those of two or three "
    "seeds are wide, or narrow by chance. What was spent is a run's "
    "mean over the arm, without evaluations and pauses; a fork's includes what it shares with its parent."
)


def markdown_of(rows: Sequence[Row]) -> str:
    """As a Markdown table."""
    cells = [[_escaped(text(row)) for text in COLUMNS.values()] for row in rows]
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{NOTE}"


def _escaped(text: str) -> str:
    r"""Text that Markdown shows as it is: no markup, no HTML, no mathematics.

    >>> print(_escaped("a|b <i> $x$ *c*"))
    a\|b \<i\> \$x\$ \*c\*
    """
    return re.sub(r"([\\`*<>|$&~!]|\[(?=.*\]\())", r"\\\1", text)
