"""Where a run's gap between trainer and sampler comes from, as a figure and as a table; see `kit.gap`."""

from collections.abc import Mapping, Sequence
from math import floor, log10, nan
from typing import Any

from matplotlib.axes import Axes

from kit.gap import PARTS

GAP_STYLES = {  # colour, marker, and what it is; Okabe and Ito's colours
    "total": ("black", "", "total: trainer minus sampler"),
    "staleness": ("#D55E00", "o", "staleness: updates since the sync"),
    "truncation": ("#009E73", "^", "truncation: top-p, top-k"),
    "dropout": ("#CC79A7", "D", "dropout"),
    "quantization": ("#56B4E9", "s", "quantization of the frozen model"),
    "numerics": ("#0072B2", "v", "numerics: engine, precision"),
}


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
