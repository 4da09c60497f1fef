"""MATH-500 and AMC23: every row, in order, under the paper's prompt; nothing to train on."""

from pathlib import Path
from typing import Any

import pytest

from kit.evaluate import score_groups
from kit.tasks.dataset import MissingColumnError
from kit.tasks.math_benchmarks import AMC23, MATH500
from kit.tasks.numina import math_prompt
from kit.tasks.task import Split, Task
from kit.types import Group, Rollout
from tests.data_files import FORMATS, content, write

pytestmark = pytest.mark.usefixtures("datasets_cache")

POLAR = r"\left( 3, \frac{\pi}{2} \right)"
MATH_ROWS: list[dict[str, Any]] = [
    {
        "problem": "Convert the point $(0,3)$ to polar coordinates.", "solution": rf"They are $\boxed{{{POLAR}}}.$",
        "answer": POLAR, "subject": "Precalculus", "level": 2, "unique_id": "test/precalculus/807.json",
    },
    {
        "problem": "What is 1+1?", "solution": r"$\boxed{2}$", "answer": "2", "subject": "Algebra", "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    {
        "problem": "What is 1+1?", "solution": r"$\boxed{2}$", "answer": "2", "subject": "Algebra", "level": 1,
        "unique_id": "test/algebra/2.json",
    },
]  # fmt: skip
WIKI = "https://artofproblemsolving.com/wiki/index.php"
AMC_ROWS: list[dict[str, Any]] = [
    {"id": 0, "question": "In how many hours do they meet?", "answer": "27", "url": f"{WIKI}/2023_AMC_12A_Problems/1"},
    {"id": 1, "question": "What is the total weight?", "answer": "36", "url": f"{WIKI}/2023_AMC_12B_Problems/2"},
]


@pytest.mark.parametrize("suffix", FORMATS)
def test_math_500_keeps_every_row_in_order(tmp_path: Path, suffix: str) -> None:
    task = MATH500(write(tmp_path / f"m{suffix}", MATH_ROWS))
    prompts = task.split("test")
    assert [content(prompt) for prompt in prompts] == [math_prompt(row["problem"]) for row in MATH_ROWS]
    assert [prompt.columns for prompt in prompts] == [
        {"solution": answer, "task": "math_500"} for answer in (POLAR, "2", "2")
    ]
    assert [prompt.id for prompt in prompts] == [f"math_500/{row['unique_id']}" for row in MATH_ROWS]
    assert task.counts() == {"rows": 3, "kept": 3}
    assert isinstance(task, Task)


def test_amc23_keeps_every_row_in_order(tmp_path: Path) -> None:
    task = AMC23(write(tmp_path / "a.parquet", AMC_ROWS))
    prompts = task.split("test")
    assert [content(prompt) for prompt in prompts] == [math_prompt(row["question"]) for row in AMC_ROWS]
    assert [(prompt.id, prompt.columns["solution"]) for prompt in prompts] == [("amc23/0", "27"), ("amc23/1", "36")]
    assert {prompt.columns["task"] for prompt in prompts} == {"amc23"}
    assert task.counts() == {"rows": 2, "kept": 2}
    assert isinstance(task, Task)


def test_amc23_of_the_validation_set_of_two_years(tmp_path: Path) -> None:
    """AI-MO/aimo-validation-amc: another name for the problem, answers as floats, and 2022 before 2023."""
    rows = [
        {"id": 0, "problem": "p", "answer": 142.0, "url": f"{WIKI}/2022_AMC_12A_Problems/1"},
        {"id": 1, "problem": "q", "answer": 36.0, "url": f"{WIKI}/2023_AMC_12A_Problems/2"},
        {"id": 2, "problem": "r", "answer": 0.5, "url": f"{WIKI}/2023_AMC_12B_Problems/2"},
    ]
    task = AMC23(write(tmp_path / "a.parquet", rows))
    assert [(prompt.id, prompt.columns["solution"]) for prompt in task.split("test")] == [
        ("amc23/1", "36"), ("amc23/2", "0.5"),
    ]  # fmt: skip
    assert task.counts() == {"rows": 3, "of another year": 1, "kept": 2}


def test_amc23_of_a_folder_with_a_train_split(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train-00000-of-00001.parquet", AMC_ROWS)
    assert len(AMC23(str(tmp_path / "folder"), hub_split="train").split("test")) == 2
    with pytest.raises(ValueError, match="test"):
        AMC23(str(tmp_path / "folder")).split("test")


def test_amc23_without_urls_keeps_all(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "url"} for row in AMC_ROWS]
    assert AMC23(write(tmp_path / "a.jsonl", rows)).counts() == {"rows": 2, "kept": 2}


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize("task", [MATH500("never read"), AMC23("never read")])
def test_there_is_nothing_to_train_on(task: MATH500 | AMC23, name: Split) -> None:
    with pytest.raises(
        ValueError, match=f"expected 'test', the only split of the benchmark {task.name}, came '{name}'"
    ):
        task.split(name)


@pytest.mark.parametrize("column", ["problem", "answer", "unique_id"])
def test_a_missing_column_is_an_error(tmp_path: Path, column: str) -> None:
    rows = [{name: value for name, value in row.items() if name != column} for row in MATH_ROWS]
    with pytest.raises(MissingColumnError, match=rf"'{column}' in .*came the columns .*'subject'"):
        MATH500(write(tmp_path / "m.jsonl", rows)).split("test")


@pytest.mark.parametrize(
    "changes", [{"problem": None}, {"problem": " "}, {"answer": None}, {"answer": " "}, {"unique_id": None}]
)
def test_a_row_that_cannot_be_used_is_an_error_since_it_is_a_benchmark(tmp_path: Path, changes: dict[str, Any]) -> None:
    rows = [MATH_ROWS[0], MATH_ROWS[1] | changes]
    with pytest.raises(ValueError, match=r"came row 1: .*only comparable as a whole"):
        MATH500(write(tmp_path / "m.jsonl", rows)).split("test")


def test_an_id_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    rows = [row | {"id": 7} for row in AMC_ROWS]
    with pytest.raises(ValueError, match=r"an id of its own in every row of .*came row 1"):
        AMC23(write(tmp_path / "a.jsonl", rows)).split("test")


def test_no_problem_of_the_year_is_an_error(tmp_path: Path) -> None:
    rows = [row | {"url": f"{WIKI}/2022_AMC_12A_Problems/1"} for row in AMC_ROWS]
    with pytest.raises(ValueError, match=r"expected problems in .*came rows 2, of another year 2, kept 0"):
        AMC23(write(tmp_path / "a.jsonl", rows)).split("test")


def test_their_reward_judges_completions_of_their_prompts(tmp_path: Path) -> None:
    task = MATH500(write(tmp_path / "m.jsonl", MATH_ROWS))
    texts = (r"The final answer is $\boxed{(3, \pi/2)}$.", r"The final answer is $\boxed{(3, \pi)}$.")
    rollouts = tuple(Rollout((1,), (2,), (0.0,), (0.0,), text, "stop", 0) for text in texts)
    [scored] = score_groups([Group(task.split("test")[0], rollouts)], *task.rewards())
    assert scored.rewards == (1.0, 0.0)
