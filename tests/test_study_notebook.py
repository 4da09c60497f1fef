"""Executing one notebook, from the command line too."""

from pathlib import Path

import nbformat
import papermill
import pytest

from kit.cli import main
from kit.study import execute_notebook
from kit.study.notebook import NotebookError
from tests.counting_study import write_notebook

PARAMETERS = "steps: int = 3  # how many\nrate: float = 0.5  # a number\ninterval = 1  # type: int|None  s\n"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "small.ipynb", PARAMETERS, "print(steps, rate, interval)")


def test_the_command_line_says_what_is_wrong_and_exits_with_2(
    notebook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.ipynb")
    assert main(["execute", str(notebook), out, "-p", "steps", "many", "-p", "setps", "1"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: small.ipynb: parameter 'steps' must be int, got 'many' (str)"
    assert second == "error: small.ipynb has no parameter 'setps'; did you mean 'steps'?"
    assert main(["execute", "absent.ipynb", out]) == 2
    assert "absent.ipynb" in capsys.readouterr().err


def test_an_executed_notebook_holds_the_injected_values(notebook: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.ipynb")
    assert main(["execute", str(notebook), out, "-p", "interval", "None", "-p", "rate", "1e-3"]) == 0
    assert nbformat.read(out, as_version=4).cells[-1].outputs[0].text == "3 0.001 None\n"


def test_of_a_widget_the_executed_file_keeps_its_text(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", PARAMETERS, "import ipywidgets\nipywidgets.IntSlider(5)")
    executed = nbformat.read(execute_notebook(notebook, tmp_path / "out.ipynb", {}), as_version=4)
    (shown,) = executed.cells[-1].outputs
    assert list(shown.data) == ["text/plain"] and "IntSlider" in shown.data["text/plain"]
    assert "widgets" not in executed.metadata


def test_what_a_cell_raised_is_said_by_its_last_line(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", PARAMETERS, "raise KeyError('first\\nlast')", "print('after')")
    with pytest.raises(NotebookError, match=r"^KeyError: 'first\\nlast'$"):
        execute_notebook(notebook, tmp_path / "out.ipynb", {})
    assert not nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs


def test_the_kernel_listens_in_a_folder_of_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    source = "import json, ipykernel\ninfo = json.load(open(ipykernel.get_connection_file()))\n"
    source += "print(info['transport'], info['ip'])"
    notebook = write_notebook(tmp_path / "a.ipynb", PARAMETERS, source)
    execute_notebook(notebook, tmp_path / "out.ipynb", {})
    transport, address = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text.split()
    assert transport == "ipc" and not Path(address).parent.exists()


def test_papermill_alone_would_only_warn(notebook: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    papermill.execute_notebook(str(notebook), str(tmp_path / "out.ipynb"), {"setps": 4}, progress_bar=False)
    assert "unknown parameter: setps" in caplog.text  # the day this fails, ours may go
