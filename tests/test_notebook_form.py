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
from itertools import pairwise
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
MIN_EXERCISES = 3
MAX_CELL_LINES = 25
MAX_MEDIAN_LINES = 10
FORBIDDEN = {
    r"^\s*[!%]\s*(pip|conda|mamba|uv)\b": "installs packages",
    r"\bsys\s*\.\s*path\b|\bfrom sys import path\b": "changes sys.path",
    r"\bplt\s*\.\s*show\b": "shows a figure without a text: show(figure) of kit.figures",
}
# What the kit calls otherwise, in prose: one word for one thing.
OTHER_WORDS = {
    r"\bresponses?\b": "completion",
    r"\b(trajector(y|ies)|episodes?)\b": "rollout",
    r"\bquer(y|ies)\b": "prompt",
    r"\b(winners?|losers?) (of the|and|in a) (pairs?|losers?)\b": "chosen, rejected",
    r"\boff-policyness\b|\basync level\b": "staleness",
    r"\binference engine\b|\brollout (worker|model)\b|\bbehaviou?r policy\b": "sampler",
    r"\b(ref policy|reference policy)\b": "reference",
    r"\blog_probs\b|\blogps\b|\blog probs\b": "log-probs",
    r"\bnum_generations\b": "group_size",
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
    complaints = complaints_about_prose(notebook, stem)
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


def complaints_about_prose(notebook: nbformat.NotebookNode, stem: str) -> list[str]:
    """What a reader is owed: what for, what is needed, what was shown, exercises, and where to go on."""
    complaints = []
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    if not re.search(r"^\*\*You will\*\*\n+(- .+\n){3,4}", first, re.MULTILINE) or "\n**Needs** " not in first:
        complaints.append("expected **You will**, with three or four lines, and **Needs**, in the first cell")
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    if sum("## Recap\n" in text for text in texts) != 1:
        complaints.append("expected one ## Recap")
    if not last.startswith("**Next:**") and not last.startswith("This is the last one."):
        complaints.append("expected **Next:** as the last cell")
    if len(exercises_of(notebook)) < MIN_EXERCISES or not any(f"solutions/{stem}_solutions.ipynb" in t for t in texts):
        complaints.append(f"expected {MIN_EXERCISES} exercises with a check, and a link to the solutions")
    for text in texts:
        prose = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", text, flags=re.DOTALL)
        for pattern, word in OTHER_WORDS.items():
            if found := re.search(pattern, prose, re.IGNORECASE):
                complaints.append(f"says {found[0]!r}, where the kit says {word}")
    return complaints


def exercises_of(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Heading of each numbered exercise -> the code below it, where that checks something."""
    found, heading = {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            match = re.match(r"### \d+ · .+", cell.source)
            heading = match[0] if match else ""
        elif heading and re.search(r"^ *check(_answer)?\(", cell.source, re.MULTILINE):
            found[heading] = cell.source
    return found


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


def test_the_notebooks_are_there_in_order_and_each_names_the_next() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(14)]
    for path, after in pairwise(NOTEBOOKS):
        assert f"**Next:** `{after.stem}`" in read(path).cells[-1].source


def test_every_notebook_has_its_solutions() -> None:
    assert [path.stem for path in SOLUTIONS] == [f"{path.stem}_solutions" for path in NOTEBOOKS]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_solve_each_exercise_and_say_why(path: Path) -> None:
    stem = path.stem.removesuffix("_solutions")
    asked, solved = exercises_of(read(ROOT / "notebooks" / f"{stem}.ipynb")), read(path)
    assert (
        solved.cells[0].source.startswith(f"# {stem[:2]} · Solutions")
        and f"](../{stem}.ipynb)" in solved.cells[0].source
    )
    assert list(exercises_of(solved)) == list(asked)
    for heading, code in exercises_of(solved).items():
        assert "NotImplementedError" not in code and code != asked[heading]
    assert sum(cell.source.startswith("**Why.** ") for cell in solved.cells) == len(asked)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in solved.cells)


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS, *SOLUTIONS]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_link_and_every_name_of_a_notebook_resolves(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not re.match(r"https?://|mailto:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []
    named = set(re.findall(r"`(\d\d_[a-z_]+)`", text))
    assert named <= {path.stem for path in NOTEBOOKS}
    studies = set(re.findall(r"`(papermill_runs/[a-z_]+)", text))
    assert [study for study in studies if not (ROOT / study).exists() and study != "papermill_runs/tour"] == []


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
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    parameters = code("seed: int = 0  # of the run\nname = None  # type: str|None  of the run")
    parameters.metadata["tags"] = ["parameters"]
    title = "# 07 · A title\n\n**You will**\n- see;\n- hear;\n- feel.\n\n**Needs** `06_other`."
    cells = [text(title), parameters, code("import kit"), text("## Recap\n- It was so.")]
    cells.append(text("## Exercises\n\n[Solutions](solutions/07_sample_solutions.ipynb)"))
    for number in (1, 2, 3):
        cells += [text(f"### {number} · A title\n\nWhat?"), code("answer = None\ncheck_answer(answer, 1)")]
    cells.append(text("**Next:** `08_other`"))
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )


def test_sample_has_no_fault() -> None:
    assert complaints_about(sample(), "07_sample") == []


def replaced(notebook: nbformat.NotebookNode, at: int, old: str, new: str) -> None:
    assert old in notebook.cells[at].source
    notebook.cells[at].source = notebook.cells[at].source.replace(old, new)


FAULTS = {
    "no title": lambda n: n.cells.pop(0),
    "a title with another number": lambda n: replaced(n, 0, "# 07", "# 08"),
    "a title without a number": lambda n: replaced(n, 0, "# 07 ·", "#"),
    "no promise": lambda n: replaced(n, 0, "**You will**", "You will"),
    "a promise of two lines": lambda n: replaced(n, 0, "- hear;\n", ""),
    "no needs": lambda n: replaced(n, 0, "**Needs**", "Needs"),
    "no recap": lambda n: replaced(n, 3, "## Recap", "## What was shown"),
    "two exercises": lambda n: n.cells.pop(-3) and n.cells.pop(-2),
    "an exercise without a check": lambda n: replaced(n, -2, "check_answer(answer, 1)", "answer == 1"),
    "no link to the solutions": lambda n: replaced(n, 4, "07_sample_solutions", "08_other_solutions"),
    "nothing next": lambda n: n.cells.pop(),
    "another word": lambda n: replaced(n, 3, "It was so.", "A response of the policy."),
    "a figure without a text": lambda n: replaced(n, 2, "import kit", "plt.show()"),
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
    "a long cell": lambda n: n.cells.insert(2, nbformat.v4.new_code_cell("x = 1\n" * (MAX_CELL_LINES + 1))),
    "long cells throughout": lambda n: [n.cells.insert(2, nbformat.v4.new_code_cell("x = 1\n" * 11)) for _ in range(6)],
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


def test_the_glossary_s_words_are_in_the_notebooks_that_it_names() -> None:
    rows = [
        line.strip("|").split("|")
        for line in (ROOT / "docs" / "glossary.md").read_text().partition("|---|---|---|")[2].splitlines()
    ]
    table = [[cell.strip() for cell in row] for row in rows if len(row) >= 3]
    assert len(table) > 40
    missing = []
    for row in table:
        words, places = row[0], re.findall(r"`(\d\d_[a-z_]+)`", row[-1])
        assert places, f"{words}: no notebook"
        for place in places:
            cells = read(ROOT / "notebooks" / f"{place}.ipynb").cells
            text = " ".join(cell.source for cell in cells).lower()
            names = [word.strip("` ").lower() for word in words.split(",")]
            if not any(re.search(rf"\b{re.escape(name.partition('(')[0])}", text) for name in names):
                missing.append((words, place))
    assert missing == []
