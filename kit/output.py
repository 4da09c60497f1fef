"""A cell's output that is alive in a page and a figure with tables in a file."""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from kit.printable import printable

VIEW = "application/vnd.jupyter.widget-view+json"
Bundle = dict[str, Any]
NOTHING: Bundle = {"text/html": "", "text/plain": ""}


class Output:
    """Something alive as it is shown: two outputs of a cell, the live view, and below it what the file keeps.

    A file that no page showed, as papermill makes it, holds what is kept alone once `end` was called.

    Args:
        view: what is alive.
        html: makes what is kept.
        is_seen: whether a page shows the view.
        caption: one line for a reader who gets neither.
        title: of what is kept, while it is folded below the view.
    """

    def __init__(
        self, view: widgets.Widget, html: Callable[[], str], is_seen: Callable[[], bool], caption: Callable[[], str],
        title: str = "figure and tables, as this file keeps them",
    ) -> None:  # fmt: skip
        self._view, self._html, self._is_seen, self._caption, self._title = view, html, is_seen, caption, title
        self._handles: list[tuple[DisplayHandle, ...]] = []
        self._has_ended = self._is_closed = False

    def show(self) -> None:
        """Display it in the cell at hand; more than once if need be."""
        made = [display(bundle, raw=True, display_id=True) for bundle in self._bundles()]
        self._handles.append(tuple(handle for handle in made if handle is not None))

    def end(self) -> None:
        """Nothing new will come: keep what there is, below the live view if a page shows one."""
        self._has_ended = True
        self._update()

    def close(self) -> None:
        """Replace the live view by what is kept: a page without this kernel cannot show it."""
        self._is_closed = True
        self._update()

    def seen(self) -> None:
        """A page has begun to show the view."""
        if self._has_ended:  # by a page that asked while the last things happened
            self._update()

    def _update(self) -> None:
        bundles = self._bundles() if self._handles else ()
        for handles in self._handles:
            for handle, bundle in zip(handles, bundles, strict=True):
                handle.update(bundle, raw=True)

    def _bundles(self) -> tuple[Bundle, Bundle]:
        caption = printable(self._caption())
        view = {"version_major": 2, "version_minor": 0, "model_id": self._view.model_id}
        live: Bundle = {VIEW: view, "text/plain": caption}
        if not self._has_ended and not self._is_closed:
            return live, NOTHING
        kept = self._html()
        if self._is_closed or not self._is_seen():
            return {"text/html": kept, "text/plain": caption}, NOTHING
        folded = f"<details><summary>{self._title}</summary>{kept}</details>"
        return live, {"text/html": folded, "text/plain": caption}


def in_a_page() -> bool:
    """Whether the cell at hand was run from a page, which says which of its cells it is; papermill says nothing."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("metadata"))
