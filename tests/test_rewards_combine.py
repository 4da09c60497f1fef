"""Combining reward functions: called as TRL calls them, checked, and added up."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from trl.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)

from kit.rewards import REWARDS, MathReward, boxed_format_reward, score, soft_overlong_punishment


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


BATCH: dict[str, Any] = {
    "prompts": ["p0", "p1", "p2"],
    "completions": ["a", "bb", "ccc"],
    "completion_ids": [[1], [2, 2], [3, 3, 3]],
    "columns": {"solution": ["x", "y", None], "task": ["math", "math", "chat"]},
}


def returns(*rewards: Any) -> Callable[..., Any]:
    """A reward function that says the same about every batch of the right size."""

    def constant(**columns: Any) -> Any:
        return list(rewards)

    return constant


def test_functions_are_called_with_the_keywords_of_trl() -> None:
    seen: dict[str, Any] = {}

    def spy(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [0.0, 0.0, 0.0]

    columns = {**BATCH["columns"], "prompt": ["p0", "p1", "p2"], "completion_ids": [[9]] * 3, "level": (1, 2, 3)}
    state = object()
    score([spy], [1.0], **{**BATCH, "columns": columns}, trainer_state=state)
    log_extra, log_metric = seen.pop("log_extra"), seen.pop("log_metric")
    assert seen == {  # `prompt` is dropped, `completion_ids` are those of the rollouts, tuples become lists
        "prompts": ["p0", "p1", "p2"],
        "completions": ["a", "bb", "ccc"],
        "completion_ids": [[1], [2, 2], [3, 3, 3]],
        "solution": ["x", "y", None],
        "task": ["math", "math", "chat"],
        "level": [1, 2, 3],
        "trainer_state": state,
    }
    assert isinstance(seen["level"], list)
    assert log_extra("shown", ["a", "b", "c"]) is None and log_metric("loss", 1.0) is None  # nobody listens


@pytest.mark.parametrize(
    ("rewards", "weights", "totals"),
    [
        ([(1.0, 2.0, 3.0)], [1.0], [1.0, 2.0, 3.0]),
        ([(1, True, np.float32(0.5))], [2.0], [2.0, 2.0, 1.0]),  # any real number
        ([(1.0, 0.0, 0.0), (0.0, 1.0, 1.0)], [1.0, 0.5], [1.0, 0.5, 0.5]),
        ([(1.0, None, None), (2.0, 2.0, None)], [1.0, 0.5], [2.0, 1.0, None]),  # abstentions are left out, not 0
        ([(1.0, 1.0, 1.0)], [0.0], [0.0, 0.0, 0.0]),  # a function that is only watched
        ([(1.0, -1.0, 0.0)], [-1.0], [-1.0, 1.0, 0.0]),  # a penalty
    ],
)
def test_total_is_the_weighted_sum_of_those_who_judge(rewards: Any, weights: list[float], totals: Any) -> None:
    got, by_function = score([returns(*row) for row in rewards], weights, **BATCH)
    assert got == totals
    assert list(by_function.values()) == [list(row) for row in rewards]  # unweighted


def test_names_are_those_of_trl_and_never_collide() -> None:
    functions = [returns(0, 0, 0), partial(returns(1, 1, 1)), soft_overlong_punishment(2, 1), returns(2, 2, 2)]
    _, by_function = score(functions, [1.0] * 4, **BATCH)
    assert list(by_function) == ["constant", "constant_2", "soft_overlong_punishment", "constant_3"]
    assert by_function["constant_3"] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((1.0, 2.0), ValueError, "'constant' to return 3 rewards, one a completion, got 2"),
        ((1.0, float("nan"), 0.0), ValueError, "constant.* got nan at index 1: return None to abstain"),
        ((1.0, 0.0, float("-inf")), ValueError, "constant.* got -inf at index 2"),
        ((1.0, "0", 0.0), TypeError, "constant.* got str at index 1"),
        (tuple(torch.ones(3)), TypeError, r"constant.* got Tensor at index 0.*\.tolist\(\)"),
    ],
)
def test_wrong_answer_is_an_error_that_names_the_function_and_the_row(
    answer: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score([returns(0.0, 0.0, 0.0), returns(*answer)][1:], [1.0], **BATCH)


@pytest.mark.parametrize("answer", [None, 1.0, "111", {"a": 1.0}])
def test_answer_that_is_no_list_is_an_error(answer: Any) -> None:
    def forgetful(**columns: Any) -> Any:
        return answer

    with pytest.raises(TypeError, match=f"'forgetful' to return a list of 3 rewards, got {type(answer).__name__}"):
        score([forgetful], [1.0], **BATCH)


@pytest.mark.parametrize(
    ("functions", "weights", "change", "message"),
    [
        (0, [], {}, "at least one reward function"),
        (1, [1.0, 1.0], {}, "got 1 functions"),
        (1, [float("nan")], {}, "finite weight"),
        (1, [1.0], {"completions": ["a"]}, "3 entries in 'completions', one a completion, got 1"),
        (1, [1.0], {"completion_ids": [[1]]}, "3 entries in 'completion_ids'"),
        (1, [1.0], {"columns": {"solution": ["x"]}}, "3 entries in 'solution'"),
        (1, [1.0], {"columns": {"completions": ["x"] * 3}}, "no column called .*completions"),
    ],
)
def test_wrong_batch_is_refused(functions: int, weights: list[float], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score([returns(0.0, 0.0, 0.0)] * functions, weights, **{**BATCH, **change})


def test_error_of_a_function_is_not_hidden() -> None:
    def broken(**columns: Any) -> list[float]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        score([broken], [1.0], **BATCH)


def test_async_functions_run_together_also_inside_of_a_running_loop() -> None:
    barrier: list[asyncio.Event] = []

    async def first(**columns: Any) -> list[float]:
        barrier.append(asyncio.Event())
        await asyncio.wait_for(barrier[0].wait(), timeout=20)  # ends only if `second` runs meanwhile
        return [1.0, 1.0, 1.0]

    class Second:
        async def __call__(self, **columns: Any) -> list[float | None]:
            while not barrier:
                await asyncio.sleep(0)
            barrier[0].set()
            return [2.0, None, 2.0]

    async def notebook_cell() -> Any:
        return score([first, returns(4, 4, 4), Second()], [1.0, 1.0, 1.0], **BATCH)

    totals, by_function = asyncio.run(notebook_cell())
    assert totals == [7.0, 5.0, 7.0]
    assert list(by_function) == ["first", "constant", "Second"]


def test_an_error_of_an_async_function_names_it_and_cancels_the_others() -> None:
    cancelled = threading.Event()

    async def patient(**columns: Any) -> list[float]:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    async def broken(**columns: Any) -> list[float]:
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        score([patient, broken], [1.0, 1.0], **BATCH)
    assert caught.value.__notes__ == [
        "This came from the reward function 'broken': mend it there. For a completion that it cannot judge it may "
        "return None."
    ]
    assert cancelled.wait(20)


def test_an_interrupt_ends_the_wait_for_an_async_function_and_cancels_it() -> None:
    waits, cancelled = threading.Event(), threading.Event()

    async def patient(**columns: Any) -> list[float]:
        waits.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    def interrupt() -> None:
        waits.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        score([patient], [1.0], **BATCH)
    interrupter.join()
    assert cancelled.wait(20)


def test_a_total_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"finite total, got inf from rewards .* and weights \[10.0\]"):
        score([returns(0.0, 1e308, 0.0)], [10.0], **BATCH)


def test_rewards_of_trl_work_unchanged() -> None:
    functions = [
        accuracy_reward,
        think_format_reward,
        get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2),
        get_repetition_penalty_reward(ngram_size=1),
        get_cosine_scaled_reward(max_len=4),
    ]
    right, wrong = chat(r"<think>half</think> $\boxed{\frac{1}{2}}$"), chat(r"$\boxed{\frac{1}{3}}$")
    totals, by_function = score(
        functions,
        [1.0, 1.0, 1.0, 1.0, 0.0],
        prompts=[chat("1/2?")] * 2,
        completions=[right, wrong],
        completion_ids=[[1, 2, 3], [5, 5]],
        columns={"solution": [r"$\frac{1}{2}$"] * 2, "task": ["math"] * 2},
    )
    assert by_function["accuracy_reward"] == [1.0, 0.0]
    assert by_function["think_format_reward"] == [1.0, 0.0]
    assert by_function["soft_overlong_punishment_reward"] == [-0.5, 0.0]  # (2 - 3) / 2
    assert by_function["repetition_penalty_reward"] == [0.0, -0.5]  # one of two tokens is a repeat
    assert totals == [1.5, -0.5]


def test_our_rewards_combine_and_route_by_row(caplog: pytest.LogCaptureFixture) -> None:
    def chat_length(completions: Any, task: list[str], **columns: Any) -> list[float | None]:
        return [len(text) / 10 if name == "chat" else None for text, name in zip(completions, task, strict=True)]

    math, boxed, overlong = REWARDS["math"](), REWARDS["boxed_format"](), REWARDS["soft_overlong"](3, 2)
    totals, by_function = score(
        [math, boxed, overlong, chat_length],
        [1.0, 0.5, 1.0, 1.0],
        prompts=["3+4=", "3+4=", "hello"],
        completions=[r"\boxed{7}", r"\boxed{8}.", "good day"],
        completion_ids=[[1], [1, 2], [1]],
        columns={"solution": ["7", "7", None], "task": ["math", "math", "chat"]},
    )
    assert by_function["math_reward"] == [1.0, 0.0, None]
    assert totals == [1.5, 0.0, 0.8]  # 0 + 0.5 - 0.5; chat: no math, no box, 8 letters
    assert isinstance(math, MathReward) and boxed is boxed_format_reward
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
