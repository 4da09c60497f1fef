"""The engine that papermill executes a notebook with: its own, with sockets in files and an end on request."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager
from traitlets.config import Config

from kit.study.notebook import Interrupted, Interruption

ENGINE = "kit"


class Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, nb_man: NotebookExecutionManager, kernel_name: str, log_output: bool = False, start_timeout: int = 60,
        *, interruption: Interruption, kept_open: tuple[int, ...], sockets: str, **of_papermill: Any,
    ) -> None:  # fmt: skip
        """Execute the cells of `nb_man.nb`; see `papermill.engines.Engine`.

        Args:
            interruption: by which it is ended.
            kept_open: file descriptors that the kernel inherits.
            sockets: a fresh folder for this kernel alone. Ports could be taken by another before it binds them.
        """
        of_kernel = {"transport": "ipc", "connection_file": str(Path(sockets) / "k.json")}
        client = Client(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None,
                        log_output=log_output, config=Config({"KernelManager": of_kernel}))  # fmt: skip
        client.interruption = interruption
        client.execute(pass_fds=kept_open, env={"HF_HUB_DISABLE_PROGRESS_BARS": "1", **os.environ})  # nobody watches


class Client(PapermillNotebookClient):
    interruption: Interruption

    def execute_cell(self, cell: NotebookNode, cell_index: int, **options: Any) -> NotebookNode:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        if self.interruption.is_asked:
            raise Interrupted("interrupted between two cells")
        try:
            return super().execute_cell(cell, cell_index, **options)
        finally:
            self.interruption.cell_ends()

    def process_message(self, msg: dict[str, Any], *where: Any) -> NotebookNode | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if msg["msg_type"] == "execute_input":  # from here on the kernel listens to signals
            self.interruption.cell_starts(self._interrupt)
        return super().process_message(msg, *where)

    def _interrupt(self) -> None:
        assert self.km is not None and self.km.provisioner is not None
        pid = self.km.provisioner.pid  # pyright: ignore[reportAttributeAccessIssue]
        with suppress(ProcessLookupError):  # it is dead already
            os.killpg(pid, signal.SIGINT)  # a kernel leads a group of its own
