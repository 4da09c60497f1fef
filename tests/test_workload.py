"""Several tasks in one run: shares, sizes and rewards of each, routed by the column `task`; metrics of each."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kit.objectives import DPO
from kit.pairing import best_worst
from kit.run import Run
from kit.runlog import is_defined, read_jsonl
from kit.sync import Every
from kit.tasks import TASKS, task_or_portions
from kit.tasks.task import Judging, Portion
from tests.conftest import TinyTask, contents, untimed

Start = Callable[..., Run]


def length(completion_ids: Sequence[Sequence[int]], task: Sequence[str], **columns: Any) -> list[float]:
    """Refuses completions of another task's prompts."""
    assert set(task) == {"long"}
    return [float(len(ids)) for ids in completion_ids]


def evenness(completion_ids: Sequence[Sequence[int]], task: Sequence[str], **columns: Any) -> list[float]:
    assert set(task) == {"even"}
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def more_words(completions: Sequence[Any], baseline: Sequence[Any], **columns: Any) -> list[float | None]:
    """Wins against an empty baseline, ties with no other; says nothing of completions without a text."""
    pairs = [(c[0]["content"], b[0]["content"]) for c, b in zip(completions, baseline, strict=True)]
    return [None if not text else 0.5 if other else 1.0 for text, other in pairs]


BASELINE = {f"long/validation/{number}": ("", "x") for number in range(6)}
EVEN = TinyTask(reward=evenness, name="even")
LONG = TinyTask(reward=length, name="long", judging=Judging(more_words, BASELINE, (length,)))
SHARES = (Portion(EVEN, 3), Portion(LONG, 1, group_size=6, max_completion_length=4))


