"""An executed notebook that nobody watched: figures and tables are what is put out, without a widget."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest

from kit.output import in_a_page

ROOT = Path(__file__).parents[1]
MAKE = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from kit.dashboard import Dashboard
from tests.conftest import tiny_run
run = tiny_run(Path({model!r}), Path({out!r}), eval_steps=99)
dashboard = Dashboard(run)
dashboard
"""


def executed(tmp_path: Path, model: Path, *cells: str) -> nbformat.NotebookNode:
    make = MAKE.format(root=str(ROOT), model=str(model), out=str(tmp_path / "run"))
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (make, *cells)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(document, tmp_path / "in.ipynb")
    return papermill.execute_notebook(
        str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), cwd=str(ROOT), progress_bar=False
    )


@pytest.mark.filterwarnings("ignore")  # of papermill and its kernel, which are other processes' business
@pytest.mark.parametrize(
    ("cells", "done"),
    [(["run.finish()['step']"], 12), (["next(iter(run.steps(2)))['step']", "dashboard.close()"], 1)],
)
def test_the_file_keeps_the_figure_and_the_tables_alone(
    tiny_folder: Path, tmp_path: Path, cells: list[str], done: int
) -> None:
    document = executed(tmp_path, tiny_folder, *cells)
    bundles = [output["data"] for output in document.cells[0].outputs if output.output_type == "display_data"]
    own = [data for data in bundles if "tqdm" not in str(data) and "Loading weights" not in str(data)]
    text = str(own)
    assert "widget-view" not in text
    (page,) = [data["text/html"] for data in own if data.get("text/html")]
    assert re.search(r'src="data:image/png;base64,\w', page) and "<table>" in page and "Log-probs of pairs" in page
    assert "changed by hand" in page.lower() and f"{done} of 12 steps" in text
    assert not any(output.output_type == "error" for cell in document.cells for output in cell.get("outputs", []))


@pytest.mark.filterwarnings("ignore")  # as above
def test_the_file_keeps_the_microscopes_first_groups(tiny_folder: Path, tmp_path: Path) -> None:
    look = "from kit.microscope import Microscope\nrun.finish()\nMicroscope(run)"
    (_, cell) = executed(tmp_path, tiny_folder, look).cells[-2:]
    bundles = [output["data"] for output in cell.outputs if output.output_type == "display_data"]
    assert "widget-view" not in str(bundles)
    (page,) = [data["text/html"] for data in bundles if data.get("text/html")]
    assert "completions, in" in page and "<section" in page


def test_outside_of_a_kernel_there_is_no_page() -> None:
    assert not in_a_page()
