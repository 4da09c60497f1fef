"""A study under way, as its run directories tell it: on a terminal redrawn, in a pipe one line a change."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.printable import printable
from kit.progress import duration
from kit.study.execute import Outcome
from kit.study.file import Study, StudyRun

SHOWN = ("eval/accuracy", "eval/win_rate", "eval/reward")  # the last word on how good a policy is
TAIL_BYTES = 100_000  # of metrics.jsonl, in which the last evaluation is looked for
CLEAR_LINE, CLEAR_BELOW, UP = "\x1b[K", "\x1b[J", "\x1b[{}A"


@dataclass(frozen=True)
class State:
    """Of a run, as far as its directory tells; a notebook that is no run of the kit has neither steps nor metrics."""

    step: int | None = None
    steps: int | None = None
    metric: str = ""

    def __str__(self) -> str:
        if self.step is None:
            return ""
        of = f" of {self.steps}" if self.steps is not None else ""
        return f"step {self.step}{of}" + (f"  {self.metric}" if self.metric else "")


def read_state(run: StudyRun) -> State:
    """Where a run stands."""
    status, config = _json(run.out_dir / "status.json"), _json(run.out_dir / "config.json")
    steps = config.get("max_steps", run.parameters.get("max_steps"))
    return State(status.get("step"), steps, _last_metric(run.out_dir / "metrics.jsonl"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # not there yet
        return {}
    return found if isinstance(found, dict) else {}


def _last_metric(path: Path) -> str:
    """Of the last evaluation, else the last step's reward."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")[:-1]
    except OSError:
        return ""
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    for wanted in (SHOWN, ("reward",)):
        for record in reversed(records):
            found = {name: value for name, value in record.items() if name.endswith(wanted) and value is not None}
            if found:
                return printable("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return ""


class StudyProgress:
    """Watches a study; called again and again with the runs being executed.

    Args:
        write: where text goes.
        redraws: whether lines can be written over, as on a terminal; otherwise each change is a line.
        workers: runs at a time, for the estimate of what is left.
        clock: seconds.
    """

    def __init__(
        self, study: Study, write: Callable[[str], object], *, redraws: bool, workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.study, self.write, self.redraws, self.workers, self.clock = study, write, redraws, workers, clock
        self._before: int | None = None  # runs that were finished when this began
        self._began: dict[str, float] = {}  # when runs that are executed were first seen
        self._first: dict[str, tuple[float, int]] = {}  # when they were first seen at a step, and which
        self._took: list[float] = []  # seconds of those that are finished
        self._texts: dict[str, str] = {}  # where each run was when its directory was last looked into
        self._said: dict[str, str] = {}  # the last line about each
        self._started: set[str] = set()
        self._drawn = 0  # lines to be written over
        self._read_at = float("-inf")

    def __call__(self, running: Mapping[str, StudyRun], outcome: Outcome) -> None:
        now, news = self.clock(), []
        if self._before is None:
            self._before = len(outcome.finished)
            news += [f"{self._before} of {len(self.study.runs)} runs were finished before"] if self._before else []
        self._clock_runs(now, running, outcome)
        news += self._news(running, outcome)
        states = {}
        if now - self._read_at >= 1.0 or not running:  # seconds between two looks into the directories
            self._read_at, states = now, {name: read_state(run) for name, run in running.items()}
        self._texts |= {name: f"{state}{self._left(name, state, now)}" for name, state in states.items()}
        if not self.redraws:
            evaluated = {name: state.metric for name, state in states.items() if "eval/" in state.metric}
            news += [f"{name}: {self._texts[name]}" for name, metric in evaluated.items() if self._is_new(name, metric)]
            self.write("".join(f"{line}\n" for line in news))
        elif news or states or not running:
            width = max(map(len, running), default=0)
            lines = [f"  {name:<{width}}  {self._texts.get(name, '')}" for name in running]
            self._redraw(news, [*lines, self._summary(running, outcome)])

    def _clock_runs(self, now: float, running: Mapping[str, StudyRun], outcome: Outcome) -> None:
        for name in [name for name in self._began if name not in running]:
            began = self._began.pop(name)
            if name in outcome.finished:
                self._took.append(now - began)
        for name in running:
            self._began.setdefault(name, now)

    def _news(self, running: Mapping[str, StudyRun], outcome: Outcome) -> list[str]:
        """A line for each run that started or ended since the last call."""
        said = dict.fromkeys(outcome.finished[self._before or 0 :], "finished")
        said |= {name: f"failed: {cause}" for name, cause in outcome.failed.items()}
        said |= {name: f"waits for {other}, which is not finished" for name, other in outcome.waiting.items()}
        said |= {name: "interrupted" for name in outcome.interrupted if name in self._started}
        said |= {} if self.redraws else dict.fromkeys(running, "started")
        self._started |= running.keys()
        new = {name: text for name, text in said.items() if self._is_new(f"state of {name}", text)}
        return [printable(f"{name}: {text}") for name, text in new.items()]

    def _is_new(self, about: str, text: str) -> bool:
        """Whether something else was said of this last."""
        is_new = self._said.get(about) != text
        self._said[about] = text
        return is_new

    def _left(self, name: str, state: State, now: float) -> str:
        """How long the run will take, at its pace since it was first seen."""
        if state.step is None or state.steps is None:
            return ""
        since, step = self._first.setdefault(name, (now, state.step))
        if state.step <= step:
            return ""
        return f"  {duration((state.steps - state.step) * (now - since) / (state.step - step))} left"

    def _summary(self, running: Mapping[str, StudyRun], outcome: Outcome) -> str:
        total, lost = len(self.study.runs), len(outcome.failed) + len(outcome.waiting)
        text = (
            f"{len(outcome.finished)} of {total} finished, {len(running)} running{f', {lost} failed' if lost else ''}"
        )
        left = total - len(outcome.finished) - lost - len(running)
        if self._took and left and outcome.signal is None:
            seconds = left * sum(self._took) / len(self._took) / self.workers
            text += f"; the other {left} in about {duration(seconds)}"
        return text

    def _redraw(self, news: list[str], lines: list[str]) -> None:
        """The news stay, the lines are written over the next time."""
        width = shutil.get_terminal_size().columns - 1
        up = UP.format(self._drawn) if self._drawn else ""
        self.write(up + "".join(f"{line[:width]}{CLEAR_LINE}\n" for line in [*news, *lines]) + CLEAR_BELOW)
        self._drawn = len(lines)
