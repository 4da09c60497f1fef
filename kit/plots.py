"""Figures of runs: functions of (axes, curves); the caller owns the figure.

One colour a regime, from light to dark as the sampler gets fresher, safe for colour-blind readers; one line style an
objective. A band is the 95 % interval over training seeds, or, for a single run, the one over held-out problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from kit.fork import origin_of, recorded_controls
from kit.progress import X_AXES, Progress, axes_of
from kit.runlog import read_jsonl
from kit.settings import changes_text
from kit.statistics import Interval, mean_interval

REGIME_COLOURS = {"offline": "#E69F00", "semi-online": "#2A9D8F", "online": "#1F3B73"}
LINE_STYLES = {"dpo": "-", "grpo": "--", "group_dpo": ":"}
LABELS = {
    "eval/accuracy": "sampled accuracy (fraction right)",
    "eval/greedy_accuracy": "greedy accuracy (fraction right)",
    "eval/win_rate": "win rate over the baseline",
    "eval/length_controlled_win_rate": "length-controlled win rate",
    "eval/reward": "reward of fresh samples",
    "eval/entropy": "entropy (nats per token, fresh samples)",
    "eval/mean_length": "completion length (tokens)",
    "reward": "reward of the sampler's completions",
    "entropy": "entropy on what was trained on (nats per token)",
    "completions/mean_length": "length of the sampler's completions (tokens)",
    "frac_reward_zero_std": "groups without a signal (fraction)",
    "sync/staleness": "staleness of the sampler (updates)",
    "offpolicy/kl": "KL(policy || sampler) (nats per token)",
    "grad_norm": "gradient norm",
    "kl": "KL(policy || reference) (nats per token)",
}


def regime(sync_interval: int | str | None) -> str:
    """The name of a sync interval: None is offline, 1 online, anything else, also "on drift", semi-online."""
    return "offline" if sync_interval is None else "online" if sync_interval == 1 else "semi-online"


def colour(sync_interval: int | str | None) -> tuple[float, float, float]:
    """The colour of an interval: its regime's, of semi-online ones towards online below 10 and lighter beyond."""
    base = to_rgb(REGIME_COLOURS[regime(sync_interval)])
    distance = log10((sync_interval if isinstance(sync_interval, int) else 10) / 10)
    if regime(sync_interval) != "semi-online":
        return base
    target, share = (to_rgb("white"), 0.4 * distance) if distance > 0 else (to_rgb(REGIME_COLOURS["online"]), -distance)
    return tuple(b + min(share, 0.6) * (t - b) for b, t in zip(base, target, strict=True))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Curve:
    """Runs of one configuration, one a training seed; where they are forks, of their own steps."""

    objective: str
    sync_interval: int | str | None  # steps; None = offline; text = another schedule, such as "on drift"
    runs: tuple[list[dict[str, Any]], ...]  # records of metrics.jsonl
    name: str | None = None  # in legends; None = objective, regime and s
    from_step: int = 0  # the first that is drawn: where a fork left its parent
    shade: tuple[float, float, float] | None = None  # None = the colour of the regime
    line: str | None = None  # matplotlib's name of a style; None = that of the objective

    @classmethod
    def read(cls, objective: str, sync_interval: int | str | None, out_dirs: Sequence[str | Path]) -> "Curve":
        """From run directories. Forks that left their parents at one step with the same changes are named by these."""
        paths = [Path(path) for path in out_dirs]
        curve = cls(objective, sync_interval, tuple(read_jsonl(path / "metrics.jsonl") for path in paths))
        origins = [origin_of(path) for path in paths]
        steps = {None if origin is None else origin.step for origin in origins}
        step = steps.pop()
        if steps or step is None:
            return curve
        changes, *others = ([made for at, made in recorded_controls(path) if at == step] for path in paths)
        if any(made != changes for made in others):
            return curve
        knobs = {knob: value for made in changes for knob, value in made.items()}
        name = f"{changes_text(knobs) or 'fork'} from step {step}"
        return replace(curve, sync_interval=knobs.get("sync_interval", sync_interval), name=name, from_step=step)

    @property
    def label(self) -> str:
        if self.name is not None:
            return self.name
        name = self.objective.upper().replace("_", " ")
        return f"{name}, {regime(self.sync_interval)} (s = {_interval_text(self.sync_interval)})"

    def points(self, metric: str, x: str = "step") -> list[tuple[float, Interval]]:
        """(position, interval) wherever every run has the metric.

        Args:
            metric: a name in the records.
            x: one of `kit.progress.X_AXES`; seeds spend different amounts up to a step, so the position is their mean.

        Raises:
            KeyError: if no step has the metric.
            ValueError: if a run has not logged what the axis counts, or there is no such axis.
        """
        by_step: dict[int, list[tuple[float, Mapping[str, Any]]]] = {}
        for records in self.runs:
            if x not in axes_of(records):
                there = ", ".join(axes_of(records))
                raise ValueError(f"expected an x axis that {self.label} has logged ({there}), came {x!r}")
            progress = Progress()
            for position, record in [(progress.push(record)[x], record) for record in records]:
                if metric in record:
                    by_step.setdefault(record["step"], []).append((position, record))
        complete = {step: found for step, found in by_step.items() if len(found) == len(self.runs)}
        if not complete:
            raise KeyError(f"no record of {self.label} has the metric {metric!r}")
        first = max((step for step in complete if step <= self.from_step), default=0)  # where a fork leaves its parent
        points = []
        for step in sorted(step for step in complete if step >= first):
            positions, found = zip(*complete[step], strict=True)
            points.append((step if x == "step" else fmean(positions), _interval(found, metric)))
        return points


