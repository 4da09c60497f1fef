"""What the microscope finds is what a plain loop over the same rows finds."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kit.microscope import Filter, Rollouts
from kit.run import Run
from kit.runlog import RunDirectoryError
from kit.sync import Every
from tests.recorded import row, write_run, write_step

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = write_run(tmp_path_factory.mktemp("run"), steps=12)
    rng = random.Random(1)
    for step in (0, 6):
        held_out = [row(f"sums/h{g}", i, reward=rng.random()) for g in range(3) for i in range(2)]
        for one in held_out:
            for name in ("version", "role", "reason", "logprobs", "ref_logprobs"):
                del one[name]
        write_step(out_dir, step, held_out, "evaluations", "a_step_1_")
    return out_dir


def every_row(folder: Path) -> list[Row]:
    """All rows of a run directory by a plain loop, training first, with what the microscope derives of them."""
    found: list[Row] = []
    group = -1
    for kind, name in (("training", "rollouts"), ("evaluation", "evaluations")):
        for path in sorted((folder / name).glob("*.parquet")):
            step = int(path.stem[-6:])
            for one in pq.read_table(path).to_pylist():
                group += one["index"] == 0
                age = 0 if kind == "evaluation" else step - one["version"]
                role = one.get("role") and one["role"] + (f": {one['reason']}" if one["reason"] else "")
                found.append(one | {"kind": kind, "step": step, "age": age, "role": role, "group": group})
    return found


def matches(one: Row, asked: dict[str, Any]) -> bool:
    for name, wanted in asked.items():
        if name.endswith(("_min", "_max")):
            value = one[name[:-4]]
            if value is None or (value < wanted if name.endswith("_min") else value > wanted):
                return False
        elif name == "text":
            if wanted not in one["prompt"] and wanted not in one["completion"]:
                return False
        elif name == "role":
            if wanted not in (one["role"] or ""):
                return False
        elif one[name] != wanted:
            return False
    return True


FILTERS: list[dict[str, Any]] = [
    {}, {"kind": "training"}, {"kind": "evaluation"}, {"task": "chat"}, {"task": "nothing of the sort"},
    {"step_min": 3}, {"step_max": 3}, {"step_min": 4, "step_max": 4}, {"reward_min": 0.25}, {"reward_max": 0.0},
    {"reward_min": 0.3, "reward_max": 0.9}, {"age_min": 1}, {"age_max": 0}, {"tokens_min": 5, "tokens_max": 7},
    {"role": "chosen"}, {"role": "advantage=-"}, {"role": "unused"}, {"role": "tie"}, {"role": "not drawn"},
    {"text": "\\boxed{79}"}, {"text": "<b>"}, {"text": "ünï"}, {"text": "."}, {"text": "borrow\n"}, {"text": "Carry"},
    {"prompt_id": "sums/p0"}, {"text": "what is"}, {"text": "carry", "task": "sums", "step_min": 2, "reward_min": 0.5},
    {"role": "tie", "age_min": 1, "kind": "training", "tokens_max": 9},
]  # fmt: skip


@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_a_filter_finds_what_a_loop_finds(folder: Path, asked: dict[str, Any]) -> None:
    rows = every_row(folder)
    expected = [number for number, one in enumerate(rows) if matches(one, asked)]
    rollouts = Rollouts(folder)
    assert rollouts.rows(Filter(**asked)).to_pylist() == expected
    found = rollouts.find(Filter(**asked))
    assert found.completions == len(expected) == sum(found.matches)
    assert sorted(found.groups) == sorted({rows[number]["group"] for number in expected})


def test_random_filters_find_what_a_loop_finds(folder: Path) -> None:
    rng, rows, rollouts = random.Random(2), every_row(folder), Rollouts(folder)
    hits = 0
    for _ in range(60):
        asked = {name: value for one in rng.sample(FILTERS, 3) for name, value in one.items()}
        if any(asked.get(f"{n}_min", 0) > asked.get(f"{n}_max", 99) for n in ("step", "reward", "age", "tokens")):
            continue
        expected = [number for number, one in enumerate(rows) if matches(one, asked)]
        assert rollouts.rows(Filter(**asked)).to_pylist() == expected
        hits += len(expected) > 0
    assert hits > 10


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ["step", "mean reward", "spread of rewards", "age", "tokens", "prompt"])
def test_groups_come_in_the_order_asked_for(folder: Path, sort: str, descending: bool) -> None:
    groups: dict[int, list[Row]] = {}
    for one in every_row(folder):
        groups.setdefault(one["group"], []).append(one)

    def key(rows: list[Row]) -> Any:
        rewards = [one["reward"] for one in rows if one["reward"] is not None]
        return {
            "step": rows[0]["step"],
            "mean reward": sum(rewards) / len(rewards) if rewards else None,
            "spread of rewards": max(rewards) - min(rewards) if rewards else None,
            "age": max(one["age"] for one in rows),
            "tokens": sum(one["tokens"] for one in rows) / len(rows),
            "prompt": rows[0]["prompt_id"],
        }[sort]

    found = [key(groups[number]) for number in Rollouts(folder).find(sort=sort, descending=descending).groups]
    assert len(found) == len(groups)
    known = [value for value in found if value is not None]
    ordered = sorted(known, reverse=descending)
    assert known == (pytest.approx(ordered) if sort != "prompt" else ordered)
    assert found[len(known) :] == [None] * (len(found) - len(known))  # without a reward: last, either way


def test_of_equals_the_first_recorded_comes_first(folder: Path) -> None:
    rollouts = Rollouts(folder)
    for descending in (False, True):
        found = rollouts.find(Filter(step_min=3, step_max=3), descending=descending).groups
        assert list(found) == sorted(found)


def test_a_group_is_all_its_completions_as_they_were_recorded(folder: Path) -> None:
    rows, rollouts = every_row(folder), Rollouts(folder)
    for number in (0, 7, 25, rollouts.groups.num_rows - 1):
        mine = [one for one in rows if one["group"] == number]
        group = rollouts.group(number)
        assert (group.step, group.kind, group.task, group.prompt_id, group.prompt, group.run) == (
            *(mine[0][name] for name in ("step", "kind", "task", "prompt_id", "prompt")), folder.name,
        )  # fmt: skip
        assert len(group.completions) == len(mine)
        for one, completion in zip(mine, group.completions, strict=True):
            for name in ("index", "tokens", "reward", "age", "pieces", "old_logprobs", "entropies", "finish_reason"):
                assert getattr(completion, name) == one[name]
            assert (completion.text, completion.rewards) == (one["completion"], dict(one["rewards"]))
            assert completion.logprobs == one.get("logprobs") and completion.reason == one.get("reason")


def test_lines_of_the_list_say_what_the_groups_hold(folder: Path) -> None:
    rows, rollouts = every_row(folder), Rollouts(folder)
    for line in rollouts.lines([5, 49, 3]):
        mine = [one for one in rows if one["group"] == line["number"]]
        assert line["rewards"] == [one["reward"] for one in mine] and line["prompt"] == mine[0]["prompt"]
        assert line["age"] == max(one["age"] for one in mine)


def test_the_same_prompt_is_found_wherever_it_recurs(folder: Path) -> None:
    rows, rollouts = every_row(folder), Rollouts(folder)
    first: dict[int, Row] = {}
    for one in rows:
        first.setdefault(one["group"], one)
    seen = 0
    for number, one in first.items():
        same = [
            n for n, other in first.items() if (other["task"], other["prompt_id"]) == (one["task"], one["prompt_id"])
        ]
        found = rollouts.same_prompt(number)
        assert sorted(found) == sorted(same) and number in found
        assert [first[n]["step"] for n in found] == sorted(first[n]["step"] for n in same)
        seen += len(found) > 1
    assert seen > 10


def test_a_prompt_twice_in_a_step_is_two_groups(tmp_path: Path) -> None:
    write_step(tmp_path, 0, [row("p", 0), row("p", 1, reward=0.0), row("p", 0, reward=0.5), row("p", 1)])
    rollouts = Rollouts(tmp_path)
    assert [[c.reward for c in rollouts.group(n).completions] for n in (0, 1)] == [[1.0, 0.0], [0.5, 1.0]]
    assert rollouts.same_prompt(0) == [0, 1]


def test_a_fork_and_its_parent_are_open_together(tmp_path: Path) -> None:
    parent, fork = (write_run(tmp_path / name / "run", 3, seed=seed) for seed, name in enumerate(("parent", "fork")))
    rollouts = Rollouts([parent, fork])
    assert len(rollouts) == 96 and rollouts.choices()["run"] == ["fork/run", "parent/run"]
    for name, alone in (("fork/run", Rollouts(fork)), ("parent/run", Rollouts(str(parent)))):
        assert rollouts.find(Filter(run=name, text="carry")).completions == alone.find(Filter(text="carry")).completions
    assert len(Rollouts([parent, parent])) == 48  # once


def test_a_real_run_is_found_again(start: Callable[..., Run], tmp_path: Path) -> None:
    start(tmp_path, sync=Every(3), max_steps=6).finish()
    rollouts = Rollouts(tmp_path)
    assert len(rollouts) == 6 * 16 + 3 * 12
    assert max(rollouts.table["age"].to_pylist()) == 2
    [number, *_] = rollouts.find(Filter(kind="evaluation")).groups
    assert [rollouts.group(n).step for n in rollouts.same_prompt(number)] == [0, 4, 6]
    assert rollouts.group(number).completions[0].role is None


def test_a_run_that_goes_on_is_read_again(tmp_path: Path) -> None:
    write_step(tmp_path, 0, [row("p", 0)])
    (tmp_path / "rollouts" / "step_000001.partial").write_bytes(b"half")
    assert len(Rollouts(tmp_path)) == 1
    write_step(tmp_path, 1, [row("p", 0), row("p", 1)])
    assert len(Rollouts(tmp_path)) == 3


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"kind": "trainin"}, ValueError, "kind must be one of .*got 'trainin'"),
        ({"step_min": 3, "step_max": 2}, ValueError, "step_min must be at most step_max, got 3 and 2"),
        ({"reward_min": "1"}, TypeError, "reward_min must be a number, got '1'"),
        ({"reward_min": float("nan")}, TypeError, "reward_min must be a number, got nan"),
        ({"age_max": True}, TypeError, "age_max must be a number, got True"),
        ({"text": 3}, TypeError, "text must be text, got 3"),
    ],
)
@pytest.mark.usefixtures("_shapes_unchecked")
def test_a_filter_that_means_nothing_is_refused(asked: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Filter(**asked)


def test_what_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run directory with config.json, came .*nowhere"):
        Rollouts(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="came none: let the run make a step"):
        Rollouts(tmp_path)
    with pytest.raises(ValueError, match=r"sort must be one of \['step'.*got 'luck'"):
        Rollouts(folder).find(sort="luck")
    for number in (-1, 54):
        with pytest.raises(IndexError, match=f"a group from 0 to 53, came {number}"):
            Rollouts(folder).group(number)


def test_a_file_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rollouts" / "step_000004.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunDirectoryError, match=r"cannot be read: .*step_000004.parquet"):
        Rollouts(tmp_path)


def test_a_file_from_before_the_microscope_is_named(tmp_path: Path) -> None:
    write_step(tmp_path, 0, [row("p", 0)])
    old = pa.table({"prompt_id": ["p"], "completion": ["ab"], "reward": [1.0], "version": [0], "role": ["unused"]})
    pq.write_table(old, tmp_path / "rollouts" / "step_000001.parquet")
    with pytest.raises(RunDirectoryError, match=r"came .*step_000001.parquet without them: make the run again"):
        Rollouts(tmp_path)
