"""Requests of the chat task: disjoint splits, every topic in each, the same in every process, no reward by default."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kit.rewards import score
from kit.tasks.chat import DETAILS, TEMPLATES, Chat, chat_words, requests
from kit.tasks.knowledge import Knowledge, load_knowledge
from kit.tasks.task import Split, Task
from kit.types import Prompt

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ROOT = Path(__file__).parents[1]


def one_per_word(completions: list[str], topic: list[str], **columns: Any) -> list[float]:
    """A reward for the tests: how often the topic is named."""
    return [float(text.split().count(asked)) for text, asked in zip(completions, topic, strict=True)]


CHAT = Chat((one_per_word,), (1.0,))


def content(prompt: Prompt) -> str:
    assert isinstance(prompt.content, list)
    assert [message["role"] for message in prompt.content] == ["user"]
    return prompt.content[0]["content"]


def test_every_request_is_in_exactly_one_split() -> None:
    texts = [content(prompt) for name in SPLITS for prompt in CHAT.split(name)]
    assert len(TEMPLATES) >= 8
    assert len(texts) == 64 * len(TEMPLATES) * len(DETAILS)
    assert set(texts) == {request for _, request in requests(load_knowledge().topics)}
    assert max(Counter(texts).values()) == 1


def test_about_eight_in_ten_requests_train_one_validates_one_tests() -> None:
    # Buckets of one byte modulo 10: 0 to 5 have 26 of the 256 values, 6 to 9 have 25. So of 64 * 10 * 8 = 5120 requests
    # 5120 * 25 / 256 = 500 are expected in each held-out split, with a standard deviation of sqrt(500 * .902) = 21.
    sizes = [len(CHAT.split(name)) for name in SPLITS]
    assert sum(sizes) == 5120
    assert all(abs(size - 500) <= 5 * 21 for size in sizes[1:])


@pytest.mark.parametrize("name", SPLITS)
def test_every_topic_is_in_every_split(name: Split) -> None:
    assert {prompt.columns["topic"] for prompt in CHAT.split(name)} == set(load_knowledge().topics)


@pytest.mark.parametrize(
    ("request_text", "name"),  # first byte of `printf REQUEST | sha256sum`, modulo 10
    [
        ("tell me about tea .", "train"),  # 0x38 = 56: 6
        ("what is true of ice ?", "train"),  # 0x15 = 21: 1
        ("tell me about wind .", "validation"),  # 0x6c = 108: 8
        ("tell me about bees .", "test"),  # 0x4f = 79: 9
        ("teach me about tea .", "test"),  # 0x13 = 19: 9
    ],
)
def test_a_hash_decides_the_split(request_text: str, name: Split) -> None:
    assert request_text in [content(prompt) for prompt in CHAT.split(name)]


@pytest.mark.parametrize("name", SPLITS)
def test_a_prompt_names_its_topic_and_its_task(name: Split) -> None:
    for prompt in CHAT.split(name):
        assert prompt.columns == {"topic": prompt.columns["topic"], "task": "chat"}
        assert [word for word in content(prompt).split() if word in load_knowledge().facts] == [prompt.columns["topic"]]
        assert prompt.id == f"chat/{content(prompt)}"


def test_a_slice_of_a_split_is_a_sample_of_many_topics() -> None:
    # 64 draws out of 64 leave about 64 / e = 24 topics out; in the order of the table, one slice would hold about 8.
    for name in SPLITS:
        assert len({prompt.columns["topic"] for prompt in CHAT.split(name)[:64]}) >= 30


def test_a_request_is_a_wording_and_a_detail() -> None:
    assert list(requests(["owls", "tea"])) == [
        (topic, wording.replace("{topic}", topic) + (f" {detail}" if detail else ""))
        for topic in ("owls", "tea")
        for wording in TEMPLATES
        for detail in DETAILS
    ]


def test_all_words_are_few_and_separated_by_spaces() -> None:
    words = chat_words(load_knowledge())
    assert len(words) < 700
    assert list(words) == sorted(words)
    assert all(word.isalpha() or word in {".", "?"} for word in words)


def test_the_words_are_those_of_requests_facts_and_phrases() -> None:
    tiny = Knowledge({"ice": ("ice floats",)}, ("hello",), ("goodbye",), ("hm",))
    words = chat_words(tiny)
    assert {"ice", "floats", "hello", "goodbye", "hm", "tell", "story", ".", "?"} <= set(words)
    assert len(set(words)) == len(words)
    assert "owls" not in words


def test_requests_are_the_same_in_every_process() -> None:
    program = (
        "from kit.tasks.chat import Chat; from kit.tasks.chat import chat_words\n"
        "from kit.tasks.knowledge import load_knowledge\n"
        f"print(*[p.id for s in {SPLITS} for p in Chat((len,), (1.0,)).split(s)], sep='\\n')\n"
        "print(*chat_words(load_knowledge()), sep='\\n')"
    )
    expected = [prompt.id for name in SPLITS for prompt in CHAT.split(name)] + list(chat_words(load_knowledge()))
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert found.stdout.splitlines() == expected


def test_it_is_a_task_for_the_run() -> None:
    assert isinstance(CHAT, Task)
    assert CHAT.name == "chat"


def test_the_given_reward_functions_judge_with_the_prompts_columns() -> None:
    functions, weights = Chat((one_per_word, lambda completions, **columns: [1.0]), (2.0, 0.5)).rewards()
    prompt = CHAT.split("train")[0]
    topic = prompt.columns["topic"]
    totals, _ = score(
        functions, weights, prompts=[prompt.content], completions=[f"{topic} are {topic}"], completion_ids=[[1]],
        columns={name: [value] for name, value in prompt.columns.items()},
    )  # fmt: skip
    assert totals == [4.5]  # 2 * 2 mentions + 0.5 * 1


@pytest.mark.parametrize(("functions", "weights"), [((), ()), ((one_per_word,), ()), ((one_per_word,), (1.0, 2.0))])
def test_a_task_without_a_reward_is_refused(functions: tuple[Any, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least one reward function and a weight for each"):
        Chat(functions, weights)
