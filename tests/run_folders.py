"""Run directories written by hand, so that every number in them is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_name_or_path": "data/seed", "lora": None, "max_steps": 20, "learning_rate": 1e-4, "seed": 0,
    "eval_steps": 10, "sampling": {"max_completion_length": 48, "temperature": 1.0, "top_p": 1.0},
    "task": {"type": "Arithmetic", "terms": 3}, "objective": {"type": "DPO", "beta": 0.1},
    "sync": {"type": "Every", "interval": 1}, "ref_sync": {"type": "Never"},
}  # fmt: skip


def evaluated(*accuracies: float, **others: float) -> list[dict[str, Any]]:
    """A record every 10 steps, each with 100 completions of 10 tokens and a sync before it."""
    return [
        {
            "step": 10 * i, "eval/accuracy": value, "eval/accuracy_low": value - 0.1, "eval/accuracy_high": value + 0.1,
            "eval/entropy": 0.5 - value / 4, "eval/mean_length": 20.0 + i, "loss": 0.6, "num_completions": 100,
            "num_tokens": 1000, "sync/version": 10 * i, "time/train": 2.0, "time/eval": 5.0,
        } | {name.replace("__", "/"): value for name, value in others.items()}
        for i, value in enumerate(accuracies)
    ]  # fmt: skip


def write_run(
    folder: Path, records: Sequence[dict[str, Any]], *, state: str = "finished", events: Sequence[dict[str, Any]] = (),
    **changes: Any,
) -> Path:  # fmt: skip
    """A run directory with these records; `changes` are fields of its configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 20, "heartbeat": 0.0}))
    for name, entries in (("metrics", records), ("events", events)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def forked(step: int, parent: str, **changes: Any) -> list[dict[str, Any]]:
    """The events of a fork."""
    return [
        {"event": "start", "time": 0.0, "step": 0},
        {"event": "fork", "time": 1.0, "step": step, "parent": parent},
        {"event": "control", "time": 1.0, "step": step, "changes": changes},
    ]
