"""Forks that grow beside their parent: asked for from anywhere, made and advanced on the run's own thread."""

from collections.abc import Iterator, Mapping
from typing import Any

from kit.dashboard.curves import LiveCurves
from kit.dashboard.events import Tail
from kit.run import Run
from kit.settings import changes_text
from kit.training import Record

REFUSALS = (ValueError, TypeError, RuntimeError, OSError)  # of a fork, or of a step of it; the parent goes on


class Feed:
    """Puts what a run logs onto curves: what it has logged already, and from then on as its listener.

    Args:
        run: it may stand at any step.
        number: of its place on the curves.
    """

    def __init__(self, run: Run, curves: LiveCurves, number: int) -> None:
        self._curves, self._number, self._events = curves, number, Tail(run.log.path / "events.jsonl")
        curves.extend(run.log.metrics(), self._events.new(), run=number)
        run.listeners.append(self)

    def __call__(self, record: Record) -> None:
        self._curves.push(record, self._events.new(), run=self._number)


class Forks:
    """The forks of one run, each advanced by a step after each step of the run, so that the curves grow side by side.

    Args:
        run: their parent.
        curves: where they are drawn.

    Attributes:
        runs: every fork, by its label; one that the loop has left behind can be finished by hand.
        trouble: why the last fork was refused, or stopped; empty if none was.
    """

    def __init__(self, run: Run, curves: LiveCurves) -> None:
        self._run, self._curves = run, curves
        self._asked: list[Mapping[str, Any]] = []
        self._living: dict[str, Iterator[Record]] = {}
        self.runs: dict[str, Run] = {}
        self.trouble = ""

    def ask(self, changes: Mapping[str, Any]) -> None:
        """Have a fork made before the next step; from any thread.

        Raises:
            ValueError: if the run is at its end.
        """
        if self._run.step >= self._run.config.max_steps:
            raise ValueError(f"the run is finished, at step {self._run.step}: fork it from an earlier checkpoint, with "
                             "run.fork(step, ...)")  # fmt: skip
        self._asked.append(dict(changes))

    def advance(self) -> None:
        """One step of each living fork. On the run's thread, between two steps, as `make`."""
        for label, steps in list(self._living.items()):
            try:
                if next(steps, None) is None:
                    del self._living[label]
            except REFUSALS as error:
                del self._living[label]
                self.trouble = f"{label} stopped: {error}"

    def make(self) -> None:
        """The forks that were asked for, if the run can be forked where it stands."""
        while self._asked and not self._run.training.is_mid_batch:  # a fork starts from a checkpoint, which holds none
            self._make(self._asked.pop(0))

    def end(self) -> None:
        """The run is at its end: what was asked too late is told."""
        if self._asked:
            self.trouble = f"no fork with {changes_text(self._asked.pop())}: the run ended before"
            self._asked.clear()

    def _make(self, changes: Mapping[str, Any]) -> None:
        step = self._run.step
        try:
            fork = self._run.fork(**changes)
        except REFUSALS as error:
            self.trouble = f"no fork with {changes_text(changes)}: {error}"
            return
        label = f"{changes_text(changes) or 'the same'} from step {step}"
        if label in self.runs:
            label += f" ({fork.log.path.name})"
        Feed(fork, self._curves, self._curves.add_run(label, start=step))
        self.runs[label], self._living[label] = fork, fork.steps(fork.config.max_steps)
        self.trouble = ""
