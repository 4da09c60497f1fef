"""The claims of a paper, what was measured of each, and what that says."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from kit.differences import Difference
from kit.printable import printable
from kit.report.tables import ABSENT, markdown
from kit.report.verdicts import Verdict
from kit.statistics import Interval

SIGNS: dict[Verdict, str] = {
    "reproduced": "✔ reproduced", "not reproduced": "✘ not reproduced", "undecided": "? undecided",
    "not testable here": "– not testable here",
}  # fmt: skip
COLOURS: dict[Verdict, str] = {
    "reproduced": "#0072B2", "not reproduced": "#D55E00", "undecided": "#7F7F7F", "not testable here": "#BBBBBB",
}  # fmt: skip
MARKERS: dict[Verdict, str] = {"reproduced": "o", "not reproduced": "X", "undecided": "s", "not testable here": "."}


@dataclass(frozen=True)
class Entry:
    """One claim, or a part of one. `study` is the name of that whose runs say it; None where none do."""

    claim: str  # C1, C2, ...
    says: str
    paper: str
    measured: Interval | str
    verdict: Verdict
    study: str | None = None
    unit: str = ""  # of what was measured; "" is a fraction


def scorecard(entries: Sequence[Entry], studies: str) -> str:
    """The entries as a Markdown table, a line each, and how many there are of each verdict.

    Args:
        entries: in the table's order.
        studies: the studies' folder, from where the table will be read; each study is a link.

    >>> print(scorecard([Entry("C1", "a > b", "2 > 1", "+1", "reproduced", "regimes")], "../papermill_runs"))
    1 ✔ reproduced
    <BLANKLINE>
    | claim | says | in the paper | measured here | verdict | study |
    |---|---|---|---|---|---|
    | C1 | a &gt; b | 2 &gt; 1 | +1 | ✔ reproduced | [regimes](../papermill_runs/regimes) |
    """
    counts: dict[Verdict, int] = {verdict: sum(entry.verdict == verdict for entry in entries) for verdict in SIGNS}
    summary = " · ".join(f"{count} {SIGNS[verdict]}" for verdict, count in counts.items() if count)
    head = ["claim", "says", "in the paper", "measured here", "verdict", "study"]
    rows = [
        [entry.claim, entry.says, entry.paper, _measured(entry), SIGNS[entry.verdict],
         f"[{entry.study}]({studies}/{entry.study})" if entry.study else ABSENT]
        for entry in entries
    ]  # fmt: skip
    return f"{summary}\n\n{markdown(head, rows)}"


def plot_entries(ax: Axes, entries: Sequence[Entry]) -> None:
    """A line an entry that was measured: its value and interval, by the verdict's colour and marker."""
    known = [entry for entry in entries if isinstance(entry.measured, Interval)][::-1]  # the first at the top
    for place, entry in enumerate(known):
        found, shade = entry.measured, COLOURS[entry.verdict]
        assert isinstance(found, Interval)
        ax.plot([found.low, found.high], [place, place], color=shade, linewidth=2)
        ax.plot([found.mean], [place], MARKERS[entry.verdict], color=shade, markersize=7)
    for verdict in SIGNS:
        if any(entry.verdict == verdict for entry in known):
            ax.plot([], [], MARKERS[verdict], color=COLOURS[verdict], label=verdict)
    names = [printable(f"{entry.claim}  {entry.says}") for entry in known]
    ax.set_yticks(range(len(known)), names, parse_math=False, fontsize=9)
    ax.axvline(0, color="0.5", linewidth=1)
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.7, len(known) - 0.3)


def told(found: Difference, digits: int = 2) -> str:
    """A difference for a table: mean, 95 % interval, number of training seeds.

    >>> told(Difference(0.5, 0.0, 2, 3, is_paired=True))
    '+0.50 [+0.50, +0.50] (n=3)'
    """
    return f"{found.interval():+.{digits}f}"


def _measured(entry: Entry) -> str:
    if isinstance(entry.measured, str):
        return entry.measured
    return f"{entry.measured:+.2f}" + (f" {entry.unit}" if entry.unit else "")
