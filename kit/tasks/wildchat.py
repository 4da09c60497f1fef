"""WildChat-1M: what people first asked a chatbot, the paper's non-verifiable training prompts.

Source: Lanchantin et al. 2025, arXiv 2506.21495: random first-turn user messages, 1,000 of them in the non-verifiable
runs and 50,000 in the combined one, the raw instruction as the user turn. Neither language nor toxicity is mentioned.
Checkpoints are chosen on 470 other instructions, which `validation` takes (see `kit.tasks.instructions`).

Looked up on 2026-11-24: `allenai/WildChat-1M`, ODC-BY, split `train`, 837,989 conversations, those flagged as toxic
already left out (`allenai/WildChat-1M-Full`, gated, has them). Columns `conversation_hash`, `model`, `timestamp`,
`conversation`, `turn`, `language`, `openai_moderation`, `detoxify_moderation`, `toxic`, `redacted`, `state`, `country`,
`hashed_ip`, `header`. Only `conversation` is read here: a list of turns, each with `role`, `content`, `language`,
`toxic` and more; `content` may be empty.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

import torch

from kit.rewards.combine import RewardFunction
from kit.tasks.dataset import (
    MissingColumnError,
    canonical,
    check_disjoint,
    check_rewards,
    check_sizes,
    column_of,
    describe_counts,
    in_order,
    is_text,
    prompt_id,
    read,
    text_of,
    user_turn,
)
from kit.tasks.instructions import Instructions
from kit.tasks.task import Judging, Split
from kit.types import Prompt

CHUNK_ROWS = 256  # conversations that are Python objects at a time


@dataclass(frozen=True)
class WildChat:
    """First-turn user messages, judged by the given reward functions.

    Rows are visited in a shuffled order and only until the splits are full: validation first, then test, then train, so
    that another `num_train` leaves the held-out prompts as they are and extends or cuts the training prompts.

    Attributes:
        reward_functions: on TRL's contract. Nothing stands in for a reward model that is missing.
        weights: one a function.
        path: a name on the hub or a file (see `kit.tasks.dataset.read`) with the column `conversation`.
        num_train: as in the paper; 50,000 in its combined run.
        validation, test: how many first turns, or the instructions to take instead. No prompt is in two splits.
        language: of the message, such as "English"; None = any.
        keep_toxic: whether messages that are flagged stay.
        max_characters: longer messages are left out; None = none. The paper's limit is not stated.
        seed: of the shuffle.
        judging: how held-out completions are judged; by default by the mean reward alone.
    """

    reward_functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...]
    path: str = "allenai/WildChat-1M"
    num_train: int = 1000
    validation: Instructions | int = 470
    test: Instructions | int = 470
    language: str | None = None
    keep_toxic: bool = False
    max_characters: int | None = None
    seed: int = 0
    judging: Judging = field(default_factory=Judging)

    def __post_init__(self) -> None:
        check_rewards(self.reward_functions, self.weights, at_least=1)
        sizes = {"validation": self.validation, "test": self.test}
        sizes = {name: size for name, size in sizes.items() if isinstance(size, int)}
        check_sizes(1, num_train=self.num_train, max_characters=self.max_characters, **sizes)

    @property
    def name(self) -> str:
        return "wildchat"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        return self._loaded()[0][name]

    def rewards(self) -> tuple[list[RewardFunction], list[float]]:
        return list(self.reward_functions), list(self.weights)

    def counts(self) -> dict[str, int]:
        """`rows` visited, not all there are; how many of them were left out and why; `kept`."""
        return dict(self._loaded()[1])

    def _loaded(self) -> tuple[dict[Split, tuple[Prompt, ...]], dict[str, int]]:
        held_out: tuple[tuple[Split, Instructions | int], ...] = (("validation", self.validation), ("test", self.test))
        keep = _Filter(self.language, self.keep_toxic, self.max_characters)
        return _load(self.name, self.path, self.num_train, held_out, keep, self.seed)


@dataclass(frozen=True)
class _Filter:
    """Which first turns stay."""

    language: str | None
    keep_toxic: bool
    max_characters: int | None

    def reason_to_drop(self, turn: dict[str, Any]) -> str | None:
        wanted = ["role", "content"] + ["toxic"] * (not self.keep_toxic) + ["language"] * (self.language is not None)
        if missing := [name for name in wanted if name not in turn]:
            raise MissingColumnError(
                f"expected turns with {', '.join(wanted)}, came turns with {', '.join(turn)} and without "
                f"{', '.join(missing)}: add it, or do without by keep_toxic=True and language=None"
            )
        if turn["role"] != "user" or not is_text(turn["content"]):
            return "without a user message"
        if not self.keep_toxic and turn["toxic"]:
            return "toxic"
        if self.language is not None and turn["language"] != self.language:
            return "another language"
        if self.max_characters is not None and len(turn["content"]) > self.max_characters:
            return "too long"
        return None


@cache
def _load(
    task: str, path: str, num_train: int, held_out: tuple[tuple[Split, Instructions | int], ...], keep: _Filter,
    seed: int,
) -> tuple[dict[Split, tuple[Prompt, ...]], dict[str, int]]:  # fmt: skip
    counts: Counter[str] = Counter(rows=0)
    given = {name: source.split("test") for name, source in held_out if isinstance(source, Instructions)}
    taken = {canonical(text_of(prompt)) for prompts in given.values() for prompt in prompts}
    texts = _first_turns(path, keep, seed, taken, counts)
    splits: dict[Split, tuple[Prompt, ...]] = {}
    sources: tuple[tuple[Split, Instructions | int], ...] = (*held_out, ("train", num_train))
    for name, source in sources:
        if isinstance(source, Instructions):
            pairs = [(prompt.id, text_of(prompt)) for prompt in given[name]]
        else:
            pairs = [(prompt_id(task, text), text) for text in islice(texts, source)]
            if len(pairs) < source:
                raise ValueError(
                    f"expected {source} first turns for {name} from {path}, came {len(pairs)} after all rows "
                    f"({describe_counts(counts)}): lower num_train, validation or test, or leave out less"
                )
        splits[name] = tuple(user_turn(task, id, text) for id, text in pairs)
    check_disjoint(task, splits)
    return splits, in_order(counts)


def _first_turns(path: str, keep: _Filter, seed: int, taken: set[str], counts: Counter[str]) -> Iterator[str]:
    """Messages in a shuffled order, each once and none that is `taken`; the others are counted by reason."""
    rows = read(path)
    rows = rows.select_columns([column_of(rows, path, "conversation")])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for chunk in order.split(CHUNK_ROWS):
        for conversation in rows[chunk.tolist()]["conversation"]:
            counts["rows"] += 1
            reason = keep.reason_to_drop(conversation[0]) if conversation else "without a user message"
            text = conversation[0]["content"] if reason is None else ""
            if reason is None and canonical(text) in taken:
                reason = "duplicate or held out"
            counts[reason or "kept"] += 1
            if reason is None:
                taken.add(canonical(text))
                yield text
