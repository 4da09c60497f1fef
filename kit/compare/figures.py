"""Small multiples of what runs share: one panel a metric, one curve an arm."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatch
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kit.compare.arms import Arm, schedule_text
from kit.objectives import OBJECTIVES
from kit.plots import Curve, colour, label_of, plot_metric
from kit.runlog import MEASURED

QUALITY = ("*eval/accuracy", "*eval/win_rate", "*eval/length_controlled_win_rate", "*eval/reward")
SHOWN = (  # the panels, in this order
    *QUALITY, "*eval/entropy", "*eval/mean_length", "reward", "entropy", "completions/mean_length", "kl",
    "offpolicy/kl", "sync/staleness", "frac_reward_zero_std", "grad_norm",
)  # fmt: skip
MOST = 12  # panels, unless metrics are named
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#7F4FB0",
    "#8C6D31",
    "#6B7780",
)  # told apart when lighter
STYLES = ("-", "--", ":", "-.")
BEYOND = 0.25  # how far a band may stretch an axis beyond the means, as a share of their range
NAMES = {getattr(made, "__name__", name): name for name, made in OBJECTIVES.items()}  # DPO -> dpo


def curves_of(arms: Sequence[Arm]) -> list[Curve]:
    """A curve an arm, coloured by its regime where that tells the arms apart, and one by one otherwise."""
    curves = [_curve(arm) for arm in arms]
    if len({(colour(curve.sync_interval), curve.objective) for curve in curves}) == len(curves):
        return curves
    return [
        replace(curve, shade=to_rgb(COLOURS[i % len(COLOURS)]), line=STYLES[i // len(COLOURS) % len(STYLES)])
        for i, curve in enumerate(curves)
    ]


def _curve(arm: Arm) -> Curve:
    config = arm.runs[0].config
    objective, sync = (config[name] if isinstance(config.get(name), Mapping) else {} for name in ("objective", "sync"))
    kind = str(objective.get("type", "?"))
    interval = sync.get("interval") if sync.get("type") in ("Every", "Never") else schedule_text(sync)
    for step, knobs in arm.runs[0].changes:
        if step == arm.fork_step:
            interval = knobs.get("sync_interval", interval)
    runs = tuple(run.records for run in arm.runs if run.records)  # one that has not begun says nothing yet
    return Curve(NAMES.get(kind, kind), interval, runs, arm.label, arm.fork_step or 0)


def metrics_of(arms: Sequence[Arm], asked: Sequence[str] = ()) -> list[str]:
    """The metrics to draw.

    Args:
        asked: those wanted, which some arms may lack; () = of what two arms share, the ones that matter most.

    Raises:
        ValueError: if no run has a metric that was asked for; if there is none that two arms share.
    """
    curves = [curve for curve in curves_of(arms) if curve.runs]
    counts = Counter(name for curve in curves for name in logged_by(curve) if _is_drawn(name))
    for name in asked:
        if name not in counts:
            there = ", ".join(get_close_matches(name, counts, 5) or sorted(counts)) or "nothing"
            raise ValueError(f"expected a metric that a run has logged, came {name!r}: there is {there}")
    shared = sorted(name for name, count in counts.items() if count >= min(2, len(curves)))
    if not shared and not asked:
        raise ValueError(
            "expected runs that have a metric in common, came runs without one: compare others, or say which metrics"
        )
    first = [name for pattern in SHOWN for name in shared if fnmatch(name, pattern)]
    return list(dict.fromkeys(asked or first or shared))[: None if asked else MOST]


def logged_by(curve: Curve) -> set[str]:
    """The metrics of an arm's records."""
    return {name for records in curve.runs for record in records for name in record}


def _is_drawn(name: str) -> bool:
    return name != "step" and not name.startswith(MEASURED) and not name.endswith(("_low", "_high"))


def panel(ax: Axes, curves: Sequence[Curve], metric: str, x: str) -> None:
    """One metric of the arms that have it. The means set the scale: a wide band, such as of two seeds, is cut."""
    having = [curve for curve in curves if _has(curve, metric)]
    plot_metric(ax, having, metric, x)
    intervals = [interval for curve in having for _, interval in curve.points(metric)]
    if intervals:
        low, high = (extreme(interval.mean for interval in intervals) for extreme in (min, max))
        room = BEYOND * (high - low)
        bottom = max(low - room, min(interval.low for interval in intervals))
        top = min(high + room, max(interval.high for interval in intervals))
        margin = 0.05 * (top - bottom) or 0.5 * abs(top) or 1.0
        ax.set_ylim(bottom - margin, top + margin)


def _has(curve: Curve, metric: str) -> bool:
    try:
        return bool(curve.points(metric))
    except KeyError:  # not logged, or at no step by all seeds
        return False


class Picture(Figure):
    """A figure that a notebook shows, also one that has not imported pyplot."""

    def _repr_png_(self) -> bytes:
        image = BytesIO()
        self.savefig(image, format="png", dpi=100)
        return image.getvalue()


def figure_of(arms: Sequence[Arm], metrics: Sequence[str], x: str) -> Picture:
    """All panels in one figure, with a legend below."""
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Picture(figsize=(4.2 * columns, 3.1 * rows + 0.28 * len(arms) + 0.2), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    curves = curves_of(arms)
    for ax, metric in zip(axes, metrics, strict=False):
        panel(ax, curves, metric, x)
        ax.set_title(label_of(metric), loc="left", fontsize=10, parse_math=False)
        ax.set_ylabel("")
    for ax in axes[len(metrics) :]:
        ax.set_axis_off()
    lines = {str(line.get_label()): line for ax in figure.axes for line in ax.get_lines()}
    legend = figure.legend(lines.values(), lines, loc="outside lower left", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a label is a dollar sign
    return figure
