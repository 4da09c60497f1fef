"""AlpacaEval, Arena-Hard and files of instructions: the raw text as the user turn."""

from pathlib import Path
from typing import Any

import pytest

from kit.tasks.dataset import MissingColumnError
from kit.tasks.instructions import AlpacaEval, ArenaHard, Instructions
from kit.tasks.task import Split, Task
from tests.data_files import FORMATS, content, write

pytestmark = pytest.mark.usefixtures("datasets_cache")


def alpaca_row(instruction: str | None, output: str = "Sure.") -> dict[str, Any]:
    return {"dataset": "helpful_base", "instruction": instruction, "output": output, "generator": "gpt4_1106_preview"}


def wizard_row(index: int, instruction: str) -> dict[str, Any]:
    return {"idx": index, "Skill": "Math", "Difficulty": 1, "Instruction": instruction}


def length(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("suffix", FORMATS)
def test_alpaca_eval_keeps_every_row_in_order(tmp_path: Path, suffix: str) -> None:
    rows = [alpaca_row(" Name a colour.\n", "Red."), alpaca_row("Why?"), alpaca_row("Why?", "Because.")]
    task = AlpacaEval(write(tmp_path / f"a{suffix}", rows))
    prompts = task.split("test")
    assert [content(prompt) for prompt in prompts] == [" Name a colour.\n", "Why?", "Why?"]  # raw
    assert [prompt.id for prompt in prompts] == ["alpaca_eval/0", "alpaca_eval/1", "alpaca_eval/2"]
    assert [prompt.columns["baseline"] for prompt in prompts] == ["Red.", "Sure.", "Because."]
    assert {prompt.columns["task"] for prompt in prompts} == {"alpaca_eval"}
    assert isinstance(task, Task)


def test_alpaca_eval_is_read_from_its_file_since_the_hub_has_a_script() -> None:
    assert AlpacaEval().path == "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json"
    with pytest.raises(ConnectionError, match=r"expected to reach .*gpt4_baseline.json: .*give path="):
        AlpacaEval().split("test")


@pytest.mark.parametrize("suffix", FORMATS)
def test_arena_hard_of_version_0_1(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"question_id": "96d2", "category": "arena-hard-v0.1", "cluster": "Keys", "turns": [{"content": "can one ?"}]},
        {"question_id": "4f8b", "category": "arena-hard-v0.1", "cluster": "Keys", "turns": [{"content": " how "}]},
    ]
    task = ArenaHard(write(tmp_path / f"q{suffix}", rows))
    assert [content(prompt) for prompt in task.split("test")] == ["can one ?", " how "]
    assert [prompt.id for prompt in task.split("test")] == ["arena_hard/96d2", "arena_hard/4f8b"]
    assert [prompt.columns for prompt in task.split("test")] == [{"task": "arena_hard"}] * 2
    assert isinstance(task, Task)


def test_arena_hard_of_the_repository_and_of_version_2(tmp_path: Path) -> None:
    rows = [
        {"uid": "328c", "category": "arena-hard-v0.1", "cluster": "Puzzles", "prompt": "Use ABC notation."},
        {"uid": "2edb", "category": "hard_prompt", "subcategory": "coding", "prompt": "Write me a zig program."},
    ]
    for row in rows:
        [prompt] = ArenaHard(write(tmp_path / f"{row['uid']}.jsonl", [row])).split("test")
        assert (prompt.id, content(prompt)) == (f"arena_hard/{row['uid']}", row["prompt"])


@pytest.mark.parametrize("turns", [[], None, [{"content": "a"}, {"content": "b"}]])
def test_arena_hard_with_another_number_of_turns_is_an_error(tmp_path: Path, turns: Any) -> None:
    rows = [{"question_id": "1", "turns": [{"content": "a"}]}, {"question_id": "2", "turns": turns}]
    with pytest.raises(ValueError, match="expected one turn in row 1"):
        ArenaHard(write(tmp_path / "q.jsonl", rows)).split("test")


