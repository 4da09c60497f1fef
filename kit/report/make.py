"""The report of a study: a notebook, executed, and the page that comes of it."""

import os
from html import escape
from pathlib import Path

from kit.study import execute_notebook

HERE = Path(__file__).parent
TEMPLATE = HERE / "report.ipynb"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>{body}</body></html>
"""


def make_report(folder: str | Path, *, baseline: str | None = None, margin: float | None = None) -> tuple[Path, Path]:
    """Execute a study's `report.ipynb`, or the kit's own if it has none, and write `report.html` beside it.

    Args:
        folder: with results.csv; its run directories, where they are there, tell the costs.
        baseline: the arm with which the others are compared; None = the report's own choice.
        margin: of equivalence, in the unit of the score; None = the report's own.

    Returns:
        The notebook and the page. If the notebook fails, both are as they were.

    Raises:
        FileNotFoundError: if the study has no results.
        ParameterError: if a report of the study's own does not take `baseline` or `margin`.
        NotebookError: if a cell fails.
    """
    folder = Path(folder)
    if not (folder / "results.csv").is_file():
        raise FileNotFoundError(
            f"there is no {folder / 'results.csv'}: execute the study first (kit study run {folder})"
        )
    notebook, page = folder / "report.ipynb", folder / "report.html"
    given = {"folder": str(folder), "baseline": baseline, "margin": margin}
    source = notebook if notebook.is_file() else TEMPLATE
    made = folder / "report.partial.ipynb"
    execute_notebook(source, made, {name: value for name, value in given.items() if value is not None})
    html = page_of(made)
    os.replace(made, notebook)
    page.write_text(html)
    return notebook, page


def page_of(notebook: Path) -> str:
    """An executed notebook without its code as one HTML page that needs nothing else: no script, no network."""
    import nbformat  # both take seconds
    from nbconvert import HTMLExporter

    document = nbformat.read(notebook, as_version=4)
    title = next((cell.source.splitlines()[0].lstrip("# ") for cell in document.cells if cell.source.startswith("# ")),
                 notebook.parent.name)  # fmt: skip
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_input_prompt=True,
                            exclude_output_prompt=True, exclude_anchor_links=True)  # fmt: skip
    body, _ = exporter.from_notebook_node(document)
    return PAGE.format(title=escape(title), style=(HERE / "page.css").read_text(), body=body)
