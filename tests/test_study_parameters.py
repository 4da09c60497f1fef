"""Strict parameters: what papermill only warns about is refused, with one line that says what is allowed."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from kit.advantages import ADVANTAGES
from kit.importance import IMPORTANCE
from kit.kl import KL_ESTIMATORS
from kit.masking import AGGREGATES
from kit.objectives import OBJECTIVES
from kit.objectives.objective import DENOMINATORS
from kit.pairing import PAIRINGS
from kit.samplers import SAMPLERS
from kit.study import ParameterError, checked_parameters, execute_notebook, notebook_parameters, parse_value
from kit.study.in_notebook import check_cells
from kit.study.parameters import read_parameters
from kit.study.ranges import read_ranges
from tests.counting_study import CHECK, write_notebook

ROOT = Path(__file__).parents[1]
PARAMETERS = """steps: int = 3  # how many, at least 1
name: str = "a"  # a word
rate: float = 0.5  # a number, in (0, 1]
interval = 1  # type: int|None  s, at least 1
objective: str = "dpo"  # one of dpo | grpo | group_dpo
words: list[str] = []  # some
is_fast: bool = False  # whether
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "small.ipynb", PARAMETERS, "print(steps, name, rate, interval)")


REFUSED = [  # name, value, and what must be in the line beside the notebook's name
    ("setps", 4, "has no parameter 'setps'; did you mean 'steps'?"),
    ("sync_intervl", 4, "has no parameter 'sync_intervl'; did you mean"),
    ("zzz", 4, "has no parameter 'zzz'; it has steps, name, rate, interval, objective, words, is_fast"),
    ("steps", "4", "'steps' must be int, got '4' (str)"),
    ("steps", 4.5, "'steps' must be int, got 4.5 (float)"),
    ("steps", None, "'steps' must be int, got None (NoneType)"),
    ("steps", True, "'steps' must be int, got True (bool)"),  # Python counts True as an int; nobody who writes it does
    ("steps", 0, "'steps' must be at least 1, got 0"),
    ("name", 1, "'name' must be str, got 1 (int)"),
    ("rate", "fast", "'rate' must be float, got 'fast' (str)"),
    ("rate", "5e-5", "'rate' must be float, got '5e-5' (str); YAML reads 5e-5 as text, write 5.0e-5"),
    ("rate", 0, "'rate' must be in (0, 1], got 0"),
    ("rate", 1.5, "'rate' must be in (0, 1], got 1.5"),
    ("rate", float("nan"), "'rate' must be a number, got nan"),
    ("interval", "x", "'interval' must be int|None, got 'x' (str)"),
    ("interval", 0.5, "'interval' must be int|None, got 0.5 (float)"),
    ("interval", 0, "'interval' must be at least 1, or None, got 0"),
    ("objective", "gpro", "'objective' must be one of dpo | grpo | group_dpo, got 'gpro'; did you mean 'grpo'?"),
    ("words", "a", "'words' must be list[str], got 'a' (str)"),
    ("words", [1], "'words' must be list[str], got [1] (list)"),
    ("is_fast", 1, "'is_fast' must be bool, got 1 (int)"),
]


