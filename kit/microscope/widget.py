"""The microscope in a notebook: Python filters and sends one page and one group, `microscope.js` draws them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from kit.microscope.filters import Filter
from kit.microscope.html import group_html, page_html
from kit.microscope.measures import MEASURES
from kit.microscope.payload import about, group_payload, line_payload
from kit.microscope.rollouts import Found, Rollouts
from kit.microscope.text import LIMIT, visible
from kit.output import Output, in_a_page
from kit.runlog import RunDirectoryError

if TYPE_CHECKING:  # whoever only reads its directory need not wait for transformers
    from kit.run import Run

PAGE = 50  # groups in the list
HERE = Path(__file__).parent
REFUSED = (ValueError, TypeError, IndexError, FileNotFoundError, RunDirectoryError)


class Microscope(anywidget.AnyWidget):
    """Any completion of a run with its tokens, in a notebook; where no browser answers, a page of the first groups.

    Args:
        runs: a run, its directory, or several directories, such as a fork and its parent.
        asked: which completions to begin with.
        sort: one of `kit.microscope.rollouts.SORTS`.
        colour_by: one of `kit.microscope.MEASURES`.

    Raises:
        FileNotFoundError, RunDirectoryError: as `Rollouts`.
        ValueError: for another order or measure.
    """

    _esm = HERE / "microscope.js"
    _css = HERE / "microscope.css"
    asked = traitlets.Dict().tag(sync=True)  # written by the browser
    colour_by = traitlets.Enum(list(MEASURES), "logprob").tag(sync=True)  # likewise
    about = traitlets.Dict().tag(sync=True)
    listing = traitlets.Dict().tag(sync=True)
    group = traitlets.Dict().tag(sync=True)

    def __init__(
        self, runs: "Run | str | Path | Iterable[str | Path]", asked: Filter | None = None, *, sort: str = "step",
        descending: bool = False, colour_by: str = "logprob",
    ) -> None:  # fmt: skip
        if colour_by not in MEASURES:
            raise ValueError(f"colour_by must be one of {list(MEASURES)}, got {colour_by!r:.80}")
        self._folders = runs if isinstance(runs, str | Path | Iterable) else runs.log.path
        self._rollouts = Rollouts(self._folders)
        chosen = {name: value for name, value in vars(asked or Filter()).items() if value is not None}
        question = {"filter": chosen, "sort": sort, "descending": descending, "page": 0, "group": None}
        question |= {"limit": LIMIT, "reading": 0, "number": 0}
        found = self._find(question)
        question["group"] = found.groups[0] if found.groups else None
        super().__init__(
            asked=question, colour_by=colour_by, about=about(self._rollouts), listing=self._listing(question, found),
            group=self._group(question),
        )  # fmt: skip
        self._answered = question  # the last that could be
        self.observe(self._answer, "asked")

    def html(self, groups: int = 2) -> str:
        """What is asked for, without a browser that answers: how many there are, and the first groups in full."""
        found = self._find(self._answered)
        shown = [group_html(self._rollouts.group(n), self.colour_by) for n in found.groups[:groups]]
        return page_html(self._told(found), shown)

    def _ipython_display_(self) -> None:
        title = "the first groups, as this file keeps them"
        output = Output(self, self.html, in_a_page, lambda: self._told(self._find(self._answered)), title)
        output.end()  # what was recorded is all there is
        output.show()

    def _answer(self, change: Mapping[str, Any]) -> None:
        """To a question from the browser; what it cannot ask is told there."""
        asked, before = change["new"], change["old"]
        try:
            if asked["reading"] != before["reading"]:
                self._rollouts = Rollouts(self._folders)
                self.about = about(self._rollouts)
            self.listing = self._listing(asked, self._find(asked))
            if any(asked[name] != before[name] for name in ("group", "limit", "reading")):
                self.group = self._group(asked)
            self._answered = asked
        except REFUSED as error:
            self.listing = self.listing | {"error": visible(str(error)), "answered": asked["number"]}

    def _find(self, asked: Mapping[str, Any]) -> Found:
        return self._rollouts.find(Filter(**asked["filter"]), sort=asked["sort"], descending=asked["descending"])

    def _told(self, found: Found) -> str:
        return f"{found.completions:,} of {len(self._rollouts):,} completions, in {len(found.groups):,} groups"

    def _listing(self, asked: Mapping[str, Any], found: Found) -> dict[str, Any]:
        pages = -(-len(found.groups) // PAGE)
        page = max(0, min(int(asked["page"]), pages - 1))
        lines = self._rollouts.lines(found.groups[page * PAGE : (page + 1) * PAGE])
        return {
            "lines": [line_payload(line) for line in lines], "page": page, "pages": pages, "told": self._told(found),
            "error": "", "answered": asked["number"],
        }  # fmt: skip

    def _group(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        number = asked["group"]
        return {} if number is None else group_payload(self._rollouts, number, int(asked["limit"]))
