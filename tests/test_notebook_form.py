"""The form of every notebook, without executing it: title, parameters, short cells, nothing stored that was computed.

Why: the parameters cell is what papermill and the launcher read, short cells can be followed in front of a class, and
stored outputs go stale and make differences unreadable.
"""

import ast
import io
import re
import statistics
import tokenize
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
REQUIRED = {"00_tour", "05_one_run"}
MAX_CELL_LINES = 25
MAX_MEDIAN_LINES = 10
FORBIDDEN = {
    r"^\s*[!%]\s*(pip|conda|mamba|uv)\b": "installs packages",
    r"\bsys\s*\.\s*path\b|\bfrom sys import path\b": "changes sys.path",
}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: type = value  # help`.

    Where None is possible: `name = value  # type: int|None  help`, because papermill does not read `int | None`.
    """

    name: str
    annotation: str
    value: str
    help: str


def parameters_of(source: str) -> list[Parameter]:
    """The parameters of a cell.

    Raises:
        ValueError: if a line is anything else.
    """
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    statements = {node.lineno: node for node in ast.parse(source).body if node.lineno == node.end_lineno}
    return [
        parameter_of(statements.get(number), comments.get(number, ""), line)
        for number, line in enumerate(source.splitlines(), start=1)
    ]


def parameter_of(node: ast.stmt | None, comment: str, line: str) -> Parameter:
    match node:
        case ast.AnnAssign(ast.Name(name), annotation, ast.expr() as value) if comment:
            annotation = ast.unparse(annotation).strip("'\"")  # papermill drops the quotes too
            return Parameter(name, annotation, ast.unparse(value), comment)
        case ast.Assign([ast.Name(name)], value):
            if typed := re.fullmatch(r"type: (\S+\|None)\s+(\S.*)", comment):
                return Parameter(name, typed[1], ast.unparse(value), typed[2])
    raise ValueError(f"expected `name: type = value  # help`, got {line!r}")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def complaints_about(notebook: nbformat.NotebookNode, stem: str) -> list[str]:
    """Everything that is wrong with the form of a notebook whose file is called `stem`.ipynb."""
    cells = code_cells(notebook)
    if not cells or notebook.cells[0].cell_type != "markdown":
        return ["expected a title cell first, and code after it"]
    complaints = []
    title = notebook.cells[0].source.splitlines()[0] if notebook.cells[0].source else ""
    if not re.fullmatch(r"# \d\d · \S.*", title) or title[2:4] != stem[:2]:
        complaints.append(f"expected the title `# {stem[:2]} · ...`, got {title!r}")
    if [index for index, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])] != [0]:
        complaints.append("expected the tag `parameters` on the first code cell, and on no other")
    try:
        if not parameters_of(cells[0].source):
            complaints.append("the parameters cell is empty")
    except (SyntaxError, ValueError) as error:
        complaints.append(f"parameters cell: {error}")
    lengths = [len(cell.source.splitlines()) for cell in cells[1:]]  # the parameters are a table: one line a knob
    complaints += [f"a code cell has {n} lines, more than {MAX_CELL_LINES}" for n in lengths if n > MAX_CELL_LINES]
    if statistics.median(lengths or [0]) > MAX_MEDIAN_LINES:
        complaints.append(f"half of the code cells have more than {MAX_MEDIAN_LINES} lines")
    for number, cell in enumerate(cells, start=1):
        if cell.outputs or cell.execution_count is not None:
            complaints.append(f"code cell {number} is stored with what it computed: run nbstripout")
        for pattern, what in FORBIDDEN.items():
            if re.search(pattern, cell.source, re.MULTILINE):
                complaints.append(f"code cell {number} {what}: kit is installed")
    return complaints


def misread_by_papermill(path: Path) -> list[str]:
    """The parameters that papermill does not see, or sees with another type, default or help.

    Its parser (2.7.0) drops a line whose type holds `|` or `.`, or that has a second `=`, even in the help.
    """
    found = papermill.inspect_notebook(str(path))
    misread = []
    for parameter in parameters_of(code_cells(read(path))[0].source):
        seen = found.get(parameter.name)
        if seen is None:
            misread.append(f"{parameter.name}: not seen")
        elif (seen["inferred_type_name"], seen["help"]) != (parameter.annotation, parameter.help):
            misread.append(f"{parameter.name}: read as {seen}")
        elif not same_value(seen["default"], parameter.value):
            misread.append(f"{parameter.name}: default read as {seen['default']}")
    return misread


def same_value(text: str, expected: str) -> bool:
    try:
        return ast.literal_eval(text) == ast.literal_eval(expected)
    except SyntaxError:  # cut off in the middle
        return False


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebooks_are_there() -> None:
    assert {path.stem for path in NOTEBOOKS} >= REQUIRED


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_the_form(path: Path) -> None:
    assert complaints_about(read(path), path.stem) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_asks_for_the_installed_kernel(path: Path) -> None:
    assert read(path).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_reads_the_parameters_as_they_are_meant(path: Path) -> None:
    assert misread_by_papermill(path) == []


def sample() -> nbformat.NotebookNode:
    """A small notebook without a fault."""
    parameters = nbformat.v4.new_code_cell("seed: int = 0  # of the run\nname = None  # type: str|None  of the run")
    parameters.metadata["tags"] = ["parameters"]
    cells = [nbformat.v4.new_markdown_cell("# 07 · A title"), parameters, nbformat.v4.new_code_cell("import kit")]
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )


def test_sample_has_no_fault() -> None:
    assert complaints_about(sample(), "07_sample") == []


FAULTS = {
    "no title": lambda n: n.cells.pop(0),
    "a title with another number": lambda n: n.cells[0].update(source="# 08 · A title"),
    "a title without a number": lambda n: n.cells[0].update(source="# A title"),
    "an untagged parameters cell": lambda n: n.cells[1].metadata.update(tags=[]),
    "a second parameters cell": lambda n: n.cells[2].metadata.update(tags=["parameters"]),
    "an empty parameters cell": lambda n: n.cells[1].update(source=""),
    "a parameter without a type": lambda n: n.cells[1].update(source="seed = 0  # of the run"),
    "a parameter without a value": lambda n: n.cells[1].update(source="seed: int  # of the run"),
    "a parameter typed by a comment, without None": lambda n: n.cells[1].update(
        source="seed = 0  # type: int  of the run"
    ),
    "a parameter that can be None, without help": lambda n: n.cells[1].update(source="seed = 0  # type: int|None"),
    "a parameter without help": lambda n: n.cells[1].update(source="seed: int = 0"),
    "a parameter over two lines": lambda n: n.cells[1].update(source="seed: int = (  # of\n  0)  # the run"),
    "an import among the parameters": lambda n: n.cells[1].update(source="import kit  # the library"),
    "a comment line among the parameters": lambda n: n.cells[1].update(source="# sizes\nseed: int = 0  # of the run"),
    "a long cell": lambda n: n.cells.extend(
        nbformat.v4.new_code_cell("x = 1\n" * k) for k in (1, 1, MAX_CELL_LINES + 1)
    ),
    "long cells throughout": lambda n: n.cells.extend(nbformat.v4.new_code_cell("x = 1\n" * 11) for _ in range(3)),
    "a stored count": lambda n: n.cells[2].update(execution_count=1),
    "a stored output": lambda n: n.cells[2].outputs.append(nbformat.v4.new_output("stream", text="1")),
    "an installation": lambda n: n.cells[2].update(source="import kit\n!pip install kit"),
    "an installation by magic": lambda n: n.cells[2].update(source="%pip install kit"),
    "a changed path": lambda n: n.cells[2].update(source="import sys\nsys.path.insert(0, '..')"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault: str) -> None:
    notebook = sample()
    FAULTS[fault](notebook)
    assert len(complaints_about(notebook, "07_sample")) == 1


MISREAD = {
    "a union": "steps: int | None = 1  # how many",
    "an equals sign in the default": 'model: str = "a=b"  # a name',
    "an equals sign in the help": "steps: int = 1  # steps=1 is online",
    "a number sign in the default": 'model: str = "a # b"  # a name',
}


@pytest.mark.parametrize("why", MISREAD)
def test_what_papermill_misreads_is_noticed(why: str, tmp_path: Path) -> None:
    notebook = sample()
    notebook.cells[1].source = MISREAD[why]
    nbformat.write(notebook, tmp_path / "07_sample.ipynb")
    assert len(misread_by_papermill(tmp_path / "07_sample.ipynb")) == 1