@pytest.mark.parametrize(("name", "value", "said"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(notebook: Path, name: str, value: object, said: str) -> None:
    with pytest.raises(ParameterError) as error:
        checked_parameters(notebook, {name: value})
    assert said in str(error.value) and str(error.value).startswith("small.ipynb") and "\n" not in str(error.value)


def test_every_mistake_is_told_at_once(notebook: Path) -> None:
    with pytest.raises(ParameterError) as error:
        checked_parameters(notebook, {"steps": 0, "rate": 2, "name": "b"})
    assert len(str(error.value).splitlines()) == 2


def test_what_fits_the_declaration_passes(notebook: Path) -> None:
    given = {"steps": 4, "name": "b", "rate": 1, "interval": None, "words": ["x"], "objective": "grpo"}
    assert checked_parameters(notebook, given) == given  # an int is a fine value for a float


def test_a_cell_is_read_as_python_where_papermill_misreads_it(tmp_path: Path) -> None:
    cell = """from typing import Literal
kind: Literal["a", "b"] = "a"  # which
url: str = "x=1#2"  # a=b
union: int | None = 1  # how many
many: list[int] = [
    1,  # the first
]  # some, at least 0
spaced = None  # type: int | None  how many
bare = 0.5
made = 2 ** 3
"""
    found = read_parameters(cell)
    assert list(found) == ["kind", "url", "union", "many", "spaced", "bare", "made"]
    assert (found["url"].default, found["url"].help, found["many"].default) == ("x=1#2", "a=b", [1])
    assert (found["spaced"].type, found["spaced"].help, found["made"].default) == ("int | None", "how many", "2 ** 3")
    assert found["kind"].complaint("b") is None and "got 'c'" in str(found["kind"].complaint("c"))
    assert found["union"].complaint(None) is None and found["spaced"].complaint("x") is not None
    assert found["bare"].complaint(1) is None and "must be float" in str(found["bare"].complaint("x"))
    seen = papermill.inspect_notebook(str(write_notebook(tmp_path / "x.ipynb", cell, "")))
    assert not {"url", "union"} <= seen.keys()  # the day this fails, papermill reads better


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("a number, in (0, 1]", [1, 0.1], [0, 1.1]),
        ("in [0, inf)", [0, 9e9], [-1e-9]),
        ("pull, > 0", [1e-9], [0, -1]),
        ("below, < 1; more", [0.99, -5], [1]),
        ("steps, at least 1; None never", [1, 2], [0]),
        ("share, at most 0.5", [0.5], [0.6]),
        ("in [-1.5, 2e3]", [-1.5, 2000], [-2, 2001]),
        ("of: one of a | b-c", ["a", "b-c"], ["b", "a | b-c"]),
        ("whole, at least 2, at most 4", [2, 4], [1, 5]),
    ],
)
def test_a_help_states_a_range(text: str, inside: list[object], outside: list[object]) -> None:
    ranges = read_ranges(text)
    assert all(value in each for value in inside for each in ranges) and ranges
    assert all(any(value not in each for each in ranges) for value in outside)


@pytest.mark.parametrize(
    "text", ["", "at least 8 of them", "in (nats)", "one of the arms", "step > 0 is late", "> 0.x"]
)
def test_a_help_without_a_range_states_none(text: str) -> None:
    assert read_ranges(text) == ()


@pytest.mark.parametrize(
    ("parameter", "table"),
    [
        ("objective", OBJECTIVES), ("sampler", SAMPLERS), ("pairing", PAIRINGS), ("importance", IMPORTANCE),
        ("advantages", ADVANTAGES), ("kl_estimator", KL_ESTIMATORS), ("aggregate", AGGREGATES),
        ("denominator", DENOMINATORS),
    ],
)  # fmt: skip
def test_the_names_in_the_notebook_are_those_of_the_table(parameter: str, table: dict[str, object]) -> None:
    (names,) = notebook_parameters(ROOT / "notebooks" / "05_one_run.ipynb")[parameter].ranges
    assert sorted(names.names or ()) == sorted(table)


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_checks_its_parameters_first_and_its_defaults_pass(path: Path) -> None:
    declared = notebook_parameters(path)
    checked_parameters(path, {name: parameter.default for name, parameter in declared.items()})
    code = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert "".join(code[1]) == CHECK
    with pytest.raises(ParameterError, match="must be at least 0, got -1" if "seed" in declared else "seed"):
        check_cells(["", "".join(code[0]), "# Parameters\nseed = -1", CHECK])


CELL = PARAMETERS