def mixed(start: Start, out_dir: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {"task": SHARES, "objective": DPO(pairing=best_worst), "sync": Every(2), "max_steps": 4}
    return start(out_dir, **(settings | changes))


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import tiny_run

    out_dir = tmp_path_factory.mktemp("mixed")
    tiny_run(tiny_folder, out_dir, task=SHARES, objective=DPO(pairing=best_worst), sync=Every(2), max_steps=4).finish()
    return out_dir


def test_every_step_takes_each_tasks_share_at_its_own_size_and_length(finished: Path) -> None:
    for path in sorted((finished / "rollouts").glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        tasks = [row["prompt_id"].split("/")[0] for row in rows]
        assert (tasks.count("even"), tasks.count("long")) == (3 * 4, 1 * 6)
        assert max(row["tokens"] for row in rows if row["prompt_id"].startswith("even")) == 5  # the run's own limit
        assert max(row["tokens"] for row in rows if row["prompt_id"].startswith("long")) == 4


def test_metrics_of_a_task_are_those_of_its_rollouts_alone(finished: Path) -> None:
    records = read_jsonl(finished / "metrics.jsonl")
    for step in range(4):
        rows = pq.read_table(finished / "rollouts" / f"step_{step:06d}.parquet").to_pylist()
        for task, function in (("even", "evenness"), ("long", "length")):
            rewards = [row["reward"] for row in rows if row["prompt_id"].startswith(task)]
            assert records[step][f"task/{task}/reward"] == pytest.approx(statistics.fmean(rewards))
            assert records[step][f"task/{task}/rewards/{function}/mean"] == pytest.approx(statistics.fmean(rewards))
        assert records[step]["reward"] == pytest.approx(statistics.fmean(row["reward"] for row in rows))
    assert {name for record in records for name in record if not is_defined(name)} == set()


def test_each_task_is_evaluated_in_its_own_way(finished: Path) -> None:
    last = read_jsonl(finished / "metrics.jsonl")[-1]
    assert {"task/even/eval/accuracy", "task/long/eval/win_rate", "task/long/eval/rewards/length/mean"} <= last.keys()
    assert not any(name.startswith("eval/") for name in last)
    rows = pq.read_table(finished / "evaluations" / "long_step_000004.parquet").to_pylist()
    # Of each prompt's two samples the first meets the empty baseline and wins, the second ties, if they say anything.
    told = [(index % 2, bool(row["completion"])) for index, row in enumerate(rows)]
    by_prompt = [[0.5 if second else 1.0 for second, said in told[i : i + 2] if said] for i in range(0, len(told), 2)]
    assert last["task/long/eval/win_rate"] == pytest.approx(
        statistics.fmean(map(statistics.fmean, filter(None, by_prompt)))
    )
    assert last["task/long/eval/unjudged"] == pytest.approx(1 - sum(said for _, said in told) / len(told))
    assert last["task/long/eval/reward"] == pytest.approx(statistics.fmean(row["reward"] for row in rows))


def test_a_task_without_a_share_is_only_evaluated(start: Start, tmp_path: Path) -> None:
    run = mixed(start, tmp_path, task=(Portion(EVEN, 4), Portion(LONG, 0)), max_steps=2)
    last = run.finish()
    rows = pq.read_table(tmp_path / "rollouts" / "step_000000.parquet").to_pylist()
    assert {row["prompt_id"].split("/")[0] for row in rows} == {"even"}
    assert "task/long/eval/win_rate" in last


def test_the_other_task_changes_nothing_of_what_one_task_samples_first(start: Start, tmp_path: Path) -> None:
    for name, task in (("alone", (Portion(EVEN, 3), Portion(LONG, 0))), ("mixed", SHARES)):
        run = mixed(
            start, tmp_path / name, task=task, prompts_per_step=sum(p.prompts_per_step for p in task), max_steps=1
        )
        run.finish()
    alone, both = (
        pq.read_table(tmp_path / n / "rollouts" / "step_000000.parquet").to_pylist() for n in ("alone", "mixed")
    )
    assert [row["completion"] for row in alone] == [row["completion"] for row in both[: len(alone)]]


def test_a_killed_run_of_several_tasks_resumes_to_the_same_metrics(
    start: Start, finished: Path, tmp_path: Path
) -> None:
    steps = mixed(start, tmp_path, save_steps=1).steps(3)
    next(steps), next(steps)
    mixed(start, tmp_path, save_steps=1).finish()
    assert untimed(tmp_path) == untimed(finished)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ((Portion(EVEN, 2), Portion(LONG, 1)), r"add up to the run's 4.*\[2, 1\]"),
        ((Portion(EVEN, 2), Portion(EVEN, 2)), "different names"),
        ((Portion(EVEN, 3, group_size=1), Portion(LONG, 1)), "group_size must be at least 2 under DPO"),
        ((Portion(EVEN, 3), Portion(LONG, 1, max_completion_length=1000)), "must fit into the model's context"),
        ((Portion(EVEN, 3), Portion(TinyTask(name="x", judging=Judging(more_words, {})), 1)), "came none for 6 of 6"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(start: Start, tmp_path: Path, task: tuple[Portion, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mixed(start, tmp_path, task=task).finish()


@pytest.mark.usefixtures("_shapes_unchecked")
def test_a_task_that_lacks_something_is_told_what(start: Start, tmp_path: Path) -> None:
    class Unfinished:
        name = "unfinished"

        def split(self, name: str) -> tuple[()]:
            return ()

    with pytest.raises(TypeError, match=r"came Unfinished without \['rewards', 'judging'\]"):
        start(tmp_path, task=Unfinished())


def test_a_share_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompts_per_step >= 0.*-1"):
        Portion(EVEN, -1)


def test_a_run_with_other_shares_is_another_configuration(start: Start, finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(RuntimeError, match="another configuration"):
        mixed(start, finished, task=(Portion(EVEN, 2), Portion(LONG, 2, group_size=6, max_completion_length=4)))
    assert contents(finished) == before


@pytest.mark.parametrize("text", ["", "sums", "even:", "even:2:x", "even:1:2:3:4", "even+long", "even:-1"])
def test_shares_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        task_or_portions(text, {"even": lambda: EVEN, "long": lambda: LONG})


def test_shares_by_name() -> None:
    made = task_or_portions("even:3+long:1:6:4", {"even": lambda: EVEN, "long": lambda: LONG})
    assert made == list(SHARES)
    assert task_or_portions("even", {"even": lambda: EVEN}) is EVEN
    assert set(TASKS) >= {"arithmetic", "chat", "numina_math", "wildchat"}
