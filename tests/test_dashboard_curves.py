"""Panels, series, figure and tables from records written by hand, without a run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.dashboard import LiveCurves
from kit.dashboard.events import Tail
from kit.dashboard.panels import PANELS, Panel, charts, is_drawn
from kit.dashboard.series import Mark, Series
from kit.dashboard.summary import summary_html
from kit.runlog import is_defined
from kit.settings import changes_text

ROOT = Path(__file__).parents[1]
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e$\\frac{$"
DPO = [  # a run with s = 2: syncs at steps 2 and 4
    {"step": 0, "reward": 0.5, "sync/version": 0, "sync/staleness": 0, "offpolicy/kl": 0.0, "num_completions": 8,
     "num_tokens": 80, "eval/accuracy": 0.4, "eval/accuracy_low": 0.3, "eval/accuracy_high": 0.5, "logps/chosen": -4.0,
     "logps/rejected": -5.0, "time/generate": 0.3, "time/train": 0.1, "time/eval": 9.0},
    {"step": 1, "reward": 0.6, "sync/version": 0, "sync/staleness": 1, "offpolicy/kl": 0.2, "num_completions": 8,
     "num_tokens": 70, "logps/chosen": -4.1, "logps/rejected": -5.5, "time/generate": 0.3, "time/train": 0.2},
    {"step": 2, "reward": 0.7, "sync/version": 2, "sync/staleness": 0, "offpolicy/kl": 0.0, "num_completions": 8,
     "num_tokens": 60, "logps/chosen": -4.2, "logps/rejected": -6.0, "time/generate": 0.3, "time/train": 0.1},
    {"step": 3, "reward": float("nan"), "sync/version": 2, "sync/staleness": 1, "offpolicy/kl": 0.1},
    {"step": 4, "reward": 0.8, "sync/version": 4, "sync/staleness": 0, "offpolicy/kl": 0.0},
    {"step": 5, "eval/accuracy": 0.7, "eval/accuracy_low": 0.6, "eval/accuracy_high": 0.8},
]  # fmt: skip
COLLAPSE = {"event": "doctor", "name": "far_off_policy", "severity": "warning", "seen": "KL is 0.2", "step": 3,
            "remedy": "sync more often"}  # fmt: skip


def told(curves: LiveCurves) -> list[dict[str, Any]]:
    """What a browser is sent from here on."""
    sent: list[dict[str, Any]] = []
    curves.send = lambda content, buffers=None: sent.append(json.loads(json.dumps(content, allow_nan=False)))
    return sent


def open_page(curves: LiveCurves) -> None:
    curves._handle_custom_msg({"kind": "ready"}, [])  # what ipywidgets calls when a page sends a message


def of(records: list[dict[str, Any]], events: list[dict[str, Any]] | None = None) -> LiveCurves:
    curves = LiveCurves()
    curves.extend(records, events or [])
    return curves


def test_a_panel_is_there_if_one_of_its_metrics_is() -> None:
    found = {chart.panel.title: [line.metric for line in chart.lines] for chart in of(DPO).charts()}
    assert found == {
        "Held-out score": ["eval/accuracy"],
        "Reward": ["reward"],
        "Staleness": ["sync/staleness"],
        "Drift from the sampler": ["offpolicy/kl"],
        "Log-probs of pairs": ["logps/chosen", "logps/rejected"],
        "Time of a step": ["time/generate", "time/train"],
    }


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_panel_has_unit_and_reading_and_metrics_that_the_kit_logs(panel: Panel) -> None:
    assert panel.unit and panel.reading.endswith(".") and len(panel.reading) < 220
    for metric, label in panel.lines:
        assert is_defined(metric) and is_drawn(metric) and label


def test_every_finding_of_the_dynamics_has_a_panel_and_every_name_on_a_panel_is_a_rule() -> None:
    source = "".join(path.read_text() for path in (ROOT / "kit" / "doctor").glob("*.py"))
    marked = {name for panel in PANELS for name in panel.findings}
    assert [name for name in sorted(marked) if f'"{name}"' not in source] == []
    live = "".join((ROOT / "kit" / "doctor" / f"{name}.py").read_text() for name in ("signal", "dynamics", "staleness"))
    rules = {piece.split('"')[1] for piece in live.split("Finding(")[1:] if '"' in piece[:30]}
    assert len(rules) >= 12 and sorted(rules - marked) == []


def test_several_tasks_have_a_line_each() -> None:
    metrics = ["task/math/reward", "task/chat/reward", "reward", "task/chat/eval/win_rate", "task/math/eval/accuracy"]
    found = {chart.panel.title: [(x.metric, x.label, x.colour) for x in chart.lines] for chart in charts(metrics)}
    assert found["Reward"] == [("task/chat/reward", "chat", 0), ("task/math/reward", "math", 1)]
    assert [label for _, label, _ in found["Held-out score"]] == ["math: sampled accuracy", "chat: win rate"]


def test_a_number_that_is_none_is_left_out_of_its_curve() -> None:
    (series,) = of(DPO).series
    assert series.line("reward") == [(0, 0.5), (1, 0.6), (2, 0.7), (4, 0.8)]


@pytest.mark.parametrize(
    ("axis", "places"),
    [("step", [0, 1, 2]), ("completions", [0, 8, 16]), ("tokens", [0, 80, 150]), ("syncs", [0, 0, 0]),
     ("seconds", [0, 0.4, 0.9])],
)  # fmt: skip
def test_every_axis_counts_what_was_spent_before(axis: str, places: list[float]) -> None:
    (series,) = of(DPO).series
    assert [x for x, _ in series.line("logps/chosen", axis)] == pytest.approx(places)


def test_syncs_are_where_the_sampler_changed() -> None:
    (series,) = of(DPO).series
    assert series.syncs() == [2, 4] and series.syncs("completions") == [16, 24]


def test_a_fork_is_drawn_from_the_last_point_that_it_shares() -> None:
    fork = Series("s = 100", start=3)
    for record in DPO:
        fork.push(record)
    assert fork.line("sync/staleness") == [(2, 0), (3, 1), (4, 0)]
    assert fork.line("eval/accuracy") == [(0, 0.4), (5, 0.7)]
    assert Series("new", start=0).line("reward") == []


def test_a_page_that_opens_late_gets_everything_and_then_only_what_is_new() -> None:
    curves = of(DPO[:2])
    sent = told(curves)
    curves.push(DPO[2])
    assert sent == []  # nobody listens
    open_page(curves)
    curves.push(DPO[4], [COLLAPSE])
    everything, new = sent
    assert everything["kind"] == "all" and [p["values"]["reward"] for p in everything["series"][0]["points"]] == [
        0.5, 0.6, 0.7
    ]  # fmt: skip
    assert new["kind"] == "point" and new["index"] == 3 and new["point"]["x"]["step"] == 4
    assert new["marks"][0]["rule"] == "far_off_policy"
    open_page(curves)
    assert len(sent[2]["series"][0]["points"]) == 4


def test_a_metric_that_comes_up_later_brings_its_panel() -> None:
    curves = of(DPO[:1])
    open_page(curves)
    sent = told(curves)
    curves.push({"step": 1, "kl": 0.1})
    assert [chart["title"] for chart in sent[0]["charts"]][-2:] == ["Divergence from the reference", "Time of a step"]


def test_what_a_page_sends_is_no_reason_to_stop() -> None:
    curves = of(DPO)
    for message in ("ready", {"kind": "other"}, {}, None, 3):
        curves._handle_custom_msg(message, [])
    assert not curves.is_seen


def test_a_record_without_a_step_is_refused() -> None:
    with pytest.raises(KeyError, match="step"):
        LiveCurves().push({"reward": 1.0})


def test_names_of_trl_are_drawn_too() -> None:
    curves = LiveCurves("TRL")
    curves.push(
        {"step": 10, "loss": 0.69, "rewards/margins": 0.1, "logps/chosen": -30.0, "grad_norm": 1.5, "epoch": 0.1}
    )
    titles = [chart.panel.title for chart in curves.charts()]
    assert titles == ["Log-probs of pairs", "Implicit rewards", "Gradient norm", "Loss"]


def test_the_figure_has_the_panels_with_titles_units_readings_and_marks() -> None:
    curves = of(DPO, [COLLAPSE, {"event": "control", "step": 2, "changes": {"sync_interval": None}}])
    figure = curves.figure()
    axes = {ax.get_title(loc="left"): ax for ax in figure.axes}
    assert list(axes) == [chart.panel.title for chart in curves.charts()]
    assert axes["Held-out score"].get_ylabel() == "fraction"
    assert axes["Time of a step"].get_ylabel() == "s, evaluations apart"
    assert {ax.get_xlabel() for ax in figure.axes} == {"optimizer step"}
    assert "interval" in " ".join(text.get_text() for text in axes["Held-out score"].texts)
    marked = {title: [a.get_gid() for a in ax.get_children()].count("sync") for title, ax in axes.items()}
    assert {title for title, count in marked.items() if count} == {"Staleness", "Drift from the sampler"}
    assert marked["Staleness"] == 2
    assert all([a.get_gid() for a in ax.get_children()].count("control") == 1 for ax in figure.axes)
    findings = {title: [a.get_gid() for a in ax.get_children()].count("finding") for title, ax in axes.items()}
    assert findings == {title: int(title == "Drift from the sampler") for title in axes}
    assert list(axes["Reward"].lines[0].get_ydata()) == [0.5, 0.6, 0.7, 0.8]
    assert len(axes["Held-out score"].collections) == 1  # the band


def test_the_figure_of_a_fork_has_both_runs() -> None:
    curves = of(DPO)
    number = curves.add_run("s = 100 from step 2", start=2)
    curves.extend(DPO[:4], [], run=number)
    figure = curves.figure("completions")
    (reward,) = [ax for ax in figure.axes if ax.get_title(loc="left") == "Reward"]
    parent, fork = [line for line in reward.lines if len(line.get_xdata()) > 1 and line.get_gid() is None]
    assert list(fork.get_ydata()) == [0.6, 0.7] and fork.get_linestyle() != parent.get_linestyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["this run", "s = 100 from step 2"]
    assert reward.get_xlabel() == "completions generated"


def test_a_figure_of_nothing_and_an_unknown_axis() -> None:
    assert LiveCurves().figure().axes == []
    with pytest.raises(ValueError, match="step, completions, tokens, syncs, seconds"):
        of(DPO).figure("epochs")


def test_text_from_a_file_steers_nothing() -> None:
    event = {"event": "doctor", "name": "no_contrast", "about": HOSTILE, "severity": HOSTILE, "step": 1,
             "seen": HOSTILE, "remedy": f"</script>{HOSTILE}"}  # fmt: skip
    records = [
        {"step": 0, f"task/{HOSTILE}/reward": 1.0, "task/_b/groups/used": 2.0, f"task/{HOSTILE}/groups/used": 1.0}
    ]
    curves = LiveCurves(HOSTILE)
    curves.extend(records, [event, {"event": "control", "step": 1, "changes": {HOSTILE: HOSTILE}}])
    curves.add_run(HOSTILE)
    html = summary_html(curves.charts(), curves.series)
    assert "<img" not in html and "</script>" not in html and "&lt;img" in html
    assert "\x1b" not in html and "\u202e" not in html
    curves.figure().savefig("/dev/null", format="png")  # `$` is no formula
    (finding,) = [mark for mark in curves.marks() if mark.kind == "finding"]
    assert finding.severity == "note" and finding.rule == "no_contrast"


@pytest.mark.parametrize(
    "event",
    [{}, {"event": "doctor"}, {"event": "doctor", "step": "3"}, {"event": "sync", "step": 1},
     {"event": "control", "step": 1, "changes": [1]}],
)  # fmt: skip
def test_what_is_no_mark_is_none(event: dict[str, Any]) -> None:
    assert Mark.of(event) is None


def test_an_event_that_a_resumed_run_repeats_is_marked_once() -> None:
    curves = of(DPO, [COLLAPSE])
    curves.push({"step": 6}, [COLLAPSE, COLLAPSE])
    assert len(curves.marks()) == 1


def test_a_fork_has_its_own_marks_alone() -> None:
    fork = Series("fork", start=3)
    control = {"event": "control", "changes": {"beta": 0.2}}
    assert [mark.step for mark in fork.mark([control | {"step": 2}, COLLAPSE, control | {"step": 4}])] == [3, 4]


def test_changes_changes_text() -> None:
    assert changes_text({"sync_interval": 100, "beta": 0.2, "x\n": "\u202e"}) == "s = 100, beta = 0.2, x\\n = \\u202e"


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.new() == []
    path.write_text('{"event": "ü"}\n{"ev')
    assert tail.new() == [{"event": "ü"}] and tail.new() == []
    with path.open("a") as file:
        file.write('ent": "b"}\n')
    assert tail.new() == [{"event": "b"}] and tail.new() == []


def test_no_pyplot_and_no_kernel_is_needed() -> None:
    code = """
import sys
from kit.dashboard import LiveCurves
curves = LiveCurves()
curves.push({"step": 0, "reward": 0.5})
curves.figure().savefig("/dev/null", format="png")
print("matplotlib.pyplot" in sys.modules, "ipykernel" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
