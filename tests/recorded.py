"""Run directories with completions that nobody sampled, written as a run writes them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.columns import write_columns

WORDS = ("carry", "borrow", "\\boxed{79}", "<b>bold</b>", "ünïcödé", "79", "\n")


def row(prompt_id: str, index: int, /, **changes: Any) -> dict[str, Any]:
    """One completion of two tokens, trained on."""
    made = {
        "prompt_id": prompt_id, "task": "sums", "prompt": f"what is {prompt_id}?", "index": index,
        "completion": "ab", "reward": 1.0, "rewards": [("right", 1.0)], "version": 0, "finish_reason": "stop",
        "old_logprob": -1.5, "tokens": 2, "role": "chosen", "reason": None, "pieces": ["a", "b"],
        "old_logprobs": [-1.0, -0.5], "entropies": [1.0, 0.5], "logprobs": [-1.0, -0.5], "ref_logprobs": [-1.0, -0.5],
    }  # fmt: skip
    return made | changes


def write_step(
    out_dir: Path, step: int, rows: Sequence[dict[str, Any]], folder: str = "rollouts", task: str = ""
) -> Path:
    """A file of a run directory, which is made if needed."""
    (out_dir / folder).mkdir(parents=True, exist_ok=True)
    (out_dir / "config.json").write_text(json.dumps({}))
    path = out_dir / folder / f"{task}step_{step:06d}.parquet"
    write_columns(path, {name: [row[name] for row in rows] for name in rows[0]})
    return path


def write_run(out_dir: Path, steps: int, groups: int = 4, size: int = 4, tokens: int = 12, seed: int = 0) -> Path:
    """A run of random completions: prompts recur, rewards may be absent, the sampler lags up to two updates."""
    rng = random.Random(seed)
    for step in range(steps):
        write_step(out_dir, step, [made for g in range(groups) for made in _group(rng, step, g, size, tokens)])
    return out_dir


def _group(rng: random.Random, step: int, number: int, size: int, tokens: int) -> list[dict[str, Any]]:
    name, task = f"p{rng.randrange(3 * number + 3)}", rng.choice(["sums", "chat"])
    found = []
    for index in range(size):
        count = rng.randint(1, tokens)
        pieces = [rng.choice(WORDS) for _ in range(count)]
        logprobs = [-rng.random() for _ in pieces]
        unused = rng.random() < 0.5
        found.append(
            row(
                f"{task}/{name}",
                index,
                task=task,
                completion="".join(pieces),
                pieces=pieces,
                tokens=count,
                reward=rng.choice([None, 0.0, 1.0, rng.random()]),
                version=max(0, step - rng.randrange(3)),
                role="unused" if unused else rng.choice(["chosen", "rejected", "advantage=-0.500"]),
                reason=rng.choice(["tie: equal", "not drawn: luck"]) if unused else None,
                old_logprob=sum(logprobs),
                old_logprobs=logprobs,
                entropies=logprobs,
                logprobs=None if unused else logprobs,
                ref_logprobs=None,
            )
        )
    return found
