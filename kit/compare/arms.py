"""Run directories in arms: runs that differ only in the seed are one arm, named by what sets it apart."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.doctor import Diagnosis, examine_run
from kit.fork import Origin, origin_of, recorded_controls
from kit.printable import printable
from kit.runlog import RunDirectoryError, read_jsonl
from kit.settings import changes_text

Names = tuple[str, ...]  # of a setting, from the outside in: ("objective", "DPO", "beta")
MEASURING = {  # settings that say how long a run is, how it is computed and looked at, not what it learns from
    "max_steps", "eval_steps", "eval_prompts", "eval_samples", "save_steps", "save_total_limit", "num_threads",
    "device", "generation_batch_size", "micro_batch_size", "drift_prompts", "gap_steps",
}  # fmt: skip
Changes = tuple[tuple[int, dict[str, Any]], ...]  # (step, knobs) of what was changed by hand


@dataclass(frozen=True)
class SavedRun:
    """What a run directory says; of its records the numbers alone."""

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: list[dict[str, float]]
    diagnosis: Diagnosis
    changes: Changes
    origin: Origin | None  # of a fork

    @property
    def is_finished(self) -> bool:
        return self.diagnosis.state == "finished"

    def identity(self) -> str:
        """Equal for runs that differ in nothing but the seed."""
        config = {name: value for name, value in self.config.items() if name != "seed"}
        lora = config.get("lora")
        if isinstance(lora, Mapping) and lora.get("adapter_path") is None:
            config.pop("model_digest", None)  # of a new adapter, which the seed initializes
        return json.dumps([config, self.changes, None if self.origin is None else self.origin.step], sort_keys=True)


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration, one a seed."""

    label: str
    differs: Mapping[str, str]  # the settings that set arms apart, by name; one that this arm does not have is left out
    runs: tuple[SavedRun, ...]

    @property
    def changes(self) -> str:
        """What was changed by hand, and from which step on."""
        return "; ".join(f"{changes_text(knobs)} from step {step}" for step, knobs in self.runs[0].changes)

    @property
    def fork_step(self) -> int | None:
        """Where a fork left its parent."""
        origin = self.runs[0].origin
        return None if origin is None else origin.step


