"""Several reward functions, one number: calls them as TRL does, checks what comes back, adds up.

Source: TRL 1.16, `GRPOTrainer._calculate_rewards`: functions are called with keywords; every dataset column arrives as
a list, next to `prompts`, `completions`, `completion_ids`; and always the trainer's `trainer_state`, `log_extra` and
`log_metric`. So a function must take what it does not use as `**columns`. A function may be `async def`.
"""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Real
from typing import Any

Rewards = Iterable[float | None]
RewardFunction = Callable[..., Rewards | Awaitable[Rewards]]

DROPPED = {"prompt", "completion", "completion_ids"}  # dataset columns that TRL does not pass on
RESERVED = {"prompts", "completions"}  # arguments made from the rollouts, which a column would shadow


def _ignore(name: str, value: Any) -> None:
    """Stands for TRL's `log_extra` and `log_metric` where nobody listens."""


def score(
    functions: Sequence[RewardFunction],
    weights: Sequence[float],
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    trainer_state: Any = None,
    log_extra: Callable[[str, list[Any]], None] = _ignore,
    log_metric: Callable[[str, float], None] = _ignore,
) -> tuple[list[float | None], dict[str, list[float | None]]]:
    """Weighted sum of the reward functions for every completion, and what each function said.

    Args:
        functions: on TRL's contract; TRL's own work unchanged.
        weights: one a function, finite.
        prompts, completions, completion_ids: one entry a completion.
        columns: the dataset's other columns, one entry a completion.
        trainer_state, log_extra, log_metric: handed to every function, as TRL does.

    Returns:
        Totals over the functions that did not abstain (`None` where all did), and the unweighted rewards by function
        name. A second function of the same name is called `name_2`.

    Raises:
        ValueError: if lengths disagree, or a reward is not finite.
        TypeError: if a reward is not a number.

    >>> def length(completions, **columns): return [len(c) for c in completions]
    >>> score([length], [0.5], prompts=["a"], completions=["four"], completion_ids=[[7]], columns={})
    ([2.0], {'length': [4.0]})
    """
    _check_weights(functions, weights)
    batch = _batch(columns, {"prompts": prompts, "completions": completions, "completion_ids": completion_ids})
    trainer = {"trainer_state": trainer_state, "log_extra": log_extra, "log_metric": log_metric}
    answers = _call(functions, batch | trainer)
    names = _distinct([function_name(function) for function in functions])
    by_function = {name: _checked(name, answer, len(prompts)) for name, answer in zip(names, answers, strict=True)}
    totals = [_total(weights, rewards) for rewards in zip(*by_function.values(), strict=True)]
    return totals, by_function


def function_name(function: RewardFunction) -> str:
    """The name under which metrics report `function`: its `__name__`, or the name of its class (as TRL does).

    >>> function_name(abs), function_name(partial(abs))
    ('abs', 'abs')
    """
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _call(functions: Sequence[RewardFunction], arguments: dict[str, Any]) -> list[Any]:
    """What every function returns; those that are `async` run together, in a thread of their own.

    (A notebook's main thread already runs an event loop, in which another cannot be started.)
    """
    answers: list[Any] = [None if _is_async(function) else function(**arguments) for function in functions]
    waiting = [index for index, function in enumerate(functions) if _is_async(function)]

    async def gather() -> list[Any]:
        pending: list[Any] = [functions[index](**arguments) for index in waiting]
        return await asyncio.gather(*pending)

    if waiting:
        with ThreadPoolExecutor(1) as executor:
            late = executor.submit(lambda: asyncio.run(gather())).result()
        for index, answer in zip(waiting, late, strict=True):
            answers[index] = answer
    return answers


def _is_async(function: RewardFunction) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _total(weights: Sequence[float], rewards: Sequence[float | None]) -> float | None:
    """Weighted sum over those that did not abstain.

    >>> _total([1.0, 0.5], [2.0, 2.0]), _total([1.0, 0.5], [None, 2.0]), _total([1.0, 0.5], [None, None])
    (3.0, 1.0, None)
    """
    terms = [weight * reward for weight, reward in zip(weights, rewards, strict=True) if reward is not None]
    return sum(terms) if terms else None


def _checked(name: str, answer: Any, count: int) -> list[float | None]:
    """`answer` as floats, if it is what the contract asks for."""
    if not isinstance(answer, Iterable) or isinstance(answer, str | Mapping):
        raise TypeError(f"expected {name} to return a list of {count} rewards, got {type(answer).__name__}")
    rewards = list(answer)
    if len(rewards) != count:
        raise ValueError(f"expected {name} to return {count} rewards, one a completion, got {len(rewards)}")
    for index, reward in enumerate(rewards):
        if reward is not None and not isinstance(reward, Real):
            raise TypeError(
                f"expected {name} to return numbers or None, got {type(reward).__name__} at index {index}: "
                "return a list of floats (a tensor has .tolist())"
            )
        if reward is not None and not math.isfinite(reward):
            raise ValueError(
                f"expected {name} to return finite rewards, got {reward} at index {index}: return None to abstain"
            )
    return [None if reward is None else float(reward) for reward in rewards]


def _check_weights(functions: Sequence[Any], weights: Sequence[float]) -> None:
    if not functions or len(weights) != len(functions) or not all(map(math.isfinite, weights)):
        raise ValueError(
            f"expected at least one reward function, and a finite weight for each, got {len(functions)} functions and "
            f"weights {list(weights)}"
        )


def _batch(columns: Mapping[str, Sequence[Any]], rollouts: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The dataset's columns and the rollouts' as lists of one length.

    >>> _batch({"prompt": "p", "task": "m"}, {"prompts": ["p"], "completions": ["c"], "completion_ids": [(1, 2)]})
    {'task': ['m'], 'prompts': ['p'], 'completions': ['c'], 'completion_ids': [(1, 2)]}
    """
    if RESERVED & columns.keys():
        raise ValueError(f"expected no column called {' or '.join(sorted(RESERVED))}, got {list(columns)}: rename it")
    batch = {name: values for name, values in columns.items() if name not in DROPPED} | rollouts
    count = len(rollouts["prompts"])
    for name, values in batch.items():
        if len(values) != count:
            raise ValueError(f"expected {count} entries in {name!r}, one a completion, got {len(values)}")
    return {name: list(values) for name, values in batch.items()}


def _distinct(names: list[str]) -> list[str]:
    """`names`, with a number after those that were taken.

    >>> _distinct(["a", "b", "a", "a_2", "a"])
    ['a', 'b', 'a_2', 'a_2_2', 'a_3']
    """
    taken: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.append(candidate)
    return taken