def test_an_arena_hard_id_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    rows = [{"uid": "1", "prompt": "a"}, {"uid": "1", "prompt": "b"}]
    with pytest.raises(ValueError, match=r"an uid of its own in row 1 of .*came '1'"):
        ArenaHard(write(tmp_path / "q.jsonl", rows)).split("test")


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_benchmark_row_without_text_is_an_error(tmp_path: Path, text: str | None) -> None:
    with pytest.raises(ValueError, match=r"an instruction in every row of .*in row 1.*only comparable as a whole"):
        AlpacaEval(write(tmp_path / "a.jsonl", [alpaca_row("a"), alpaca_row(text)])).split("test")
    rows = [{"uid": "1", "prompt": "a"}, {"uid": "2", "prompt": text}]
    with pytest.raises(ValueError, match=r"an instruction in every row of .*in row 1.*only comparable as a whole"):
        ArenaHard(write(tmp_path / "q.jsonl", rows)).split("test")


@pytest.mark.parametrize(
    ("task", "columns"),
    [(AlpacaEval, "'instruction'"), (ArenaHard, "'uid' or 'question_id'")],
)
def test_a_missing_column_is_an_error(tmp_path: Path, task: Any, columns: str) -> None:
    with pytest.raises(MissingColumnError, match=rf"expected a column {columns} in .*came the columns \['text'\]"):
        task(write(tmp_path / "a.jsonl", [{"text": "a"}])).split("test")


def test_the_papers_validation_set_is_files_less_alpaca_eval(tmp_path: Path) -> None:
    """Humpback's part under `instruction`, Evol-Test under `Instruction`; what AlpacaEval has is left out."""
    humpback = write(tmp_path / "h.json", [{"instruction": text} for text in ("one", "two", None, "")])
    evol = write(tmp_path / "e.jsonl", [wizard_row(1, " three"), wizard_row(2, " two "), wizard_row(3, "four\n")])
    alpaca = write(tmp_path / "a.json", [alpaca_row("three"), alpaca_row("five"), alpaca_row("  one")])
    task = Instructions((humpback, evol), exclude=(alpaca,))
    assert [content(prompt) for prompt in task.split("test")] == ["two", "four\n"]
    assert task.counts() == {"rows": 7, "excluded": 2, "without text": 2, "duplicate": 1, "kept": 2}
    ids = [prompt.id for prompt in task.split("test")]
    assert ids[0] == "instructions/3fc4ccfe745870e2"  # printf two | sha256sum
    assert len(set(ids)) == 2 and isinstance(task, Task)


def test_the_column_of_instructions_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "i.jsonl", [{"instruction": "a", "text": "b"}])
    assert [content(prompt) for prompt in Instructions((path,), column="text").split("test")] == ["b"]
    with pytest.raises(MissingColumnError, match=r"expected a column 'body' in .*\['instruction', 'text'\]"):
        Instructions((path,), column="body").split("test")
    unnamed = write(tmp_path / "t.jsonl", [{"text": "b"}])
    with pytest.raises(MissingColumnError, match="'instruction' or 'Instruction' or 'prompt'"):
        Instructions((unnamed,)).split("test")


def test_no_instruction_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "i.jsonl", [{"instruction": "a"}])
    with pytest.raises(ValueError, match="came rows 1, excluded 1, kept 0"):
        Instructions((path,), exclude=(path,)).split("test")
    with pytest.raises(ValueError, match="at least one path"):
        Instructions(())


TASKS = [Instructions(("never read",)), AlpacaEval("never read"), ArenaHard("never read")]


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_there_is_nothing_to_train_on(task: Task, name: Split) -> None:
    with pytest.raises(
        ValueError, match=f"expected 'test', the only split of the benchmark {task.name}, came '{name}'"
    ):
        task.split(name)


@pytest.mark.parametrize("kind", [Instructions, AlpacaEval, ArenaHard])
def test_rewards_are_those_given_or_none_where_a_judge_compares(kind: Any) -> None:
    path = ("p",) if kind is Instructions else "p"
    assert kind(path).rewards() == ([], [])
    assert kind(path, reward_functions=(length,), weights=(0.5,)).rewards() == ([length], [0.5])
    with pytest.raises(ValueError, match="a weight for each, came 1 functions and weights"):
        kind(path, reward_functions=(length,))