def _interval_text(sync_interval: int | str | None) -> str:
    return "∞" if sync_interval is None else str(sync_interval)


def plot_metric(ax: Axes, curves: Sequence[Curve], metric: str, x: str = "step") -> None:
    """One metric against what was spent, a line with its band for each curve; that of a fork starts with a dot.

    Args:
        x: one of `kit.progress.X_AXES`.
    """
    for curve in curves:
        positions, intervals = zip(*curve.points(metric, x), strict=True)
        shade = colour(curve.sync_interval) if curve.shade is None else curve.shade
        count = len(curve.runs)
        ax.plot(
            positions,
            [interval.mean for interval in intervals],
            color=shade,
            linestyle=LINE_STYLES.get(curve.objective, "-.") if curve.line is None else curve.line,
            linewidth=1.8,
            marker="o" if curve.from_step else "",
            markersize=4,
            markevery=[0],
            label=f"{curve.label}, {count} seed{'s' if count > 1 else ''}",
        )
        ax.fill_between(
            positions, [i.low for i in intervals], [i.high for i in intervals], color=shade, alpha=0.15, linewidth=0
        )
    ax.set_xlabel(X_AXES[x])
    ax.set_ylabel(label_of(metric))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def label_of(metric: str) -> str:
    """What an axis says of a metric; of one task's among several, the task first.

    >>> label_of("task/chat/eval/win_rate")
    'chat: win rate over the baseline'
    """
    if not metric.startswith("task/"):
        return LABELS.get(metric, metric)
    _, task, name = metric.split("/", 2)
    return f"{task}: {LABELS.get(name, name)}"


def _interval(records: Sequence[Mapping[str, Any]], metric: str) -> Interval:
    values = [record[metric] for record in records]
    if len(values) > 1:
        return mean_interval(values)
    low, high = (records[0].get(f"{metric}_{end}", values[0]) for end in ("low", "high"))
    return Interval(values[0], low, high, 1)


def headline_table(curves: Sequence[Curve], metric: str = "eval/accuracy") -> str:
    """First, best and last value of a rate and last entropy of every curve, as a Markdown table."""
    name = metric.rpartition("/")[2].replace("_", " ")
    task = f" on {metric.split('/')[1]}" if metric.startswith("task/") else ""
    rows = [
        f"| arm{task} | seeds | {name}: first | best | last (95 % interval) | entropy: first | last |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve in curves:
        points, entropy = curve.points(metric), curve.points(metric.rpartition("/")[0] + "/entropy")
        best_step, best = max(points, key=lambda point: point[1].mean)
        last, entropies = points[-1][1], [interval.mean for _, interval in entropy]
        rows.append(
            f"| {curve.label} | {len(curve.runs)} | {points[0][1].mean:.2f} | {best.mean:.2f} (step {best_step}) "
            f"| **{last.mean:.2f}** ({last.low:.2f} to {last.high:.2f}) | {entropies[0]:.3f} | {entropies[-1]:.3f} |"
        )
    return "\n".join(rows)
