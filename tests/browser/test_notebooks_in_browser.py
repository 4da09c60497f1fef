"""The tour and one run, executed in JupyterLab from top to bottom, with small parameters."""

from pathlib import Path

import pytest

from tests.browser.lab import Lab
from tests.test_notebooks import PARAMETERS, ROOT


@pytest.mark.parametrize("name", ["00_tour", "05_one_run"])
def test_notebook_runs_and_its_figures_are_drawn(name: str, lab: Lab, tmp_path: Path) -> None:
    parameters = PARAMETERS[f"{name}.ipynb"] | {"out_dir": str(tmp_path / "run")}
    with lab.open(ROOT / "notebooks" / f"{name}.ipynb", parameters=parameters) as notebook:
        notebook.run_all(timeout_s=600)
        notebook.wait("return [...panel.node.querySelectorAll('img')].every(image => image.complete)")
        widths = notebook.javascript("return [...panel.node.querySelectorAll('img')].map(image => image.naturalWidth)")
        assert widths and all(width > 100 for width in widths)
        notebook.screenshot(f"{name}_light")
        notebook.set_theme("dark")
        notebook.screenshot(f"{name}_dark")
