r"""A notebook in JupyterLab in a real browser, as its user sees it.

    with lab.open(cells=["import ipywidgets\nipywidgets.Button(description='Pause')"]) as notebook:
        notebook.run_all()
        notebook.output(0).get_by_role("button", name="Pause").click()
        notebook.screenshot("pause")

`lab` is a fixture. Cells are counted from 0, text cells included; `notebook.find(text)` gives the number of a cell of
a notebook that exists. `notebook.output(i)` and `notebook.page` are Playwright's Locator and Page: click, hover, fill
and `expect` are its own, wait by themselves until the element can be used, and see into shadow roots.

When the block ends, the kernel is shut down, and whatever the page complained about (`notebook.problems`) fails the
test; a test that expects a complaint looks at it and clears the list. A failure inside of the block leaves a picture
and says what the page, the cells and the server had to say.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Browser, BrowserContext

from tests.browser.notebook import HEIGHT, TIMEOUT_S, WIDTH, Notebook, Theme
from tests.browser.server import JupyterServer

KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


class PageComplained(AssertionError):
    """The page had errors, opened a dialog or asked another machine for something."""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab and a browser; windows share the browser's cache, so that they open fast."""

    context: BrowserContext
    server: JupyterServer

    @staticmethod
    def of(browser: Browser, server: JupyterServer) -> "Lab":
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        context.set_default_timeout(1000 * TIMEOUT_S)
        return Lab(context, server)

    @contextmanager
    def open(
        self,
        notebook: str | Path | None = None,
        *,
        cells: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        theme: Theme = "light",
    ) -> Iterator[Notebook]:
        """A notebook with a fresh kernel in a window of its own, until the block ends.

        Args:
            notebook: a file; a copy of it is opened.
            cells: code cells, for a notebook made here. Exactly one of the two is given.
            parameters: injected behind the file's cell tagged `parameters`, as papermill does.
            theme: JupyterLab's.

        Raises:
            ValueError: if both or neither of `notebook` and `cells` are given, or parameters with cells.
            PageComplained: at the end of the block.
        """
        if (notebook is None) == (not cells) or (cells and parameters):
            raise ValueError(
                "expected either a notebook, with parameters or without, or cells, "
                f"got {notebook!r}, {len(cells)} cells and parameters {parameters!r}"
            )
        if notebook is None:
            sources = [nbformat.v4.new_code_cell(source) for source in cells]
            path = self._write("cells", nbformat.v4.new_notebook(cells=sources, metadata={"kernelspec": KERNELSPEC}))
        else:
            document = parameterize_notebook(load_notebook_node(str(notebook)), dict(parameters or {}))
            path = self._write(Path(notebook).stem, document)
        opened = Notebook(self.context.new_page(), self.server, path)
        try:
            opened.load()
            opened.set_theme(theme)
            yield opened
            if opened.problems:
                raise PageComplained("\n".join(opened.problems))
        except Exception as error:
            error.add_note(opened.describe())
            raise
        finally:
            opened.page.close()
            self.server.end_kernels()

    def _write(self, stem: str, document: nbformat.NotebookNode) -> str:
        number = len(list(self.server.folder.glob("*.ipynb")))
        path = f"{stem}_{number}.ipynb"  # a name of its own, so that no earlier window's layout applies
        nbformat.write(document, self.server.folder / path)
        return path
