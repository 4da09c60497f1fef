"""Figures: what is drawn equals what was logged, and looks the same everywhere."""

import json
from collections.abc import Callable
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kit.gap import PARTS
from kit.gap_plots import gap_table, plot_gap
from kit.plots import REGIME_COLOURS, Curve, colour, headline_table, plot_metric, regime
from tests.run_folders import forked, write_run


def records(*accuracies: float) -> list[dict[str, float]]:
    return [
        {
            "step": 10 * i,
            "eval/accuracy": a,
            "eval/accuracy_low": a - 0.1,
            "eval/accuracy_high": a + 0.1,
            "eval/entropy": 0.5 - a / 2,
        }
        for i, a in enumerate(accuracies)
    ]


def test_the_three_regimes_are_told_by_the_interval() -> None:
    assert [regime(s) for s in (None, 1, 2, 100)] == ["offline", "online", "semi-online", "semi-online"]


def test_semi_online_intervals_are_told_apart_and_get_lighter() -> None:
    lightness = [sum(colour(s)) for s in (2, 10, 50, 100, 1000)]
    assert lightness == sorted(lightness) and len(set(lightness)) == 5
    assert colour(10) == to_rgb(REGIME_COLOURS["semi-online"])
    assert len({colour(s) for s in (None, 1, 10, 100)}) == 4


def test_one_run_is_drawn_with_its_own_interval() -> None:
    ax = Figure().subplots()
    plot_metric(ax, [Curve("dpo", 1, (records(0.5, 0.7, 0.9),))], "eval/accuracy")
    (line,) = ax.get_lines()
    assert line.get_xydata().tolist() == [[0, 0.5], [10, 0.7], [20, 0.9]]
    assert line.get_color() == to_rgb(REGIME_COLOURS["online"]) and line.get_linestyle() == "-"
    assert line.get_label() == "DPO, online (s = 1), 1 seed"
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.4, 1.0))  # low of the first, high of the last
    assert ax.get_xlabel() == "optimizer step" and "fraction right" in ax.get_ylabel()


def test_several_seeds_are_averaged_with_a_student_interval() -> None:
    curve = Curve("grpo", None, (records(0.5, 0.6), records(0.5, 0.8)))
    _, (step, interval) = curve.points("eval/accuracy")
    # Two values 0.6 and 0.8: mean 0.7, standard error 0.1, and t(0.975, 1 degree of freedom) = 12.7062.
    assert (step, interval.mean, interval.n) == (10, pytest.approx(0.7), 2)
    assert interval.high - interval.mean == pytest.approx(1.27062, abs=1e-5)


def test_a_step_that_one_seed_has_not_reached_is_left_out() -> None:
    curve = Curve("dpo", 10, (records(0.5, 0.6, 0.7), records(0.5, 0.6)))
    assert [step for step, _ in curve.points("eval/accuracy")] == [0, 10]


def test_a_metric_that_was_never_logged_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"no record of DPO, online .* has the metric 'kl'"):
        Curve("dpo", 1, (records(0.5),)).points("kl")


def test_the_table_names_first_best_and_last() -> None:
    table = headline_table([Curve("dpo", None, (records(0.50, 0.70, 0.40),))])
    assert "| DPO, offline (s = ∞) | 1 | 0.50 | 0.70 (step 10) | **0.40** (0.30 to 0.50) | 0.250 | 0.300 |" in table


def test_a_curve_is_read_from_run_directories(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records(0.5, 0.6)))
    assert Curve.read("dpo", 1, [tmp_path]).runs == (records(0.5, 0.6),)


def spending(*accuracies: float, tokens: int) -> list[dict[str, float]]:
    """Evaluations with what their steps generated, at a sync each."""
    return [
        record | {"num_tokens": tokens, "num_completions": 8, "sync/version": record["step"], "time/train": 0.5}
        for record in records(*accuracies)
    ]


def test_seeds_are_placed_at_the_mean_of_what_they_spent() -> None:
    curve = Curve("dpo", 1, (spending(0.5, 0.6, 0.7, tokens=100), spending(0.5, 0.8, 0.9, tokens=300)))
    # An evaluation costs what was spent before it: 0, then (100 + 300) / 2, then (200 + 600) / 2.
    assert [x for x, _ in curve.points("eval/accuracy", "tokens")] == [0, 200, 400]
    assert [x for x, _ in curve.points("eval/accuracy", "syncs")] == [0, 0, 1]  # the one at step 10 comes after it
    ax = Figure().subplots()
    plot_metric(ax, [curve], "eval/accuracy", x="seconds")
    assert ax.get_lines()[0].get_xdata().tolist() == [0, 0.5, 1] and ax.get_xlabel().startswith("wall-clock (s)")


@pytest.mark.parametrize("x", ["tokens", "epochs"])
def test_an_axis_that_was_not_logged_is_an_error(x: str) -> None:
    with pytest.raises(ValueError, match=rf"an x axis that DPO, online .* has logged \(step\), came '{x}'"):
        Curve("dpo", 1, (records(0.5),)).points("eval/accuracy", x)


def fork(folder: Path, step: int, accuracies: tuple[float, ...], **changes: Any) -> Path:
    return write_run(folder, records(*accuracies), events=forked(step, "parent", **changes))