def read_run(folder: str | Path) -> SavedRun:
    """A run directory, of a run that is finished or not.

    Raises:
        FileNotFoundError: if the folder holds no run.
        RunDirectoryError: if a file of it cannot be read.
    """
    diagnosis = examine_run(folder)  # reads every file first, and says which one is damaged
    path = diagnosis.path
    environment = json.loads((path / "env.json").read_text()) if (path / "env.json").is_file() else {}
    try:
        changes = tuple((int(step), {str(k): v for k, v in knobs.items()}) for step, knobs in recorded_controls(path))
        origin = origin_of(path)
        records = [_numbers(record) for record in read_jsonl(path / "metrics.jsonl") if isinstance(record["step"], int)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"expected events and records as a run writes them in {path}, came one without {error}: restore the file"
        ) from error
    return SavedRun(
        path, json.loads((path / "config.json").read_text()), environment, records, diagnosis, changes, origin
    )


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record."""
    return {
        printable(name): value
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def arms_of(runs: Sequence[SavedRun]) -> list[Arm]:
    """Group runs, in the order in which they come. A second run of one seed is no second seed: an arm of its own."""
    groups: dict[tuple[str, int], list[SavedRun]] = {}
    for run in runs:
        repeat = 1
        while any(
            run.config.get("seed") == other.config.get("seed") for other in groups.get((run.identity(), repeat), ())
        ):
            repeat += 1
        groups.setdefault((run.identity(), repeat), []).append(run)
    settings = [dict(_settings(found[0].config)) for found in groups.values()]
    differing = [names for names in _ordered(settings) if _differs(names, settings)]
    learned = [names for names in differing if names[0] not in MEASURING]
    for shown in (learned, differing):  # how it was measured is named only where nothing else tells two arms apart
        labels = [
            _label(found[0], own, shown, repeat)
            for ((_, repeat), found), own in zip(groups.items(), settings, strict=True)
        ]
        if len(set(labels)) == len(labels):
            break
    return [
        Arm(label, _named(own, differing), tuple(found))
        for label, own, found in zip(labels, settings, groups.values(), strict=True)
    ]


def _settings(value: Any, names: Names = ()) -> Iterator[tuple[Names, str]]:
    """Every setting of a configuration as text. A schedule is one setting, and so is the type of what has fields."""
    if names in [("sync",), ("ref_sync",)] and isinstance(value, Mapping):
        yield names, schedule_text(value)
    elif isinstance(value, Mapping):
        own = (*names, str(value["type"])) if "type" in value else names
        if "type" in value:
            yield names, str(value["type"])
        for name, inner in value.items():
            if name not in ("type", "seed") or (name == "seed" and names):
                yield from _settings(inner, (*own, str(name)))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        kinds = [_type_of(item) for item in value]
        yield names, " + ".join(kinds)
        for number, (kind, item) in enumerate(zip(kinds, value, strict=True), start=1):
            own = kind if kinds.count(kind) == 1 else f"{kind} {number}"
            yield from _settings(item, (*names, " + ".join(kinds), own))
    else:
        yield names, value if isinstance(value, str) else json.dumps(value)


def _type_of(portion: Mapping[str, Any]) -> str:
    """The task of a portion, or the type of anything else."""
    inner = portion.get("task", portion)
    return str(inner.get("type", "?")) if isinstance(inner, Mapping) else str(inner)


def schedule_text(schedule: Mapping[str, Any]) -> str:
    """A schedule of `config.json`.

    >>> schedule_text({"type": "Every", "interval": 10}), schedule_text({"type": "Never"})
    ('10', '∞')
    >>> schedule_text({"type": "OnDrift", "max_kl": 0.01, "max_interval": None})
    'OnDrift(max_kl=0.01)'
    """
    kind = schedule.get("type")
    if kind in ("Every", "Never"):
        return str(schedule.get("interval")) if kind == "Every" else "∞"
    fields = ", ".join(f"{name}={value}" for name, value in schedule.items() if name != "type" and value is not None)
    return f"{kind}({fields})"


def _ordered(settings: Sequence[Mapping[Names, str]]) -> list[Names]:
    """The names of all settings: objective and schedule first."""
    names = list(dict.fromkeys(name for own in settings for name in own))
    first = [("objective",), ("sync",)]
    return [name for name in first if name in names] + [name for name in names if name not in first]


def _could_have(own: Mapping[Names, str], names: Names) -> bool:
    """A field of another type's value is not missing; one that an earlier version did not write down is."""
    return len(names) == 1 or any(other[:-1] == names[:-1] for other in own)


def _differs(names: Names, settings: Sequence[Mapping[Names, str]]) -> bool:
    """Whether the arms that could have a setting disagree on it."""
    return len({own.get(names) for own in settings if _could_have(own, names)}) > 1


def _named(own: Mapping[Names, str], differing: Sequence[Names]) -> dict[str, str]:
    return {_name(names): printable(own.get(names, "not recorded")) for names in differing if _could_have(own, names)}


def _name(names: Names) -> str:
    """
    >>> _name(("objective", "DPO", "beta")), _name(("sync",)), _name(("sampling", "temperature"))
    ('beta', 's', 'temperature')
    >>> _name(("task", "Arithmetic + Chat", "Chat", "Portion", "prompts_per_step"))
    'Chat prompts_per_step'
    """
    first, *inner = names
    if first == "task" and inner:
        return printable(" ".join(dict.fromkeys(n for n in inner if n not in ("task", "Portion") and "+" not in n)))
    return {"sync": "s", "ref_sync": "reference s"}.get(first, printable([first, *inner][-1]))


def _label(run: SavedRun, own: Mapping[Names, str], differing: Sequence[Names], repeat: int) -> str:
    """What sets an arm apart; where its configuration is like all others', its objective and schedule."""
    shown = differing or [names for names in (("objective",), ("sync",)) if names in own]
    texts = []
    for names in shown:
        if names in own:
            texts.append(own[names] if names in (("objective",), ("task",)) else f"{_name(names)} = {own[names]}")
        elif _could_have(own, names):
            texts.append(f"{_name(names)} not recorded")
    changes = [f"{changes_text(knobs)} from step {step}" for step, knobs in run.changes]
    if run.origin is not None and all(step != run.origin.step for step, _ in run.changes):
        changes.append(f"fork at step {run.origin.step}")
    again = [f"run {repeat} of this seed"] if repeat > 1 else []
    return printable("; ".join([", ".join(texts), *changes, *again]))
