"""What a study leaves: results.csv, the record of a run, progress and plan, from run directories written by hand."""

import io
import json
from pathlib import Path

import pytest

from kit.cli import main
from kit.study.execute import Outcome
from kit.study.file import Study, read_study
from kit.study.plan import plan_study
from kit.study.progress import StudyProgress, read_state
from kit.study.record import Record, read_record
from kit.study.results import collect
from tests.counting_study import write_study

ROOT = Path(__file__).parents[1]
TEXT = "notebook: {notebook}\nshared: {steps: 4}\narms:\n  low: {rate: 1.0}\n  high: {rate: 2.0}\nseeds: [0]\n"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path / "study", TEXT))


def write_run(study: Study, name: str, records: list[dict[str, object]], **files: object) -> None:
    folder = study.runs[name].out_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))


def test_results_hold_the_means_since_the_evaluation_before_and_the_syncs_so_far(study: Study) -> None:
    records: list[
        dict[str, object]
    ] = [  # an evaluation comes before the update of its step: its row averages those before
        {"step": 0, "eval/accuracy": 0.25, "offpolicy/kl": 1.0, "clip_ratio/low_mean": 0.5, "reward": 9.0},
        {"step": 1, "offpolicy/kl": 3.0, "time/train": 1.0},
        {"step": 2, "eval/accuracy": 0.5, "offpolicy/kl": 100.0},
        {"step": 3, "eval/accuracy": 0.75},
    ]
    write_run(study, "low_seed0", records)
    write_run(study, "high_seed0", [{"step": 0, "task/a/eval/accuracy": 1}])
    path = study.runs["low_seed0"].out_dir / "receipts.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))
    assert collect(study).read_text().splitlines() == [
        "arm,seed,step,syncs,eval/accuracy,offpolicy/kl,clip_ratio/low_mean,task/a/eval/accuracy",
        "low,0,0,0,0.25,,,",
        "low,0,2,2,0.5,2.0,0.5,",
        "low,0,3,2,0.75,100.0,,",
        "high,0,0,0,,,,1",
    ]
    assert not list(study.folder.glob("*.partial"))


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_a_run_that_is_not_finished_has_no_rows(study: Study, state: str) -> None:
    for name in study.runs:
        write_run(study, name, [{"step": 0, "eval/accuracy": 0.5}])
    record = {"notebook": "counting.ipynb", "given": {}, "defaults": {}, "state": state}
    (study.folder / "runs" / "high_seed0.json").write_text(json.dumps(record))
    assert collect(study).read_text() == "arm,seed,step,syncs,eval/accuracy\nlow,0,0,0,0.5\n"


DEFAULTS = {"s": 1, "t": 2}


@pytest.mark.parametrize(
    ("earlier", "now", "said"),
    [
        (Record("a", {"s": 5}, DEFAULTS), Record("a", {"s": 5}, DEFAULTS), []),
        (Record("a", {}, DEFAULTS), Record("a", {"s": 1}, DEFAULTS), []),  # the default, written out
        (Record("a", {}, DEFAULTS), Record("a", {}, DEFAULTS | {"new": 3}), []),
        (Record("a", {}, DEFAULTS), Record("a", {}, {"s": 1}), []),  # a parameter that had its default is gone
        (Record("a", {}, DEFAULTS), Record("a", {"new": 3}, DEFAULTS | {"new": 3}), []),
        (Record("a", {}, DEFAULTS), Record("a", {"new": 4}, DEFAULTS | {"new": 3}), ["new: 3 there, 4 in the study"]),
        (Record("a", {"s": 5}, DEFAULTS), Record("a", {}, DEFAULTS), ["s: 5 there, 1 in the study"]),
        (Record("a", {"t": 5}, DEFAULTS), Record("a", {}, {"s": 1}), ["t: 5 there, None in the study"]),
        (Record("a", {}, DEFAULTS), Record("a", {}, {"s": 1, "t": 9}), ["t: 2 there, 9 in the study"]),
        (Record("a", {}, DEFAULTS), Record("b", {}, DEFAULTS), ["notebook: a there"]),
    ],
)
def test_a_difference_is_one_in_what_the_notebook_was_executed_with(
    earlier: Record, now: Record, said: list[str]
) -> None:
    assert now.differences(earlier) == said


