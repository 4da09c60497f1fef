"""Chains of additions and subtractions from reasoning-gym: the verifiable task of the embedded model."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from kit.tasks.task import Split, Verified
from kit.types import Prompt

SPLIT_SIZES: dict[Split, int] = {"train": 8192, "validation": 1024, "test": 1024}


@dataclass(frozen=True)
class Arithmetic(Verified):
    """Problems such as `25+39-15=`, answered in `\\boxed{}` and scored by math-verify.

    A problem belongs to a split by the hash of its text, so the splits are disjoint whatever the seed or the size.

    Attributes:
        terms: how many numbers a chain has, at least 2.
        digits: digits of each number, at least 1.
        seed: where reasoning-gym's stream of problems starts.
    """

    terms: int = 3
    digits: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.terms < 2 or self.digits < 1:
            raise ValueError(f"expected terms >= 2 and digits >= 1, came terms={self.terms} and digits={self.digits}")

    @property
    def name(self) -> str:
        return "arithmetic"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        return _splits(self)[name]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Pairs (expression without spaces, answer) without end, in reasoning-gym's order; repeats are possible.

        Only those whose running total never falls below zero: rules of signs would be a second skill to learn.
        """
        import reasoning_gym  # 1.5 s to import: only those who draw problems pay

        dataset = reasoning_gym.create_dataset(
            "chain_sum", seed=self.seed, size=1 << 40, min_terms=self.terms, max_terms=self.terms,
            min_digits=self.digits, max_digits=self.digits,
        )  # fmt: skip
        for entry in dataset:
            expression = entry["metadata"]["expression"].replace(" ", "")
            if min(accumulate(int(term) for term in re.findall(r"[+-]?\d+", expression))) >= 0:
                yield expression, entry["answer"]


def split_of(expression: str) -> Split:
    """Eight in ten problems train, one validates, one tests; decided by a hash that never changes."""
    bucket = hashlib.sha256(expression.encode()).digest()[0] % 10
    return "validation" if bucket == 8 else "test" if bucket == 9 else "train"


@cache
def _splits(task: Arithmetic) -> dict[Split, tuple[Prompt, ...]]:
    found: dict[Split, dict[str, Prompt]] = {name: {} for name in SPLIT_SIZES}
    at_most, needed = 10 ** (task.terms * task.digits) * 2 ** (task.terms - 1), sum(SPLIT_SIZES.values())
    if at_most < needed:
        raise ValueError(
            f"expected {needed} different problems, but terms={task.terms} and digits={task.digits} give fewer than "
            f"{at_most}: raise one of them"
        )
    for expression, answer in task.problems():
        if all(len(found[name]) == size for name, size in SPLIT_SIZES.items()):
            break
        name = split_of(expression)
        if len(found[name]) < SPLIT_SIZES[name] and expression not in found[name]:
            content = [{"role": "user", "content": f"{expression}="}]
            columns = {"solution": answer, "task": task.name}
            found[name][expression] = Prompt(f"{task.name}/{expression}", content, columns)
    return {name: tuple(prompts.values()) for name, prompts in found.items()}
