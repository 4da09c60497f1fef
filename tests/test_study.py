"""Strict execution of notebooks: what papermill only warns about is refused before a kernel starts."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest

from kit.cli import main
from kit.study import (
    ParameterError,
    checked_parameters,
    collect,
    execute_notebook,
    parse_value,
    run_study,
    study_runs,
)

PARAMETERS = """steps: int = 3  # how many
name: str = "a"  # a word
rate: float = 0.5  # a number
interval = 1  # type: int|None  s
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    cells = [nbformat.v4.new_code_cell(PARAMETERS), nbformat.v4.new_code_cell("print(steps, name, rate, interval)")]
    cells[0].metadata["tags"] = ["parameters"]
    made = nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    path = tmp_path / "small.ipynb"
    nbformat.write(made, path)
    return path


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(notebook: Path) -> None:
    with pytest.raises(ParameterError, match=r"no parameter 'step'.*steps: int.*name: str"):
        checked_parameters(notebook, {"step": 4})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "4"), ("steps", 4.5), ("steps", None), ("name", 1), ("rate", "fast"), ("interval", "x"),
        ("interval", 0.5), ("steps", True),  # Python counts True as an int; whoever writes it means something else
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused(notebook: Path, name: str, value: object) -> None:
    with pytest.raises(ParameterError, match=f"parameter {name!r} must be"):
        checked_parameters(notebook, {name: value})


def test_what_fits_the_declaration_passes(notebook: Path) -> None:
    given = {"steps": 4, "name": "b", "rate": 1, "interval": None}  # an int is a fine value for a float
    assert checked_parameters(notebook, given) == given


