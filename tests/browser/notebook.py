"""An open notebook: running cells, looking at what they put out, acting on it. `tests.browser.lab` opens one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat
from playwright.sync_api import ConsoleMessage, Dialog, Locator, Page, Request

from tests.browser.server import JupyterServer

SCREENSHOTS = Path(__file__).parent / "screenshots"
WIDTH, HEIGHT = 1400, 1000  # of the window, CSS pixels
TIMEOUT_S = 120.0  # for one thing to happen, on a busy machine
POLL_MS = 50.0

Theme = Literal["light", "dark"]
THEMES: dict[Theme, str] = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

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
        if dialog.type == "beforeunload":  # JupyterLab's own, where something is not saved
            dialog.accept()
            return
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
        self.javascript(
            "panel.content.widgets.forEach(widget => widget.model.clearExecution?.());"
            "jupyterapp.commands.execute('notebook:run-all-cells')"
        )

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
        self.wait(
            "return argument.some(failed) || argument.every(finished) || window.kernelDied", list(indices), timeout_s
        )
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
        for _ in range(2):  # JupyterLab guesses the heights of cells that are out of sight
            heights = self.javascript("return panel.content.widgets.map(widget => widget.node.offsetHeight)")
            needed = sum(heights) if cell is None else heights[cell]
            self.page.set_viewport_size({"width": WIDTH, "height": max(HEIGHT, int(1.02 * needed) + 150)})
        if cell is None:
            self.javascript("panel.node.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
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
        parts = [
            f"picture: {picture}",
            *self.problems,
            *cells,
            "the server printed:",
            self.server.printed(self._log_start),
        ]
        return "\n".join(parts)

    # --- acting ---

    def set_theme(self, theme: Theme) -> None:
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
