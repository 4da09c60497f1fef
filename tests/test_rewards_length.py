"""The length reward: DAPO's soft overlong punishment."""

import copy

import pytest
from trl.rewards import get_soft_overlong_punishment

from kit.rewards import soft_overlong_punishment


@pytest.mark.parametrize(
    ("length", "expected"),
    [  # 100 tokens at most, of which the last 20 are punished
        (0, 0.0),
        (79, 0.0),
        (80, 0.0),  # 100 - 20: the last that is free
        (81, -0.05),  # (80 - 81) / 20
        (90, -0.5),
        (99, -0.95),
        (100, -1.0),
        (101, -1.0),
        (10_000, -1.0),
    ],
)
def test_punishment_by_hand(length: int, expected: float) -> None:
    assert soft_overlong_punishment(100, 20)(completion_ids=[[7] * length]) == [expected]


@pytest.mark.parametrize(("limit", "cache"), [(100, 20), (100, 1), (100, 0), (100, 100), (7, 3), (1, 1)])
def test_punishment_equals_that_of_trl(limit: int, cache: int) -> None:
    completion_ids = [[7] * length for length in range(2 * limit + 2)]
    ours = soft_overlong_punishment(limit, cache)(completion_ids=completion_ids, prompts=[], solution=[])
    assert ours == get_soft_overlong_punishment(limit, cache)(completion_ids=completion_ids)


def test_it_has_a_name_and_can_be_sent_to_another_process() -> None:
    function = soft_overlong_punishment(100, 20)
    assert function.__name__ == "soft_overlong_punishment"
    assert copy.deepcopy(function) == function


@pytest.mark.parametrize(("limit", "cache"), [(100, 101), (100, -1), (-1, 0)])
def test_impossible_lengths_are_refused(limit: int, cache: int) -> None:
    with pytest.raises(ValueError, match=f"got cache_length={cache} and max_completion_length={limit}"):
        soft_overlong_punishment(limit, cache)
