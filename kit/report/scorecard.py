"""The claims of a paper, what was measured of each, and what that says."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kit.differences import Difference
from kit.report.tables import markdown
from kit.report.verdicts import Verdict

SIGNS: dict[Verdict, str] = {
    "reproduced": "✔ reproduced", "not reproduced": "✘ not reproduced", "undecided": "? undecided",
    "not testable here": "– not testable here",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One claim. `study` is the folder whose runs say it; None where there are none."""

    claim: str  # C1, C2, ...
    says: str
    paper: str
    measured: str
    verdict: Verdict
    study: str | None = None


def scorecard(entries: Iterable[Entry]) -> str:
    """The entries as a Markdown table, a line each, and how many there are of each verdict.

    >>> print(scorecard([Entry("C1", "a > b", "2 > 1", "+1", "reproduced")]))
    1 ✔ reproduced
    <BLANKLINE>
    | claim | says | in the paper | measured here | verdict | study |
    |---|---|---|---|---|---|
    | C1 | a &gt; b | 2 &gt; 1 | +1 | ✔ reproduced | – |
    """
    entries = list(entries)
    counts = {verdict: sum(entry.verdict == verdict for entry in entries) for verdict in SIGNS}
    told = " · ".join(f"{count} {SIGNS[verdict]}" for verdict, count in counts.items() if count)
    head = ["claim", "says", "in the paper", "measured here", "verdict", "study"]
    rows = [
        [entry.claim, entry.says, entry.paper, entry.measured, SIGNS[entry.verdict],
         Path(entry.study).name if entry.study else "–"]
        for entry in entries
    ]  # fmt: skip
    return f"{told}\n\n{markdown(head, rows)}"


def told(found: Difference) -> str:
    """A difference for a table: mean, 95 % interval, number of training seeds.

    >>> told(Difference(0.5, 0.0, 2, 3, is_paired=True))
    '+0.50 [+0.50, +0.50] (n=3)'
    """
    return f"{found.interval():+.2f}"
