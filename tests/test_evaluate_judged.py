"""Win rates on canned completions, by hand; and the chat task's own judge against the table of its utilities."""

from collections.abc import Sequence
from typing import Any

import pytest

from kit.config import Sampling
from kit.evaluate import evaluate_by_judging
from kit.tasks.gold import gold_judge, gold_utility
from kit.tasks.task import Judging
from kit.types import Prompt
from tests.test_evaluate import CannedSampler

SAMPLING = Sampling(max_completion_length=9)
PROMPTS = [Prompt("a", "?", {"topic": "ice"}), Prompt("b", "?", {"topic": "tea"})]
CANNED = {"a": ["xx", "x", "", "xxxx"], "b": ["x", "xx", "?", "xxx"]}
BASELINE = {"a": ("x", "xx"), "b": ("x",)}  # the i-th sample meets the i-th of these, cyclically


def longer(completions: Sequence[str], baseline: Sequence[str], **columns: Any) -> list[float | None]:
    pairs = zip(completions, baseline, strict=True)
    return [None if text == "?" else 0.5 if len(text) == len(b) else float(len(text) > len(b)) for text, b in pairs]


def length(completions: Sequence[str], **columns: Any) -> list[float | None]:
    return [None if text == "?" else float(len(text)) for text in completions]


def found(judging: Judging, samples: int = 4) -> Any:
    sampler = CannedSampler(CANNED, {})
    return evaluate_by_judging(
        sampler, PROMPTS, [length], [10.0], judging, samples=samples, seed=(0,), sampling=SAMPLING
    )


def test_win_rate_by_hand() -> None:
    # a: xx > x, x < xx, "" < x, xxxx > xx: 2 of 4. b: a tie, a win, not judged, a win: 2.5 of 3. Their mean is that of
    # the prompts, not of the comparisons.
    result = found(Judging(longer, BASELINE))
    assert result.win_rates.plain.mean == pytest.approx((2 / 4 + 2.5 / 3) / 2)
    assert result.win_rates.plain.n == 2
    assert (result.win_rates.plain.low, result.win_rates.plain.high) == pytest.approx(
        (2 / 4, 2.5 / 3)
    )  # of two prompts
    assert result.win_rates.unjudged == pytest.approx(1 / 8)


def test_means_of_rewards_and_of_what_only_evaluates() -> None:
    def ones(completions: Sequence[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    result = found(Judging(longer, BASELINE, (ones, length)))
    assert result.means == {"length": pytest.approx(13 / 7), "ones": 1.0}  # 2+1+0+4 + 1+2+3 over the seven judged
    assert result.reward == pytest.approx(130 / 7)  # weight 10
    assert [group.rewards for group in result.groups] == [(20.0, 10.0, 0.0, 40.0), (10.0, 20.0, None, 30.0)]
    metrics = result.metrics()
    assert metrics["eval/win_rate"] == result.win_rates.plain.mean and metrics["eval/rewards/ones/mean"] == 1.0
    assert metrics["eval/mean_length"] == pytest.approx((3 + 2 + 1 + 5 + 2 + 3 + 2 + 4) / 8)


def test_the_judge_sees_columns_and_baseline_of_each_completion() -> None:
    seen: dict[str, Any] = {}

    def spy(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [1.0] * len(arguments["completions"])

    found(Judging(spy, BASELINE))
    assert seen["baseline"] == ["x", "xx", "x", "xx", "x", "x", "x", "x"]
    assert seen["topic"] == ["ice"] * 4 + ["tea"] * 4
    assert seen["completions"] == CANNED["a"] + CANNED["b"]


def test_the_baseline_is_a_conversation_where_the_prompt_is() -> None:
    seen: dict[str, Any] = {}

    def spy(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [1.0] * len(arguments["completions"])

    prompt = Prompt("a", [{"role": "user", "content": "?"}], {})
    evaluate_by_judging(
        CannedSampler(CANNED, {}), [prompt], [length_of_message], [1.0], Judging(spy, BASELINE), samples=4, seed=(0,),
        sampling=SAMPLING,
    )  # fmt: skip
    assert seen["baseline"][1] == [{"role": "assistant", "content": "xx"}]


def length_of_message(completions: Sequence[Any], **columns: Any) -> list[float]:
    return [float(len(messages[0]["content"])) for messages in completions]


def test_a_judge_that_decides_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one of 8 comparisons, came none"):
        found(Judging(lambda completions, **columns: [None] * len(completions), BASELINE))


def test_without_a_judge_there_are_means_and_no_win_rate() -> None:
    result = found(Judging())
    assert result.win_rates is None and result.reward == pytest.approx(130 / 7)
    assert set(result.metrics()) == {"eval/entropy", "eval/mean_length", "eval/reward", "eval/rewards/length/mean"}


def test_a_prompt_without_a_baseline_is_named() -> None:
    for baseline in ({"a": ("x",)}, {"a": ("x",), "b": ()}):
        with pytest.raises(ValueError, match=r"came none for 1 of 2, such as 'b'"):
            found(Judging(longer, baseline))


def test_another_baseline_is_another_description() -> None:
    described = [
        Judging(longer, b, (length,)).describe() for b in (BASELINE, {"a": ("x", "xx"), "b": ("y",)}, BASELINE)
    ]
    assert described[0] == described[2] != described[1]
    assert (described[0]["pairwise"], described[0]["pointwise"]) == ("longer", ["length"])


def test_the_gold_judge_compares_utilities() -> None:
    # 1 fact; 1 fact and its courtesy less a word; a fact about something else.
    texts = ["ice is frozen water .", "sure . ice is frozen water .", "cows eat grass ."]
    assert gold_utility(texts, ["ice"] * 3) == [1.0, 1.4375, -0.6875]
    wins = [gold_judge([own], ["ice"], [other])[0] for own, other in ((texts[1], texts[0]), (texts[0], texts[1]))]
    assert wins == [1.0, 0.0]
    assert gold_judge([[{"role": "assistant", "content": texts[0]}]], ["ice"], [texts[0]]) == [0.5]
