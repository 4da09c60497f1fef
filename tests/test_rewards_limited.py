"""A time-limited reward function: what hangs or crashes abstains and is counted, what raises is an error by name."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kit.rewards import MathReward, TimeLimited, score
from tests.conftest import TinyTask, untimed

MODULE = r'''
import os, signal, time

def judge(completions, level=None, **columns):
    """The number of letters, unless the text says what to do."""
    (text,) = completions
    if text == "hang":
        while True:
            pass
    if text == "sleep":
        time.sleep(600)
    if text == "exit":
        os._exit(0)
    if text == "allocate":
        bytearray(1 << 40)
    if text == "raise":
        raise KeyError("mine")
    if text == "abstain":
        return [None]
    if text == "seen":
        prompts, ids, state = (columns[name] for name in ("prompts", "completion_ids", "trainer_state"))
        return [len(prompts[0]) + 10 * len(ids[0]) + 100 * (state is None)]
    return [float("nan") if text == "nan" else len(text) if level is None else level[0]]

def parity(completion_ids, **columns):
    """Hangs for one completion in eleven, or so."""
    (ids,) = completion_ids
    if sum(ids) % 11 == 0:
        time.sleep(600)
    return [float(ids[0] % 2 == 0)]

async def later(completions, **columns):
    return [1.0]

class Held:
    def method(self, completions, **columns):
        return [1.0]
'''


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A user's file of reward functions, on the import path."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "my_rewards.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield import_module("my_rewards")


@pytest.fixture
def limited(functions: Any) -> Iterator[TimeLimited]:
    reward = TimeLimited(functions.judge, timeout_s=1.0)
    yield reward
    reward.close()


def test_what_hangs_or_crashes_abstains_alone_and_is_counted(limited: TimeLimited) -> None:
    started = time.monotonic()
    texts = ["four", "hang", "a", "exit", "", "sleep", "abstain"]
    assert limited(completions=texts) == [4.0, None, 1.0, None, 0.0, None, None]
    assert limited.metrics() == {"timeouts": 2, "crashes": 1, "errors": 0}
    assert limited(completions=["allocate", "ab"]) == [None, 2.0]
    assert limited.metrics()["crashes"] == 2
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "said"), [("raise", "KeyError: 'mine'"), ("nan", "'judge' to return finite rewards, got nan")]
)
def test_what_it_raises_or_returns_against_the_contract_is_an_error(limited: TimeLimited, text: str, said: str) -> None:
    with pytest.raises(RuntimeError, match=rf"'judge' failed in its process: .*{said}"):
        limited(completions=["ok", text])
    assert limited(completions=["ok"]) == [2.0]


def test_it_is_called_as_any_reward_function_and_reported_by_its_name(limited: TimeLimited) -> None:
    batch: dict[str, Any] = {"prompts": ["p", "q"], "completion_ids": [[1, 2], [3]], "columns": {"level": [5, None]}}
    totals, by_function = score([limited], [2.0], completions=["ab", "cde"], trainer_state=object(), **batch)
    assert totals == [10.0, None] and by_function == {"judge": [5.0, None]}  # the column's own entry
    assert limited(completions=["seen"], prompts=["abc"], completion_ids=[[7, 8]]) == [123.0]
    assert limited(completions=[]) == []


def test_async_functions_are_awaited(functions: Any) -> None:
    reward = TimeLimited(functions.later, timeout_s=5.0, workers=1)
    assert reward(completions=["a"]) == [1.0]
    reward.close()


def test_rows_that_cannot_be_sent_or_do_not_match_are_refused(limited: TimeLimited) -> None:
    with pytest.raises(TypeError, match="'judge' as JSON, got Object of type object"):
        limited(completions=["a"], level=[object()])
    with pytest.raises(ValueError, match="1 entries in 'level', one a completion, got 2"):
        limited(completions=["a"], level=[1, 2])


@pytest.mark.parametrize("name", ["a lambda", "of a cell", "a method", "a partial", "an object"])
def test_a_function_that_no_new_process_can_import_is_refused(functions: Any, name: str) -> None:
    def local(**columns: Any) -> list[float]:
        return []

    local.__module__ = "__main__"
    function: Any = {
        "a lambda": lambda **columns: [],
        "of a cell": local,
        "a method": functions.Held().method,
        "a partial": partial(functions.judge, level=[1]),
        "an object": MathReward(),
    }[name]
    with pytest.raises(ValueError, match=r"can import by name, got .*write it at the top level of a file"):
        TimeLimited(function, timeout_s=1.0)


def test_a_run_goes_on_where_the_function_hangs(start: Callable[..., Any], functions: Any, tmp_path: Path) -> None:
    reward = TimeLimited(functions.parity, timeout_s=0.2)
    sizes: dict[str, Any] = {"max_steps": 1, "eval_prompts": 2, "eval_samples": 1}
    start(tmp_path, task=TinyTask(reward=reward), **sizes).finish()
    lost = reward.metrics()["timeouts"]
    assert 0 < lost < 20 and '"rewards/unjudged"' in untimed(tmp_path)[0]
    assert reward.metrics() == {"timeouts": lost, "crashes": 0, "errors": 0}
    reward.close()
