"""NuminaMath: the paper's prompt and filter, on files of both schemas, read as the data set itself would be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.evaluate import score_groups
from kit.run import Run
from kit.tasks.dataset import MissingColumnError
from kit.tasks.numina import NuminaMath, is_multiple_choice, last_boxed, math_prompt
from kit.tasks.task import Split, Task
from kit.types import Group, Prompt, Rollout
from tests.data_files import FORMATS, content, write

pytestmark = pytest.mark.usefixtures("datasets_cache")

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def row(problem: str | None, answer: str | None = "1", **changes: Any) -> dict[str, Any]:
    """A row of NuminaMath-1.5."""
    whole = {
        "problem": problem, "solution": f"Hence ${answer}$.", "answer": answer, "problem_type": "Algebra",
        "question_type": "math-word-problem", "problem_is_valid": "Yes", "solution_is_valid": "Yes",
        "source": "olympiads", "synthetic": False,
    }  # fmt: skip
    return whole | changes


def cot_row(problem: str, solution: str | None, source: str = "cn_k12") -> dict[str, Any]:
    """A row of NuminaMath-CoT."""
    messages = [{"content": problem, "role": "user"}, {"content": solution, "role": "assistant"}]
    return {"source": source, "problem": problem, "solution": solution, "messages": messages}


def rows(count: int) -> list[dict[str, Any]]:
    return [row(f"What is {number} + 0?", str(number)) for number in range(count)]


def problems(prompts: tuple[Prompt, ...]) -> list[str]:
    """What stands between the two fixed parts of the prompt."""
    found = [re.search(r"\nProblem: (.*)\nYour response", content(prompt), re.DOTALL) for prompt in prompts]
    return [match[1] for match in found if match]


def everything(task: NuminaMath) -> dict[str, str]:
    """Problem -> solution, over all splits."""
    prompts = tuple(prompt for name in SPLITS for prompt in task.split(name))
    return dict(zip(problems(prompts), [p.columns["solution"] for p in prompts], strict=True))


def test_the_prompt_is_the_papers_character_by_character() -> None:
    # Figure 4 of the paper; what a problem holds in braces stays as it is.
    assert math_prompt(r"Let $x={1}$. {PROBLEM}?") == (
        "Given the following problem, reason and give a final answer to the problem.\x0aProblem: Let $x={1}$. "
        "{PROBLEM}?\x0aYour response should end with 'The final answer is $\x5cboxed{[answer]}$. I hope it is correct.'"
        " where [answer] is the response to the problem."
    )


def test_a_prompt_has_no_system_message_and_the_columns_that_rewards_read(tmp_path: Path) -> None:
    [prompt, *_] = NuminaMath(write(tmp_path / "n.jsonl", rows(9)), num_validation=1, num_test=1).split("train")
    assert content(prompt) == math_prompt(problems((prompt,))[0])
    assert prompt.columns.keys() == {"solution", "task"}
    assert prompt.columns["task"] == "numina_math"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{7}$.", "7"),
        (r"\boxed{1}, no: \boxed{ 2 }", "2"),  # the last one
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # a brace that is printed, not a group
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),  # one alone
        (r"\boxed{a\\}", r"a\\"),  # a line break, and then the end
        (r"\boxed {3} and \fbox{4}", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{1} but \boxed{2", None),  # cut off: which one it is cannot be known
        (r"\boxed{}", None),
        (r"$5$", None),
        ("", None),
    ],
)
def test_the_last_box_of_a_solution(solution: str, answer: str | None) -> None:
    assert last_boxed(solution) == answer


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_the_filter_keeps_of_version_1_5(tmp_path: Path, suffix: str) -> None:
    found = [
        row("kept", r" \frac{1}{2} "),
        row("kept although its type is unknown", "3", question_type=None),
        row("kept although its source is unknown", "4", source=None),
        row("orca", source="orca_math", synthetic=True),
        row("synthetic amc", source="synthetic_amc"),
        row("synthetic math", source="synthetic_math"),
        row("a proof", "proof", question_type="proof"),
        row("an unmarked proof", "proof"),
        row("not found", "notfound"),
        row("null", None),
        row("blank", " "),
        row("choice", "B", question_type="MCQ"),
        row(None),
        row("  "),
    ]
    task = NuminaMath(write(tmp_path / f"n{suffix}", found), num_validation=1, num_test=1)
    assert everything(task) == {
        "kept": r"\frac{1}{2}", "kept although its type is unknown": "3", "kept although its source is unknown": "4",
    }  # fmt: skip
    assert task.counts() == {
        "rows": 14, "synthetic": 3, "proof": 1, "without an answer": 4, "multiple choice": 1, "without a problem": 2,
        "kept": 3,
    }  # fmt: skip
    assert [*task.counts()][:: len(task.counts()) - 1] == ["rows", "kept"]  # first and last


def test_what_the_filter_keeps_of_the_version_with_solutions_only(tmp_path: Path) -> None:
    found = [
        cot_row("one", r"first $\boxed{1}$, then $\boxed{\frac{1}{2}}$"),
        cot_row("two", r"\boxed{2}", source="gsm8k"),
        cot_row("three: A. is a point", r"\boxed{3}"),
        cot_row("proof", r"which was to be shown $\blacksquare$"),
        cot_row("null", None),
        cot_row("a letter", r"\boxed{C}"),
        cot_row("an option", r"\boxed{\textbf{(D)}\ 7}", source="amc_aime"),
        cot_row("Which? A: 1 B: 2 C: 3 D: 4", r"\boxed{2}"),
        cot_row("orca", r"\boxed{3}", source="orca_math"),
    ]
    task = NuminaMath(write(tmp_path / "cot.parquet", found), num_validation=1, num_test=1)
    assert everything(task) == {"one": r"\frac{1}{2}", "two": "2", "three: A. is a point": "3"}
    assert task.counts() == {"rows": 9, "proof": 2, "multiple choice": 3, "synthetic": 1, "kept": 3}


@pytest.mark.parametrize(
    ("problem", "answer", "expected"),
    [
        ("?", "B", True),
        ("?", "(B)", True),
        ("?", r"\text{B}", True),
        ("?", r"\textbf{(B) } 12", True),
        ("?", "B.", True),
        ("?", "AB", False),  # a segment
        ("?", "A=3", False),
        ("?", "F", False),  # there is no option F
        ("?", r"\frac{A}{B}", False),
        (r"$\textbf{(A)}\ 1 \qquad \textbf{(B)}\ 2 \qquad \textbf{(C)}\ 3 \qquad \textbf{(D)}\ 4$", "2", True),
        ("A triangle has vertices A: (0,0), B: (1,0) and C: (0,1).", "1", False),  # three are not enough
    ],
)
def test_multiple_choice_is_guessed_where_no_column_says_so(problem: str, answer: str, expected: bool) -> None:
    assert is_multiple_choice(problem, answer) is expected


def test_a_problem_that_comes_again_is_kept_once_with_its_first_answer(tmp_path: Path) -> None:
    found = [*rows(6), row("What is 3 + 0?", "3"), row(" What is  3 + 0?\n", "4")]
    task = NuminaMath(write(tmp_path / "n.jsonl", found), num_validation=2, num_test=2)
    assert everything(task) == {f"What is {number} + 0?": str(number) for number in range(6)}
    assert task.counts() == {"rows": 8, "duplicate": 2, "kept": 6}


def test_splits_have_the_asked_sizes_and_share_nothing(tmp_path: Path) -> None:
    task = NuminaMath(write(tmp_path / "n.parquet", rows(50)), num_validation=10, num_test=15)
    assert [len(task.split(name)) for name in SPLITS] == [25, 10, 15]
    assert len(everything(task)) == 50
    ids = [prompt.id for name in SPLITS for prompt in task.split(name)]
    assert len(set(ids)) == 50 and all(re.fullmatch("numina_math/[0-9a-f]{16}", id) for id in ids)


def test_the_papers_sizes_are_the_default() -> None:
    assert (NuminaMath().num_train, NuminaMath().num_validation, NuminaMath().num_test) == (None, 1980, 1980)


def test_splits_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    forward = NuminaMath(write(tmp_path / "a.jsonl", rows(40)), num_validation=10, num_test=10)
    backward = NuminaMath(write(tmp_path / "b.jsonl", rows(40)[::-1]), num_validation=10, num_test=10)
    assert [forward.split(name) for name in SPLITS] == [backward.split(name) for name in SPLITS]


def test_fewer_training_problems_leave_the_held_out_ones_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", rows(40))
    whole, part = (NuminaMath(path, num_train=size, num_validation=10, num_test=10) for size in (None, 5))
    assert [whole.split(name) for name in SPLITS[1:]] == [part.split(name) for name in SPLITS[1:]]
    assert part.split("train") == whole.split("train")[:5]


def test_another_seed_draws_other_splits_with_the_same_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", rows(40))
    one, other = (NuminaMath(path, num_validation=10, num_test=10, seed=seed) for seed in (0, 1))
    assert one.split("test") != other.split("test")
    ids = [{prompt.id for name in SPLITS for prompt in task.split(name)} for task in (one, other)]
    assert ids[0] == ids[1]


def test_long_problems_are_left_out_if_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", [*rows(3), row("x" * 15), row("y" * 14)])
    task = NuminaMath(path, num_validation=1, num_test=1, max_characters=14)
    assert everything(task).keys() == {"y" * 14, *(f"What is {number} + 0?" for number in range(3))}
    assert task.counts() == {"rows": 5, "too long": 1, "kept": 4}


@pytest.mark.parametrize("sizes", [{"num_validation": 5, "num_test": 5}, {"num_train": 9, "num_validation": 1}])
def test_too_few_problems_are_an_error_that_says_where_they_went(tmp_path: Path, sizes: dict[str, int]) -> None:
    path = write(tmp_path / "n.jsonl", [*rows(10), row("p", "proof")])
    with pytest.raises(ValueError, match="came rows 11, without an answer 1, kept 10: lower one of the three"):
        NuminaMath(path, **sizes).split("train")


@pytest.mark.parametrize("column", ["problem", "source", "question_type"])
def test_a_missing_column_is_an_error_that_lists_what_is_there(tmp_path: Path, column: str) -> None:
    found = [{name: value for name, value in row("p").items() if name != column}]
    with pytest.raises(MissingColumnError, match=rf"expected a column '{column}' in .*came the columns .*'solution'"):
        NuminaMath(write(tmp_path / "n.jsonl", found)).split("train")


def test_without_answer_and_solution_both_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError, match="expected a column 'answer' or 'solution'"):
        NuminaMath(write(tmp_path / "n.jsonl", [{"problem": "p", "source": "s"}])).split("train")


@pytest.mark.parametrize("name", ["num_train", "num_validation", "num_test", "max_characters"])
def test_a_size_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} >= 1, came 0"):
        NuminaMath(**{name: 0})


def test_its_reward_judges_completions_of_its_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", [row("What is 1/2?", r"\frac{1}{2}"), *rows(2)])
    task = NuminaMath(path, num_validation=1, num_test=1)
    assert isinstance(task, Task)
    prompts = [prompt for name in SPLITS for prompt in task.split(name)]
    [prompt] = [prompt for prompt in prompts if prompt.columns["solution"] == r"\frac{1}{2}"]
    texts = (r"The final answer is $\boxed{0.5}$. I hope it is correct.", r"The final answer is $\boxed{2}$.")
    rollouts = tuple(Rollout((1,), (2,), (0.0,), (0.0,), text, "stop", 0) for text in texts)
    [scored] = score_groups([Group(prompt, rollouts)], *task.rewards())
    assert scored.rewards == (1.0, 0.0)


def test_a_run_trains_on_it(tmp_path: Path, tiny_folder: Path, start: Callable[..., Run]) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))  # the prompt is long
    task = NuminaMath(write(tmp_path / "n.jsonl", rows(20)), num_validation=6, num_test=1)
    run = start(tmp_path / "run", task=task, model_name_or_path=str(model), max_steps=1)
    assert run.finish()["step"] == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"]["path"] == task.path
