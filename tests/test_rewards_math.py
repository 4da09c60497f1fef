r"""The math reward: math-verify's verdict in the paper's configuration, whatever the completion tries to do to it."""

import copy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.rewards import math as math_module
from kit.rewards.math import MathReward, quick_verdict
from kit.rewards.math_worker import judge

ROOT = Path(__file__).parents[1]
HANGS = r"\boxed{9^{9^{9^{9}}}}"  # sympy would write the number out


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    reward = MathReward(timeout_s=20.0)
    yield reward
    reward.close()


# completion, solution, reward
VERDICTS = [
    # Near-misses: right but for one thing.
    (r"\boxed{79}", "97", 0.0),  # digits swapped
    (r"\boxed{-79}", "79", 0.0),  # sign
    (r"\boxed{7}9", "79", 0.0),  # the box closes too early
    (r"\boxed{79", "79", 0.0),  # cut off by the length limit before the box closes
    (r"\fbox{79}", "79", 0.0),  # another box
    (r"\boxed79", "79", 0.0),  # a box without braces
    (r"\boxed{}79", "79", 0.0),  # an empty box
    ("25+39=64;64+15=79", "79", 0.0),  # right, but nothing marks the answer
    ("", "79", 0.0),
    (r"\boxed{0.33}", r"\frac{1}{3}", 0.0),  # rounded too coarsely: 6 decimals count
    (r"\boxed{0.333334}", r"\frac{1}{3}", 0.0),  # the sixth decimal is off
    (r"\boxed{(1,2]}", "(1,2)", 0.0),  # the interval's other end
    (r"\boxed{y=5}", "x=5", 0.0),  # another variable
    (r"\boxed{1,2}", "1,2,3", 0.0),  # one solution of three is missing
    (r"\boxed{\text{B}}", r"\text{A}", 0.0),
    (r"\boxed{\frac{}", r"\frac{1}{2}", 0.0),  # garbage
    (r"\boxed{79}, no: \boxed{80}", "79", 0.0),  # close together, two boxes are one answer with two parts
    (r"\boxed{79}. Checking the sum once more gives instead \boxed{80}", "79", 0.0),  # the last box counts
    # Right, in another form.
    (r"25+39=64;64+15=79;\boxed{79}", "79", 1.0),
    (r"\boxed{80}. Checking the sum once more gives instead \boxed{79}", "79", 1.0),
    (r"\boxed{079}", "79", 1.0),
    (r"\boxed{+79}", "79", 1.0),
    (r"\boxed{79.0}", "79", 1.0),
    (r"\boxed{79\text{ cm}}", "79", 1.0),  # units do not count
    (r"The final answer is $\boxed{\frac{2}{4}}$. I hope it is correct.", "0.5", 1.0),
    (r"so $x = 5$", "5", 1.0),  # no box: the last mathematics is taken
    (r"\boxed{0.333333}", r"\frac{1}{3}", 1.0),
    (r"\boxed{x^2+2x+1}", "(x+1)^2", 1.0),
    (r"\boxed{2,1}", r"\{1,2\}", 1.0),
    (r"\boxed{5}", "x=5", 1.0),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", "\\begin{pmatrix}1\\\\\n2\\end{pmatrix}", 1.0),  # broken line
    (r"\boxed{79}", r"\boxed{79}", 1.0),  # a solution that carries its own box
    # math-verify's oddities, kept, because the paper's numbers were made with them.
    (r"\boxed{--79}", "79", 1.0),  # a double minus cancels
    (r"it is [79] then", "79", 1.0),  # square brackets between spaces are mathematics
    (r"\boxed{79\%}", "79", 1.0),  # 79 % agrees with 79
    (r"\boxed{80}. Checking the sum once more, I find \boxed{79}", "79", 0.0),  # a comma between makes it one answer
]


def test_verdicts_on_a_table_of_answers(reward: MathReward) -> None:
    completions, solution, expected = (list(column) for column in zip(*VERDICTS, strict=True))
    assert reward(completions, solution) == expected
    verdicts = [judge((completion, answer)) for completion, answer, _ in VERDICTS]
    assert verdicts == expected  # the shortcut and the worker agree


def test_contract_of_a_reward_function(reward: MathReward) -> None:
    batch: dict[str, Any] = {
        "prompts": [[{"role": "user", "content": "1/2+1/2="}]] * 3,
        "completions": [[{"role": "assistant", "content": text}] for text in (r"\boxed{\frac22}", "1", "hello")],
        "completion_ids": [[1, 2], [3], [4]],
        "task": ["math", "math", "chat"],
        "trainer_state": None,
    }
    assert reward(**batch, solution=["1", "1", None]) == [1.0, 0.0, None]  # None: another task's row
    assert reward(completions=[], solution=[]) == []
    assert reward.__name__ == "math_reward"