@pytest.mark.parametrize("text", ["{", "[]", '{"notebook": "a"}', '{"colour": 1}'])
def test_a_record_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a.json is no record of a run.*Remove it"):
        read_record(tmp_path / "a.json")


def test_a_state_is_read_from_the_run_directory(study: Study) -> None:
    run = study.runs["low_seed0"]
    assert str(read_state(run)) == ""
    write_run(study, "low_seed0", [{"step": 0, "reward": 0.25}], status={"step": 1}, config={"max_steps": 9})
    assert str(read_state(run)) == "step 1 of 9  reward 0.250"
    write_run(study, "low_seed0", [{"step": 0, "eval/accuracy": 0.5}, {"step": 1, "reward": 0.25}], status={"step": 2})
    with (run.out_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')  # is being written
    assert str(read_state(run)) == "step 2 of 9  eval/accuracy 0.500"


def told(study: Study, redraws: bool) -> str:
    """Both runs: the first makes 10 steps in 20 s and finishes, the second fails."""
    now = [0.0]
    said = io.StringIO()
    progress = StudyProgress(study, said.write, redraws=redraws, clock=lambda: now[0])
    running, outcome = dict(study.runs), Outcome()
    for step in (0, 10):
        now[0] = 2.0 * step
        records: list[dict[str, object]] = [{"step": step, "eval/accuracy": step / 20}]
        write_run(study, "low_seed0", records, status={"step": step}, config={"max_steps": 40})
        progress(running, outcome)
    progress({"high_seed0": running["high_seed0"]}, outcome.__class__(finished=["low_seed0"]))
    progress({}, Outcome(finished=["low_seed0"], failed={"high_seed0": "ValueError: \x1b[31mno"}))
    return said.getvalue()


def test_in_a_pipe_each_change_is_a_line(study: Study) -> None:
    assert told(study, redraws=False).splitlines() == [
        "low_seed0: started",
        "high_seed0: started",
        "low_seed0: step 0 of 40  eval/accuracy 0.000",
        "low_seed0: step 10 of 40  eval/accuracy 0.500  1 min 0 s left",  # 30 more at 2 s a step
        "low_seed0: finished",
        "high_seed0: failed: ValueError: \\x1b[31mno",
    ]


def test_on_a_terminal_the_lines_of_what_runs_are_redrawn(study: Study) -> None:
    text = told(study, redraws=True)
    assert "\x1b[31m" not in text and text.count("low_seed0: finished") == 1
    last = text.rpartition("A")[2]  # after the cursor went up for the last time
    assert "high_seed0: failed" in last and "1 of 2 finished, 0 running, 1 failed" in last


def test_a_plan_estimates_runs_of_the_kit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    text = "notebook: notebooks/05_one_run.ipynb\ngrid: {max_steps: [50, 500]}\nseeds: [0]\n"
    (tmp_path / "study.yaml").write_text(text)
    short, long = plan_study(read_study(tmp_path))
    assert short.seconds and long.seconds and short.source == "estimated" and short.state == "not started"
    assert 5 < long.seconds[0] / short.seconds[0] < 10.5  # ten times the steps, one start
    assert short.seconds[0] < short.seconds[1] and 5e7 < (short.peak_bytes or 0) < 5e9  # a model of 10 MB


def test_a_plan_names_the_arm_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = "notebook: notebooks/05_one_run.ipynb\narms: {a: {quantization: nf4}}\nseeds: [0]\n"
    (tmp_path / "study.yaml").write_text(text)
    assert main(["study", "plan", str(tmp_path)]) == 2
    assert "arms.a: RunConfig.quantization must be None without lora" in capsys.readouterr().err
