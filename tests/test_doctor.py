"""Detectors on records: each fires on a run with its fault, at the stated step, and not on one just beside it.

A window is the last 5 batches, the start the first 3 (`kit.doctor.window`), so steps count from 0: a rule on five
batches can speak at step 4 at the earliest, one on a trend at step 7.
"""

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.doctor import Doctor, Finding, Setup
from kit.printable import excerpt, printable
from tests.records import healthy, run_of, told


def test_a_healthy_run_has_no_finding() -> None:
    assert told(run_of(300)) == []


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0] * 5, [("never_ends", "error", 4)]),
        ([1.0] * 4, []),  # four batches are not five
        ([0.9, 1.0, 1.0, 1.0, 1.0, 1.0], [("truncated", "error", 4)]),  # (0.9 + 4) / 5 = 0.98, and something ended
        ([0.5] * 5, [("truncated", "warning", 4)]),
        ([0.5, 0.5, 0.5, 0.5, 0.49], []),  # mean 0.498
        ([0.95] * 5, [("truncated", "error", 4)]),
        ([0.94] * 5, [("truncated", "warning", 4)]),
    ],
)
def test_truncation(ratios: list[float], expected: list[tuple[str, str, int]]) -> None:
    assert told(run_of(len(ratios), completions__clipped_ratio=ratios)) == expected


def test_a_verifier_that_always_says_0() -> None:
    zeros: dict[str, Any] = {
        "rewards__math_reward__mean": 0.0,
        "reward": 0.0,
        "frac_reward_zero_std": 1.0,
        "groups__used": 0,
    }
    assert told(run_of(5, **zeros)) == [("verifier_always_zero", "error", 4)]
    assert told(run_of(4, **zeros)) == []
    zeros |= {"rewards__math_reward__mean": [0.0, 0.0, 0.0, 0.004, 0.0], "groups__used": [0, 0, 0, 1, 0]}
    assert told(run_of(5, **zeros | {"frac_reward_zero_std": [1.0, 1.0, 1.0, 0.97, 1.0]})) == []


def test_a_verifier_that_stops_saying_anything_but_0_is_told_apart() -> None:
    zeros: dict[str, Any] = {"rewards__math_reward__mean": 0.0, "reward": 0.0, "frac_reward_zero_std": 1.0}
    (finding,) = Doctor().replay([*run_of(3), *run_of(5, 3, **zeros)])
    assert (finding.name, finding.step) == ("verifier_always_zero", 7)
    assert "0.41 at the start" in finding.seen and "checkpoint" in finding.remedy  # the mean of 0.40, 0.41 and 0.42


def test_zero_beside_another_function_is_a_warning_and_a_constant_a_note() -> None:
    assert told(run_of(5, rewards__format__mean=0.0)) == [("verifier_always_zero", "warning", 4)]
    assert told(run_of(5, rewards__format__mean=1.0)) == [("constant_reward", "note", 4)]
    assert told(run_of(5, rewards__format__mean=[1.0, 1.0, 1.0, 0.996, 1.0])) == []


def test_one_function_that_says_the_same_of_everything() -> None:
    ones: dict[str, Any] = {"rewards__math_reward__mean": 1.0, "reward": 1.0}
    assert told(run_of(5, **ones, frac_reward_zero_std=1.0)) == [("constant_reward", "warning", 4)]
    halves: dict[str, Any] = {
        "rewards__math_reward__mean": 0.5,
        "reward": 0.5,
    }  # of 0 and 1 in every group: no constant
    assert told(run_of(5, **halves)) == []


def test_rewards_of_both_signs_that_cancel_are_no_constant_zero() -> None:
    assert told(run_of(5, rewards__math_reward__mean=0.0, reward=0.0)) == []


def test_unjudged_completions() -> None:
    # 5120 tokens at 20 a completion are 256 completions a batch.
    nothing = [{k: v for k, v in record.items() if k != "rewards/math_reward/mean" and k != "reward"}
               for record in run_of(5, rewards__unjudged=256, frac_reward_zero_std=1.0, groups__used=0)]  # fmt: skip
    assert told(nothing) == [("nothing_judged", "error", 4)]
    assert told(run_of(5, rewards__unjudged=128)) == [("mostly_unjudged", "warning", 4)]
    assert told(run_of(5, rewards__unjudged=127)) == []


