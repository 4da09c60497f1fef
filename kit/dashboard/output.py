"""A cell's output that is alive in a page and a figure with tables in a file."""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from IPython.display import DisplayHandle, display

from kit.dashboard.curves import LiveCurves
from kit.dashboard.summary import figure_html, summary_html
from kit.printable import printable

VIEW = "application/vnd.jupyter.widget-view+json"
Bundle = dict[str, Any]
NOTHING: Bundle = {"text/html": "", "text/plain": ""}


class Output:
    """Curves as they are shown: two outputs of a cell, the live view, and below it what the file keeps.

    A file that no page showed, as papermill makes it, holds the figure and the tables alone once `end` was called.

    Args:
        curves: what is kept, and what tells whether a page has asked.
        caption: one line for a reader who gets neither.
        view: what is alive; None = the curves alone.
    """

    def __init__(self, curves: LiveCurves, caption: Callable[[], str], view: widgets.Widget | None = None) -> None:
        self._curves, self._caption = curves, caption
        self._view = curves if view is None else view
        self._handles: list[tuple[DisplayHandle, ...]] = []
        self._has_ended = self._is_closed = False
        curves.when_seen = self._seen

    def show(self) -> None:
        """Display it in the cell at hand; more than once if need be."""
        made = [display(bundle, raw=True, display_id=True) for bundle in self._bundles()]
        self._handles.append(tuple(handle for handle in made if handle is not None))

    def end(self) -> None:
        """No more records: keep figure and tables, below the live view if there is one."""
        self._has_ended = True
        self._update()

    def close(self) -> None:
        """Replace the live view by figure and tables: a page without this kernel cannot show it."""
        self._is_closed = True
        self._update()

    def html(self) -> str:
        """Figure and tables."""
        return figure_html(self._curves.figure()) + summary_html(self._curves.charts(), self._curves.series)

    def _seen(self) -> None:
        if self._has_ended:  # by a page that asked while the last steps were made
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
        kept = self.html()
        if self._is_closed or not self._curves.is_seen:
            return {"text/html": kept, "text/plain": caption}, NOTHING
        folded = f"<details><summary>figure and tables, as this file keeps them</summary>{kept}</details>"
        return live, {"text/html": folded, "text/plain": caption}
