r"""The format reward: one closed, non-empty `\boxed{...}` at the end."""

from typing import Any

import pytest

from kit.rewards import boxed_format_reward


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        # Near-misses.
        ("", 0.0),
        ("79", 0.0),
        (r"\boxed{79", 0.0),  # never closed
        (r"\boxed{79\}", 0.0),  # an escaped brace closes nothing
        (r"\boxed{\frac{1}{2}", 0.0),  # the last brace closes the fraction
        (r"\boxed{}", 0.0),  # empty
        (r"\boxed{ }", 0.0),  # as good as empty
        (r"\boxed79", 0.0),
        (r"\boxed {79}", 0.0),  # not found by math-verify either
        (r"\fbox{79}", 0.0),
        ("boxed{79}", 0.0),
        (r"\boxed{79} is the answer", 0.0),  # goes on
        (r"\boxed{79}7", 0.0),
        (r"\boxed{79},", 0.0),
        (r"\boxed{79}}", 0.0),
        (r"\boxed{7}\boxed{9}", 0.0),  # two
        (r"\boxed{79}; \boxed{", 0.0),  # a second one begins
        (r"\boxed{\boxed{79}}", 0.0),  # one in another
        (r"\boxed{79}. I hope it is correct, really", 0.0),
        # Right.
        (r"\boxed{79}", 1.0),
        (r"\boxed{wrong}", 1.0),  # what is in the box is for another function
        ("25+39=64;\n\\boxed{64}\n", 1.0),
        (r"so \boxed{79}. ", 1.0),
        (r"so $\boxed{79}$.", 1.0),
        (r"so \[\boxed{79}.\]", 0.0),  # a full stop inside of the display is not taken for its end
        (r"so \[\boxed{79}\].", 1.0),
        (r"so $$\boxed{79}$$", 1.0),
        (r"\boxed{\frac{1}{2}}", 1.0),
        (r"\boxed{\{1, 2\}}", 1.0),
        (r"\boxed{\}}", 1.0),
        (r"The final answer is $\boxed{79}$. I hope it is correct.", 1.0),  # the paper's prompt template
    ],
)
def test_format_on_a_table_of_completions(completion: str, expected: float) -> None:
    assert boxed_format_reward([completion]) == [expected]


def test_conversations_and_other_columns_are_accepted() -> None:
    batch: dict[str, Any] = {
        "prompts": ["a", "b"],
        "completions": [[{"role": "assistant", "content": r"\boxed{7}"}], [{"role": "assistant", "content": "7"}]],
        "completion_ids": [[1], [2]],
        "solution": ["7", "7"],
    }
    assert boxed_format_reward(**batch) == [1.0, 0.0]
    assert boxed_format_reward(completions=[]) == []


def test_long_completion_takes_linear_time() -> None:
    # 400 000 braces: quadratic scanning would take minutes.
    deep = r"\boxed{" + "{" * 200_000 + "}" * 200_000
    assert boxed_format_reward([deep, deep + "}"]) == [0.0, 1.0]


@pytest.mark.parametrize("wrong", [[7], [[]], [[{"role": "assistant"}]], [[{"role": "assistant", "content": None}]]])
def test_completion_without_text_is_refused(wrong: list[Any]) -> None:
    with pytest.raises(TypeError):
        boxed_format_reward(wrong)
