"""Records of a healthy run, as in metrics.jsonl, and how to change them."""

from collections.abc import Iterable
from typing import Any

HEALTHY: dict[str, Any] = {  # after step 0 of the embedded model under online DPO, rounded
    "loss": 0.65, "grad_norm": 1.6, "learning_rate": 5e-5, "reward": 0.4, "rewards/unjudged": 0,
    "rewards/math_reward/mean": 0.4, "frac_reward_zero_std": 0.06, "groups/used": 30, "groups/ties": 2, "examples": 30,
    "completions/mean_length": 20.0, "completions/clipped_ratio": 0.0, "num_tokens": 5120, "sampler/entropy": 0.1,
    "sync/staleness": 0, "reuse_epoch": 0, "rewards/chosen": 0.02, "rewards/rejected": -0.02, "offpolicy/kl": 1e-13,
}  # fmt: skip


def healthy(step: int, **changes: Any) -> dict[str, Any]:
    """One record; rewards vary from step to step, as means over completions do. `/` in a name is written `__`."""
    reward = {"reward": 0.4 + 0.01 * (step % 7), "rewards/math_reward/mean": 0.4 + 0.01 * (step % 7)}
    return {"step": step} | HEALTHY | reward | {name.replace("__", "/"): value for name, value in changes.items()}


def run_of(count: int, start: int = 0, /, **changes: Any) -> list[dict[str, Any]]:
    """`count` records from step `start` on. A list among the changes gives each record its own value."""
    return [
        healthy(start + i, **{name: value[i] if isinstance(value, list) else value for name, value in changes.items()})
        for i in range(count)
    ]


def told(records: Iterable[dict[str, Any]], **setup: Any) -> list[tuple[str, str, int | None]]:
    """(name, severity, step) of everything that a new doctor says of these records, in order."""
    from kit.doctor import Doctor, Setup

    return [(f.name, f.severity, f.step) for f in Doctor(Setup(**setup)).replay(records)]
