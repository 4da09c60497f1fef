"""Executing one notebook through papermill: strictly, over sockets in files, and interruptible.

papermill's own way has three traps when runs are many: the free ports that it looks for may be taken by the time that
its kernel binds them; a signal tears down the kernel or nothing at all; and braces in a path are a format string.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import FrameType
from typing import Any

from kit.study.parameters import checked_parameters

LONGEST_PLACE = 80  # characters; the name of a socket in a file may have 107 in all
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NotebookError(RuntimeError):
    """A notebook did not run to its end; its output lies where it was to be, up to the cell that failed."""


class Interrupted(NotebookError):
    """A signal ended the execution."""


class Interruption:
    """That somebody wants a notebook to stop: asked for in one place, carried out in another."""

    def __init__(self) -> None:
        self.is_asked = False
        self._interrupt: Callable[[], None] | None = None  # the kernel, while it executes a cell

    def ask(self) -> None:
        """Interrupt the cell that is executed, as Ctrl-C does; the notebook ends before the next one in any case."""
        self.is_asked = True
        if self._interrupt is not None:
            self._interrupt()

    def cell_starts(self, interrupt: Callable[[], None]) -> None:
        """An idle kernel ignores signals, so one that came just before is sent now."""
        self._interrupt = interrupt
        if self.is_asked:
            interrupt()

    def cell_ends(self) -> None:
        self._interrupt = None


def execute_notebook(
    notebook: str | Path, output: str | Path, parameters: Mapping[str, Any], *, kept_open: tuple[int, ...] = ()
) -> Path:
    """Run a notebook through papermill in a fresh kernel, in the current folder; returns where the executed copy lies.

    SIGINT and SIGTERM interrupt the kernel, so that a run ends at a step's end with a checkpoint.

    Args:
        kept_open: file descriptors that the kernel holds as well: a lock is then held until it is gone, too.

    Raises:
        ParameterError: before anything starts or is written.
        Interrupted: if a signal ended it.
        NotebookError: with the last line of what a cell raised; if the kernel died.
    """
    parameters = checked_parameters(notebook, parameters)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    interruption = Interruption()
    with _asked_by_signals(interruption):
        _through_papermill(Path(notebook), output, parameters, interruption, kept_open)
    _drop_widgets(output)
    return output


def _through_papermill(
    notebook: Path, output: Path, parameters: Mapping[str, Any], interruption: Interruption, kept_open: tuple[int, ...]
) -> None:
    import papermill  # takes seconds
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    from kit.study.engine import ENGINE, Engine  # as above

    papermill_engines.register(ENGINE, Engine)
    short = None if len(gettempdir()) < LONGEST_PLACE else "/tmp"
    with TemporaryDirectory(prefix="kit", dir=short) as sockets:
        try:
            papermill.execute_notebook(
                _escaped(notebook), _escaped(output), dict(parameters), engine_name=ENGINE, kernel_name="python3",
                cwd=str(Path.cwd()), progress_bar=False, log_output=True, autosave_cell_every=10,
                interruption=interruption, kept_open=kept_open, sockets=sockets,
            )  # fmt: skip
        except NotebookError:
            raise
        except RuntimeError as error:  # nbclient's
            raise NotebookError(f"the kernel died, or did not start: {error}") from error
        except PapermillExecutionError as error:
            if interruption.is_asked:
                raise Interrupted(f"interrupted: {output}") from error
            said = error.evalue.strip().splitlines() or [""]
            raise NotebookError(f"{error.ename}: {said[-1]}".removesuffix(": ")) from error


def _escaped(path: Path) -> str:
    """papermill formats a path with the parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _asked_by_signals(interruption: Interruption) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM ask for the end. Python delivers signals on the main thread only."""

    def ask(number: int, frame: FrameType | None) -> None:
        interruption.ask()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _drop_widgets(path: Path) -> None:
    """Leave of every widget the text beside it: its kernel is gone, and papermill keeps the whole state of each."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nbformat.write(notebook, path)