def test_bombs_are_killed_and_the_rest_is_scored() -> None:
    # Each makes math-verify run for hours, or until memory ends.
    bombs = [HANGS, r"\boxed{((9!)!)!}", r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}"]
    reward = MathReward(timeout_s=2.0)
    completions = [r"\boxed{\frac{14}{2}}", *bombs, r"\boxed{\frac{15}{2}}", *[rf"\boxed{{{n}+0}}" for n in range(20)]]
    assert reward(completions, ["7"] * 25) == [1.0, None, None, None, 0.0, *[float(n == 7) for n in range(20)]]
    metrics = reward.metrics()
    assert metrics["timeouts"] + metrics["crashes"] == 3
    assert metrics["verified"] == 25
    reward.close()


@pytest.mark.parametrize("solution", ["", "  ", "\\", "$"])
def test_solution_that_is_no_mathematics_cannot_be_judged(solution: str, caplog: pytest.LogCaptureFixture) -> None:
    reward = MathReward(workers=1, timeout_s=20.0)
    assert reward([r"\boxed{79}", "79"], [solution, solution]) == [
        None,
        None,
    ]  # not 0: the completions are not at fault
    assert reward.metrics()["errors"] == 2
    assert "UnparsableSolutionError: expected a solution in LaTeX" in caplog.text
    reward.close()


def test_other_threads_get_the_same_verdicts(reward: MathReward) -> None:
    # math-verify's own time limit works on the main thread only: elsewhere all would be 0.
    completions, solution = [rf"\boxed{{{n}-1}}" for n in range(40)], ["7"] * 40
    answers: list[list[float | None]] = []
    threads = [threading.Thread(target=lambda: answers.append(reward(completions, solution))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[float(n == 8) for n in range(40)]] * 3


def test_each_pair_is_verified_once() -> None:
    reward = MathReward(workers=1, timeout_s=20.0)
    completions, solution = [r"\boxed{3+4}", r"\boxed{3+4}", r"\boxed{3+4}", r"\boxed{7}"], ["7", "7", "8", "7"]
    for _ in range(2):
        assert reward(completions, solution) == [1.0, 1.0, 0.0, 1.0]
    counts = {"fast": 2, "cached": 2, "verified": 2, "timeouts": 0, "crashes": 0, "errors": 0}
    assert reward.metrics() == counts
    reward.close()


def test_cache_forgets_what_was_used_longest_ago(reward: MathReward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_module, "CACHE_SIZE", 2)

    def verified(completion: str) -> int:
        before = reward.metrics()["verified"]
        reward([completion], ["100"])
        return reward.metrics()["verified"] - before

    a, b, c = (rf"\boxed{{100+{n}}}" for n in (1, 2, 3))
    reward._verdicts.clear()
    assert [verified(x) for x in (a, b, a, c, a, b)] == [1, 1, 0, 1, 0, 1]  # c drove out b, since a was used again


def test_lost_verdict_is_not_remembered() -> None:
    reward = MathReward(workers=1, timeout_s=1.0)
    for attempt in (1, 2):
        assert reward([HANGS, HANGS], ["7", "7"]) == [None, None]  # once a call, not once a row
        assert reward.metrics()["timeouts"] == attempt
    reward.close()


def test_copy_has_processes_of_its_own(reward: MathReward) -> None:
    twin = copy.copy(reward)  # by the protocol of pickle, with which trainers send functions to other processes
    assert twin([r"\boxed{3+4}"], ["7"]) == [1.0]
    assert twin.metrics()["verified"] == 1
    twin.close()


def test_wrong_batches_are_refused(reward: MathReward) -> None:
    with pytest.raises(ValueError, match="got 2 for 1 completions"):
        reward(["1"], ["1", "2"])
    wrong: list[Any] = [79]
    with pytest.raises(TypeError, match="79"):
        reward(["79"], wrong)


NOTEBOOK_LIKE = r"""
import sys
from kit.rewards import MathReward
reward = MathReward(timeout_s=20.0)
print(reward([r"\boxed{\frac{14}{2}}"], ["7"]))
heavy = {"torch", "numpy", "sympy", "math_verify", "multiprocessing"} & sys.modules.keys()
print(sorted(heavy), hasattr(sys.modules["__main__"], "__file__"))
"""


def test_works_where_main_is_no_file_and_imports_nothing_heavy(tmp_path: Path) -> None:
    # As in a notebook: the main module has no file. And in a folder whose files are named like the standard library's.
    for name in ("random", "json", "math", "kit"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('shadowed')")
    run = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})" + NOTEBOOK_LIKE],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert run.stdout.splitlines() == ["[1.0]", "[] False"]


