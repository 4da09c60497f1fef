"""Comparisons: runs in arms, their table, their figures, and a page that nothing in a run directory can change."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kit.cli import main
from kit.compare import Comparison, compare
from kit.objectives import GRPO
from kit.printable import printable
from kit.runlog import RunDirectoryError
from kit.sync import Every
from tests.run_folders import evaluated, forked, write_run

VOID = {"meta", "br", "path", "line", "circle", "use", "rect", "defs"}
HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e\"'&$\\frac$|"


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its text, and whether every element is closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def cells(comparison: Comparison) -> list[dict[str, str]]:
    """The Markdown table as a dictionary a row."""
    head, _, *rows = [line for line in str(comparison).splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in (head, *rows)]
    assert all(len(row) == len(split[0]) for row in split)
    return [dict(zip(split[0], row, strict=True)) for row in split[1:]]


def test_runs_that_differ_only_in_the_seed_are_one_arm_with_an_interval_over_seeds(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", evaluated(0.5, 0.7, 0.6))
    two = write_run(tmp_path / "b", evaluated(0.5, 0.7, 0.8), seed=1)
    (row,) = cells(compare([one, two]))
    assert row["runs"] == "2 seeds (0, 1)" and row["state"] == "2 × finished, 3 of 20 steps"
    assert row["first"] == "0.500" and row["best"] == "0.700 (step 10)"
    # 0.6 and 0.8: mean 0.7, standard error 0.1, t(0.975, 1) = 12.7062.
    assert row["last [95 % interval]"] == "0.700 [-0.571, 1.971] (step 20)"
    assert row["entropy (nats/token)"] == "0.375 → 0.325" and row["length (tokens)"] == "20.0 → 22.0"
    # Three records: 100 completions of 10 tokens and 2 s of training each, and syncs before the second and the third.
    assert (row["completions"], row["tokens"], row["syncs"], row["wall-clock"]) == ("300", "3,000", "2", "6.0 s")
    assert row["arm"] == "DPO, s = 1"


def test_one_seed_has_the_interval_over_problems(tmp_path: Path) -> None:
    (row,) = cells(compare([write_run(tmp_path / "a", evaluated(0.5, 0.7))]))
    assert row["last [95 % interval]"] == "0.700 [0.600, 0.800] (step 10)"


def test_arms_are_named_by_what_sets_them_apart(tmp_path: Path) -> None:
    grpo = {"type": "GRPO", "kl_coef": 0.0}
    comparison = compare([
        write_run(tmp_path / "1", evaluated(0.5)),
        write_run(tmp_path / "2", evaluated(0.5), sync={"type": "Never"}),
        write_run(tmp_path / "3", evaluated(0.5), sync={"type": "OnDrift", "max_kl": 0.01, "max_interval": None}),
        write_run(tmp_path / "4", evaluated(0.5), objective={"type": "DPO", "beta": 0.5}),
        write_run(tmp_path / "5", evaluated(0.5), objective=grpo, learning_rate=2e-4, max_steps=40),
    ])  # fmt: skip
    assert [arm.label for arm in comparison.arms] == [
        "DPO, s = 1, learning_rate = 0.0001, beta = 0.1",
        "DPO, s = ∞, learning_rate = 0.0001, beta = 0.1",
        "DPO, s = OnDrift(max_kl=0.01), learning_rate = 0.0001, beta = 0.1",
        "DPO, s = 1, learning_rate = 0.0001, beta = 0.5",
        "GRPO, s = 1, learning_rate = 0.0002",  # GRPO has no beta, and its own field is no difference
    ]
    assert comparison.arms[4].differs["max_steps"] == "40"  # told apart without it: told, but not in the name


def test_a_setting_of_measuring_names_arms_that_nothing_else_tells_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(n), evaluated(0.5), max_steps=n) for n in (20, 40)]
    assert [arm.label for arm in compare(runs).arms] == ["max_steps = 20", "max_steps = 40"]


def test_what_an_earlier_version_did_not_record_is_a_difference(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", evaluated(0.5))
    new = write_run(tmp_path / "new", evaluated(0.5), reuse_epochs=1)
    assert [arm.label for arm in compare([old, new]).arms] == ["reuse_epochs not recorded", "reuse_epochs = 1"]


def test_a_second_run_of_one_seed_is_no_second_seed(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, evaluated(0.5)) for name in ("a", "b")]
    first, second = compare([*runs, runs[0]]).arms  # the same folder twice counts once
    assert first.label == "DPO, s = 1" and second.label == "DPO, s = 1; run 2 of this seed"


def test_a_new_adapter_of_another_seed_is_no_difference(tmp_path: Path) -> None:
    lora = {"lora_r": 4, "adapter_path": None}
    runs = [write_run(tmp_path / str(n), evaluated(0.5), seed=n, lora=lora, model_digest=f"{n}") for n in (0, 1)]
    other = write_run(tmp_path / "2", evaluated(0.5), seed=2, model_digest="2")
    assert [len(arm.runs) for arm in compare([*runs, other]).arms] == [2, 1]


def test_a_fork_is_an_arm_that_begins_where_it_left(tmp_path: Path) -> None:
    parent = write_run(tmp_path / "p", evaluated(0.5, 0.6, 0.7))
    events = forked(10, "p", sync_interval=100, beta=0.3)
    fork = write_run(tmp_path / "p_fork1", evaluated(0.5, 0.6, 0.4), events=events)
    comparison = compare([parent, fork])
    first, second = cells(comparison)
    assert second["arm"] == "DPO, s = 1; s = 100, beta = 0.3 from step 10" and first["arm"] == "DPO, s = 1"
    assert second["changed by hand"] == "s = 100, beta = 0.3 from step 10"
    assert second["first"] == "0.600" and second["completions"] == "300"  # those of its parent's steps too
    lines = {line.get_label(): line for line in comparison.figure().axes[0].get_lines()}
    assert lines["DPO, s = 1; s = 100, beta = 0.3 from step 10, 1 seed"].get_xydata().tolist() == [[10, 0.6], [20, 0.4]]


def test_each_task_of_a_run_has_its_row(tmp_path: Path) -> None:
    def renamed(task: str, metric: str) -> dict[str, float]:
        return {f"task/{task}/eval/{metric}": 0.25, f"task/{task}/eval/entropy": 0.5}

    both = {"step": 0, "reward": 0.5} | renamed("sums", "accuracy") | renamed("chat", "win_rate")
    portions = [{"type": "Portion", "task": {"type": kind}} for kind in ("Arithmetic", "Chat")]
    two = write_run(tmp_path / "two", [both], task=portions)
    one = write_run(tmp_path / "one", evaluated(0.5, reward=0.5))
    rows = cells(compare([two, one]))
    assert [(row["arm"], row["measure"]) for row in rows] == [
        ("Arithmetic + Chat", "sums: sampled accuracy (fraction right)"),
        ("Arithmetic + Chat", "chat: win rate over the baseline"),
        ("Arithmetic", "sampled accuracy (fraction right)"),
    ]
    assert compare([two, one]).metrics == ("reward",)  # what they share


def test_unfinished_runs_and_runs_without_records_are_shown_as_they_are(tmp_path: Path) -> None:
    done = write_run(tmp_path / "a", evaluated(0.5, 0.7, 0.6))
    stopped = write_run(tmp_path / "b", evaluated(0.5, 0.9), state="interrupted", seed=1)
    begun = write_run(tmp_path / "c", [], state="running", learning_rate=1.0)
    first, second = cells(compare([done, stopped, begun]))
    assert first["state"] == "finished, 3 of 20 steps; interrupted, 2 of 20 steps"
    assert first["last [95 % interval]"].endswith("(step 10)")  # the last that both seeds have reached
    assert second["state"] == "running, 0 of 20 steps" and second["first"] == second["tokens"] == "–"
    assert "b (interrupted), c (running)" in Page(compare([done, stopped, begun]).page()).text


@pytest.mark.parametrize(("x", "places"), [("step", [0, 10]), ("completions", [0, 100]), ("seconds", [0, 2])])
def test_the_x_axis_can_be_chosen(tmp_path: Path, x: str, places: list[float]) -> None:
    figure = compare([write_run(tmp_path / "a", evaluated(0.5, 0.7))], x=x).figure()
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == places


def test_wide_bands_do_not_flatten_the_curves(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(n), evaluated(0.5, 0.6 + n / 5), seed=n) for n in (0, 1)]
    bottom, top = compare(runs, metrics=["eval/accuracy"]).figure().axes[0].get_ylim()
    assert 0.4 < bottom < 0.5 and 0.7 < top < 0.8  # means from 0.5 to 0.7; the band is 2.54 high


def test_the_doctor_is_asked(tmp_path: Path) -> None:
    failed = [{"event": "error", "time": 0.0, "step": 3, "error": "OSError: no space left"}]
    comparison = compare([write_run(tmp_path / "a", evaluated(0.5), events=failed, state="failed")])
    assert cells(comparison)[0]["doctor"] == "error: run_failed"
    assert "OSError: no space left" in Page(comparison.page()).text


def test_the_page_is_complete_and_loads_nothing(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", evaluated(0.5, 0.7))
    two = write_run(tmp_path / "b", evaluated(0.5, 0.8), objective={"type": "GRPO"})
    content = compare([one, two]).page("kit compare a b")
    page = Page(content)
    assert page.open == [] and content.startswith("<!doctype html>")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("details") == 2 and not {"script", "img", "link", "iframe", "object", "base"} & set(tags)
    loaded = [value for _, attributes in page.elements for name, value in attributes.items()
              if name.split(":")[-1] in ("src", "href", "data")]  # fmt: skip
    assert all(value and value.startswith("#") for value in loaded)
    assert "url(http" not in content and "@import" not in content
    assert "prefers-color-scheme: dark" in content and "kit compare a b" in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    defined = set(re.findall(r"(--[\w-]+):", content))
    assert ids and set(re.findall(r"var\((--[\w-]+)\)", content)) <= defined
    assert '"beta"' in page.text and str(one) in page.text  # how to reproduce it


def test_nothing_in_a_run_directory_becomes_part_of_the_page(tmp_path: Path) -> None:
    bad = write_run(
        tmp_path / "a<b>&c",
        [
            *evaluated(0.5, 0.7),
            {"step": 20, "eval/accuracy": HOSTILE, HOSTILE: 1.0, f"task/{HOSTILE}/eval/accuracy": 0.5},
        ],
        task={"type": HOSTILE, HOSTILE: HOSTILE}, objective={"type": HOSTILE, "beta": HOSTILE}, state=HOSTILE,
        events=[*forked(10, HOSTILE, **{HOSTILE: HOSTILE}), {"event": "error", "step": 1, "error": HOSTILE}],
    )  # fmt: skip
    good = write_run(tmp_path / "good", evaluated(0.5, 0.6))
    comparison = compare([bad, good], metrics=["eval/accuracy", f"task/{printable(HOSTILE)}/eval/accuracy"])
    for content in (comparison.page(HOSTILE), comparison._repr_html_()):
        page = Page(content)
        assert page.open == [] and not {"script", "img"} & {tag for tag, _ in page.elements}
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert "\x1b" not in content and "\u202e" not in content
        assert "</style><script>alert(1)</script>" in page.text  # as text, where a reader can see it
        assert content.count("<style") == content.count("</style") <= 1
    markdown = str(comparison)
    assert (
        "<script" not in markdown.replace("\\<", "")
        and "\x1b" not in markdown
        and not re.search(r"(?<!\\)\$", markdown)
    )
    assert len(cells(comparison)) == 3
    comparison.figure().draw_without_rendering()  # a dollar sign is no mathematics


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", evaluated(0.5, 0.7))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "eval/accuracy": NaN, "eval/entropy": "0.1", "reward": true}\n')
    comparison = compare([run])
    assert cells(comparison)[0]["last [95 % interval]"].endswith("(step 10)") and "reward" not in comparison.metrics


def test_a_notebook_shows_the_table_and_the_figure(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "a", evaluated(0.5, 0.7))])
    page = Page(comparison._repr_html_())
    assert page.open == [] and "0.700" in page.text and "var(" not in comparison._repr_html_()
    assert comparison._repr_markdown_() == str(comparison)
    assert comparison.figure()._repr_png_().startswith(b"\x89PNG")


def without_tokens(tmp_path: Path) -> None:
    records = [{name: value for name, value in r.items() if name != "num_tokens"} for r in evaluated(0.5)]
    compare([write_run(tmp_path / "old", records)], x="tokens")


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no folder": (lambda p: compare([]), ValueError, "at least one run directory, came none"),
    "no run": (lambda p: compare([p]), FileNotFoundError, r"expected a run directory with config.json, came '.*'"),
    "unknown axis": (lambda p: compare([p], x="epochs"), ValueError, "step, completions, tokens.*came 'epochs'"),
    "axis not logged": (without_tokens, ValueError, r"old has logged \(step, completions, syncs, seconds\), came 'tok"),
    "unknown metric": (
        lambda p: compare([write_run(p / "a", evaluated(0.5))], metrics=["eval/acuracy"]),
        ValueError, "came 'eval/acuracy': there is eval/accuracy",
    ),
    "nothing in common": (
        lambda p: compare([
            write_run(p / name, [{"step": 0, name: 1.0}], max_steps=steps) for steps, name in ((1, "a"), (2, "b"))
        ]),
        ValueError, "a metric in common",
    ),
    "no records": (lambda p: compare([write_run(p / "a", [])]), ValueError, "a metric in common"),
    "damaged event": (
        lambda p: compare([write_run(p / "a", evaluated(0.5), events=[{"event": "control", "step": 1}])]),
        RunDirectoryError, "expected events and records as a run writes them in .*'changes'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(tmp_path: Path, case: str) -> None:
    act, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        act(tmp_path)


def test_the_command_prints_the_table_or_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / str(n), evaluated(0.5, 0.7), seed=n)) for n in (0, 1)]
    (tmp_path / "headline.md").write_text("beside the runs")
    assert main(["compare", *runs, str(tmp_path / "headline.md")]) == 0
    told = capsys.readouterr()
    assert "| DPO, s = 1 | 2 seeds (0, 1) |" in told.out and "left out, because it is a file" in told.err
    out = tmp_path / "report.html"
    assert (
        main(["compare", *runs, "--out", str(out), "--x", "tokens", "--metric", "eval/accuracy", "eval/entropy"]) == 0
    )
    text = Page(out.read_text()).text
    assert "Against: completion tokens generated" in text
    assert f"--x tokens --metric eval/accuracy --metric eval/entropy --out {out}" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "headline.md", "report.html"]


@pytest.mark.parametrize("fault", ["no run", "no folder for the page", "no run left"])
def test_a_command_that_cannot_compare_ends_with_2_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    run, empty = write_run(tmp_path / "a", evaluated(0.5)), tmp_path / "empty"
    empty.mkdir()
    folders, out = {
        "no run": ([run, empty], tmp_path / "r.html"),
        "no folder for the page": ([run], tmp_path / "missing" / "r.html"),
        "no run left": ([run / "config.json"], tmp_path / "r.html"),
    }[fault]
    assert main(["compare", *map(str, folders), "--out", str(out)]) == 2
    assert "error: expected" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_real_runs_are_compared(start: Callable[..., Any], tmp_path: Path) -> None:
    run = start(tmp_path / "dpo", save_steps=4)
    list(run.steps(4))
    run.fork(sync_interval=None, out_dir=tmp_path / "fork").finish()
    run.finish()
    start(tmp_path / "other_seed", save_steps=4, seed=1).finish()
    list(start(tmp_path / "grpo", save_steps=4, objective=GRPO(), sync=Every(5)).steps(5))
    rows = cells(compare(sorted(tmp_path.iterdir())))
    assert [(row["arm"], row["runs"]) for row in rows] == [
        ("DPO, s = 1", "2 seeds (0, 1)"),
        ("DPO, s = 1; s = ∞ from step 4", "1 seed (0)"),
        ("GRPO, s = 5", "1 seed (0)"),
    ]
    assert [row["syncs"] for row in rows] == ["11", "3", "0"]  # steps 1 to 11; 1 to 3, then none; the fifth is at 5
