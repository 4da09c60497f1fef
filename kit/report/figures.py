"""The figures of a report."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from kit.plots import Curve, label_of, plot_metric
from kit.printable import printable
from kit.report.scores import Results, at_best, at_end
from kit.statistics import mean_interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")  # Okabe and Ito's
STYLES = ("-", "--", ":", "-.")


def curves_of(results: Results, arms: Sequence[str]) -> list[Curve]:
    """A curve an arm, each with a colour and a line of its own."""
    return [
        Curve("", None, tuple(results[arm].values()), name=printable(arm), shade=_colour(n), line=STYLES[n // 8 % 4])
        for n, arm in enumerate(arms)
    ]


def _colour(number: int) -> tuple[float, float, float]:
    text = COLOURS[number % len(COLOURS)]
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))  # pyright: ignore[reportReturnType]


def plot_arms(ax: Axes, results: Results, arms: Sequence[str], metric: str) -> None:
    """Curves of some arms against the step: means and 95 % bands over training seeds; arms without the metric aside."""
    having = [arm for arm in arms if any(metric in record for records in results[arm].values() for record in records)]
    plot_metric(ax, curves_of(results, having), metric)


def plot_last(ax: Axes, results: Results, metric: str) -> None:
    """A line an arm: the last score with its 95 % interval, the seeds as ticks, the best checkpoint as a ring."""
    arms = list(results)[::-1]  # the first at the top
    for place, arm in enumerate(arms):
        values = list(at_end(results[arm], metric).values())
        ax.plot(values, [place] * len(values), "|", color="0.6", markersize=8)
        if len(values) > 1:
            interval = mean_interval(values)
            ax.plot([interval.low, interval.high], [place, place], color=COLOURS[0], linewidth=2.2)
            ax.plot([interval.mean], [place], "o", color=COLOURS[0], markersize=6)
        best = [value for value, _ in at_best(results[arm], metric).values()]
        if best:
            ax.plot([sum(best) / len(best)], [place], "o", mfc="none", mec=COLOURS[1], markersize=9)
    ax.set_yticks(range(len(arms)), [printable(arm) for arm in arms], parse_math=False)
    ax.set_xlabel(label_of(metric))
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.margins(y=0.5 / max(len(arms), 1))