def test_a_function_that_abstains_on_everything_while_another_judges() -> None:
    assert told(run_of(5), functions=("math_reward", "format")) == [("function_abstains", "warning", 4)]
    assert told(run_of(5, rewards__format__mean=[0.1, 0.2, 0.3, 0.4, 0.5]), functions=("math_reward", "format")) == []
    once = [healthy(0, rewards__format__mean=0.2), *run_of(5, 1)]  # by its name in an earlier record
    assert told(once) == [("function_abstains", "warning", 5)]
    assert told(once[:5]) == []


def test_groups_without_contrast() -> None:
    flat: dict[str, Any] = {"frac_reward_zero_std": 1.0, "groups__used": 0}
    assert told(run_of(5, **flat)) == [("no_contrast", "error", 4)]
    assert told(run_of(5, frac_reward_zero_std=[1.0, 1.0, 1.0, 1.0, 0.97], groups__used=[0, 0, 0, 0, 1])) == []
    rewards = [0.91, 0.92, 0.9, 0.91, 0.93]
    solved = run_of(5, **flat, reward=rewards, rewards__math_reward__mean=rewards)
    assert told(solved) == [("no_contrast", "warning", 4)]


def test_groups_that_the_objective_cannot_use() -> None:
    (finding,) = Doctor().replay(run_of(5, groups__used=0))
    assert finding.name == "no_contrast" and "best_worst" in finding.remedy


@pytest.mark.parametrize(
    ("now", "length", "expected"),
    [
        (0.0049, 100.0, [("entropy_collapse", "warning", 7)]),  # 4.9 % of the start, 0.49 nats a completion
        (0.0051, 100.0, []),  # 5.1 %, 0.51 nats
        (0.0065, 15.0, [("entropy_collapse", "warning", 7)]),  # 6.5 %, 0.0975 nats a completion
        (0.0068, 15.0, []),  # 6.8 %, 0.102 nats
    ],
)
def test_entropy(now: float, length: float, expected: list[tuple[str, str, int]]) -> None:
    records = run_of(3, completions__mean_length=length) + run_of(
        5, 3, sampler__entropy=now, completions__mean_length=length
    )
    assert told(records) == expected


def test_entropy_of_the_trained_policy_is_looked_at_where_the_sampler_stands_still() -> None:
    records = run_of(9, offpolicy__kl=0.01, sync__staleness=list(range(1, 10)))
    records[0]["eval/entropy"], records[8]["eval/entropy"] = 0.2, 0.009  # 4.5 %
    assert told(records) == [("entropy_collapse", "warning", 8)]
    records[8]["eval/entropy"] = 0.011  # 5.5 %
    assert told(records) == []


@pytest.mark.parametrize(
    ("length", "cut", "expected"),
    [
        (10.0, 0.0, [("length_collapse", "warning", 7)]),  # half of 20
        (10.1, 0.0, []),
        (30.0, 0.2, [("length_runaway", "warning", 7)]),  # 1.5 times, a fifth truncated
        (29.9, 0.2, []),
        (30.0, 0.19, []),
        (60.0, 0.0, [("length_runaway", "note", 7)]),  # 3 times
        (59.9, 0.0, []),
    ],
)
def test_length(length: float, cut: float, expected: list[tuple[str, str, int]]) -> None:
    changed: dict[str, Any] = {
        "completions__mean_length": length,
        "completions__clipped_ratio": cut,
        "num_tokens": 256 * length,
    }
    assert told(run_of(3) + run_of(5, 3, **changed)) == expected


def evaluated(step: int, name: str, value: float, half: float, **more: float) -> dict[str, float]:
    """A record with an evaluation and the half-width of its interval."""
    found = {f"eval/{name}": value, f"eval/{name}_low": value - half, f"eval/{name}_high": value + half}
    return {"step": step} | found | more


@pytest.mark.parametrize(
    ("later", "half", "expected"),
    [
        (0.49, 0.05, [("evaluation_falls", "warning", 9)]),  # 0.60 - 0.05 = 0.55 > 0.54 = 0.49 + 0.05
        (0.51, 0.05, []),  # 0.56: the intervals overlap
        (0.51, 0.01, []),  # they do not, and 0.09 is a small fall
        (0.49, 0.06, []),  # 0.54 and 0.55: they overlap
    ],
)
def test_an_evaluation_that_falls(later: float, half: float, expected: list[tuple[str, str, int]]) -> None:
    records = [evaluated(3, "accuracy", 0.6, half), evaluated(6, "accuracy", 0.55, half)]
    assert told([*records, evaluated(9, "accuracy", later, half)]) == expected


