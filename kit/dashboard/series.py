"""The numbers behind the curves: of each run its records where panels look, places on the x axes, and marks."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from kit.dashboard.panels import is_drawn
from kit.doctor.finding import SEVERITIES
from kit.printable import printable
from kit.progress import Progress
from kit.settings import changes_text

JUDGED = 5  # records that the doctor's rules look back on: what is marked as suspicious


@dataclass(frozen=True)
class Point:
    """A record where some panel looks, with its place on each of `kit.progress.X_AXES`."""

    x: Mapping[str, float]
    values: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """For the browser."""
        return {"x": dict(self.x), "values": dict(self.values)}


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a finding of the doctor, or a change by hand."""

    kind: str  # "finding" or "control"
    step: int
    name: str
    text: str  # what was seen and what to do, or the changes
    severity: str = "note"

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> "Mark | None":
        """Of an entry of events.jsonl; None for what is no mark. All text is made printable."""
        step = event.get("step")
        if not isinstance(step, int):
            return None
        if event.get("event") == "control" and isinstance(event.get("changes"), Mapping):
            return cls("control", step, "changed by hand", changes_text(event["changes"]))
        if event.get("event") == "doctor":
            about = f" ({event['about']})" if event.get("about") else ""
            text = f"{event.get('seen')}\nWhat to do: {event.get('remedy')}"
            severity = event.get("severity") if event.get("severity") in SEVERITIES else "note"
            name = printable(f"{event.get('name')}{about}")
            return cls("finding", step, name, "\n".join(map(printable, text.split("\n"))), str(severity))
        return None

    @property
    def rule(self) -> str:
        """The finding's name without what it is about."""
        return self.name.split(" ", 1)[0]

    def as_json(self) -> dict[str, Any]:
        """For the browser."""
        return asdict(self) | {"rule": self.rule}


@dataclass
class Series:
    """One run.

    Attributes:
        label: what it is called beside others; printable.
        start: of a fork, the step from which it is another run than its parent; only that part is drawn.
    """

    label: str
    start: int = 0
    points: list[Point] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    _progress: Progress = field(default_factory=Progress)

    def push(self, record: Mapping[str, Any]) -> Point:
        """Add the next record; what is no finite number is left out."""
        values = {name: float(value) for name, value in record.items() if is_drawn(name) and _is_finite(value)}
        point = Point(self._progress.push(record), values)
        self.points.append(point)
        return point

    def mark(self, events: Iterable[Mapping[str, Any]]) -> list[Mark]:
        """Add the marks among events, and return them. A resumed run repeats some, a fork begins with its parent's."""
        found = [mark for mark in dict.fromkeys(map(Mark.of, events)) if mark and mark.step >= self.start]
        new = [mark for mark in found if mark not in self.marks]
        self.marks += new
        return new

    def as_json(self) -> dict[str, Any]:
        """For the browser."""
        plain = {"points": [point.as_json() for point in self.points], "marks": [mark.as_json() for mark in self.marks]}
        return {"label": self.label, "start": self.start} | plain

    def line(self, metric: str, axis: str = "step") -> list[tuple[float, float]]:
        """(x, value) of a metric wherever a record has it; of a fork from the last such point before it."""
        found = [point for point in self.points if metric in point.values]
        shared = sum(point.x["step"] < self.start for point in found)
        return [(point.x[axis], point.values[metric]) for point in found[max(0, shared - 1) :]]

    def syncs(self, axis: str = "step") -> list[float]:
        """Where the sampler got new weights."""
        versions = [(p.x[axis], p.values["sync/version"]) for p in self.points if "sync/version" in p.values]
        return [x for (_, before), (x, after) in pairwise(versions) if after != before]

    def place(self, step: int, axis: str = "step") -> float:
        """Where a step is on an axis: that of the last record up to it."""
        return max((point.x[axis] for point in self.points if point.x["step"] <= step), default=0.0)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
