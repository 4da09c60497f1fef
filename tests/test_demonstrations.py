"""Demonstrators err as often as they are told, and in the way they are told."""

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.tasks.demonstrations import Demonstrator, add_without_carry

FLAWLESS = Demonstrator(0, 0, 0, 0)
DRAWS = 4000


def rate_is(count: int, probability: float) -> bool:
    """Within five standard errors."""
    return abs(count / DRAWS - probability) <= 5 * math.sqrt(probability * (1 - probability) / DRAWS)


def demonstrations(demonstrator: Demonstrator, expression: str) -> list[str]:
    rng = random.Random(0)
    return [demonstrator(expression, rng) for _ in range(DRAWS)]


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [
        (25, 39, 54),  # 5 + 9 = 14: writes 4, and 2 + 3 = 5 without the 1
        (20, 7, 27),  # nothing to carry
        (99, 1, 90),  # 9 + 1 = 10: writes 0; 9 + 0 = 9
        (95, 17, 102),  # 5 + 7 = 12: writes 2; 9 + 1 = 10, whose own carry is kept
        (-25, -39, -54),  # the same with a sign
        (52, -17, 45),  # 2 - 7: borrows, 12 - 7 = 5, but leaves the 5 tens: 5 - 1 = 4
        (17, -52, -45),  # the larger one decides the sign
        (-52, 17, -45),
        (54, -15, 49),
        (58, -17, 41),  # nothing to borrow
        (30, -30, 0),
        (0, 0, 0),
        (100, -1, 109),  # 0 - 1: writes 9 and leaves the 10 tens
        (-3, 5, 2),
    ],
)
def test_sum_without_carry(a: int, b: int, total: int) -> None:
    assert add_without_carry(a, b) == total


@given(st.integers(-999, 999), st.integers(-999, 999))
def test_forgetting_changes_nothing_but_a_ten(a: int, b: int) -> None:
    # Digits by hand: of magnitudes l >= s, a carry happens if l % 10 + s % 10 > 9, a borrow if l % 10 < s % 10.
    small, large = sorted((a, b), key=abs)
    sign = -1 if large < 0 else 1
    is_sum = (a < 0) == (b < 0)
    units = abs(large) % 10 + abs(small) % 10 if is_sum else abs(large) % 10 - abs(small) % 10
    lost = 10 if units > 9 else 0
    gained = 10 if units < 0 else 0
    assert add_without_carry(a, b) == a + b + sign * (gained - lost)


@given(st.lists(st.integers(10, 99), min_size=2, max_size=5), st.data())
def test_a_flawless_demonstrator_is_right(terms: list[int], data: st.DataObject) -> None:
    signs = data.draw(st.lists(st.sampled_from([-1, 1]), min_size=len(terms) - 1, max_size=len(terms) - 1))
    signed = [terms[0], *(sign * term for sign, term in zip(signs, terms[1:], strict=True))]
    expression = str(terms[0]) + "".join(f"{number:+d}" for number in signed[1:])
    assert FLAWLESS(expression, random.Random(0)).endswith(rf";\boxed{{{sum(signed)}}}")


@pytest.mark.parametrize(
    ("expression", "worked"),
    [
        ("10-25+5", r"10-25=-15;-15+5=-10;\boxed{-10}"),
        ("11+22", r"11+22=33;\boxed{33}"),
        ("12-30-40+9", r"12-30=-18;-18-40=-58;-58+9=-49;\boxed{-49}"),
    ],
)
def test_working_is_written_out(expression: str, worked: str) -> None:
    assert FLAWLESS(expression, random.Random(0)) == worked


def test_a_carry_is_forgotten_half_of_the_time() -> None:
    written = demonstrations(Demonstrator(slips=0, skips_working=0, forgets_box=0), "25+39")
    assert set(written) == {r"25+39=64;\boxed{64}", r"25+39=54;\boxed{54}"}
    assert rate_is(written.count(r"25+39=54;\boxed{54}"), 0.5)


def test_an_error_is_carried_through_the_working() -> None:
    assert Demonstrator(1, 0, 0, 0)("25+39+11", random.Random(0)) == r"25+39=54;54+11=65;\boxed{65}"


def test_one_step_slips_by_one_as_often_as_told() -> None:
    written = demonstrations(Demonstrator(forgets_carry=0, skips_working=0, forgets_box=0), "20+30+40")
    answers = [int(re.findall(r"\{(\d+)\}", text)[0]) for text in written]
    assert set(answers) == {89, 90, 91}
    assert rate_is(len(answers) - answers.count(90), 0.08)
    slipped = {text for text, answer in zip(written, answers, strict=True) if answer != 90}
    assert slipped == {  # either step, either way; the step after a slip is done right
        r"20+30=49;49+40=89;\boxed{89}", r"20+30=51;51+40=91;\boxed{91}",
        r"20+30=50;50+40=89;\boxed{89}", r"20+30=50;50+40=91;\boxed{91}",
    }  # fmt: skip


def test_working_is_skipped_as_often_as_told_and_then_the_answer_is_right() -> None:
    written = demonstrations(Demonstrator(forgets_carry=1, slips=1, forgets_box=0), "25+39")
    assert rate_is(written.count(r"\boxed{64}"), 0.15)
    assert all(";" in text for text in written if text != r"\boxed{64}")


def test_the_box_is_forgotten_as_often_as_told() -> None:
    written = demonstrations(Demonstrator(forgets_carry=0, slips=0, skips_working=0), "25+39")
    assert set(written) == {r"25+39=64;\boxed{64}", "25+39=64;64"}
    assert rate_is(written.count("25+39=64;64"), 0.15)


def test_the_default_demonstrator_is_right_as_often_as_its_rates_say() -> None:
    # 31+25 neither carries nor borrows; with the box kept (.85) it is right unless it slips (.08) and shows it (.85).
    written = demonstrations(Demonstrator(), "31+25")
    assert rate_is(sum(r"\boxed{56}" in text for text in written), 0.85 * (1 - 0.08 * 0.85))


def test_same_randomness_same_demonstration() -> None:
    first, second = (
        [Demonstrator()("25+39-15", rng) for _ in range(50)] for rng in (random.Random(5), random.Random(5))
    )
    assert first == second
    assert len(set(first)) > 5
