"""The notebook of one GPU, with vLLM as its sampler."""

from pathlib import Path

import nbformat

from kit.study import execute_notebook

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "10_one_gpu.ipynb"


def test_it_runs_and_shows_that_the_engines_differ_by_rounding_alone(tmp_path: Path) -> None:
    small = {"sampler": "vllm", "max_steps": 4, "prompts_per_step": 4, "eval_prompts": 8, "sync_interval": 2}
    output = execute_notebook(NOTEBOOK, tmp_path / "out.ipynb", small | {"out_dir": str(tmp_path / "run")})
    cells = [cell for cell in nbformat.read(output, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    tables = [
        out["data"]["text/markdown"] for cell in cells for out in cell.outputs if "text/markdown" in out.get("data", {})
    ]
    numerics = next(line for table in tables for line in table.splitlines() if line.startswith("| numerics"))
    assert 0 < float(numerics.split("|")[2]) < 1e-5  # nats, float32