@pytest.mark.parametrize(
    "executed",
    [
        [],  # outside of everything
        ["", CHECK],
        ["", CELL, CHECK],  # JupyterLab
        ["", CELL, CELL, CHECK, CHECK],  # executed twice
        ["", CELL, "# Parameters\nsteps = 4\nrate = 1e-3\ninterval = None", CHECK],  # papermill
        ["", CELL, '# Parameters\nname = "a = b"\nwords = ["x", "y"]', CHECK],
        ["", CELL, "# Parameters\nsteps = 4", "# Parameters\nsteps = 5", CHECK],  # its cell twice
        ["", CHECK, CELL, "x = 1", CHECK],  # out of order
        ["", CELL, "setps = 3", CHECK],  # a variable of somebody's own
        ["", CELL, "steps = 0  # a try", CHECK],  # theirs to know
        ["", CELL, "x = 1", "# Parameters\nsetps = 3", CHECK],  # a comment that happens to be the same
        ["", CELL, "# Parameters of mine\nsetps = 3", CHECK],
        ["", CELL, "# Parameters\nsetps = compute()", CHECK],
        ["", "%%bash\necho 1", CELL, "1 +", CHECK],  # magics, and a cell that is no Python
        ["", "steps: int = 0  # how many, at least 1", CELL, CHECK],  # the edited cell counts, not what it was
        ["", "# Parameters\nsetps = 3", CHECK],
        ["", "steps = 3\nrate = 1", "# Parameters\nsetps = 3", CHECK],  # a parameters cell that declares no types
    ],
)
def test_the_check_in_a_notebook_gives_no_false_alarm(executed: list[str]) -> None:
    check_cells(executed)


@pytest.mark.parametrize(
    ("executed", "said"),
    [
        (["", CELL, "# Parameters\nsetps = 4", CHECK], "has no parameter 'setps'; did you mean 'steps'?"),
        (["", CELL, "# Parameters\nsteps = 0", CHECK], "'steps' must be at least 1, got 0"),
        (["", CELL, "# Parameters\nrate = float('nan')", CHECK], "'rate' must be a number, got nan"),
        (["", CELL, '# Parameters\nsteps = "4"', CHECK], "'steps' must be int, got '4' (str)"),
        (["", "x = 1", CELL.replace("= 3", "= 0"), CHECK], "'steps' must be at least 1, got 0"),  # edited by hand
        (["", CELL, CELL, "# Parameters\nsetps = 4", CHECK], "setps"),
    ],
)
def test_the_check_in_a_notebook_refuses(executed: list[str], said: str) -> None:
    with pytest.raises(ParameterError) as error:
        check_cells(executed)
    assert said in str(error.value)


def test_papermill_alone_is_stopped_by_the_check(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a.ipynb", PARAMETERS, CHECK, "print('worked', steps)")
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), str(out), "--no-progress-bar"]
    refused = subprocess.run([*command, "-p", "sync_intervl", "10"], capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 1 and "has no parameter 'sync_intervl'" in refused.stderr
    assert not any("worked" in str(cell.get("outputs")) for cell in nbformat.read(out, as_version=4).cells)
    subprocess.run([*command, "-p", "steps", "10"], check=True, capture_output=True, cwd=ROOT)
    assert nbformat.read(out, as_version=4).cells[-1].outputs[0].text == "worked 10\n"


def test_a_refused_execution_writes_nothing(notebook: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "executed.ipynb"
    with pytest.raises(ParameterError):
        execute_notebook(notebook, output, {"setps": 4})
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no notebook"),
        ("[]", "is no notebook"),
        ('{"cells": [{}]}', "is no notebook"),
        ("1 2", "is no notebook"),
    ],
)
def test_a_file_that_is_no_notebook_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(ParameterError, match=f"x.ipynb {said}"):
        notebook_parameters(tmp_path / "x.ipynb")


def test_a_parameters_cell_that_is_no_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"x.ipynb: its parameters cell is no Python: .*line 2"):
        notebook_parameters(write_notebook(tmp_path / "x.ipynb", "a = 1\nb = = 2"))


def test_a_notebook_without_a_parameters_cell_has_none(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "x.ipynb", "a = 1")
    made = nbformat.read(path, as_version=4)
    made.cells[0].metadata["tags"] = []
    nbformat.write(made, path)
    assert checked_parameters(path, {}) == {}
    with pytest.raises(ParameterError, match="has no parameter 'a'; it has none"):
        checked_parameters(path, {"a": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("1e-4", 1e-4), ("None", None), ("True", True), ("dpo", "dpo"), ("a b", "a b"), ("-1", -1)],
)
def test_command_line_values_are_python_literals_or_strings(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)