def test_a_win_rate_that_falls_while_the_reward_rises_is_reward_hacking() -> None:
    first, last = evaluated(0, "win_rate", 0.6, 0.04), evaluated(9, "win_rate", 0.4, 0.04)
    assert told([first | {"eval/reward": 1.0}, last | {"eval/reward": 3.0}]) == [("reward_hacking", "warning", 9)]
    assert told([first | {"eval/reward": 1.0}, last | {"eval/reward": 0.5}]) == [("evaluation_falls", "warning", 9)]


def test_the_remedy_for_a_fall_speaks_of_staleness_where_there_was_some() -> None:
    for lag in (0, 3):
        records = [healthy(0, sync__staleness=lag, offpolicy__kl=1e-13) | evaluated(0, "accuracy", 0.9, 0.02)]
        (finding,) = Doctor().replay([*records, evaluated(1, "accuracy", 0.5, 0.02)])
        assert ("sync more often" in finding.remedy) == (lag > 0)


def test_displaced_chosen_completions() -> None:
    # -0.1 / 0.1 = -1 nat for the chosen, -3 for the rejected.
    fallen: dict[str, Any] = {"rewards__chosen": -0.1, "rewards__rejected": -0.3}
    assert told(run_of(5, **fallen), beta=0.1) == [("chosen_displaced", "note", 4)]
    assert told(run_of(5, **fallen), beta=0.11) == []  # -0.91 nats
    assert told(run_of(5, **fallen)) == []  # without beta the scale is not known
    assert told(run_of(5, rewards__chosen=-0.1, rewards__rejected=-0.05), beta=0.1) == []  # fell more than the rejected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(value: float) -> None:
    assert told([healthy(0, grad_norm=value)]) == [("non_finite", "error", 0)]
    assert told([healthy(0, time__train=value)]) == []  # a clock says nothing of the run


@pytest.mark.parametrize(
    ("kl", "lag", "rate", "is_low", "expected"),
    [
        (1.1e-6, 0, 5e-5, False, True),
        (0.9e-6, 0, 5e-5, False, False),
        (2.1e-3, 0, 5e-5, True, True),  # bfloat16
        (1.9e-3, 0, 5e-5, True, False),
        (0.1, 1, 5e-5, False, False),  # an update in between
        (1.1e-6, 4, 2e-10, False, True),  # four updates of 2e-10 move no weight
        (1.1e-6, 6, 2e-10, False, False),  # 1.2e-9
    ],
)
def test_a_sampler_that_is_not_the_policy(kl: float, lag: int, rate: float, is_low: bool, expected: bool) -> None:
    records = [healthy(0, offpolicy__kl=kl, sync__staleness=lag, learning_rate=rate)]
    found = told(records, is_low_precision=is_low)
    assert found == ([("sampler_stale", "error", 0)] if expected else [])


def test_a_distance_that_grows_although_each_step_syncs() -> None:
    grown = run_of(3, offpolicy__kl=2e-5) + run_of(5, 3, offpolicy__kl=2.1e-4)  # 10.5-fold, and above 2e-4
    assert told(grown, is_low_precision=True) == [("sampler_stale", "error", 7)]
    less = run_of(3, offpolicy__kl=2.2e-5) + run_of(5, 3, offpolicy__kl=2.1e-4)  # 9.5-fold
    assert told(less, is_low_precision=True) == []
    small = run_of(3, offpolicy__kl=1e-5) + run_of(5, 3, offpolicy__kl=1.9e-4)  # 19-fold, of next to nothing
    assert told(small, is_low_precision=True) == []


def test_a_policy_far_from_its_sampler() -> None:
    lags = [1, 2, 3, 4, 5]
    assert told(run_of(5, offpolicy__kl=0.21, sync__staleness=lags)) == [("far_off_policy", "warning", 4)]
    assert told(run_of(5, offpolicy__kl=0.19, sync__staleness=lags)) == []
    peaks = [9.0, 9.0, 0.1, 0.1, 0.1]  # the median is 0.1: two batches are no trend
    assert told(run_of(5, offpolicy__kl=peaks, sync__staleness=lags)) == []


