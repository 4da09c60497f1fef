"""The chat task as it is embedded: rewarded by a shipped model, judged by the gold utility against the seed model."""

import json
from functools import cache
from pathlib import Path

from kit.tasks.chat import Chat
from kit.tasks.gold import gold_judge, gold_utility
from kit.tasks.task import Judging

BASELINE = Path(__file__).resolve().parents[2] / "data" / "chat" / "baseline.jsonl"


def embedded_chat(reward_model: str = "data/reward_model") -> Chat:
    """The chat task with a reward model from a folder; `data/reward_model_biased` is the one that likes length.

    Raises:
        FileNotFoundError, ValueError: as `kit.models.reward_model.RewardModel`.
    """
    from kit.models.reward_model import RewardModel  # transformers takes seconds to import

    model = RewardModel(reward_model, batch_size=256, name=Path(reward_model).name)
    return Chat((model,), (1.0,), Judging(gold_judge, load_baseline(), (gold_utility,)))


@cache
def load_baseline(path: Path = BASELINE) -> dict[str, tuple[str, ...]]:
    """Prompt id -> completions to win against, from JSON lines with `id` and `completions`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["id"]: tuple(row["completions"]) for row in map(json.loads, lines)}
