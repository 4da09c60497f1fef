"""A notebook in JupyterLab in a real browser, as its user sees it.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Locator, Page, Request

from tests.browser.server import JupyterServer

SCREENSHOTS = Path(__file__).parent / "screenshots"
WIDTH, HEIGHT = 1400, 1000  # of the window, CSS pixels
TIMEOUT_S = 120.0  # for one thing to happen, on a busy machine
POLL_MS = 50.0
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

# In front of every piece of JavaScript: the notebook's panel and its cells' models. `argument` is the caller's.
PRELUDE = """([path, argument]) => {
    const panels = window.jupyterapp ? [...jupyterapp.shell.widgets('main')] : [];
    const panel = panels.find(panel => panel.context?.path === path);
    const cell = index => panel.content.widgets[index].model;
    const kernel = () => panel?.sessionContext?.session?.kernel?.status ?? 'absent';
    const outputs = model => Array.from({length: model.outputs.length}, (_, i) => model.outputs.get(i));
    const failed = index => outputs(cell(index)).some(output => output.type === 'error');
    const finished = index => cell(index).executionCount !== null && cell(index).executionState !== 'running';
"""


class CellFailed(AssertionError):
    """A cell raised, or its kernel died; the message has the traceback."""


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
        theme: Literal["light", "dark"] = "light",
    ) -> "Iterator[Notebook]":
        """A notebook with a fresh kernel in a window of its own, until the block ends.

        Args:
            notebook: a file; a copy of it is opened.
            cells: code cells, for a notebook made here. Exactly one of the two is given.
            parameters: injected behind the cell tagged `parameters`, as papermill does.

        Raises:
            ValueError: if both or neither of `notebook` and `cells` are given.
            PageComplained: at the end of the block.
        """
        if (notebook is None) == (not cells):
            raise ValueError(f"expected either a notebook or cells, got {notebook!r} and {len(cells)} cells")
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


@dataclass
class Notebook:
    """An open notebook. `page` is Playwright's; `path` is the file's, below the server's folder."""

    page: Page
    server: JupyterServer
    path: str
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._log_start = self.server.log.stat().st_size
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("dialog", self._on_dialog)
        self.page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console error: {message.text} ({message.location.get('url', '')})")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.problems.append(f"{dialog.type}: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.server.url, "data:", "blob:")):
            self.problems.append(f"request to another machine: {request.url}")

    def load(self) -> None:
        """Opens the page, or opens it anew, and waits until the notebook and its kernel are there."""
        workspace = self.path.removesuffix(".ipynb")
        self.page.goto(f"{self.server.url}lab/workspaces/{workspace}/tree/{self.path}?token={self.server.token}")
        self.wait("return panel?.isVisible && panel.context.isReady && !['absent', 'unknown'].includes(kernel())")
        self.javascript(
            "jupyterapp.shell.collapseLeft(); window.kernelDied = false;"
            "panel.sessionContext.statusChanged.connect((_, status) => {"
            "    window.kernelDied ||= ['autorestarting', 'dead'].includes(status); })"
        )

    # --- running ---

    def run_all(self, timeout_s: float = TIMEOUT_S) -> None:
        """Runs every cell and waits until all have finished.

        Raises:
            CellFailed: as soon as one has failed.
        """
        self.start_all()
        indices = self.javascript(
            "return panel.content.widgets.flatMap((widget, i) => widget.model.type === 'code' ? [i] : [])"
        )
        self._wait_for_cells(indices, timeout_s)

    def run(self, index: int, timeout_s: float = TIMEOUT_S) -> None:
        """Runs a cell and waits until it has finished, or raises `CellFailed`."""
        self.start(index)
        self.wait_for(index, timeout_s)

    def start_all(self) -> None:
        """Begins to run every cell, without waiting."""
        self.javascript("jupyterapp.commands.execute('notebook:run-all-cells')")

    def start(self, index: int) -> None:
        """Begins to run a cell, or puts it in the queue behind those that run, without waiting."""
        self.javascript(
            "cell(argument).clearExecution(); panel.content.deselectAll(); panel.content.activeCellIndex = argument;"
            "jupyterapp.commands.execute('notebook:run-cell')",
            index,
        )

    def wait_for(self, index: int, timeout_s: float = TIMEOUT_S) -> None:
        """Waits until a cell that was started has finished, or raises `CellFailed`."""
        self._wait_for_cells([index], timeout_s)

    def is_running(self, index: int) -> bool:
        """Whether a cell executes or waits for its turn."""
        return self.javascript("return cell(argument).executionState === 'running'", index)

    def _wait_for_cells(self, indices: Sequence[int], timeout_s: float) -> None:
        self.wait("return argument.some(failed) || argument.every(finished) || window.kernelDied", list(indices), timeout_s)
        if bad := self.javascript("return argument.filter(failed)", list(indices)):
            errors = [output for output in self.outputs(bad[0]) if output["output_type"] == "error"]
            raise CellFailed(f"cell {bad[0]} of {self.path} raised:\n" + "\n".join(errors[0]["traceback"]))
        if self.javascript("return window.kernelDied"):
            raise CellFailed(f"the kernel of {self.path} died")

    # --- looking ---

    def find(self, text: str) -> int:
        """The number of the first cell whose source contains `text`.

        Raises:
            LookupError: if there is none.
        """
        sources = self.javascript("return panel.content.widgets.map(widget => widget.model.sharedModel.getSource())")
        for index, source in enumerate(sources):
            if text in source:
                return index
        raise LookupError(f"expected a cell of {self.path} with {text!r}, found none in {len(sources)} cells")

    def cell(self, index: int) -> Locator:
        """A cell on the page, source and output."""
        return self.page.locator(".jp-Notebook-cell").nth(index)

    def output(self, index: int) -> Locator:
        """What a cell has put out, on the page."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    def text(self, index: int) -> str:
        """A cell's outputs as their reader sees them, one below the other."""
        outputs = self.output(index).locator("> .jp-OutputArea-child > .jp-OutputArea-output")
        return "\n".join(outputs.all_inner_texts())

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """A cell's outputs as nbformat's records, which is what saving would write."""
        return self.javascript("return cell(argument).outputs.toJSON()", index)

    def screenshot(self, name: str, *, cell: int | None = None) -> Path:
        """A picture of a cell, or of the whole notebook, `screenshots/{name}.png`; the window is made high enough."""
        SCREENSHOTS.mkdir(exist_ok=True)
        picture = SCREENSHOTS / f"{name}.png"
        needed = self.javascript(
            "return Math.max(...panel.content.widgets.map(widget => widget.node.offsetHeight)) * (argument !== null)"
            "    || panel.content.widgets.map(widget => widget.node.offsetHeight).reduce((a, b) => a + b, 0) * 1.05",
            cell,
        )
        self.page.set_viewport_size({"width": WIDTH, "height": max(HEIGHT, int(needed) + 200)})
        (self.page if cell is None else self.cell(cell)).screenshot(path=picture)
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        return picture

    def describe(self) -> str:
        """What a failure should tell; leaves a picture of the page."""
        SCREENSHOTS.mkdir(exist_ok=True)
        picture = SCREENSHOTS / f"failed_{self.path.removesuffix('.ipynb')}.png"
        self.page.screenshot(path=picture)
        cells = self.javascript(
            "return panel?.content.widgets.filter(widget => widget.model.type === 'code').map((widget, i) =>"
            "    `code cell ${i}: ${widget.model.executionState}, ${widget.prompt}`) ?? ['no notebook is open']"
        )
        parts = [f"picture: {picture}", *self.problems, *cells, "the server printed:", self.server.printed(self._log_start)]
        return "\n".join(parts)

    # --- acting ---

    def set_theme(self, theme: Literal["light", "dark"]) -> None:
        """JupyterLab's theme, which it keeps for later windows."""
        self.javascript("jupyterapp.commands.execute('apputils:change-theme', {theme: argument})", THEMES[theme])
        self.wait("return document.body.dataset.jpThemeName === argument", THEMES[theme])

    def set_slider(self, index: int, description: str, value: float) -> None:
        """Types a value into the number beside an ipywidgets slider in a cell's output."""
        readout = self._slider(index, description).locator(".widget-readout")
        readout.fill(str(value))
        readout.press("Enter")

    def drag_slider(self, index: int, description: str, fraction: float) -> None:
        """Drags an ipywidgets slider in a cell's output with the mouse, to 0 for its left end, 1 for its right."""
        slider = self._slider(index, description)
        slider.locator(".noUi-handle").hover()
        self.page.mouse.down()
        box = slider.locator(".noUi-base").bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + fraction * box["width"], box["y"] + box["height"] / 2, steps=5)
        self.page.mouse.up()

    def _slider(self, index: int, description: str) -> Locator:
        label = self.page.locator(".widget-label", has_text=description)
        return self.output(index).locator(".widget-slider").filter(has=label)

    def save(self) -> nbformat.NotebookNode:
        """Saves the notebook; returns what was written."""
        self.javascript("return panel.context.save()")
        return nbformat.read(self.server.folder / self.path, as_version=4)

    def javascript(self, body: str, argument: Any = None) -> Any:
        """Runs JavaScript in the page, where `panel`, `cell(index)` and `kernel()` are JupyterLab's own objects."""
        return self.page.evaluate(f"{PRELUDE}{body}}}", [self.path, argument])

    def wait(self, condition: str, argument: Any = None, timeout_s: float = TIMEOUT_S) -> None:
        """Waits until JavaScript as above returns something true."""
        self.page.wait_for_function(
            f"{PRELUDE}{condition}}}", arg=[self.path, argument], timeout=1000 * timeout_s, polling=POLL_MS
        )