def test_a_fork_is_drawn_from_where_it_left_its_parent_and_named_by_what_changed(tmp_path: Path) -> None:
    parent = write_run(tmp_path / "parent", records(0.5, 0.6, 0.7, 0.8))
    changed = fork(tmp_path / "fork", 10, (0.5, 0.6, 0.5, 0.4), sync_interval=100, learning_rate=1e-3)
    curves = [Curve.read("dpo", 1, [parent]), Curve.read("dpo", 1, [changed])]
    assert curves[1].label == "s = 100, learning_rate = 0.001 from step 10" and curves[1].sync_interval == 100
    ax = Figure().subplots()
    plot_metric(ax, curves, "eval/accuracy")
    whole, part = ax.get_lines()
    assert whole.get_xdata().tolist() == [0, 10, 20, 30] and part.get_xdata().tolist() == [10, 20, 30]
    assert part.get_color() == colour(100) and part.get_marker() == "o" and whole.get_marker() == ""


def test_a_fork_between_evaluations_begins_at_the_last_one_that_it_shares(tmp_path: Path) -> None:
    curve = Curve.read("dpo", 1, [fork(tmp_path / "fork", 15, (0.5, 0.6, 0.5), beta=0.5)])
    assert [step for step, _ in curve.points("eval/accuracy")] == [10, 20]
    assert curve.label == "beta = 0.5 from step 15"


def test_forks_of_several_seeds_are_one_curve_if_they_changed_the_same(tmp_path: Path) -> None:
    same = [fork(tmp_path / f"{n}", 10, (0.5, 0.6), beta=0.5) for n in (0, 1)]
    other = fork(tmp_path / "other", 10, (0.5, 0.6), beta=0.7)
    unchanged = write_run(tmp_path / "unchanged", records(0.5, 0.6), events=forked(10, "p")[:2])
    assert Curve.read("dpo", 1, same).label == "beta = 0.5 from step 10"
    assert Curve.read("dpo", 1, [same[0], other]).label == "DPO, online (s = 1)"
    assert Curve.read("dpo", 1, [unchanged]).label == "fork from step 10"


def gaps(**parts: list[float]) -> list[dict[str, float]]:
    """Steps of a run, measured at every second one; a part that is not given is 0."""
    count = len(next(iter(parts.values())))
    found = [{"step": step, "sync/version": 4 * (step // 4)} for step in range(2 * count)]
    for number in range(count):
        for name in (*PARTS, "total"):
            value = parts.get(name, [0.0] * count)[number]
            found[2 * number] |= {f"gap/{name}/{kind}": value for kind in ("mean_abs", "max_abs")}
            found[2 * number] |= {f"gap/{name}/kl": -value, "gap/cut": 0.0}
    return found


def test_each_part_of_the_gap_is_drawn_and_a_zero_apart_from_the_rest() -> None:
    ax = Figure().subplots()
    plot_gap(ax, gaps(staleness=[0.0, 0.02, 0.0, 0.03], numerics=[3e-7] * 4, total=[3e-7, 0.02, 3e-7, 0.03]))
    lines = {line.get_label(): line for line in ax.get_lines()}
    drawn = lines["staleness: updates since the sync"].get_xydata()
    assert drawn[[1, 3]].tolist() == [[2, 0.02], [6, 0.03]] and isnan(drawn[0, 1]) and isnan(drawn[2, 1])
    assert "0 throughout:\ntruncation,\ndropout,\nquantization" in lines
    # The smallest value is 3e-7, so its decade starts at 1e-7, and zero is one below.
    (zeros,) = [line for line in ax.get_lines() if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert zeros.get_xydata().tolist() == [[0, 1e-8], [4, 1e-8]]
    assert zeros.get_color() == lines["staleness: updates since the sync"].get_color()
    assert ax.get_yticklabels()[0].get_text() == "0" and ax.get_yticks()[0] == pytest.approx(1e-8)
    assert list(lines["sync"].get_xdata()) == [4, 4] and ax.get_yscale() == "log"
    assert "nats" in ax.get_ylabel() and ax.get_xlabel() == "optimizer step"


def test_a_gap_of_zeros_alone_still_has_an_axis() -> None:
    ax = Figure().subplots()
    plot_gap(ax, gaps(total=[0.0, 0.0]))
    assert "0" in [label.get_text() for label in ax.get_yticklabels()]
    ax.figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_gap_as_a_table() -> None:
    table = gap_table(gaps(staleness=[0.02, 0.04], total=[0.02, 0.04])).splitlines()
    assert table[0].startswith("| part, 2 measurements | mean abs (nats) | largest (nats) |")
    assert "| staleness | 0.03 | 0.04 | -0.03 |" in table and "| dropout | 0 | 0 | 0 |" in table


@pytest.mark.parametrize("show", [partial(plot_gap, Figure().subplots()), gap_table], ids=["figure", "table"])
def test_a_run_that_measured_no_gap_is_told_how(show: Callable[..., object]) -> None:
    with pytest.raises(KeyError, match=r"RunConfig\(gap_steps=\.\.\.\)"):
        show(records(0.5, 0.6))
