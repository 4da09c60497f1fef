"""Several reward functions, one number: calls them as TRL does, checks what comes back, adds up.

Source: TRL 1.16, `GRPOTrainer._calculate_rewards`: functions are called with keywords; every dataset column arrives as
a list, next to `prompts`, `completions`, `completion_ids`; and always the trainer's `trainer_state`, `log_extra` and
`log_metric`. So a function must take what it does not use as `**columns`. A function may be `async def`.
"""

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import Any

Rewards = Iterable[float | None]
RewardFunction = Callable[..., Rewards | Awaitable[Rewards]]

DROPPED = {"prompt", "completion", "completion_ids"}  # dataset columns that TRL does not pass on
RESERVED = {"prompts", "completions"}  # arguments made from the rollouts, which a column would shadow


def ignore(name: str, value: Any) -> None:
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
    log_extra: Callable[[str, list[Any]], None] = ignore,
    log_metric: Callable[[str, float], None] = ignore,
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
        ValueError: if lengths disagree, or a reward or total is not finite.
        TypeError: if a reward is not a number, or a function does not take the columns that there are.
        Exception: what a function raises, with a note that names the function.

    >>> def length(completions, **columns): return [len(c) for c in completions]
    >>> score([length], [0.5], prompts=["a"], completions=["four"], completion_ids=[[7]], columns={})
    ([2.0], {'length': [4.0]})
    """
    _check_weights(functions, weights)
    batch = _batch(columns, {"prompts": prompts, "completions": completions, "completion_ids": completion_ids})
    trainer = {"trainer_state": trainer_state, "log_extra": log_extra, "log_metric": log_metric}
    names = _distinct([function_name(function) for function in functions])
    answers = _call(dict(zip(names, functions, strict=True)), batch | trainer)
    by_function = {name: _checked(name, answer, len(prompts)) for name, answer in answers.items()}
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


def _call(functions: Mapping[str, RewardFunction], arguments: dict[str, Any]) -> dict[str, Any]:
    """What every function returns, by name; those that are `async` run together."""
    for name, function in functions.items():
        _check_takes(name, function, arguments)
    late = {name: function for name, function in functions.items() if _is_async(function)}
    answers: dict[str, Any] = {}
    for name, function in functions.items():
        if name not in late:
            with _naming(name):
                answers[name] = function(**arguments)
    if late:
        answers |= _gather(late, arguments)
    return {name: answers[name] for name in functions}


def _gather(functions: Mapping[str, RewardFunction], arguments: dict[str, Any]) -> dict[str, Any]:
    """What `async` functions return, run together in a thread of their own; an interrupt cancels those that wait.

    (A notebook's main thread already runs an event loop, in which another cannot be started. The thread is a daemon: a
    function that never comes back must not keep the process from ending.)
    """

    async def answer(name: str, function: RewardFunction) -> Any:
        with _naming(name):
            pending: Any = function(**arguments)
            return await pending

    async def together() -> list[Any]:
        return await asyncio.gather(*[answer(*item) for item in functions.items()])

    started: Future[asyncio.AbstractEventLoop] = Future()
    threading.Thread(target=_run_loop, args=(started,), daemon=True).start()
    loop = started.result()
    try:  # from here on, since an interrupt may come as soon as the functions have begun
        pending = asyncio.run_coroutine_threadsafe(together(), loop)
        return dict(zip(functions, pending.result(), strict=True))
    finally:
        loop.call_soon_threadsafe(loop.stop)


def _run_loop(started: Future[asyncio.AbstractEventLoop]) -> None:
    """Run a new event loop until it is stopped; what still waits then is cancelled."""
    with asyncio.Runner() as runner:
        started.set_result(runner.get_loop())
        runner.get_loop().run_forever()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """To whatever is raised inside, add which reward function raised it."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"This came from the reward function {name!r}: mend it there. For a completion that it cannot judge it may "
            "return None."
        )
        raise


def _check_takes(name: str, function: RewardFunction, arguments: Mapping[str, Any]) -> None:
    """Raise TypeError unless `function` can be called with these keywords."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some that are written in C
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TypeError(
            f"expected the reward function {name!r} to take the columns {', '.join(arguments)}, but {error}: give "
            "every prompt the column that is missing, and let the function take what it does not use as **columns"
        ) from error


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
    total = sum(terms) if terms else None
    if total is not None and not math.isfinite(total):
        raise ValueError(
            f"expected a finite total, got {total} from rewards {list(rewards)} and weights {list(weights)}: scale down"
        )
    return total


def _checked(name: str, answer: Any, count: int) -> list[float | None]:
    """`answer` as floats, if it is what the contract asks for."""
    if not isinstance(answer, Iterable) or isinstance(answer, str | bytes | Mapping | Set):
        raise TypeError(
            f"expected the reward function {name!r} to return a list of {count} rewards, got {type(answer).__name__}: "
            "return one number or None for each of `completions`, in their order"
        )
    with _naming(name):
        rewards = list(answer)
    if len(rewards) != count:
        raise ValueError(
            f"expected the reward function {name!r} to return {count} rewards, one a completion, got {len(rewards)}: "
            "return None for those that it does not judge"
        )
    return [_reward(name, index, reward) for index, reward in enumerate(rewards)]


def _reward(name: str, index: int, reward: Any) -> float | None:
    """One reward as a float, or `None`."""
    if reward is None:
        return None
    if not isinstance(reward, Real):
        raise TypeError(
            f"expected the reward function {name!r} to return numbers or None, got {type(reward).__name__} at index "
            f"{index}: return a list of floats (a tensor has .tolist())"
        )
    try:
        value = float(reward)
    except OverflowError:  # an integer of more than 308 digits
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(
            f"expected the reward function {name!r} to return finite rewards, got {value} at index {index}: return "
            "None to abstain"
        )
    return value


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
