"""The tables of a report, as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from kit.costs import Costs
from kit.differences import difference, holm
from kit.printable import printable
from kit.report.scores import Results, Runs, at_best, at_end
from kit.statistics import Interval, mean_interval

ABSENT = "–"
SIZES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scores_table(results: Results, metric: str, others: Sequence[str] = ("eval/entropy", "eval/mean_length")) -> str:
    """A line an arm: where it began, its best checkpoint, its last; intervals are 95 % over training seeds.

    Args:
        metric: the score.
        others: metrics of which the last value is told as well, where there are any.
    """
    prefix = metric.rpartition("eval/")[0]
    others = [name for name in (f"{prefix}{other}" for other in others) if _any_has(results, name)]
    names = [name.rpartition("/")[2].replace("_", " ") for name in others]
    rows = []
    for arm, runs in results.items():
        best = at_best(runs, metric)
        steps = ", ".join(f"{step:.0f}" for step in dict.fromkeys(step for _, step in best.values()))
        rows.append([
            arm, str(len(runs)), _mean([records[0][metric] for records in runs.values() if metric in records[0]]),
            f"{_interval([value for value, _ in best.values()])} (step {steps})" if best else ABSENT,
            f"**{_last(runs, metric)}**", *(_interval(list(at_end(runs, name).values())) for name in others),
        ])  # fmt: skip
    return markdown(["arm", "seeds", "start", "best checkpoint", "last", *(f"{name}, last" for name in names)], rows)


def differences_table(results: Results, metric: str, baseline: str, margin: float) -> str:
    """Every arm's last score minus the baseline's: interval, p-value after Holm, and equivalence within the margin.

    Raises:
        ValueError: if the study has no such arm.
    """
    if baseline not in results:
        raise ValueError(f"expected one of the arms {', '.join(results)} as baseline, came {baseline!r}")
    base = at_end(results[baseline], metric)
    arms = [arm for arm in results if arm != baseline and len(at_end(results[arm], metric)) > 1 < len(base)]
    found = {arm: difference(at_end(results[arm], metric), base) for arm in arms}
    adjusted = dict(zip(found, holm([each.p_value() for each in found.values()]), strict=True))
    rows = []
    for arm in results:
        if arm == baseline:
            continue
        if arm not in found:
            rows.append([arm, "one seed: no interval", ABSENT, ABSENT, ABSENT])
            continue
        each = found[arm]
        paired = "paired by seed" if each.is_paired else "Welch's"
        p_equivalent = each.p_equivalent(margin)
        rows.append([arm, f"{each.interval():+.3f}, {paired}", _p(adjusted[arm]), _p(p_equivalent),
                     _verdict(each.interval(), p_equivalent)])  # fmt: skip
    head = ["arm", f"minus {baseline} [95 %]", "p, Holm", f"p of a difference of {margin:g} or more", "so"]
    return markdown(head, rows)


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"


def _verdict(interval: Interval, p_equivalent: float) -> str:
    """In words: a difference can be there and be smaller than the margin."""
    is_other = not interval.low <= 0 <= interval.high
    direction = "higher" if interval.mean > 0 else "lower"
    if p_equivalent <= 0.05:
        return f"{direction}, within the margin" if is_other else "equivalent"
    return direction if is_other else "undecided"


def costs_table(costs: Mapping[str, Mapping[int, Costs]]) -> str:
    """A line an arm: means over its runs; `costs` as `kit.report.study_costs` gives them."""
    rows = []
    for arm, of_seed in costs.items():
        if not of_seed:
            continue
        known = list(of_seed.values())
        parts = [fmean(c.seconds.get(part, 0.0) for c in known) for part in ("generate", "train", "eval")]
        rows.append([
            arm, str(len(known)), f"{fmean(c.training_seconds for c in known):.0f}",
            " / ".join(f"{part:.0f}" for part in parts),
            _large([c.completions for c in known]), _large([c.tokens for c in known]),
            _large([c.trained_tokens for c in known]), _large([c.flops for c in known]),
            _large([c.peak_memory for c in known], "B"), _large([c.sync_bytes for c in known], "B"),
        ])  # fmt: skip
    if all(row[-1] == ABSENT for row in rows):  # runs of before did not record it
        rows = [row[:-1] for row in rows]
    if not rows:
        return "Neither the run directories nor a costs.csv are here: what the runs cost is not known."
    head = ["arm", "runs", "seconds", "generate / train / evaluate", "completions", "tokens", "trained on", "FLOPs",
            "peak memory", "synced"]  # fmt: skip
    return markdown(head[: len(rows[0])], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A table; whatever came from a file cannot break it.

    >>> print(markdown(["a", "b"], [["x|y", "<b>"]]))
    | a | b |
    |---|---|
    | x\|y | &lt;b&gt; |
    """
    lines = [head, ["---"] * len(head), *rows]
    cells = [[_safe(cell) if number != 1 else cell for cell in line] for number, line in enumerate(lines)]
    return "\n".join("|" + "|".join(line if n == 1 else [f" {cell} " for cell in line]) + "|"
                     for n, line in enumerate(cells))  # fmt: skip


def _safe(text: str) -> str:
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _any_has(results: Results, metric: str) -> bool:
    return any(at_end(runs, metric) for runs in results.values())


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" if values else ABSENT


def _interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval over seeds; of one seed the value alone."""
    if len(values) < 2:
        return _mean(values)
    interval = mean_interval(values)
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _last(runs: Runs, metric: str) -> str:
    """As `_interval`; of one seed with its interval over held-out problems, where it was recorded."""
    values = list(at_end(runs, metric).values())
    if len(values) != 1:
        return _interval(values)
    (record,) = (records[-1] for records in runs.values() if metric in records[-1])
    low, high = record.get(f"{metric}_low"), record.get(f"{metric}_high")
    return f"{values[0]:.3f}" + (f" [{low:.3f}, {high:.3f}] over problems" if low is not None else "")


def _large(values: Sequence[float | None], unit: str = "") -> str:
    """The mean of large numbers, three digits.

    >>> _large([2.5e9, 1.5e9], "B"), _large([512]), _large([None])
    ('2.00 GB', '512', '–')
    """
    known = [value for value in values if value is not None]
    if not known:
        return ABSENT
    mean = fmean(known)
    size, letter = next(((size, letter) for size, letter in SIZES if mean >= size), (1.0, ""))
    return f"{mean / size:#.3g} {letter}{unit}".rstrip(". ") if letter else f"{mean:.0f} {unit}".strip()
