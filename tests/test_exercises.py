"""What an exercise says: correct, not attempted, or what differs; and that no attempt can stop a notebook."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kit.exercises import check, check_answer

NOT_ATTEMPTED = "○ not attempted yet\n"


def said_by(capsys: pytest.CaptureFixture[str], attempt: Any, expected: Any, cases: Any, **options: Any) -> str:
    check(attempt, expected, cases, **options)
    return capsys.readouterr().out


def never(*given: Any) -> Any:
    raise NotImplementedError


def test_a_right_attempt_is_correct(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(capsys, lambda x: x + x, lambda x: 2 * x, [(1,), (2,)]) == "✓ correct: 2 of 2 cases agree\n"


@pytest.mark.parametrize("attempt", [never, lambda x: ...])
def test_a_stub_was_not_attempted(attempt: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(capsys, attempt, lambda x: x, [(1,)]) == NOT_ATTEMPTED


def test_the_first_case_that_differs_is_shown_with_both_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [{"x": 1.0, "beta": 0.5}, {"x": torch.tensor([1.0, -2.0]), "beta": 0.5}, {"x": 0.0, "beta": 9.0}]
    said = said_by(capsys, lambda x, beta: abs(x) * beta, lambda x, beta: x * beta, cases)
    assert said == "✗ case 2 of 3: for (x=[1.0, -2.0], beta=0.5) expected [0.5, -1.0], came [0.5, 1.0]\n"


@pytest.mark.parametrize(
    "error", [ValueError("no\x1b[31m"), ZeroDivisionError("no"), AssertionError("no"), KeyError("no")]
)
def test_an_error_of_the_attempt_is_said(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def attempt(x: int) -> int:
        raise error

    said = said_by(capsys, attempt, lambda x: x, [(7,)])
    assert said.startswith(f"✗ case 1 of 1: for (7) expected 7, came {type(error).__name__}: ")
    assert "\x1b" not in said


def test_an_interrupt_is_no_attempt() -> None:
    def attempt(x: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(attempt, lambda x: x, [(1,)])


def test_who_forgets_to_return_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "came None (does the function return its result?)" in said_by(capsys, lambda x: None, lambda x: x, [(1.0,)])


@pytest.mark.parametrize(
    ("came", "wanted", "agree"),
    [
        (1.0, 1.0 + 9e-6, True),
        (1.0, 1.0 + 3e-5, False),
        (1e6, 1e6 + 5, True),  # relative
        (1, 1.0, True),
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (torch.tensor(0.5), 0.5, True),
        (0.5, torch.tensor(0.5), True),
        (torch.tensor([0.5]), 0.5, False),  # another shape
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]), False),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1.0]), "one", False),
        (torch.tensor([1.0]), None, False),
        (True, True, True),
        (1, True, False),
        ("a", "a", True),
        ("a", "b", False),
        ([1.0, (2.0, 3.0)], (1.0, [2.0, 3.0 + 1e-7]), True),
        ([1.0], [1.0, 2.0], False),
        ({"a": 1.0}, {"a": 1.0}, True),
        ({"a": 1.0}, {"b": 1.0}, False),
        ({"a", "b"}, {"b", "a"}, True),
        (None, None, True),
        (None, 0.0, False),
    ],
)
def test_what_counts_as_equal(came: Any, wanted: Any, agree: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(capsys, lambda: came, lambda: wanted, [()]).startswith("✓" if agree else "✗")


def test_the_tolerance_is_the_caller_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(capsys, lambda: 1.0, lambda: 1.05, [()], tolerance=0.1).startswith("✓")


def test_an_attempt_that_writes_into_its_arguments_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    def attempt(x: torch.Tensor, more: list[float]) -> torch.Tensor:
        more.clear()
        return x.zero_()

    given, more = torch.ones(2, requires_grad=False), [1.0]
    said = said_by(capsys, attempt, lambda x, more: x, [(given, more)])
    assert said.startswith("✗ case 1 of 1: for ([1.0, 1.0], [1.0]) expected [1.0, 1.0]")
    assert given.tolist() == [1.0, 1.0] and more == [1.0]


def test_what_is_long_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(said_by(capsys, lambda x: 0.0, lambda x: 1.0, [(torch.arange(10_000.0),)])) < 400


def test_without_a_case_nothing_is_checked() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        check(never, never, [])


def test_an_expected_function_that_fails_is_the_author_s_fault() -> None:
    with pytest.raises(NotImplementedError):
        check(lambda: 1, never, [()])


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (None, 3, NOT_ATTEMPTED),
        (..., 3, NOT_ATTEMPTED),
        (3, 3, "✓ correct: 3\n"),
        (2, 3, "✗ too small: 2\n"),
        (3.5, 3, "✗ too large: 3.5\n"),
        ("k1", "k3", "✗ it is something else than 'k1'\n"),
        ("3", 3, "✗ it is something else than '3'\n"),
        (math.nan, 3, "✗ it is something else than nan\n"),
        ("\x1b[31m", "k3", "✗ it is something else than '\\x1b[31m'\n"),
    ],
)
def test_an_answer(answer: object, expected: object, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_answer(answer, expected)
    assert capsys.readouterr().out == said
