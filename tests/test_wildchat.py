"""WildChat: first turns only, drawn without reading what is not needed, apart from what is held out."""

import datetime
import re
from pathlib import Path
from typing import Any

import pytest

from kit.tasks.dataset import MissingColumnError, OverlapError
from kit.tasks.instructions import Instructions
from kit.tasks.task import Split, Task
from kit.tasks.wildchat import CHUNK_ROWS, WildChat
from tests.data_files import content, write

pytestmark = pytest.mark.usefixtures("datasets_cache")

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CATEGORIES = ("harassment", "harassment/threatening", "hate", "self-harm", "sexual", "violence")


def turn(role: str, text: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "content": text, "country": "Canada", "hashed_ip": "22fd87ba", "header": {"accept-language": "en-US"},
        "language": "English", "redacted": False, "role": role, "state": None, "toxic": False, "turn_identifier": 1,
    } | changes  # fmt: skip


def conversation(*turns: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A row of WildChat-1M; the moderation's many categories are shortened."""
    moderation = {
        "categories": dict.fromkeys(CATEGORIES, False), "category_scores": dict.fromkeys(CATEGORIES, 0.01),
        "flagged": False,
    }  # fmt: skip
    return {
        "conversation_hash": "c9ec5b440fbdd269", "model": "gpt-3.5-turbo-0301", "timestamp": "2023-04-09T00:02:53Z",
        "conversation": list(turns), "turn": len(turns) // 2, "language": "English",
        "openai_moderation": [moderation] * len(turns), "detoxify_moderation": [{"toxicity": 0.01}] * len(turns),
        "toxic": False, "redacted": False, "state": "Texas", "country": "United States", "hashed_ip": "22fd87ba",
        "header": {"accept-language": "en-US", "user-agent": "Mozilla/5.0"},
    } | changes  # fmt: skip


def asked(text: str | None, **changes: Any) -> dict[str, Any]:
    return conversation(turn("user", text, **changes), turn("assistant", "Sure."))


def length(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def wildchat(path: str, **changes: Any) -> WildChat:
    return WildChat((length,), (1.0,), path, **({"num_train": 4, "validation": 2, "test": 2} | changes))


def texts(task: WildChat, *names: Split) -> list[str]:
    return [content(prompt) for name in names or SPLITS for prompt in task.split(name)]


ODD = [
    conversation(turn("user", "first"), turn("assistant", "a"), turn("user", "second"), turn("assistant", "b")),
    asked("bonjour", language="French"),
    asked("an insult", toxic=True),
    asked("a polite one, whose answer was not"),
    asked("first "),  # the same again
    asked(None),
    asked(""),
    asked(" \n"),
    conversation(turn("assistant", "the assistant starts"), turn("user", "late")),
    conversation(),
    conversation() | {"conversation": None},
]
ODD[3]["conversation"][1]["toxic"] = ODD[3]["toxic"] = True


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_only_first_user_messages_are_taken(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"w{suffix}", ODD)
    expected = [
        "a polite one, whose answer was not",
        "bonjour",
        "first",
    ]  # "first" stands twice, with and without space
    found = texts(wildchat(path, num_train=1, validation=1, test=1))
    assert sorted(text.strip() for text in found) == expected
    with_toxic = texts(wildchat(path, num_train=2, validation=1, test=1, keep_toxic=True))
    assert sorted(text.strip() for text in with_toxic) == sorted([*expected, "an insult"])


def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "w.jsonl", ODD)
    with pytest.raises(ValueError) as error:  # asks for more than there is, so every row is visited
        wildchat(path, num_train=9, validation=1, test=1).split("train")
    counts = dict(re.findall(r"(rows|toxic|duplicate or held out|without a user message|kept) (\d+)", str(error.value)))
    assert counts == {
        "rows": "11", "toxic": "1", "duplicate or held out": "1", "without a user message": "6", "kept": "3",
    }  # fmt: skip
    assert "expected 9 first turns for train" in str(error.value) and "came 1 after all rows" in str(error.value)


def test_messages_are_raw_with_no_system_prompt(tmp_path: Path) -> None:
    rows = [asked(f"  {number}\n\n<b>{{x}}</b> ") for number in range(8)]
    task = wildchat(write(tmp_path / "w.jsonl", rows))
    assert set(texts(task)) == {f"  {number}\n\n<b>{{x}}</b> " for number in range(8)}
    prompts = [prompt for name in SPLITS for prompt in task.split(name)]
    assert [prompt.columns for prompt in prompts] == [{"task": "wildchat"}] * 8
    assert len({prompt.id for prompt in prompts}) == 8
    assert all(re.fullmatch("wildchat/[0-9a-f]{16}", prompt.id) for prompt in prompts)


def test_one_language_can_be_asked_for(tmp_path: Path) -> None:
    rows = [asked(f"{language} {number}", language=language) for number in range(8) for language in ("English", "Thai")]
    task = wildchat(write(tmp_path / "w.jsonl", rows), language="Thai")
    assert set(texts(task)) == {f"Thai {number}" for number in range(8)}


def test_long_messages_are_left_out_if_asked(tmp_path: Path) -> None:
    rows = [asked("x" * size) for size in range(1, 21)]
    assert {len(text) for text in texts(wildchat(write(tmp_path / "w.jsonl", rows), max_characters=8))} == {
        *range(1, 9)
    }


def test_the_same_draw_every_time_and_another_with_another_seed(tmp_path: Path) -> None:
    rows = [asked(str(number)) for number in range(40)]
    one = wildchat(write(tmp_path / "a.jsonl", rows))
    same = wildchat(write(tmp_path / "b.parquet", rows))
    other = wildchat(one.path, seed=1)
    assert texts(one) == texts(same)
    assert sorted(texts(one)) != sorted(texts(other))
    assert texts(one) != [str(number) for number in range(8)]  # not the file's order


def test_more_training_prompts_leave_the_others_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "w.jsonl", [asked(str(number)) for number in range(40)])
    few, many = (wildchat(path, num_train=size) for size in (4, 20))
    assert texts(few, "validation", "test") == texts(many, "validation", "test")
    assert texts(many, "train")[:4] == texts(few, "train")
    assert len(set(texts(many))) == 24


