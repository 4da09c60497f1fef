"""Figures of runs: functions of (axes, curves); the caller owns the figure.

One colour a regime, from light to dark as the sampler gets fresher, safe for colour-blind readers; one line style an
objective. A band is the 95 % interval over training seeds, or, for a single run, the one over held-out problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10, nan
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from kit.gap import PARTS
from kit.runlog import read_jsonl
from kit.statistics import Interval, mean_interval

REGIME_COLOURS = {"offline": "#E69F00", "semi-online": "#2A9D8F", "online": "#1F3B73"}
LINE_STYLES = {"dpo": "-", "grpo": "--", "group_dpo": ":"}
GAP_STYLES = {  # colour, marker, and what it is; Okabe and Ito's colours
    "total": ("black", "", "total: trainer minus sampler"),
    "staleness": ("#D55E00", "o", "staleness: updates since the sync"),
    "truncation": ("#009E73", "^", "truncation: top-p, top-k"),
    "dropout": ("#CC79A7", "D", "dropout"),
    "quantization": ("#56B4E9", "s", "quantization of the frozen model"),
    "numerics": ("#0072B2", "v", "numerics: engine, precision"),
}
LABELS = {
    "eval/accuracy": "sampled accuracy (fraction right)",
    "eval/greedy_accuracy": "greedy accuracy (fraction right)",
    "eval/win_rate": "win rate over the baseline",
    "eval/length_controlled_win_rate": "length-controlled win rate",
    "eval/reward": "reward of fresh samples",
    "eval/entropy": "entropy (nats per token, fresh samples)",
    "eval/mean_length": "completion length (tokens)",
    "reward": "reward of the sampler's completions",
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
    """Runs of one configuration, one a training seed."""

    objective: str
    sync_interval: int | str | None  # steps; None = offline; text = another schedule, such as "on drift"
    runs: tuple[list[dict[str, Any]], ...]  # records of metrics.jsonl

    @classmethod
    def read(cls, objective: str, sync_interval: int | str | None, out_dirs: Sequence[str | Path]) -> "Curve":
        """From run directories."""
        return cls(objective, sync_interval, tuple(read_jsonl(Path(path) / "metrics.jsonl") for path in out_dirs))

    @property
    def label(self) -> str:
        s = "∞" if self.sync_interval is None else self.sync_interval
        name = self.objective.upper().replace("_", " ")
        return f"{name}, {regime(self.sync_interval)} (s = {s})"

    def points(self, metric: str) -> list[tuple[int, Interval]]:
        """(step, interval) wherever every run has the metric.

        Raises:
            KeyError: if no step has it.
        """
        by_step: dict[int, list[Mapping[str, Any]]] = {}
        for records in self.runs:
            for record in records:
                if metric in record:
                    by_step.setdefault(record["step"], []).append(record)
        complete = {step: found for step, found in by_step.items() if len(found) == len(self.runs)}
        if not complete:
            raise KeyError(f"no record of {self.label} has the metric {metric!r}")
        return [(step, _interval(found, metric)) for step, found in sorted(complete.items())]


def plot_metric(ax: Axes, curves: Sequence[Curve], metric: str) -> None:
    """One metric against the optimizer step, a line with its band for each curve."""
    for curve in curves:
        steps, intervals = zip(*curve.points(metric), strict=True)
        shade = colour(curve.sync_interval)
        count = len(curve.runs)
        ax.plot(
            steps,
            [interval.mean for interval in intervals],
            color=shade,
            linestyle=LINE_STYLES.get(curve.objective, "-."),
            linewidth=1.8,
            label=f"{curve.label}, {count} seed{'s' if count > 1 else ''}",
        )
        ax.fill_between(
            steps, [i.low for i in intervals], [i.high for i in intervals], color=shade, alpha=0.15, linewidth=0
        )
    ax.set_xlabel("optimizer step")
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


def plot_gap(ax: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """Where one run's gap between trainer and sampler comes from: each part over steps, on a log axis.

    An exact zero has no place on it: a hollow marker on the line `0` below. Thin lines are syncs of the sampler.

    Args:
        records: of metrics.jsonl, of a run with `gap_steps`.

    Raises:
        KeyError: if no record has a gap.
    """
    measured = _with_gap(records)
    steps = [record["step"] for record in measured]
    values = {name: [record[f"gap/{name}/mean_abs"] for record in measured] for name in GAP_STYLES}
    lowest = min((value for of_part in values.values() for value in of_part if value > 0), default=1e-8)
    bottom = 10.0 ** (floor(log10(lowest)) - 1)
    syncs = [r["step"] for r in records if r.get("sync/version") == r["step"] > 0]
    for number, step in enumerate(syncs):
        foot = 0.0 if len(syncs) <= 30 else 0.97  # where there are many, only their upper ends
        ax.axvline(step, foot, color="0.8", linewidth=0.8, zorder=0, label="sync" if number == 0 else None)
    for name, (shade, marker, label) in GAP_STYLES.items():
        if not any(values[name]):
            continue
        style = (
            {"color": shade, "linewidth": 3.5, "alpha": 0.25} if name == "total" else {"color": shade, "markersize": 4}
        )
        ax.plot(steps, [value or nan for value in values[name]], marker=marker, label=label, **style)
        zeros = [step for step, value in zip(steps, values[name], strict=True) if value == 0]
        ax.plot(zeros, [bottom] * len(zeros), marker or "o", markerfacecolor="white", color=shade, markersize=4)
    absent = [name for name in GAP_STYLES if not any(values[name])]
    if absent:
        ax.plot([], [], " ", label="0 throughout:\n" + ",\n".join(absent))
    _log_axis_with_zero(ax, bottom)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("|log-prob difference| (nats, mean over tokens)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)


def _log_axis_with_zero(ax: Axes, bottom: float) -> None:
    """Decades as ticks, less of them where there are many, and a line for 0 at `bottom`, a decade below the rest."""
    ax.set_yscale("log")
    top = max(ax.get_ylim()[1], 10 * bottom)
    first, last = round(log10(bottom)) + 1, floor(log10(top))
    decades = range(first, last + 1, 1 + (last - first) // 8)
    ax.set_yticks([bottom, *(10.0**n for n in decades)], ["0", *(f"$10^{{{n}}}$" for n in decades)])
    ax.minorticks_off()
    ax.axhline(bottom, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    ax.set_ylim(bottom / 2, top * 2)


def _with_gap(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    measured = [record for record in records if "gap/cut" in record]
    if not measured:
        raise KeyError("no record has the metrics gap/*: run with RunConfig(gap_steps=...) to measure them")
    return measured


def gap_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The same as a Markdown table: each part over all measurements, and what it contributes to the divergence.

    Raises:
        KeyError: if no record has a gap.
    """
    measured = _with_gap(records)
    count = len(measured)
    rows = [
        f"| part, {count} measurement{'s' if count > 1 else ''} | mean abs (nats) | largest (nats) "
        "| part of KL(sampler \\|\\| policy) (nats per token) |",
        "|---|---|---|---|",
    ]
    for name in (*PARTS, "total"):
        mean_abs = sum(record[f"gap/{name}/mean_abs"] for record in measured) / count
        largest = max(record[f"gap/{name}/max_abs"] for record in measured)
        kl = sum(record[f"gap/{name}/kl"] for record in measured) / count
        rows.append(f"| {name} | {mean_abs:.2g} | {largest:.2g} | {kl:.2g} |")
    return "\n".join(rows)
