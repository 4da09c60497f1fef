"""What of a run may change while it trains, as one value that is replaced as a whole."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kit.config import RunConfig
from kit.objectives import Objective
from kit.printable import printable
from kit.sync import Every, Never, Schedule, every

OF_THE_CONFIG = ("learning_rate", "seed")
OF_THE_OBJECTIVE = ("beta", "kl_coef", "entropy_coef", "nll_coef")  # those of them that the objective has
CHANGEABLE = {
    "sync_interval": "s, optimizer steps between copies into the sampler; None = never",
    "learning_rate": "of AdamW, after the warm-up",
    "temperature": "of the training completions; evaluations keep the run's own",
    "beta": "DPO's pull toward the reference",
    "kl_coef": "weight of KL(policy || reference)",
    "entropy_coef": "weight of the entropy bonus",
    "nll_coef": "weight of the chosen completion's negative log-likelihood",
    "seed": "of prompts, completions and pairs from then on",
}
NUMBERS = (int, float)
TYPES: dict[str, tuple[type, ...]] = {"sync_interval": (int, type(None)), "seed": (int,)}


@dataclass(frozen=True)
class Settings:
    """The part of a run's configuration that `Run.controls` and `Run.fork` can change, with a name for each knob."""

    config: RunConfig
    objective: Objective
    sync: Schedule

    def values(self) -> dict[str, Any]:
        """Every knob that this run has, with its value; `sync_interval` is a text where another schedule is at work.

        >>> from kit.objectives import DPO
        >>> Settings(RunConfig(), DPO(), Every(10)).values()["sync_interval"]
        10
        """
        found: dict[str, Any] = {"sync_interval": self.sync_interval}
        found |= {name: getattr(self.config, name) for name in OF_THE_CONFIG}
        found |= {"temperature": self.config.sampling.temperature}
        fields = {field.name for field in dataclasses.fields(self.objective)}  # pyright: ignore[reportArgumentType]
        return found | {name: getattr(self.objective, name) for name in OF_THE_OBJECTIVE if name in fields}

    @property
    def sync_interval(self) -> int | str | None:
        """Steps, None for never, or the schedule's own text."""
        if isinstance(self.sync, Every | Never):
            return self.sync.interval if isinstance(self.sync, Every) else None
        return str(self.sync)

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """The settings with other values for some knobs.

        Raises:
            ValueError: for a knob that this run does not have, naming those that it has; for a value out of range.
            TypeError: for a value of another type.
        """
        known = self.values()
        for name, value in changes.items():
            if name not in known:
                raise ValueError(f"this run has nothing called {name!r} to change; it has {', '.join(known)}")
            kinds = TYPES.get(name, NUMBERS)
            if isinstance(value, bool) or not isinstance(value, kinds):
                names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise TypeError(f"expected {name} as {names}, came {value!r}: {CHANGEABLE[name]}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"expected a finite {name}, came {value}: {CHANGEABLE[name]}")
        config = replace(self.config, **{name: changes[name] for name in OF_THE_CONFIG if name in changes})
        if "temperature" in changes:
            config = replace(config, sampling=replace(config.sampling, temperature=changes["temperature"]))
        of_objective = {name: changes[name] for name in OF_THE_OBJECTIVE if name in changes}
        objective = replace(self.objective, **of_objective)  # pyright: ignore[reportArgumentType, reportCallIssue]
        sync = every(changes["sync_interval"]) if "sync_interval" in changes else self.sync
        return Settings(config, objective, sync)


def changes_text(changes: Mapping[str, Any]) -> str:
    r"""Values of knobs for a reader.

    >>> changes_text({"sync_interval": None, "learning_rate": 5e-05})
    's = ∞, learning_rate = 5e-05'
    """
    names = {"sync_interval": "s"}
    values = [(names.get(name, name), "∞" if value is None else value) for name, value in changes.items()]
    return printable(", ".join(f"{name} = {value}" for name, value in values))