def test_a_refused_execution_writes_nothing(notebook: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "executed.ipynb"
    with pytest.raises(ParameterError):
        execute_notebook(notebook, output, {"setps": 4})
    assert not output.parent.exists()


def test_the_command_line_says_what_is_wrong_and_exits_with_2(
    notebook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["execute", str(notebook), str(tmp_path / "out.ipynb"), "-p", "steps", "many"]) == 2
    assert "parameter 'steps' must be int, got 'many'" in capsys.readouterr().err
    assert main(["execute", "absent.ipynb", str(tmp_path / "out.ipynb")]) == 2
    assert "absent.ipynb" in capsys.readouterr().err


def test_an_executed_notebook_holds_the_injected_values(notebook: Path, tmp_path: Path) -> None:
    assert (
        main(["execute", str(notebook), str(tmp_path / "out.ipynb"), "-p", "interval", "None", "-p", "rate", "1e-3"])
        == 0
    )
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text == "3 a 0.001 None\n"


def test_of_a_widget_the_executed_file_keeps_its_text(notebook: Path, tmp_path: Path) -> None:
    document = nbformat.read(notebook, as_version=4)
    document.cells.append(nbformat.v4.new_code_cell("import ipywidgets\nipywidgets.IntSlider(5)"))
    nbformat.write(document, notebook)
    executed = nbformat.read(execute_notebook(notebook, tmp_path / "out.ipynb", {}), as_version=4)
    (shown,) = executed.cells[-1].outputs
    assert list(shown.data) == ["text/plain"] and "IntSlider" in shown.data["text/plain"]
    assert "widgets" not in executed.metadata


def test_papermill_alone_would_only_warn(notebook: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    papermill.execute_notebook(str(notebook), str(tmp_path / "out.ipynb"), {"setps": 4}, progress_bar=False)
    assert "unknown parameter: setps" in caplog.text  # the day this fails, ours may go


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("1e-4", 1e-4), ("None", None), ("True", True), ("dpo", "dpo"), ("a b", "a b"), ("-1", -1)],
)
def test_command_line_values_are_python_literals_or_strings(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.fixture
def study(notebook: Path, tmp_path: Path) -> Path:
    """A study of two arms and two seeds; a run of the second arm fails at seed 1."""
    source = (
        "import json, pathlib\nassert not (rate == 2.0 and seed == 1), 'as asked'\nfolder = pathlib.Path(out_dir)\n"
        "folder.mkdir(parents=True)\nrecord = {'step': steps, 'reward': 0.0, 'eval/accuracy': rate + seed}\n"
        "_ = (folder / 'metrics.jsonl').write_text(json.dumps(record) + '\\n')"
    )
    made = nbformat.read(notebook, as_version=4)
    made.cells[0].source += 'seed: int = 0  # of the run\nout_dir: str = "x"  # where'
    made.cells[1].source = source
    nbformat.write(made, notebook)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(
        f"notebook: {notebook}\nshared: {{steps: 4}}\nseeds: [0, 1]\n"
        "arms:\n  low: {rate: 1.0}\n  high: {rate: 2.0}\n"
    )
    return folder


def test_a_study_is_every_arm_with_every_seed(study: Path) -> None:
    runs = study_runs(study)
    assert list(runs) == ["low_seed0", "high_seed0", "low_seed1", "high_seed1"]
    assert runs["high_seed1"] == {
        "steps": 4, "rate": 2.0, "seed": 1, "out_dir": str(study / "runs" / "high_seed1")
    }  # fmt: skip


def test_a_study_with_an_unknown_parameter_starts_nothing(study: Path) -> None:
    (study / "study.yaml").write_text((study / "study.yaml").read_text().replace("steps", "setps"))
    with pytest.raises(ParameterError, match="setps"):
        run_study(study)
    assert not (study / "runs").exists()


def test_a_failed_run_is_named_and_the_others_finish(study: Path) -> None:
    with pytest.raises(RuntimeError, match=r"1 of 4 runs failed.*high_seed1"):
        run_study(study, jobs=2)
    assert (study / "runs" / "low_seed1" / "metrics.jsonl").exists()
    (study / "study.yaml").write_text((study / "study.yaml").read_text().replace("[0, 1]", "[0]"))
    assert collect(study).read_text() == "arm,seed,step,syncs,eval/accuracy\nlow,0,4,0,1.0\nhigh,0,4,0,2.0\n"


def test_results_hold_the_means_since_the_evaluation_before_and_the_syncs_so_far(study: Path) -> None:
    (study / "study.yaml").write_text(
        (study / "study.yaml").read_text().replace("[0, 1]", "[0]").replace("  high: {rate: 2.0}\n", "")
    )
    folder = study / "runs" / "low_seed0"
    folder.mkdir(parents=True)
    records = [  # an evaluation comes before the update of its step, so its row averages the updates before it
        {"step": 0, "eval/accuracy": 0.25, "offpolicy/kl": 1.0, "clip_ratio/low_mean": 0.5, "reward": 9.0},
        {"step": 1, "offpolicy/kl": 3.0},
        {"step": 2, "eval/accuracy": 0.5, "offpolicy/kl": 100.0},
        {"step": 3, "eval/accuracy": 0.75},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "receipts.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))
    assert collect(study).read_text().splitlines() == [
        "arm,seed,step,syncs,eval/accuracy,offpolicy/kl,clip_ratio/low_mean",
        "low,0,0,0,0.25,,",
        "low,0,2,2,0.5,2.0,0.5",
        "low,0,3,2,0.75,100.0,",
    ]


CURRICULUM = """notebook: {notebook}
shared: {{steps: 4}}
arms:
  first: {{save_policy: true}}
  second: {{after: first, rate: 2.0}}
seeds: [0, 1]
"""


@pytest.fixture
def starting(tmp_path: Path) -> Path:
    """A notebook that needs the folder it starts from, and makes the one it saves to."""
    parameters = PARAMETERS + 'seed: int = 0  # s\nout_dir: str = "x"  # o\nsave_policy: bool = False  # p\n'
    parameters += 'model_name_or_path: str = "."  # m'
    work = "from pathlib import Path\nassert Path(model_name_or_path).is_dir()\nassert rate < 3\n"
    work += "Path(out_dir, 'policy').mkdir(parents=True)\n"
    record = json.dumps({"step": 0, "task/a/eval/accuracy": 0.5, "task/a/reward": 1})
    work += f"Path(out_dir, 'metrics.jsonl').write_text({record!r} + chr(10))"
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(work)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, tmp_path / "starting.ipynb")
    return tmp_path / "starting.ipynb"


def test_an_arm_starts_from_the_policy_of_the_arm_before_it(starting: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.yaml").write_text(CURRICULUM.format(notebook=starting))
    runs = study_runs(tmp_path / "study")
    assert runs["second_seed1"]["model_name_or_path"] == str(tmp_path / "study" / "runs" / "first_seed1" / "policy")
    assert "after" not in runs["second_seed1"] and "model_name_or_path" not in runs["first_seed1"]
    results = run_study(tmp_path / "study", jobs=2).read_text().splitlines()
    assert results[0] == "arm,seed,step,syncs,task/a/eval/accuracy" and len(results) == 5


def test_an_arm_whose_predecessor_failed_is_not_started(starting: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    text = CURRICULUM.format(notebook=starting).replace("{save_policy: true}", "{save_policy: true, rate: 5.0}")
    (tmp_path / "study" / "study.yaml").write_text(text.replace("[0, 1]", "[0]"))
    with pytest.raises(RuntimeError, match=r"2 of 2 runs failed.*first_seed0.*second_seed0"):
        run_study(tmp_path / "study", jobs=2)
    assert not (tmp_path / "study" / "runs" / "second_seed0.ipynb").exists()


@pytest.mark.parametrize("before", ["absent", "second"])
def test_a_predecessor_that_is_not_there_is_refused(starting: Path, tmp_path: Path, before: str) -> None:
    (tmp_path / "study.yaml").write_text(
        CURRICULUM.format(notebook=starting).replace("after: first", f"after: {before}")
    )
    with pytest.raises(ParameterError, match=f"must name an arm above it with save_policy, got '{before}'"):
        study_runs(tmp_path)
