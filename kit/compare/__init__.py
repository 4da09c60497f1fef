"""Runs beside each other: a table and figures over any set of run directories, finished or not.

`compare(["runs/a", "runs/b"])` in a notebook shows the table, and its `figure()` the curves; `kit compare` in a
terminal prints the table or writes a web page.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.compare.arms import Arm, arms_of, read_run
from kit.compare.figures import Picture, curves_of, figure_of, metrics_of
from kit.compare.page import page_of, table_of
from kit.compare.table import NOTE, Row, markdown_of, rows_of
from kit.progress import X_AXES, axes_of

__all__ = ["Arm", "Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Arms, what is drawn of them, and against what; a notebook shows it as a table."""

    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]
    x: str

    def rows(self) -> list[Row]:
        """Of the table: one for each arm and what it is judged by."""
        return rows_of(self.arms, curves_of(self.arms))

    def __str__(self) -> str:
        return markdown_of(self.rows())

    _repr_markdown_ = __str__

    def _repr_html_(self) -> str:
        table = table_of(self.rows(), drawn=False)
        for cell in ("<td", "<th "):  # a notebook aligns cells on the right
            table = table.replace(cell, f'{cell.rstrip()} style="text-align: left" ')
        return f"{table}<p>{NOTE}</p>"

    def figure(self) -> Picture:
        """Small multiples of the metrics, with a legend."""
        return figure_of(self.arms, self.metrics, self.x)

    def page(self, command: str | None = None) -> str:
        """One HTML file, complete in itself.

        Args:
            command: how it was made, for its foot.
        """
        return page_of(self.arms, self.rows(), curves_of(self.arms), self.metrics, self.x, command)

    def save(self, path: str | Path, command: str | None = None) -> None:
        """Write the page; a file that is there is replaced, in one step.

        Raises:
            FileNotFoundError: if its folder does not exist.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"expected a folder to write {target.name} into, came {target.parent}: make it first"
            )
        content = self.page(command)
        temporary = target.with_name(f"{target.name}.partial")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, target)


def compare(folders: Sequence[str | Path], *, x: str = "step", metrics: Sequence[str] = ()) -> Comparison:
    """Compare runs; those that differ only in the seed are averaged.

    Args:
        folders: run directories; one that is named twice counts once.
        x: what curves are drawn against, one of `kit.progress.X_AXES`.
        metrics: what is drawn; () = of what all runs have, the ones that matter most.

    Raises:
        FileNotFoundError: if a folder holds no run.
        RunDirectoryError: if a file of a run cannot be read.
        ValueError: for no folder, no metric in common, a metric or an axis that the runs have not logged.
    """
    if not folders:
        raise ValueError("expected at least one run directory, came none")
    if x not in X_AXES:
        raise ValueError(f"expected x as one of {', '.join(X_AXES)}, came {x!r}")
    unique = {Path(folder).resolve(): folder for folder in folders}
    arms = tuple(arms_of([read_run(folder) for folder in unique.values()]))
    for run in [run for arm in arms for run in arm.runs if run.records]:
        if x not in axes_of(run.records):
            there = ", ".join(axes_of(run.records))
            raise ValueError(f"expected an x axis that {run.path} has logged ({there}), came {x!r}")
    return Comparison(arms, tuple(metrics_of(arms, metrics)), x)
