"""Prompts: right answers, disjoint splits, the same in every process, and in an order that (seed, step) decide."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from kit.tasks import TASKS, Arithmetic
from kit.tasks.arithmetic import split_of
from kit.tasks.task import Split, prompts_at
from kit.types import Prompt

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PROMPTS = tuple(Prompt(f"p{i}", str(i), {}) for i in range(12))


def content(prompt: Prompt) -> str:
    assert isinstance(prompt.content, list)
    return prompt.content[0]["content"]


def value(expression: str) -> int:
    """Left to right over `25+39-15=`: the arithmetic in plain integers."""
    numbers, signs = re.split(r"[+-]", expression.removesuffix("=")), re.findall(r"[+-]", expression)
    total = int(numbers[0])
    for sign, number in zip(signs, numbers[1:], strict=True):
        total = total + int(number) if sign == "+" else total - int(number)
    return total


def test_splits_have_the_promised_sizes() -> None:
    assert [len(Arithmetic().split(name)) for name in SPLITS] == [8192, 1024, 1024]


def test_splits_share_no_problem() -> None:
    texts = [content(prompt) for name in SPLITS for prompt in Arithmetic().split(name)]
    assert len(set(texts)) == len(texts)


def test_splits_stay_disjoint_between_streams_of_problems() -> None:
    trained = {content(prompt) for prompt in Arithmetic(seed=7, terms=2).split("train")}
    held_out = {content(prompt) for name in SPLITS[1:] for prompt in Arithmetic(terms=2).split(name)}
    assert trained and held_out
    assert not trained & held_out


@pytest.mark.parametrize("name", SPLITS)
def test_solutions_are_the_value_of_the_expression(name: Split) -> None:
    for prompt in Arithmetic().split(name):
        assert int(prompt.columns["solution"]) == value(content(prompt))


def test_problems_look_as_described() -> None:
    for prompt in Arithmetic().split("validation"):
        assert re.fullmatch(r"[1-9]\d([+-][1-9]\d){2}=", content(prompt))
        assert prompt.id == f"arithmetic/{content(prompt).removesuffix('=')}"
        assert prompt.columns["task"] == "arithmetic"


def test_a_running_total_never_falls_below_zero() -> None:
    for prompt in Arithmetic().split("train"):
        terms = re.findall(r"[+-]?\d+", content(prompt))
        assert all(value("".join(terms[:count])) >= 0 for count in range(1, 4))


def test_a_task_with_too_few_problems_for_its_splits_is_refused() -> None:
    def hangs(number: int, frame: object) -> None:
        raise TimeoutError("still searching for problems after 10 s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(10)
    try:
        with pytest.raises(ValueError, match="digits"):  # 81 sums and 45 differences cannot fill 8192 rows
            Arithmetic(terms=2, digits=1).split("train")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("terms", "digits", "named"), [(1, 2, "terms"), (3, 0, "digits"), (-1, 2, "terms")])
def test_a_task_without_a_sum_is_refused(terms: int, digits: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Arithmetic(terms=terms, digits=digits)


def test_terms_and_digits_set_the_shape_of_a_problem() -> None:
    expression, answer = next(Arithmetic(terms=4, digits=3).problems())
    assert re.fullmatch(r"\d{3}([+-]\d{3}){3}", expression)
    assert int(answer) == value(expression)


@pytest.mark.parametrize(
    ("expression", "split"),  # first byte of `printf EXPRESSION | sha256sum`, modulo 10
    [
        ("1+1", "train"),
        ("6+1", "train"),
        ("5+1", "train"),
        ("10+1", "train"),
        ("25+39-15", "validation"),
        ("19+1", "test"),
    ],
)
def test_a_hash_decides_the_split(expression: str, split: Split) -> None:
    # 0x4a = 74, 0xc4 = 196, 0xb5 = 181, 0xa2 = 162: 4, 6, 1, 2. 0x8a = 138: 8. 0xbd = 189: 9.
    assert split_of(expression) == split


def test_splits_are_the_same_in_every_process() -> None:
    program = "from kit.tasks import Arithmetic; print(*[p.id for s in %r for p in Arithmetic().split(s)], sep='\\n')"
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", program % (SPLITS,)], cwd=root, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "3"},
    )  # fmt: skip
    assert found.stdout.split() == [prompt.id for name in SPLITS for prompt in Arithmetic().split(name)]


def test_task_table_makes_the_task_it_names() -> None:
    rewarded = {"wildchat": partial(TASKS["wildchat"], (len,), (1.0,))}  # there is no reward for it by default
    made = {name: make().name for name, make in (TASKS | rewarded).items()}
    assert made == {name: name for name in TASKS}


def test_every_prompt_comes_once_an_epoch() -> None:
    for epoch in range(5):
        seen = [p.id for step in range(3 * epoch, 3 * epoch + 3) for p in prompts_at(PROMPTS, step, 4, seed=0)]
        assert Counter(seen) == Counter(p.id for p in PROMPTS)


def test_epochs_are_shuffled_differently() -> None:
    epochs = [tuple(p.id for step in range(3) for p in prompts_at(PROMPTS, 3 * e + step, 4, seed=0)) for e in range(4)]
    assert len(set(epochs)) == 4


def test_no_prompt_comes_twice_in_an_epoch_that_leaves_a_remainder() -> None:
    for epoch in range(5):
        seen = [p.id for step in (2 * epoch, 2 * epoch + 1) for p in prompts_at(PROMPTS, step, 5, seed=1)]
        assert len(set(seen)) == 10


def test_prompts_depend_on_seed_and_step_alone() -> None:
    forwards = [prompts_at(PROMPTS, step, 4, seed=3) for step in range(9)]
    torch.manual_seed(99)
    backwards = [prompts_at(PROMPTS, step, 4, seed=3) for step in reversed(range(9))]
    assert forwards == backwards[::-1]


def test_seeds_give_different_prompts() -> None:
    orders = {tuple(p.id for p in prompts_at(PROMPTS, 0, 12, seed=seed)) for seed in range(10)}
    assert len(orders) == 10


@pytest.mark.parametrize("count", [0, -1, 13])
def test_a_step_larger_than_the_split_is_refused(count: int) -> None:
    with pytest.raises(
        ValueError, match=rf"takes {count} distinct prompts, but the split has 12: lower prompts_per_step"
    ):
        prompts_at(PROMPTS, 0, count, seed=0)
