"""Every notebook and every solution runs from top to bottom in a fresh kernel, with small parameters."""

import re
from pathlib import Path

import nbformat
import pytest

from kit.exercises import NOT_ATTEMPTED
from kit.study import execute_notebook

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"max_steps": 2, "prompts_per_step": 4, "eval_prompts": 8, "eval_steps": 1, "num_threads": 1}
PARAMETERS = {
    "00_tour.ipynb": SMALL,
    "01_rewards.ipynb": {"problems": 4, "samples": 8, "pairs": 40, "num_seeds": 2, "best_of": 8, "timeout_s": 0.5},
    "02_dpo_loss.ipynb": {"steps": 20},
    "03_grpo_loss.ipynb": {"points": 11, "group_size": 4},
    "04_sync_schedules.ipynb": {"steps": 10, "num_seeds": 2},
    "05_one_run.ipynb": SMALL | {"eval_samples": 2, "save_steps": 1, "sync_interval": 1},
    "06_regimes_compared.ipynb": {"resamples": 100},
    "07_non_verifiable.ipynb": SMALL | {"eval_samples": 1},
    "08_multi_task.ipynb": {
        "steps_per_task": 1,
        "prompts_per_step": 4,
        "eval_prompts": 8,
        "eval_samples": 1,
        "num_threads": 1,
    },
    "09_training_dynamics.ipynb": {"problems": 8, "samples": 2, "num_threads": 1},
    "10_one_gpu.ipynb": SMALL | {"sync_interval": 1},
    "11_full_run.ipynb": SMALL | {"trainers": 1, "samplers": 1, "kill_at": None},
    "12_scorecard.ipynb": {"problems": 8},
    "13_bug_hunt.ipynb": SMALL | {"recorded": False, "num_seeds": 2},
}


def test_every_notebook_has_small_parameters_here() -> None:
    assert sorted(PARAMETERS) == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    output = execute_notebook(
        ROOT / "notebooks" / name, tmp_path / name, PARAMETERS[name] | {"out_dir": str(tmp_path / "runs")}
    )
    cells = [cell for cell in nbformat.read(output, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    images = [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    assert images, "a notebook shows at least one figure"
    assert all(len(image.metadata["image/png"]["alt"]) > 20 for image in images), (
        "each has a text for who cannot see it"
    )
    said = verdicts_of(cells)
    assert len(said) >= 3 and set(said) == {NOT_ATTEMPTED}, "an exercise that nobody attempted stops nothing"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_solution_is_correct(path: Path, tmp_path: Path) -> None:
    output = execute_notebook(path, tmp_path / path.name, {})
    said = verdicts_of(nbformat.read(output, as_version=4).cells)
    assert len(said) >= 3 and all(line.startswith("✓ correct") for line in said)


def verdicts_of(cells: list[nbformat.NotebookNode]) -> list[str]:
    """What `kit.exercises` said, line by line; a line may begin with what it is about."""
    printed = [out.text for cell in cells for out in cell.get("outputs", []) if out.output_type == "stream"]
    found = [re.search(r"[✓✗○] .*", line) for text in printed for line in text.splitlines()]
    return [match[0] for match in found if match]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"group_size": 1, "objective": "grpo"}, "group_size must be at least 2 under GRPO"),
        ({"model_name_or_path": "absent"}, "model_name_or_path must be a folder"),
        ({"max_completion_length": 100_000}, "must fit into the model"),
        ({"sync_interval": 0}, "None"),  # says what to write for offline
        ({"objective": "grpo", "importance": "tis", "clip_eps": 0.3}, r"tis has no constant \['clip_eps'\]"),
    ],
)
def test_bad_parameters_stop_the_notebook_before_any_work(bad: dict[str, object], said: str, tmp_path: Path) -> None:
    out_dir = tmp_path / "runs"
    with pytest.raises(Exception, match=said):  # papermill's own error type, with the cell's traceback
        execute_notebook(ROOT / "notebooks" / "05_one_run.ipynb", tmp_path / "x.ipynb", bad | {"out_dir": str(out_dir)})
    assert not out_dir.exists()


@pytest.mark.parametrize(
    "name", ["00_tour.ipynb", "07_non_verifiable.ipynb", "08_multi_task.ipynb", "13_bug_hunt.ipynb"]
)
def test_recorded_runs_are_shown_without_training(name: str, tmp_path: Path) -> None:
    sizes = {key: value for key, value in PARAMETERS[name].items() if key == "num_threads"}
    given = sizes | {"recorded": True, "out_dir": str(tmp_path / "runs")}
    output = execute_notebook(ROOT / "notebooks" / name, tmp_path / name, given)
    cells = nbformat.read(output, as_version=4).cells
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    assert not list(tmp_path.rglob("metrics.jsonl"))
