"""What a run has spent so far: the x axes on which runs are compared."""

from collections.abc import Iterable, Mapping
from typing import Any

X_AXES = {
    "step": "optimizer step",
    "completions": "completions generated",
    "tokens": "completion tokens generated",
    "syncs": "copies of the policy into the sampler",
    "seconds": "wall-clock (s), evaluations and pauses apart",
}


MEASURED_BY = {
    "completions": "num_completions",
    "tokens": "num_tokens",
    "syncs": "sync/version",
    "seconds": "time/train",
}


def axes_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The axes of `X_AXES` on which a run can be placed; one of an earlier version may not have logged them all.

    >>> axes_of([{"step": 0, "num_tokens": 90}])
    ['step', 'tokens']
    """
    logged = {name for record in records for name in record}
    return [axis for axis in X_AXES if axis == "step" or MEASURED_BY[axis] in logged]


class Progress:
    """Adds up the records of a run, in their order.

    >>> progress = Progress()
    >>> progress.push({"step": 0, "num_completions": 8, "num_tokens": 90, "sync/version": 0, "time/train": 0.5})
    {'step': 0, 'completions': 0, 'tokens': 0, 'syncs': 0, 'seconds': 0.0}
    >>> progress.push({"step": 1, "num_completions": 8, "num_tokens": 70, "sync/version": 1, "time/train": 0.5})
    {'step': 1, 'completions': 8, 'tokens': 90, 'syncs': 0, 'seconds': 0.5}
    >>> progress.push({"step": 2})
    {'step': 2, 'completions': 16, 'tokens': 160, 'syncs': 1, 'seconds': 1.0}
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {"completions": 0, "tokens": 0, "syncs": 0, "seconds": 0.0}
        self._version = 0  # the sampler starts with the policy's weights: that is no copy

    def push(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Where this record stands on every axis of `X_AXES`: what had been spent when its step began.

        An evaluation is of the policy as it was then, so this is what that policy cost.
        """
        before = {"step": record["step"], **self._spent}
        self._spent["completions"] += record.get("num_completions", 0)
        self._spent["tokens"] += record.get("num_tokens", 0)
        version = record.get("sync/version", self._version)
        self._spent["syncs"] += version != self._version
        self._version = version
        self._spent["seconds"] += sum(value for name, value in record.items() if _is_spent_on_training(name))
        return before


def spent(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What a run has spent after the last of its records, on every axis of `X_AXES`; its steps are not counted."""
    progress = Progress()
    for record in records:
        progress.push(record)
    return progress.push({"step": 0})


def duration(seconds: float) -> str:
    """For a reader.

    >>> duration(12.34), duration(83), duration(7260)
    ('12.3 s', '1 min 23 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _is_spent_on_training(name: str) -> bool:
    return name.startswith("time/") and name != "time/eval"
