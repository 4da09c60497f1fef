"""Completions in the files that the two public judges of the paper's evaluation read: AlpacaEval 2.0 and Arena-Hard.

Both are single-turn: a prompt is a string, or a user message that a system message may come before. Text is written
with JSON's escapes, so it reads the same under every locale, and a file appears whole or not at all.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kit.types import Messages, Prompt

Answers = Sequence[tuple[Prompt, str]]  # a prompt and its completion


def write_alpaca_eval(path: Path, answers: Answers, *, generator: str, dataset: str = "kit") -> Path:
    """Write a `model_outputs` file: `alpaca_eval --model_outputs PATH` judges it.

    It is a JSON list of `{"instruction", "output", "generator", "dataset"}`. The package finds the baseline's output by
    the instruction, so that has to be the text of its own data set. A system message belongs to the generator; the
    format has no place for it, and it is left out.

    Args:
        path: ends in .json; its folder is made, a file that is there is replaced.
        answers: one completion for each prompt.
        generator: the name on the leaderboard.
        dataset: where prompts come from that have no column `dataset`.

    Returns:
        The path.

    Raises:
        ValueError: no answers, an instruction that comes twice, a conversation, no name, or another ending.

    Source: alpaca-eval 0.6.6, `main.py` and `utils.py`, which reads it by pandas.
    """
    if path.suffix != ".json":
        raise ValueError(f"expected a path that ends in .json, by which alpaca-eval tells the format, came {path}")
    _check(generator, [_single_turn(prompt)[-1]["content"] for prompt, _ in answers], "instruction")
    records = [
        {
            "instruction": _single_turn(prompt)[-1]["content"],
            "output": completion,
            "generator": generator,
            "dataset": prompt.columns.get("dataset", dataset),
        }
        for prompt, completion in answers
    ]
    return _replace(path, json.dumps(records, indent=2) + "\n")


def write_arena_hard(folder: Path, answers: Answers, *, model: str, tstamp: float | None = None) -> Path:
    """Write `MODEL.jsonl`, to lie in `data/BENCHMARK/model_answer/`: `gen_judgment.py` judges it.

    One object a line: `{"uid", "ans_id", "model", "messages", "tstamp"}`, where the last message's content is
    `{"answer": COMPLETION}`. `metadata`, which style control alone reads, is left to their
    `utils/add_markdown_info.py`: it counts tokens of GPT-4o's tokenizer, and a count by another would skew the
    comparison with the baseline's.

    Args:
        folder: is made; the file's name is the model's, because the judge takes it from there.
        answers: one completion for each prompt; the prompt's id is the question's `uid`.
        model: a file name.
        tstamp: seconds since 1970; None = now.

    Returns:
        The file's path.

    Raises:
        ValueError: no answers, a uid that comes twice, a conversation, or a name that is none or has a slash.

    Source: github.com/lmarena/arena-hard-auto at 196f6b8 (2025-06-20), `gen_answer.py` and `gen_judgment.py`.
    """
    if "/" in model or "\\" in model:
        raise ValueError(f"expected a model name that can be a file name, came {model!r}: leave out the owner")
    _check(model, [prompt.id for prompt, _ in answers], "uid")
    now = time.time() if tstamp is None else tstamp
    records: list[dict[str, Any]] = [
        {
            "uid": prompt.id,
            "ans_id": hashlib.sha256(json.dumps([prompt.id, model, completion]).encode()).hexdigest()[:22],
            "model": model,
            "messages": [*_single_turn(prompt), {"role": "assistant", "content": {"answer": completion}}],
            "tstamp": now,
        }
        for prompt, completion in answers
    ]
    return _replace(folder / f"{model}.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def _single_turn(prompt: Prompt) -> Messages:
    """A user message, and a system message before it if there is one."""
    if isinstance(prompt.content, str):
        return [{"role": "user", "content": prompt.content}]
    roles = [message["role"] for message in prompt.content]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(
            f"expected one user message, after a system message or none, came {roles} in prompt {prompt.id!r}: both "
            "benchmarks are single-turn"
        )
    return prompt.content


def _check(name: str, keys: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"expected one completion for each {what}, came two for {key!r:.200}: choose one")
        seen.add(key)
    if not seen or not name:
        raise ValueError(f"expected at least one completion and a name, came {len(seen)} and {name!r}")


def _replace(path: Path, text: str) -> Path:
    """Put the whole text in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    return path