# completion, solution, verdict without math-verify (None: only math-verify can tell)
QUICK = [
    # Not covered, by a hair.
    (r"\boxed{7}\boxed{8}", "7", None),  # two boxes are a set
    (r"\boxed{+7}", "7", None),
    (r"\boxed{--7}", "7", None),
    (r"\boxed{ 7}", "7", None),
    (r"\boxed{}", "7", None),
    (r"\boxed{7.0}", "7", None),
    ("\\boxed{\u0667}", "7", None),  # an Arabic seven: a digit to Python's \d
    (r"\boxed{7}}", "7", None),
    (r"{\boxed{7}", "7", None),
    (r"\boxed{" + "1" * 16 + "}", "7", None),
    (r"$\boxed{7}$", "7", None),
    (r"\(7\)", "7", None),
    ("so [7] then", "7", None),
    ("$7$", "7", None),
    (r"\frac{14}{2}", "7", None),
    (r"\boxed{7}", "7.0", None),  # solutions that are not plain integers
    (r"\boxed{7}", " 7", None),
    (r"\boxed{7}", "7\n", None),
    (r"\boxed{7}", "\u0667", None),
    ("7", "x", None),
    # Covered.
    (r"2+5=7;\boxed{7}", "7", 1.0),
    (r"2+5=7;\boxed{7}.", "7", 1.0),
    (r"\boxed{007} (I think)", "7", 1.0),
    (r"\boxed{-0}", "0", 1.0),
    (r"\boxed{-7}", "7", 0.0),
    (r"\boxed{77}", "7", 0.0),
    ("2+5=7", "7", 0.0),
    (r"2+5=7;\boxed{7", "7", 0.0),
    (r"2+5=7;\box", "7", 0.0),
    ("", "7", 0.0),
]


@pytest.mark.parametrize(("completion", "solution", "verdict"), QUICK)
def test_shortcut_covers_what_it_should(completion: str, solution: str, verdict: float | None) -> None:
    assert quick_verdict(completion, solution) == verdict


integers = st.one_of(st.integers(-12, 12), st.integers(-(10**15) + 1, 10**15 - 1)).map(str)
solutions = st.one_of(integers, st.sampled_from(["-0", "00", "07", "-07", "000000000000012"]))


@st.composite
def worked_answers(draw: st.DrawFn) -> str:
    r"""What the embedded model writes: `25+39=64;64+15=79;\boxed{79}`, often cut off or with something out of place."""
    text = "".join(f"{draw(integers)}+{draw(integers)}={draw(integers)};" for _ in range(draw(st.integers(0, 2))))
    sign = draw(st.sampled_from(["", "", "", "-", "+", "--", " "]))
    text += draw(st.sampled_from([r"\boxed{", r"\boxed{", r"\boxed{", r"\fbox{", "boxed{", ""])) + sign + draw(integers)
    text += draw(st.sampled_from(["}", "}", "}", "", "}}", "}.", "} ", "}%", r"}\boxed{8}", "} cm", "};\n"]))
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) and draw(st.booleans()) else text


FRAGMENTS = [
    r"\boxed{", r"\boxed{", "}", "}", "{", "7", "12", "-", "+", "--", "=", ";", ".", ",", " ", "\n", "\t", "%", "$",
    "[", "]", "(", ")", "\\", r"\(", r"\)", r"\[", r"\]", r"\frac", r"\fbox{", r"\text{", "\u0667", "²", "−", "\u00a0",
    "answer is ", "Final answer is ", "The answer: ", " I hope", " cm", " percent", " and ", " or ", "boxed", "'", '"',
]  # fmt: skip
scraps = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@settings(max_examples=1000, deadline=None)
@given(st.one_of(worked_answers(), scraps, st.text(max_size=30)), solutions)
def test_shortcut_agrees_with_math_verify(completion: str, solution: str) -> None:
    verdict = quick_verdict(completion, solution)
    assert verdict is None or verdict == judge((completion, solution))


@settings(max_examples=300, deadline=None)
@given(integers, scraps.map(lambda text: "".join(c for c in text if c not in "\\{}$[")), solutions)
def test_shortcut_agrees_on_any_text_around_the_box(number: str, text: str, solution: str) -> None:
    half = len(text) // 2
    for answer in (number, solution):
        completion = rf"{text[:half]}\boxed{{{answer}}}{text[half:]}"
        assert (
            quick_verdict(completion, solution) == judge((completion, solution)) == float(int(answer) == int(solution))
        )