def test_rows_are_visited_only_until_the_splits_are_full(tmp_path: Path) -> None:
    rows = [asked(str(number)) for number in range(3 * CHUNK_ROWS)]
    task = wildchat(write(tmp_path / "w.parquet", rows))
    assert task.counts() == {"rows": 8, "kept": 8}


def test_the_draw_goes_on_over_chunks(tmp_path: Path) -> None:
    rows = [asked(str(number)) for number in range(3 * CHUNK_ROWS)]
    task = wildchat(write(tmp_path / "w.parquet", rows), num_train=3 * CHUNK_ROWS - 4)
    assert sorted(texts(task), key=int) == [str(number) for number in range(3 * CHUNK_ROWS)]


def test_held_out_instructions_are_not_trained_on(tmp_path: Path) -> None:
    """The paper's case: validation is other instructions, of which some may stand in WildChat too."""
    path = write(tmp_path / "w.jsonl", [asked(str(number)) for number in range(8)])
    given = Instructions((write(tmp_path / "i.jsonl", [{"instruction": text} for text in ("3", " 5 ", "other")]),))
    task = wildchat(path, validation=given, num_train=4, test=2)
    assert texts(task, "validation") == ["3", " 5 ", "other"]
    assert {prompt.columns["task"] for prompt in task.split("validation")} == {"wildchat"}
    assert set(texts(task, "train", "test")) == {"0", "1", "2", "4", "6", "7"}
    assert task.counts()["kept"] == 6 and task.counts().get("duplicate or held out", 0) <= 2
    with pytest.raises(ValueError, match=r"expected 5 first turns for train .*came 4 after all rows"):
        wildchat(path, validation=given, num_train=5, test=2).split("train")


def test_the_same_instruction_in_validation_and_test_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "w.jsonl", [asked(str(number)) for number in range(8)])
    one = Instructions((write(tmp_path / "i.jsonl", [{"instruction": "a"}]),))
    other = Instructions((write(tmp_path / "j.jsonl", [{"prompt": " a"}]),))
    with pytest.raises(OverlapError, match="in validation and in test: drop it from one of them"):
        wildchat(path, validation=one, test=other).split("train")


def test_a_missing_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError, match=r"'conversation' in .*came the columns \['text'\]"):
        wildchat(write(tmp_path / "w.jsonl", [{"text": "a"}])).split("train")


@pytest.mark.parametrize(
    ("without", "changes"), [("role", {}), ("content", {}), ("toxic", {}), ("language", {"language": "English"})]
)
def test_a_turn_without_what_is_asked_of_it_is_an_error(tmp_path: Path, without: str, changes: dict[str, Any]) -> None:
    bare = {name: value for name, value in turn("user", "a").items() if name != without}
    path = write(tmp_path / "w.jsonl", [conversation(bare)] * 9)
    with pytest.raises(MissingColumnError, match=rf"came turns with .* and without {without}: "):
        wildchat(path, **changes).split("train")


def test_plain_conversations_do_without_the_flags(tmp_path: Path) -> None:
    rows = [{"conversation": [{"role": "user", "content": str(number)}]} for number in range(8)]
    task = wildchat(write(tmp_path / "w.jsonl", rows), keep_toxic=True)
    assert sorted(texts(task)) == [str(number) for number in range(8)]


def test_timestamps_of_the_hub_do_not_matter(tmp_path: Path) -> None:
    when = datetime.datetime(2023, 4, 9, tzinfo=datetime.UTC)
    rows = [asked(str(number), timestamp=when) | {"timestamp": when} for number in range(8)]
    assert len(texts(wildchat(write(tmp_path / "w.parquet", rows)))) == 8


def test_the_papers_sizes_are_the_default() -> None:
    task = WildChat((length,), (1.0,))
    assert (task.num_train, task.validation, task.path) == (1000, 470, "allenai/WildChat-1M")


def test_rewards_are_those_given_and_needed() -> None:
    task = WildChat((length,), (0.5,))
    assert isinstance(task, Task) and task.name == "wildchat"
    assert task.rewards() == ([length], [0.5])
    with pytest.raises(ValueError, match="at least 1 reward functions and a weight for each, came 0 functions"):
        WildChat((), ())
    with pytest.raises(ValueError, match=r"came 1 functions and weights \(1.0, 2.0\)"):
        WildChat((length,), (1.0, 2.0))


@pytest.mark.parametrize("name", ["num_train", "validation", "test", "max_characters"])
def test_a_size_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} >= 1, came 0"):
        WildChat((length,), (1.0,), **{name: 0})
