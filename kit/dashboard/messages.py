"""Widgets that answer while a cell trains on the main thread, in a Jupyter kernel.

A kernel handles a browser's messages on the main thread between two cells, also where JupyterLab asks for subshells
(ipykernel 7.4 sends a message to the thread that last wrote to its widget). So the run lets them in between two steps.
There is no public call for it: ipykernel's own event loops flush the same stream, jupyter-ui-poll needs a method that
ipykernel 7.2 took away.
"""

import contextvars
import logging
from collections.abc import Callable
from typing import Any

from IPython.core.getipython import get_ipython

# Of widgets, and what a page asks when it is loaded again; all else, as a cell to execute, waits for this one's end.
ANSWERED = {"comm_open", "comm_msg", "comm_close", "comm_info_request", "kernel_info_request"}

logger = logging.getLogger(__name__)


def browser_poll() -> Callable[[], None] | None:
    """A function that handles what widgets have sent, to be called on the main thread; None outside of a kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return None
    from ipykernel.eventloops import get_shell_stream

    return lambda: _answer(kernel, get_shell_stream(kernel))


def _answer(kernel: Any, stream: Any) -> None:
    usual = stream._recv_callback
    ident, parent = kernel._get_shell_context_var(kernel._shell_parent_ident), kernel.get_parent("shell")
    handled = 0

    def receive(frames: list[Any]) -> Any:
        nonlocal handled
        _, message = kernel.session.feed_identities(frames, copy=False)
        header = kernel.session.unpack(message[1].bytes) if len(message) > 1 else {}
        if header.get("msg_type") not in ANSWERED:
            return usual(frames)  # becomes a task of the event loop, which goes on when the cell has ended
        handled += 1
        dispatching = kernel.dispatch_shell(frames)
        try:
            contextvars.copy_context().run(dispatching.send, None)
        except StopIteration:
            return None
        dispatching.close()  # the run matters more than what a widget of somebody else's wanted
        logger.warning("a message of type %s to a widget needs more than one go: dropped", header.get("msg_type"))
        return None

    stream.on_recv(receive, copy=False)
    try:
        stream.flush()
    finally:
        stream.on_recv(usual, copy=False)
        if handled:  # what the cell prints next belongs to the cell, and the kernel is still at work
            kernel.set_parent(ident, parent)
            kernel._publish_status("busy", "shell")
