"""Exported completions, read as the two benchmarks read them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kit.export import write_alpaca_eval, write_arena_hard
from kit.types import Prompt

SYSTEM = {"role": "system", "content": "Be brief."}
TEXT = 'Zwölf\n  "Äpfel" \\n — 中文 🍎\u2028after a separator\tend\n'


def prompt(content: Any, id: str = "q1", **columns: Any) -> Prompt:
    return Prompt(id, content, columns)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


ANSWERS = [
    (prompt(TEXT, "a"), "007"),
    (prompt([user("Hi")], "b", dataset="koala"), TEXT),
    (prompt([SYSTEM, user("Bye\r\n")], "c"), ""),
]


def test_alpaca_eval_reads_back_what_was_written(tmp_path: Path) -> None:
    path = write_alpaca_eval(tmp_path / "new" / "outputs.json", ANSWERS, generator="online", dataset="chat")
    # What alpaca_eval.utils.load_or_convert_to_dataframe (0.6.6) does with a path that ends in .json.
    found = pd.read_json(path).to_dict(orient="records")
    assert found == [
        {"instruction": TEXT, "output": "007", "generator": "online", "dataset": "chat"},
        {"instruction": "Hi", "output": TEXT, "generator": "online", "dataset": "koala"},
        {"instruction": "Bye\r\n", "output": "", "generator": "online", "dataset": "chat"},
    ]


def load_model_answers(folder: Path) -> dict[str, dict[str, Any]]:
    """What arena-hard-auto's function of that name does (196f6b8): model by file name, answers by uid, line by line."""
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        with file.open() as lines:
            answers = [json.loads(line) for line in lines]
        found[file.name.removesuffix(".jsonl")] = {answer["uid"]: answer for answer in answers}
    return found


def test_arena_hard_reads_back_what_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "model_answer"
    assert write_arena_hard(folder, ANSWERS, model="online-s1", tstamp=12.5) == folder / "online-s1.jsonl"
    found = load_model_answers(folder)["online-s1"]
    assert list(found) == ["a", "b", "c"]
    # The keys of data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl, but for metadata.
    assert all(list(answer) == ["uid", "ans_id", "model", "messages", "tstamp"] for answer in found.values())
    assert all(answer["model"] == "online-s1" and answer["tstamp"] == 12.5 for answer in found.values())
    # gen_judgment.py shows the judge messages[-1]["content"]["answer"].
    assert [answer["messages"][-1]["content"]["answer"] for answer in found.values()] == ["007", TEXT, ""]
    assert [answer["messages"][:-1] for answer in found.values()] == [
        [user(TEXT)], [user("Hi")], [SYSTEM, user("Bye\r\n")],
    ]  # fmt: skip
    assert {answer["messages"][-1]["role"] for answer in found.values()} == {"assistant"}


def test_answer_ids_tell_answers_apart_and_come_again(tmp_path: Path) -> None:
    def ids(folder: str, model: str, texts: list[str]) -> list[str]:
        answers = [(prompt("?", str(i)), text) for i, text in enumerate(texts)]
        path = write_arena_hard(tmp_path / folder, answers, model=model, tstamp=0.0)
        return [json.loads(line)["ans_id"] for line in path.read_text().splitlines()]

    first = ids("one", "m", ["x", "x", "y"])
    assert len(set(first)) == 3 and {len(id) for id in first} == {22}
    assert ids("two", "m", ["x", "x", "y"]) == first
    assert not set(ids("three", "n", ["x", "x", "y"])) & set(first)


def test_time_is_now_unless_given(tmp_path: Path) -> None:
    path = write_arena_hard(tmp_path, ANSWERS, model="m")
    assert json.loads(path.read_text().splitlines()[0])["tstamp"] == pytest.approx(path.stat().st_mtime, abs=60)


def test_a_file_is_replaced_whole_and_kept_if_the_new_one_is_refused(tmp_path: Path) -> None:
    path = write_alpaca_eval(tmp_path / "outputs.json", ANSWERS, generator="old")
    before = path.read_bytes()
    with pytest.raises(TypeError):  # a column that JSON cannot hold
        write_alpaca_eval(path, [(prompt("?", dataset=object()), "x")], generator="new")
    assert path.read_bytes() == before
    write_alpaca_eval(path, ANSWERS[:1], generator="new")
    assert [record["generator"] for record in json.loads(path.read_text())] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["outputs.json"]  # nothing half-written is left


def test_second_completion_of_an_instruction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one completion for each instruction, came two for 'Hi'"):
        write_alpaca_eval(
            tmp_path / "o.json", [(prompt("Hi", "1"), "x"), (prompt([SYSTEM, user("Hi")], "2"), "y")], generator="g"
        )
    with pytest.raises(ValueError, match="one completion for each uid, came two for '1'"):
        write_arena_hard(tmp_path, [(prompt("Hi", "1"), "x"), (prompt("Ho", "1"), "y")], model="m")
    assert not list(tmp_path.iterdir())


TURNS = [user("Hi"), {"role": "assistant", "content": "Hello"}, user("Bye")]


@pytest.mark.parametrize("content", [TURNS, [SYSTEM], [], [user("Hi"), SYSTEM], [TURNS[1]]])
def test_conversations_are_refused(tmp_path: Path, content: list[dict[str, str]]) -> None:
    for write in (
        lambda: write_alpaca_eval(tmp_path / "o.json", [(prompt(content), "x")], generator="g"),
        lambda: write_arena_hard(tmp_path, [(prompt(content), "x")], model="m"),
    ):
        with pytest.raises(ValueError, match="both benchmarks are single-turn"):
            write()


def test_no_answers_no_name_and_a_wrong_file_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="came 0 and 'g'"):
        write_alpaca_eval(tmp_path / "o.json", [], generator="g")
    with pytest.raises(ValueError, match="came 3 and ''"):
        write_alpaca_eval(tmp_path / "o.json", ANSWERS, generator="")
    with pytest.raises(ValueError, match="came 3 and ''"):
        write_arena_hard(tmp_path, ANSWERS, model="")
    with pytest.raises(ValueError, match=r"ends in \.json"):
        write_alpaca_eval(tmp_path / "o.jsonl", ANSWERS, generator="g")
    with pytest.raises(ValueError, match="leave out the owner"):
        write_arena_hard(tmp_path, ANSWERS, model="meta/llama")
