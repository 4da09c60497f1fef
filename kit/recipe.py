"""The way back from a run's `config.json` to the values that the run was made of, where these are the kit's own."""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kit.advantages import ADVANTAGES
from kit.config import Lora, RunConfig, Sampling
from kit.importance import IMPORTANCE
from kit.kl import KL_ESTIMATORS
from kit.objectives import OBJECTIVES
from kit.pairing import PAIRINGS
from kit.runlog import RunDirectoryError, as_json
from kit.samplers import SAMPLERS
from kit.sync import Every, Never, OnDrift, WarmUp, WithSampler
from kit.tasks import Arithmetic, Portion, embedded_chat

TYPES: dict[str, Any] = {kind.__name__: kind for kind in (Every, Never, OnDrift, WarmUp, WithSampler, Arithmetic)}
TYPES |= {kind.__name__: kind for table in (OBJECTIVES, IMPORTANCE) for kind in table.values()}
FUNCTIONS = {
    "pairing": PAIRINGS,
    "advantages": ADVANTAGES,
    "kl_estimator": KL_ESTIMATORS,
}  # by the field that holds one


class RecipeError(ValueError):
    """A run's configuration names something that the kit cannot make by itself."""


def run_arguments(path: Path) -> dict[str, Any]:
    """The arguments of `kit.run.Run`, less `out_dir`, of the run in a directory.

    Raises:
        RunDirectoryError: if there is no run.
        RecipeError: if it was made of something of the user's own, such as a task or a reward function.
    """
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"expected a run directory with a config.json, came {path} ({error})") from error
    found = {name: value_of(config[name]) for name in ("objective", "sync", "ref_sync")}
    found |= {name: config[name] for name in ("ref_mixup_alpha", "ref_start")}
    return found | {"config": _config(config), "task": _task(config["task"]), "sampler": _sampler(config["sampler"])}


def value_of(described: Mapping[str, Any]) -> Any:
    """What `kit.runlog.describe` described: an objective, a correction, a schedule, a task without functions.

    >>> value_of({"type": "Every", "interval": 10})
    Every(interval=10)
    """
    kind = TYPES.get(described["type"])
    if kind is None:
        raise RecipeError(f"the kit has no {described['type']!r} that it could make by itself; it has {sorted(TYPES)}")
    return kind(**{name: _field(name, value) for name, value in described.items() if name != "type"})


def _field(name: str, value: Any) -> Any:
    if name in FUNCTIONS:
        return _named(name, value, FUNCTIONS[name])
    return value_of(value) if isinstance(value, Mapping) else value


def _named(name: str, described: Any, table: Mapping[str, Any]) -> Any:
    """The entry of a table that is described so."""
    for entry in table.values():
        if as_json(entry) == described:
            return entry
    raise RecipeError(f"the kit has no {name} {described!r}; it has {sorted(table)}")


def _config(config: Mapping[str, Any]) -> RunConfig:
    found = {field.name: config[field.name] for field in dataclasses.fields(RunConfig) if field.name in config}
    lora = found.get("lora")
    if lora is not None and isinstance(lora["lora_target_modules"], list):
        lora = lora | {"lora_target_modules": tuple(lora["lora_target_modules"])}
    return RunConfig(**found | {"sampling": Sampling(**found["sampling"]), "lora": lora and Lora(**lora)})


def _task(described: Any) -> Any:
    if isinstance(described, list):
        sizes = ("prompts_per_step", "group_size", "max_completion_length")
        return [Portion(_task(portion["task"]), *(portion[size] for size in sizes)) for portion in described]
    if described["type"] != "Chat":
        return value_of(described)
    functions = described["reward_functions"]  # of the embedded task: a reward model from the folder of its name
    is_embedded = len(functions) == 1 and isinstance(functions[0], Mapping) and functions[0]["type"] == "RewardModel"
    if not is_embedded:
        raise RecipeError(f"expected the embedded chat task with a reward model from data/, came {functions}")
    return embedded_chat(f"data/{functions[0]['name']}")


def _sampler(described: Any) -> Any:
    if not isinstance(described, Mapping):
        return _named("sampler", described, SAMPLERS)
    constants = {name: value for name, value in described.items() if name not in ("function", "args")}
    return partial(_named("sampler", described["function"], SAMPLERS), *described["args"], **constants)
