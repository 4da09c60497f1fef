"""A study's report from a results.csv that is written by hand: each number can be worked out."""

import csv
import json
from pathlib import Path

import nbformat
import pytest

from kit.cli import main
from kit.costs import Costs
from kit.report import (
    at_best,
    at_end,
    costs_table,
    differences_table,
    read_costs,
    read_results,
    scores_table,
    study_costs,
    study_folder,
)
from kit.report.make import TEMPLATE
from kit.report.scores import main_metrics
from kit.report.tables import markdown

STUDY = """
notebook: small.ipynb
arms:
  online: {rate: 1.0}
  offline: {rate: 0.0}
  single: {rate: 2.0}
seeds: [0, 1]
"""
PARAMETERS = 'rate: float = 1.0  # of something\nseed: int = 0  # of chance\nout_dir: str = "x"  # where'
# arm -> seed -> accuracy at the steps 0, 10, 20
SCORES = {
    "online": {0: (0.25, 0.5, 0.75), 1: (0.25, 0.75, 1.0)},
    "offline": {0: (0.25, 0.5, 0.25), 1: (0.25, 0.25, 0.5)},
    "single<b>": {0: (0.25, 0.5, 0.5)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "small.ipynb")
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.yaml").write_text(STUDY.replace("small", str(tmp_path / "small")))
    with (study / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["arm", "seed", "step", "eval/accuracy", "eval/accuracy_low", "eval/accuracy_high", "eval/entropy"]
        )
        for arm, of_seed in SCORES.items():
            for seed, scores in of_seed.items():
                for step, score in zip((0, 10, 20), scores, strict=True):
                    entropy = "" if arm == "offline" else 0.5
                    writer.writerow([arm, seed, step, score, score - 0.125, score + 0.125, entropy])
    return study


def test_the_last_and_the_best_checkpoint(folder: Path) -> None:
    results = read_results(folder)
    assert list(results) == list(SCORES) and main_metrics(results) == ["eval/accuracy"]
    assert at_end(results["offline"], "eval/accuracy") == {0: 0.25, 1: 0.5}
    # Seed 0 takes the step that is best on seed 1, 20, and the other way round 10: not the maxima .5 and .5.
    assert at_best(results["offline"], "eval/accuracy") == {0: (0.25, 20.0), 1: (0.25, 10.0)}
    assert at_best(results["single<b>"], "eval/accuracy") == {}
    assert at_end(results["offline"], "eval/entropy") == {}


def test_tables_hold_what_can_be_worked_out(folder: Path) -> None:
    results = read_results(folder)
    online, offline, single = scores_table(results, "eval/accuracy").splitlines()[2:]
    # .875 +- 12.706 x .125; the best of both seeds is step 20
    assert online == (
        "| online | 2 | 0.250 | 0.875 [-0.713, 2.463] (step 20) | **0.875 [-0.713, 2.463]** | 0.500 [0.500, 0.500] |"
    )
    assert "| – |" in offline and "0.250 [0.250, 0.250] (step 20, 10)" in offline
    assert single == "| single&lt;b&gt; | 1 | 0.250 | – | **0.500 [0.375, 0.625] over problems** | 0.500 |"
    lines = differences_table(results, "eval/accuracy", "online", 0.6).splitlines()[2:]
    # -.5 in both seeds: no scatter, so it is certain, and certainly less than .6
    told = "-0.500 [-0.500, -0.500] (n=2), paired by seed | &lt; .001 | &lt; .001 | lower, within the margin"
    assert lines[0] == f"| offline | {told} |"
    assert lines[1].startswith("| single&lt;b&gt; | one seed: no interval |")
    with pytest.raises(ValueError, match=r"one of the arms online, offline, .* as baseline, came 'onlin'"):
        differences_table(results, "eval/accuracy", "onlin", 0.1)


def test_no_text_breaks_a_table() -> None:
    line = markdown(["a"], [["<script>|\x1b[31m\u202e\n# x"]]).splitlines()[2]
    assert line == "| &lt;script&gt;\\|\\x1b[31m\\u202e\\n# x |"


def test_costs_outlive_the_run_directories(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a_seed3"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"objective": {"type": "GRPO"}}))
    record = {"step": 0, "num_completions": 8, "num_tokens": 2500, "num_trained_tokens": 2000, "time/train": 1.25,
              "time/eval": 60.0, "memory/peak": 3 * 10**9}  # fmt: skip
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    runs = {"a": {3: run, 4: tmp_path / "runs" / "a_seed4"}, "b": {3: tmp_path / "runs" / "b_seed3"}}
    first = study_costs(tmp_path, runs)
    assert (
        first["a"][3] == Costs({"train": 1.25, "eval": 60.0}, 8, 2500, 2000, 0, None, 3 * 10**9, 0) and first["b"] == {}
    )
    (run / "config.json").unlink()
    assert costs_table(study_costs(tmp_path, runs)).splitlines()[2] == (
        "| a | 1 | 1 | 0 / 1 / 60 | 8 | 2.50 k | 2.00 k | – | 3.00 GB | 0 B |"
    )
    (tmp_path / "costs.csv").unlink()
    assert "not known" in costs_table(study_costs(tmp_path, runs))


def test_costs_are_read_without_the_study(tmp_path: Path) -> None:
    assert read_costs(tmp_path) == {}
    head = "arm,seed,completions,tokens,trained_tokens,syncs,flops,peak_memory,seconds/generate,seconds/train"
    (tmp_path / "costs.csv").write_text(f"{head}\none,3,64,900,300,4,1000,,2.5,1.5\n")
    assert read_costs(tmp_path) == {"one": {3: Costs({"generate": 2.5, "train": 1.5}, 64, 900, 300, 4, 1000, None)}}
    assert "synced" not in costs_table(read_costs(tmp_path))  # nor an empty column for what nobody recorded


def test_a_study_is_found_from_any_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a notebook is opened in its own folder, and executed from the kit's."""
    monkeypatch.chdir(tmp_path)
    assert "dpo_s1" in read_results("papermill_runs/regimes")
    assert study_folder("papermill_runs/regimes") == Path(__file__).parents[1] / "papermill_runs" / "regimes"
    (tmp_path / "papermill_runs" / "regimes").mkdir(parents=True)
    assert study_folder("papermill_runs/regimes") == Path("papermill_runs/regimes")  # what is here comes first
    with pytest.raises(FileNotFoundError, match="execute the study first"):
        read_results("papermill_runs/regimes")


@pytest.mark.slow
def test_the_command_makes_a_notebook_and_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(folder), "--baseline", "offline", "--margin", "0.1"]) == 0
    assert "report.html" in capsys.readouterr().out
    notebook = nbformat.read(folder / "report.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = str(outputs)
    assert "minus offline" in text and "not in the results: single seed 0, single seed 1" in text
    page = (folder / "report.html").read_text()
    assert "<script" not in page and 'src="http' not in page and "single&lt;b&gt;" in page and "data:image/png" in page
    assert page.count('alt="') == 2

    # A report that fails leaves what was there.
    notebook.cells.append(nbformat.v4.new_code_cell("1 / 0"))
    nbformat.write(notebook, folder / "report.ipynb")
    before = (folder / "report.ipynb").read_bytes(), page
    assert main(["study", "report", str(folder)]) == 2
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert ((folder / "report.ipynb").read_bytes(), (folder / "report.html").read_text()) == before


def test_a_study_without_results_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(tmp_path)]) == 2
    assert "execute the study first" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_template_is_stored_without_outputs() -> None:
    assert all(not cell.get("outputs") for cell in nbformat.read(TEMPLATE, as_version=4).cells)
