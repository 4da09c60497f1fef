"""A reward function that misbehaves in the middle of a run: a named error, whole records, and a way to go on.

Run as a program, this file trains with reward functions that hang, one child a function.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kit.models.reward_model import RewardModel
from kit.runlog import RunDirectoryError
from tests.conftest import TinyTask, tiny_run, untimed
from tests.test_resume import ENVIRONMENT, ROOT
from tests.test_reward_model import change_weights, save
from tests.test_rewards_pool import is_running

STEP = 3  # where the functions misbehave
SIZES: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "eval_steps": 4}  # no evaluation and no checkpoint at STEP
Start = Callable[..., Any]
Reward = Callable[..., Any]


def fair(completion_ids: list[list[int]]) -> list[float | None]:
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


class Misbehaving:
    """A reward function that does `what` in step 3 of the run that is given to it later."""

    __name__ = "judge"

    def __init__(self, what: Reward) -> None:
        self.what, self.run = what, None

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> Any:
        is_time = self.run is not None and self.run.step == STEP
        return self.what(completion_ids=completion_ids, **columns) if is_time else fair(completion_ids)


def judge(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """The repaired function. A run knows its functions by name."""
    return fair(completion_ids)


def raises(error: Exception) -> Reward:
    def function(**columns: Any) -> Any:
        raise error

    return function


def breaks_off(**columns: Any) -> Iterator[float]:
    yield 1.0
    raise ZeroDivisionError("after the first")


# What it does -> error, and what the error or its notes say besides the function's name.
FAULTS: dict[str, tuple[Reward, type[Exception], str]] = {
    "one too few": (
        lambda completion_ids, **_: fair(completion_ids)[1:], ValueError, "16 rewards, one a completion, got 15: return"
    ),
    "one too many": (lambda completion_ids, **_: [*fair(completion_ids), 0.0], ValueError, "16 rewards.*got 17"),
    "not a number": (
        lambda completion_ids, **_: [*fair(completion_ids)[1:], float("nan")], ValueError, "nan at index 15: return"
    ),
    "infinite": (lambda completion_ids, **_: [float("inf") for _ in completion_ids], ValueError, "inf at index 0"),
    "beyond a float": (  # 2 ** length, say; its digits are not for a message
        lambda completion_ids, **_: [10**5000 for _ in completion_ids], ValueError, "inf at index 0: return None"
    ),
    "strings": (
        lambda completion_ids, **_: ["1" for _ in completion_ids], TypeError, "str at index 0: return a list of floats"
    ),
    "one string": (lambda completion_ids, **_: "1" * len(completion_ids), TypeError, "list of 16 rewards, got str: "),
    "bytes": (lambda completion_ids, **_: b"1" * len(completion_ids), TypeError, "list of 16 rewards, got bytes: "),
    "a set, which has no order": (
        lambda completion_ids, **_: set(range(len(completion_ids))), TypeError, "list of 16 rewards, got set: "
    ),
    "nothing": (lambda **_: None, TypeError, "list of 16 rewards, got NoneType"),
    "its own error": (raises(KeyError("level")), KeyError, "'level'.*mend it there.*may return None"),
    "a system's error": (raises(TimeoutError("the judge's server")), TimeoutError, "the judge's server.*mend it"),
    "an error while it yields": (breaks_off, ZeroDivisionError, "after the first.*mend it there"),
}  # fmt: skip


@pytest.fixture(scope="module")
def straight(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The metrics of a run whose function always behaves."""
    out_dir = tmp_path_factory.mktemp("straight") / "run"
    tiny_run(tiny_folder, out_dir, task=TinyTask(reward=judge), **SIZES).finish()
    return untimed(out_dir)


def words_of(error: BaseException) -> str:
    """What a traceback shows of an error: the message, and its notes."""
    return " ".join([str(error), *getattr(error, "__notes__", [])])


