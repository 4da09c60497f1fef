"""Runs against each other: outcomes by hand, which evaluation is read, and what cannot be compared."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kit.head_to_head import head_to_head, read_completions
from kit.ranking import Comparison, elo_ratings
from kit.run import Run
from kit.types import Prompt

PROMPTS = [Prompt("a", "?", {"favourite": "x"}), Prompt("b", [{"role": "user", "content": "?"}], {"favourite": "y"})]
RUNS = {
    "one": {"a": ["xx", "x"], "b": ["y", "yyy"]},
    "two": {"a": ["x", "x"], "b": ["yy", "yy"]},
    "three": {"a": ["", "xxx", "xxxx"], "b": ["?", "?"]},
}


def more_of_it(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    baseline: Sequence[Any],
    favourite: Sequence[str],
    **columns: Any,
) -> list[float | None]:
    """Who writes the favourite letter more often; nothing of a question mark. Both texts have the prompt's form."""
    verdicts: list[float | None] = []
    for prompt, *texts, letter in zip(prompts, completions, baseline, favourite, strict=True):
        if not isinstance(prompt, str):
            texts = [text[0]["content"] for text in texts]
        own, other = (text.count(letter) for text in texts)
        verdicts.append(None if "?" in texts else 0.5 if own == other else float(own > other))
    return verdicts


def test_outcomes_by_hand() -> None:
    assert head_to_head(RUNS, PROMPTS, more_of_it) == [
        Comparison("a", "one", "two", 0.75),  # xx > x, then a tie
        Comparison("b", "one", "two", 0.5),  # y < yy, then yyy > yy
        Comparison("a", "one", "three", 0.5),  # xx > "", then x < xxx; the third sample meets nobody
        Comparison("a", "two", "three", 0.5),  # of b nothing could be said
    ]


def test_they_can_be_rated() -> None:
    comparisons = head_to_head({name: RUNS[name] for name in ("one", "two")}, PROMPTS, more_of_it)
    ratings = elo_ratings(comparisons, anchor="two", anchor_rating=0.0, virtual_ties=0.0)
    # 1.25 wins to 0.75: odds of 5 to 3, 400 * log10(5 / 3) points.
    assert ratings["one"] == pytest.approx(88.74, abs=0.05)


def test_a_run_alone_or_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two runs.*\['one'\]"):
        head_to_head({"one": RUNS["one"]}, PROMPTS, more_of_it)
    with pytest.raises(ValueError, match=r"of 'two' for every prompt, came none for 1 of 2, such as 'b'"):
        head_to_head({"one": RUNS["one"], "two": {"a": ["x"]}}, PROMPTS, more_of_it)


def test_the_last_evaluation_of_a_run_is_read(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(tmp_path, max_steps=4, eval_steps=2)
    run.finish()
    last, first = read_completions(tmp_path, "tiny"), read_completions(tmp_path, "tiny", 0)
    assert last == read_completions(tmp_path, "tiny", 4) and last != first
    assert set(last) == {prompt.id for prompt in run.training.workloads[0].held_out}
    assert {len(texts) for texts in last.values()} == {2}
    with pytest.raises(FileNotFoundError, match=r"'tiny' at step 3.*steps \[0, 2, 4\]"):
        read_completions(tmp_path, "tiny", 3)
    with pytest.raises(FileNotFoundError, match=r"'chat' at step any.*steps \[\]"):
        read_completions(tmp_path, "chat")
