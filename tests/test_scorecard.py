"""The scorecard: its table, its picture, and that the committed one says what the committed studies say."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from kit.differences import difference
from kit.report.scorecard import SIGNS, Entry, plot_entries, scorecard, told
from kit.report.verdicts import is_above, is_below, is_equal
from kit.statistics import Interval, mean_interval
from kit.study import execute_notebook

ROOT = Path(__file__).parents[1]
BETTER = Entry("C1", "a is better", "2 against 1", Interval(0.5, 0.4, 0.6, n=3), "reproduced", "one")
SHORTER = Entry("C2", "b is shorter", "yes", Interval(-3.0, -4.0, 1.0, n=5), "undecided", "two", "tokens")
NOT_HERE = Entry("C3", "c is faster", "argument", "no clock", "not testable here")


def test_every_entry_is_a_line_with_its_number_verdict_and_link() -> None:
    lines = scorecard([BETTER, SHORTER, NOT_HERE], "../studies").splitlines()
    assert lines[0] == "1 ✔ reproduced · 1 ? undecided · 1 – not testable here"
    assert lines[4:] == [
        "| C1 | a is better | 2 against 1 | +0.50 [+0.40, +0.60] (n=3) | ✔ reproduced | [one](../studies/one) |",
        "| C2 | b is shorter | yes | -3.00 [-4.00, +1.00] (n=5) tokens | ? undecided | [two](../studies/two) |",
        "| C3 | c is faster | argument | no clock | – not testable here | – |",
    ]


def test_what_stands_in_an_entry_cannot_break_the_table() -> None:
    hostile = Entry("C1", "a | b", "<script>", "x\n| y |", "undecided")
    lines = scorecard([hostile], "..").splitlines()
    assert len(lines) == 5 and "<script>" not in lines[4] and lines[4].replace("\\|", "").count("|") == 7


def test_of_nothing_there_is_an_empty_table() -> None:
    assert len(scorecard([], "..").splitlines()) == 4


def test_the_picture_has_a_line_for_each_interval_first_at_the_top() -> None:
    ax = Figure().subplots()
    plot_entries(ax, [BETTER, NOT_HERE, SHORTER])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["C2  b is shorter", "C1  a is better"]
    drawn = [line.get_xdata() for line in ax.lines]
    assert [-4.0, 1.0] in [list(xs) for xs in drawn] and [0.4, 0.6] in [list(xs) for xs in drawn]
    assert sorted(ax.get_legend_handles_labels()[1]) == ["reproduced", "undecided"]


def test_every_verdict_has_a_sign() -> None:
    assert set(SIGNS) == {"reproduced", "not reproduced", "undecided", "not testable here"}


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.1, 0.2, "reproduced", "not reproduced"),
        (-0.2, -0.1, "not reproduced", "reproduced"),
        (-0.1, 0.1, "undecided", "undecided"),
        (0.0, 0.1, "undecided", "undecided"),  # touches: no evidence
    ],
)
def test_a_direction_needs_the_whole_interval(low: float, high: float, above: str, below: str) -> None:
    found = Interval((low + high) / 2, low, high, n=3)
    assert (is_above(found), is_below(found)) == (above, below)
    assert is_above(Interval(found.mean + 5, low + 5, high + 5, n=3), 5.0) == above


def test_equality_by_hand() -> None:
    """Differences .00, .01, .02: mean .01, standard error .01/sqrt(3) = .00577, t(.95, 2) = 2.920."""
    found = difference({0: 0.50, 1: 0.51, 2: 0.52}, dict.fromkeys(range(3), 0.5))
    smallest = 0.01 + 2.920 * 0.0057735  # the margin at which it is just significant
    assert is_equal(found, smallest + 1e-4) == "reproduced" and is_equal(found, smallest - 1e-4) == "undecided"
    far = difference({0: 0.80, 1: 0.81, 2: 0.82}, dict.fromkeys(range(3), 0.5))
    assert is_equal(far, 0.05) == "not reproduced" and is_equal(far, 0.5) == "reproduced"


def test_a_difference_is_told_with_digits() -> None:
    found = difference({0: 1.0, 1: 1.1}, {0: 0.0, 1: 0.0})
    interval = mean_interval([1.0, 1.1])
    assert told(found, digits=3) == f"+1.050 [{interval.low:+.3f}, {interval.high:+.3f}] (n=2)"


def test_the_committed_scorecard_is_that_of_the_committed_studies(tmp_path: Path) -> None:
    """But for C6, which is sampled anew, with fewer problems here; and the summary that counts it."""
    given = {"out_dir": str(tmp_path / "runs"), "problems": 8}
    execute_notebook(ROOT / "notebooks" / "12_scorecard.ipynb", tmp_path / "12.ipynb", given)

    def rows(path: Path) -> list[list[str]]:
        cells = [line.split("|")[:6] for line in path.read_text().splitlines() if line.startswith("| C")]
        return [row for row in cells if row[1].strip() != "C6"]

    assert rows(tmp_path / "runs" / "scorecard.md") == rows(ROOT / "docs" / "scorecard.md")
