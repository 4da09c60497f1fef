"""A study under way, as its run directories tell it: on a terminal redrawn, in a pipe one line a change."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kit.printable import printable
from kit.study.execute import Outcome
from kit.study.file import Study, StudyRun

SHOWN = ("eval/accuracy", "eval/win_rate", "eval/reward")  # the last word on how good a policy is
TAIL_BYTES = 100_000  # of metrics.jsonl, in which the last evaluation is looked for
CLEAR_LINE, UP = "\x1b[K", "\x1b[{}A"


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


class Progress:
    """Watches a study; called again and again with the runs being executed.

    Args:
        stream: where to write; its `isatty` decides the form.
        workers: at a time, for the estimate of what is left.
    """

    def __init__(self, study: Study, stream: TextIO, *, workers: int = 1, clock: Any = time.monotonic) -> None:
        self.study, self.stream, self.workers, self.clock = study, stream, workers, clock
        self._seen: dict[str, tuple[float, int]] = {}  # run -> when first seen at a step, and the step
        self._started: dict[str, float] = {}
        self._took: list[float] = []
        self._said: dict[str, str] = {}
        self._drawn = 0
        self._last_drawn = float("-inf")
        self._skipped: int | None = None

    def __call__(self, running: Mapping[str, StudyRun], outcome: Outcome) -> None:
        now = self.clock()
        for name in [name for name in self._started if name not in running]:
            began = self._started.pop(name)
            if name in outcome.finished:
                self._took.append(now - began)
        for name in running:
            self._started.setdefault(name, now)
        if self._skipped is None:
            self._skipped = len(outcome.finished)
            if self._skipped:
                self._line(f"{self._skipped} of {len(self.study.runs)} runs were finished before")
        states = {name: read_state(run) for name, run in running.items()} if self._is_due(now) else {}
        if self.stream.isatty():
            self._redraw(now, running, states, outcome)
        else:
            self._report(now, running, states, outcome)

    def _is_due(self, now: float) -> bool:
        """Directories are read once a second."""
        if now - self._last_drawn < 1.0:
            return False
        self._last_drawn = now
        return True

    def left(self, name: str, state: State, now: float) -> float | None:
        """Seconds that the run will take, at the pace since it was first seen; None if nothing is known."""
        if state.step is None or state.steps is None:
            return None
        since, step = self._seen.setdefault(name, (now, state.step))
        if state.step <= step:
            return None
        return (state.steps - state.step) * (now - since) / (state.step - step)

    def _texts(self, now: float, states: Mapping[str, State]) -> dict[str, str]:
        texts = {}
        for name, state in states.items():
            left = self.left(name, state, now)
            texts[name] = f"{state}" + (f"  {duration(left)} left" if left is not None else "")
        return texts

    def _redraw(
        self, now: float, running: Mapping[str, StudyRun], states: Mapping[str, State], outcome: Outcome
    ) -> None:
        ended = self._endings(outcome)
        if not (states or ended or not running):
            return
        width = shutil.get_terminal_size().columns - 1
        texts = self._texts(now, states)
        lines = [f"  {name}  {texts.get(name, '')}" for name in running]
        lines.append(self._summary(outcome, len(running)))
        erase = UP.format(self._drawn) if self._drawn else ""
        kept = [*ended, *lines]
        self.stream.write(erase + "".join(f"{line[:width]}{CLEAR_LINE}\n" for line in kept) + "\x1b[J")
        self.stream.flush()
        self._drawn = len(lines)

    def _report(
        self, now: float, running: Mapping[str, StudyRun], states: Mapping[str, State], outcome: Outcome
    ) -> None:
        for line in self._endings(outcome):
            self._line(line)
        for name in running:
            if name not in self._said:
                self._said[name] = ""
                self._line(f"{name}: started")
        for name, text in self._texts(now, states).items():
            state = states[name]
            if state.metric and self._said[name] != state.metric and "eval/" in state.metric:
                self._said[name] = state.metric
                self._line(f"{name}: {text}")

    def _endings(self, outcome: Outcome) -> list[str]:
        """A line for each run that ended since the last call."""
        said = dict.fromkeys(outcome.finished[self._skipped or 0 :], "finished")
        said |= {name: f"failed: {cause}" for name, cause in outcome.failed.items()}
        said |= {name: f"waits for {other}, which is not finished" for name, other in outcome.waiting.items()}
        said |= {name: "interrupted" for name in outcome.interrupted if name in self._said or self.stream.isatty()}
        new = {name: text for name, text in said.items() if self._said.get(f"{name} ended") != text}
        self._said |= {f"{name} ended": text for name, text in new.items()}
        return [printable(f"{name}: {text}") for name, text in new.items()]

    def _summary(self, outcome: Outcome, running: int) -> str:
        total = len(self.study.runs)
        text = f"{len(outcome.finished)} of {total} finished, {running} running"
        if outcome.failed or outcome.waiting:
            text += f", {len(outcome.failed) + len(outcome.waiting)} failed"
        left = total - len(outcome.finished) - len(outcome.failed) - len(outcome.waiting) - running
        if self._took and left and outcome.signal is None:
            text += f"; the other {left} in about {duration(left * sum(self._took) / len(self._took) / self.workers)}"
        return text

    def _line(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """For a reader.

    >>> [duration(seconds) for seconds in (0.4, 59, 61, 5400, 100_000)]
    ['0 s', '59 s', '1 min', '1 h 30 min', '1 d 4 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours + (minutes >= 30), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
