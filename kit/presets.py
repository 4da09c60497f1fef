"""The paper's configurations, every value with its source; what the paper leaves unstated says "ours".

Lanchantin et al. 2025, https://arxiv.org/abs/2506.21495. "Text" and tables are the paper's; "code" is a default of
the authors' recipe (branch online_training of fairseq2), which their runs may have overridden. Not expressed here: the
authors' cosine decay (code), evaluation at temperature 0.6 and top-p 0.9 (text), 32 + 8 H200 GPUs (text).

>>> preset = paper_math("semi_online", sync_interval=10)
>>> preset.sync, preset.config.adam_epsilon, preset.sources["adam_epsilon"]
(Every(interval=10), 0.0001, 'Table 4')
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from kit.advantages import centered
from kit.config import RunConfig, Sampling
from kit.importance import NoCorrection
from kit.objectives import DPO, GRPO, Objective
from kit.pairing import best_worst, correct_incorrect
from kit.sync import Schedule, WithSampler, every

REGIMES = ("offline", "semi_online", "online", "grpo")


class Sourced(NamedTuple):
    """A value and where it comes from."""

    value: Any
    source: str


@dataclass(frozen=True)
class Preset:
    """What `Run` is made from, and the source of each value by its name."""

    config: RunConfig
    objective: Objective
    sync: Schedule
    ref_sync: Schedule
    sources: Mapping[str, str]


COMMON = {
    "model_name_or_path": Sourced("meta-llama/Llama-3.1-8B-Instruct", "text"),
    "group_size": Sourced(8, "Table 5 for GRPO; for DPO unstated, ours: as GRPO"),
    "learning_rate": Sourced(1e-6, "Table 4"),
    "warmup_steps": Sourced(0, "code"),
    "adam_beta1": Sourced(0.9, "code"),
    "adam_beta2": Sourced(0.95, "code"),
    "weight_decay": Sourced(0.1, "code"),
    "max_grad_norm": Sourced(0.1, "Table 4"),
    "temperature": Sourced(1.0, "text"),
    "top_p": Sourced(1.0, "text"),
    "reuse_epochs": Sourced(1, "code: one gradient step a batch"),
    "max_age": Sourced(None, "code: nothing is dropped for its age"),
    "seed": Sourced(2, "code"),
}
MATH = COMMON | {
    "prompts_per_step": Sourced(64, "Table 4"),
    "max_completion_length": Sourced(2048, "Table 4"),
    "adam_epsilon": Sourced(1e-4, "Table 4"),
    "max_steps": Sourced(1000, "unstated, ours"),
}
WILDCHAT = COMMON | {
    "prompts_per_step": Sourced(32, "Table 4"),
    "max_completion_length": Sourced(1024, "Table 4"),
    "adam_epsilon": Sourced(1e-8, "Table 4"),
    "max_steps": Sourced(1500, "text"),
}
MIXED = WILDCHAT | {"max_steps": Sourced(1500, "unstated, ours: as WildChat alone")}
GRPO_CONSTANTS = {
    "importance": Sourced(NoCorrection(), "text: strictly on-policy, without importance sampling"),
    "advantages": Sourced(centered, "Eq. 1; the code divides by the standard deviation too"),
    "aggregate": Sourced("sum", "Eq. 1: no length normalization"),
    "kl_coef": Sourced(0.001, "Table 4"),
}
UNREADABLE = "unreadable in Table 4 for GRPO on math, ours: as DPO"


def paper_math(regime: str, *, sync_interval: int = 10) -> Preset:
    """NuminaMath with verified answers.

    Args:
        regime: "offline", "semi_online", "online" or "grpo" (s = 1).
        sync_interval: s of "semi_online", >= 2; the paper has 10 and 100.

    Raises:
        ValueError: for another regime, or a semi-online interval below 2.
    """
    constants = {
        "beta": Sourced(0.1, "Table 4"),
        "pairing": Sourced(correct_incorrect, "text: a random correct and a random incorrect one"),
    }
    values = MATH
    if regime == "grpo":
        values = MATH | {name: Sourced(MATH[name].value, UNREADABLE) for name in
                         ("learning_rate", "adam_epsilon", "max_grad_norm")}  # fmt: skip
    follows = regime in ("semi_online", "online")
    ref_sync = Sourced(WithSampler() if follows else every(None), "Table 4; along with the sampler (text)")
    return _preset(regime, sync_interval, values, constants, ref_sync)


def paper_wildchat(regime: str, *, sync_interval: int = 10) -> Preset:
    """WildChat with Athene-RM-8B as the reward.

    Args:
        regime: "offline", "semi_online", "online" or "grpo" (s = 1).
        sync_interval: s of "semi_online", >= 2; the paper has 5 and 10.

    Raises:
        ValueError: for another regime, or a semi-online interval below 2.
    """
    return _preset(regime, sync_interval, WILDCHAT, _chat_constants(""), Sourced(every(None), "Table 4: never"))


def paper_mixed(regime: str, *, sync_interval: int = 10) -> Preset:
    """NuminaMath and WildChat in one batch. The paper trains it online only; the other regimes are ours.

    Args:
        regime: "offline", "semi_online", "online" or "grpo" (s = 1).
        sync_interval: s of "semi_online", >= 2.

    Raises:
        ValueError: for another regime, or a semi-online interval below 2.
    """
    own = "" if regime == "online" else " for online DPO, ours here"
    values = {n: Sourced(v, s if "Table 4" not in s else s + own) for n, (v, s) in MIXED.items()}
    return _preset(regime, sync_interval, values, _chat_constants(own), Sourced(every(None), "Table 4: never" + own))


def _chat_constants(own: str) -> dict[str, Sourced]:
    return {
        "beta": Sourced(0.01, "Table 4" + own),
        "pairing": Sourced(best_worst, "footnote 2: best and worst by the reward model"),
    }


def _preset(
    regime: str, sync_interval: int, values: Mapping[str, Sourced], dpo: Mapping[str, Sourced], ref_sync: Sourced
) -> Preset:
    if regime not in REGIMES:
        raise ValueError(f"expected a regime of {REGIMES}, came {regime!r}")
    if regime == "semi_online" and sync_interval < 2:
        raise ValueError(f"expected sync_interval >= 2 for semi_online, came {sync_interval}: 1 is online")
    interval = {"offline": None, "semi_online": sync_interval}.get(regime, 1)
    constants = GRPO_CONSTANTS if regime == "grpo" else dpo
    objective = (GRPO if regime == "grpo" else DPO)(**{name: found.value for name, found in constants.items()})
    of_sampling = {field.name for field in fields(Sampling)}
    sampling = Sampling(**{name: found.value for name, found in values.items() if name in of_sampling})
    rest = {name: found.value for name, found in values.items() if name not in of_sampling}
    everything = {**values, **constants, "sync": Sourced(None, "text"), "ref_sync": ref_sync}
    return Preset(
        config=RunConfig(sampling=sampling, **rest),
        objective=objective,
        sync=every(interval),
        ref_sync=ref_sync.value,
        sources={name: found.source for name, found in everything.items()},
    )
