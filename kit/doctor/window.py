"""What detectors see of a run so far: its first records, its latest ones, its evaluations.

All of it follows from the records of `metrics.jsonl`, so that a resumed run is told the same.
"""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kit.config import RunConfig
from kit.objectives import Objective
from kit.types import Group

Record = Mapping[str, Any]
FIRST = 3  # records that stand for the start: a mean over three steps' completions
LAST = 5  # records that stand for now: what one unlucky batch does is over in fewer


@dataclass(frozen=True)
class Setup:
    """What is known of a run beside its records."""

    beta: float | None = None  # of a DPO objective: implicit rewards are in units of it
    is_low_precision: bool = False  # bfloat16 or quantized: sampler and trainer then round differently
    functions: tuple[str, ...] = ()  # reward functions by the names in `rewards/{name}/mean`; empty = not known

    @classmethod
    def of(cls, config: RunConfig, objective: Objective, functions: Sequence[str] = ()) -> "Setup":
        low = config.bf16 or config.quantization is not None
        return cls(getattr(objective, "beta", None), low, tuple(dict.fromkeys(functions)))

    @classmethod
    def read(cls, config: Record) -> "Setup":
        """From a run's `config.json`; one of an earlier version may lack some of it."""
        objective = config.get("objective")
        beta = objective.get("beta") if isinstance(objective, Mapping) else None
        low = config.get("bf16") is True or config.get("quantization") is not None
        return cls(beta if isinstance(beta, int | float) else None, low)


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, to show to the reader of a finding."""

    text: str
    reward: float | None
    finish_reason: str


def samples_of(groups: Sequence[Group], most: int = 64) -> tuple[Sample, ...]:
    """The first completions of a step."""
    found: list[Sample] = []
    for group in groups:
        rewards = group.rewards or (None,) * len(group.rollouts)
        found += [Sample(r.text, reward, r.finish_reason) for r, reward in zip(group.rollouts, rewards, strict=True)]
        if len(found) >= most:
            break
    return tuple(found[:most])


@dataclass
class History:
    """The records that matter, of the whole run or of one task of it. One that trains on an older batch is left out:
    it repeats that batch's metrics.
    """

    first: list[Record] = field(default_factory=list)
    last: deque[Record] = field(default_factory=lambda: deque(maxlen=LAST))
    evaluations: list[Record] = field(default_factory=list)
    has_ended: bool = False  # whether any completion so far ended before the limit
    latest: Record = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()  # of the latest record's step, if they are at hand

    def push(self, record: Record, samples: tuple[Sample, ...] = ()) -> None:
        self.latest, self.samples = record, samples
        if any(name.startswith("eval/") for name in record):
            self.evaluations.append(record)
        if "completions/mean_length" in record and not record.get("reuse_epoch"):
            if len(self.first) < FIRST:
                self.first.append(record)
            self.last.append(record)
            self.has_ended = self.has_ended or number(record, "completions/clipped_ratio") != 1

    @property
    def step(self) -> int:
        return int(number(self.latest, "step") or 0)

    @property
    def has_trend(self) -> bool:
        """Whether start and now are full, and do not overlap."""
        return len(self.last) == LAST and len(self.first) == FIRST and self.last[0]["step"] > self.first[-1]["step"]

    def recent(self, name: str, count: int = LAST) -> list[float]:
        """The latest `count` values, oldest first; none unless each of the latest `count` records has one."""
        records = list(self.last)[-count:]
        values = [value for record in records if (value := number(record, name)) is not None]
        return values if len(values) == count else []

    def start(self, name: str) -> float | None:
        """Mean over the first records; None unless each has it."""
        values = [value for record in self.first if (value := number(record, name)) is not None]
        return statistics.fmean(values) if len(values) == FIRST else None


def number(record: Record, name: str) -> float | None:
    """A metric of a record, if it is there and a number."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def of_task(record: Record, task: str) -> dict[str, Any]:
    """What a record says of one task, under the names of a run on that task alone."""
    prefix = f"task/{task}/"
    shared = {name: record[name] for name in ("step", "reuse_epoch", "sync/staleness") if name in record}
    return shared | {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}


def tasks_in(record: Record) -> list[str]:
    """The tasks that a record tells apart; none in a run on one."""
    names = [name.split("/")[1] for name in record if name.startswith("task/") and name.count("/") >= 2]
    return list(dict.fromkeys(names))