def test_a_finding_is_told_once_and_again_after_it_had_cleared() -> None:
    bad: dict[str, Any] = {"completions__clipped_ratio": 0.8}
    good: dict[str, Any] = {"completions__clipped_ratio": 0.0}
    assert told(run_of(100, **bad)) == [("truncated", "warning", 4)]
    # Bad in steps 0 to 9: the mean of five is .64 at step 10, .48 at step 11. Good in 18 steps, 10 to 27, then bad
    # again: .16, .32, .48 at step 30, .64 at step 31. So it was quiet in 20 records, 11 to 30, and 17 good ones in 19.
    again = run_of(10, **bad) + run_of(18, 10, **good) + run_of(10, 28, **bad)
    assert told(again) == [("truncated", "warning", 4), ("truncated", "warning", 31)]
    sooner = run_of(10, **bad) + run_of(17, 10, **good) + run_of(10, 27, **bad)
    assert told(sooner) == [("truncated", "warning", 4)]


def test_a_resumed_run_is_told_what_an_uninterrupted_one_is() -> None:
    records = run_of(4) + run_of(30, 4, completions__clipped_ratio=0.8, sampler__entropy=0.001)
    whole = Doctor()
    found = [whole.examine(record) for record in records]
    for stop in range(len(records)):
        resumed = Doctor()
        resumed.replay(records[:stop])
        assert [resumed.examine(record) for record in records[stop:]] == found[stop:]
    assert sum(map(len, found)) == 2


def test_a_batch_that_is_used_again_counts_once() -> None:
    again = [healthy(step, completions__clipped_ratio=0.8, reuse_epoch=step % 4) for step in range(16)]
    assert told(again) == []  # four batches
    assert told([*again, healthy(16, completions__clipped_ratio=0.8)]) == [("truncated", "warning", 16)]


def test_tasks_are_looked_at_by_themselves() -> None:
    def of_two(step: int, ratio: float) -> dict[str, float]:
        chat = {f"task/chat/{name}": value for name, value in healthy(step).items() if name != "step"}
        math = healthy(step, completions__clipped_ratio=ratio)
        return healthy(step) | chat | {f"task/math/{name}": value for name, value in math.items() if name != "step"}

    (finding,) = Doctor().replay([of_two(step, 0.8) for step in range(6)])
    assert (finding.name, finding.about, finding.step) == ("truncated", "math", 4)
    assert Doctor().replay([of_two(step, 0.4) for step in range(6)]) == []


def test_the_cost_of_a_step_does_not_grow_with_the_run() -> None:
    """In calls, which no other program on the machine changes. In time it was .15 ms, of a step of 150 ms or more."""
    doctor, calls = Doctor(Setup(beta=0.1)), []

    def count(frame: object, event: str, argument: object) -> None:
        calls[-1] += event in ("call", "c_call")

    for record in run_of(300):
        calls.append(0)
        sys.setprofile(count)
        try:
            doctor.examine(record)
        finally:
            sys.setprofile(None)
    assert max(calls[200:]) <= 1.05 * max(calls[50:100]) > 0


def test_what_a_model_wrote_cannot_steer_a_terminal() -> None:
    text = "\x1b[2J\u202e\r\n\x9b31m ok é"
    assert printable(text) == "\\x1b[2J\\u202e\\r\\n\\x9b31m ok é"
    shown = str(Finding("a", "note", excerpt(text), "\x07", 3, about="\x1b"))
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert shown.count("\n") == 2


@pytest.mark.usefixtures("_shapes_unchecked")
def test_a_finding_of_another_severity_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        Finding("a", "fatal", "", "")  # pyright: ignore[reportArgumentType]


def test_every_rule_of_a_detector_is_in_its_docstring() -> None:
    from kit.doctor import dynamics, ending, model, prompts, reward_model, rundir, sampling, signal, staleness

    for module in (dynamics, ending, model, prompts, reward_model, rundir, sampling, signal, staleness):
        source = Path(str(module.__file__)).read_text()
        names = re.findall(r'Finding\(\s*"(\w+)"', source)
        assert names and not [name for name in names if f"`{name}`" not in source]