def assert_records_are_whole(out_dir: Path, straight: list[str], state: str = "failed") -> None:
    """Everything up to the step that failed, and that step's number."""
    assert untimed(out_dir) == straight[:STEP]
    status = json.loads((out_dir / "status.json").read_text())
    assert (status["step"], status["state"]) == (STEP, state)
    for step in range(STEP):
        assert pq.read_table(out_dir / "rollouts" / f"step_{step:06d}.parquet").num_rows == 16
    assert {path.name for path in (out_dir / "checkpoints").iterdir()} == {"step_000002"}
    assert all(json.loads(line) for line in (out_dir / "receipts.jsonl").read_text().splitlines())
    assert not list(out_dir.rglob("*.partial"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_reward_stops_the_run_by_name_and_the_repaired_one_goes_on(
    start: Start, tmp_path: Path, straight: list[str], fault: str
) -> None:
    what, error, said = FAULTS[fault]
    misbehaving = Misbehaving(what)
    run = misbehaving.run = start(tmp_path, task=TinyTask(reward=misbehaving), **SIZES)
    with pytest.raises(error) as caught:
        run.finish()
    words = words_of(caught.value)
    assert "'judge'" in words and re.search(said, words), words
    assert f"At step {STEP} of {tmp_path}" in words and "make the run again" in words
    assert len(words.replace(str(tmp_path), "")) < 800
    assert_records_are_whole(tmp_path, straight)
    repaired = start(tmp_path, task=TinyTask(reward=judge), **SIZES)
    assert repaired.step == 2
    repaired.finish()
    assert untimed(tmp_path) == straight


@pytest.mark.parametrize("judged", [0, 5])
def test_abstentions_are_counted_and_the_run_goes_on(start: Start, tmp_path: Path, judged: int) -> None:
    misbehaving = Misbehaving(lambda completion_ids, **_: [1.0] * judged + [None] * (16 - judged))
    run = misbehaving.run = start(tmp_path, task=TinyTask(reward=misbehaving), **SIZES)
    run.finish()
    records = [json.loads(line) for line in untimed(tmp_path)]
    assert [record.get("rewards/unjudged") for record in records] == [0, 0, 0, 16 - judged, 0, 0, None]
    assert ("reward" in records[STEP]) == bool(judged)  # the mean of nothing is no number
    assert records[STEP]["groups/used"] == 0  # all equal, or not judged: nothing to learn from
    column = pq.read_table(tmp_path / "rollouts" / f"step_{STEP:06d}.parquet")["reward"].to_pylist()
    assert column == [1.0] * judged + [None] * (16 - judged)


def test_a_missing_column_is_named_before_the_first_step(start: Start, tmp_path: Path, straight: list[str]) -> None:
    def judge(completion_ids: list[list[int]], level: list[int], **columns: Any) -> list[float | None]:
        return fair(completion_ids)

    with pytest.raises(TypeError, match=r"'judge' to take the columns solution, task, .*'level': give every prompt"):
        start(tmp_path, task=TinyTask(reward=judge), **SIZES).finish()
    assert not (tmp_path / "metrics.jsonl").exists() and (tmp_path / "config.json").exists()
    start(tmp_path, task=TinyTask(reward=globals()["judge"]), **SIZES).finish()
    assert untimed(tmp_path) == straight


def test_a_function_that_takes_no_more_than_it_uses_is_told_how(start: Start, tmp_path: Path) -> None:
    def judge(completion_ids: list[list[int]]) -> list[float | None]:
        return fair(completion_ids)

    with pytest.raises(TypeError, match=r"'judge' to take .*unexpected keyword argument.*does not use as \*\*columns"):
        start(tmp_path, task=TinyTask(reward=judge), **SIZES).finish()


@pytest.mark.parametrize("weights", ["of a wrong template", "not finite"])
def test_a_reward_model_that_cannot_score_stops_the_run_and_the_repaired_one_goes_on(
    start: Start, tmp_path: Path, weights: str
) -> None:
    from kit.objectives import DPO
    from kit.pairing import best_worst

    folder, graded = save(tmp_path / "model"), SIZES | {"objective": DPO(pairing=best_worst)}
    good = RewardModel(str(folder), name="judge")
    if weights == "not finite":
        change_weights(folder, lambda found: found["score.weight"].fill_(float("nan")))
    bad = RewardModel(str(folder), name="judge")
    if weights == "of a wrong template":
        bad.tokenizer.chat_template = "a template that says the same of everything"
    with pytest.raises(ValueError, match=r"expected (finite scores from judge|the chat template of judge)"):
        start(tmp_path / "run", task=TinyTask(reward=bad), **graded).finish()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # the first evaluation comes before the first step
    repaired = tmp_path / "run"
    if weights == "not finite":  # other weights are another run
        with pytest.raises(RunDirectoryError, match=r"model_digest.*choose another out_dir"):
            start(repaired, task=TinyTask(reward=good), **graded)
        repaired = tmp_path / "another"
    start(repaired, task=TinyTask(reward=good), **graded).finish()
    assert len(untimed(repaired)) == SIZES["max_steps"] + 1


def hangs_in_a_loop(**columns: Any) -> None:
    while True:
        pass


def hangs_in_the_system(**columns: Any) -> None:
    time.sleep(600)


async def waits(**columns: Any) -> None:
    await asyncio.sleep(600)


async def blocks(**columns: Any) -> None:
    time.sleep(600)


HANGING: dict[str, Reward] = {f.__name__: f for f in (hangs_in_a_loop, hangs_in_the_system, waits, blocks)}


class Hanging(Misbehaving):
    """Leaves a mark before it hangs."""

    def __init__(self, what: Reward, mark: Path) -> None:
        super().__init__(what)
        self.mark = mark

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> Any:
        if self.run is None or self.run.step != STEP:
            return fair(completion_ids)
        self.mark.write_text("hangs")
        return self.what(completion_ids=completion_ids, **columns)


class HangingAsync(Hanging):
    async def __call__(self, completion_ids: list[list[int]], **columns: Any) -> Any:
        answer = super().__call__(completion_ids, **columns)
        return await answer if asyncio.iscoroutine(answer) else answer


def train_until_it_hangs(folder: Path, root: Path, how: str) -> None:
    what = HANGING[how]
    hanging = (HangingAsync if asyncio.iscoroutinefunction(what) else Hanging)(what, root / f"{how}.mark")
    hanging.run = tiny_run(folder, root / how, task=TinyTask(reward=hanging), **SIZES)
    hanging.run.finish()


def test_ctrl_c_twice_ends_a_run_whose_reward_hangs(
    start: Start, tiny_folder: Path, tmp_path: Path, straight: list[str]
) -> None:
    from kit.interrupt import PATIENCE_S

    process = subprocess.Popen(
        [sys.executable, "-m", "tests.test_bad_rewards", str(tiny_folder), str(tmp_path)], cwd=ROOT,
        env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    pids: dict[str, int] = json.loads(process.stdout.readline())
    while process.poll() is None and len(list(tmp_path.glob("*.mark"))) < len(HANGING):
        time.sleep(0.02)
    for pid in pids.values():
        os.kill(pid, signal.SIGINT)
    time.sleep(PATIENCE_S + 0.3)
    assert all(is_running(pid) for pid in pids.values())  # the first one waits for the end of the step
    for pid in pids.values():
        os.kill(pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    codes = json.loads(output)
    assert codes.keys() == HANGING.keys() and 0 not in codes.values(), errors[-2000:]
    for how in HANGING:
        told = (tmp_path / f"{how}.stderr").read_text()
        assert told.count("Once more stops now") == 1 and told.rstrip().endswith("\nKeyboardInterrupt"), told[-2000:]
        assert_records_are_whole(tmp_path / how, straight, "interrupted")
    start(tmp_path / "blocks", task=TinyTask(reward=judge), **SIZES).finish()
    assert untimed(tmp_path / "blocks") == straight


def main(folder: str, root: str) -> None:
    import transformers

    import kit.run  # noqa: F401 - here, so that no child has to

    transformers.utils.logging.disable_progress_bar()
    pids: dict[str, int] = {}
    for how in HANGING:
        pids[how] = os.fork()
        if not pids[how]:
            os.dup2(os.open(Path(root) / f"{how}.stderr", os.O_WRONLY | os.O_CREAT), 2)  # not mixed with the others'
            return train_until_it_hangs(Path(folder), Path(root), how)
    print(json.dumps(pids), flush=True)
    print(json.dumps({how: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for how, pid in pids.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
