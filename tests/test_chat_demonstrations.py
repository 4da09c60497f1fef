"""Chat demonstrators stray, repeat, pad and greet as often as they are told, and report what they wrote."""

import math
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from kit.tasks.chat_demonstrations import FAULTLESS, ChatDemonstrator, Demonstration
from kit.tasks.knowledge import Knowledge, load_knowledge

ICE = ("ice is cold", "ice is hard", "ice floats on water", "ice is frozen water")
TEA = ("tea is hot", "tea is green", "tea is black", "tea is made from leaves")
SMALL = Knowledge({"ice": ICE, "tea": TEA}, ("sure",), ("have a nice day",), ("let me think",))
PLAIN = ChatDemonstrator(strays=0, repeats=0, pads=0, opens=0, closes=0)
DRAWS = 3000


def draws(demonstrator: ChatDemonstrator, count: int = DRAWS) -> list[Demonstration]:
    rng = random.Random(0)
    return [demonstrator("ice", SMALL, rng) for _ in range(count)]


def sentences(demonstration: Demonstration) -> list[str]:
    return [part.strip() for part in demonstration.text.split(".")[:-1]]


def rate_is(count: int, probability: float, trials: int = DRAWS) -> bool:
    """Within five standard errors."""
    return abs(count / trials - probability) <= 5 * math.sqrt(probability * (1 - probability) / trials)


def test_faultless_is_a_courtesy_and_all_four_facts() -> None:
    for written in draws(FAULTLESS, 50):
        assert sentences(written)[0] == "sure"
        assert sorted(sentences(written)[1:]) == sorted(ICE)
        assert replace(written, text="") == Demonstration("", 4, 0, 0, 0, 1)


def test_facts_come_in_every_order() -> None:
    orders = Counter(written.text for written in draws(FAULTLESS))
    assert len(orders) == math.factorial(4)
    assert all(rate_is(count, 1 / 24) for count in orders.values())


def test_every_bad_habit_at_once_by_hand() -> None:
    # It always strays, and with a single fact to tell there is only that one to say again.
    always = ChatDemonstrator(strays=1, repeats=1, pads=1, opens=1, closes=1, num_facts=(1, 0, 0, 0))
    texts = {f"sure . let me think . {fact} . {fact} . have a nice day ." for fact in TEA}
    written = draws(always, 100)
    assert {demonstration.text for demonstration in written} == texts
    assert {replace(demonstration, text="") for demonstration in written} == {Demonstration("", 0, 0, 2, 1, 2)}


def test_number_of_facts_follows_its_probabilities() -> None:
    counts = Counter(written.facts for written in draws(replace(PLAIN, num_facts=(0.1, 0.2, 0.3, 0.4))))
    assert all(rate_is(counts[facts], facts / 10) for facts in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("demonstrator", "kind", "rate"),
    [
        (replace(PLAIN, strays=0.3, num_facts=(1, 0, 0, 0)), "off_topic", 0.3),
        (replace(PLAIN, repeats=0.3, num_facts=(1, 0, 0, 0)), "repeats", 0.3),
        (replace(PLAIN, pads=0.3, num_facts=(1, 0, 0, 0)), "fillers", 0.3),
        (replace(PLAIN, opens=0.3), "courtesies", 0.3),
        (replace(PLAIN, closes=0.3), "courtesies", 0.3),
    ],
)
def test_a_habit_shows_as_often_as_told_and_no_other_does(
    demonstrator: ChatDemonstrator, kind: str, rate: float
) -> None:
    written = draws(demonstrator)
    assert rate_is(sum(getattr(demonstration, kind) for demonstration in written), rate)
    for other in {"repeats", "off_topic", "fillers", "courtesies"} - {kind}:
        assert not any(getattr(demonstration, other) for demonstration in written)


def test_habits_are_asked_at_every_fact() -> None:
    # Four facts: strays and pads are binomial with n = 4, so .25 * 4 = 1 each, with variance 4 * .25 * .75 = .75.
    four = ChatDemonstrator(repeats=0, num_facts=(0, 0, 0, 1))
    written, error = draws(four), math.sqrt(0.75 / DRAWS)
    assert abs(fmean(demonstration.off_topic for demonstration in written) - 1) <= 5 * error
    assert abs(fmean(demonstration.fillers for demonstration in written) - 1) <= 5 * error


def test_any_fact_said_before_can_be_repeated() -> None:
    # Two facts, and a repetition after each: the first repeats the first fact; the second picks among A, A, B.
    two = replace(PLAIN, repeats=1, num_facts=(0, 1, 0, 0))
    written = draws(two)
    assert all(demonstration.facts == 2 and demonstration.repeats == 2 for demonstration in written)
    latest = sum(sentences(demonstration)[3] == sentences(demonstration)[2] for demonstration in written)
    assert rate_is(latest, 1 / 3)


def test_what_is_counted_is_what_is_written() -> None:
    for written in draws(ChatDemonstrator(), 500):
        said = sentences(written)
        about = [sentence for sentence in said if sentence.startswith("ice ")]
        assert written.facts == len(set(about))
        assert written.repeats == len(about) - len(set(about))
        assert written.off_topic == sum(sentence in TEA for sentence in said)
        assert written.fillers == said.count("let me think")
        assert written.courtesies == said.count("sure") + said.count("have a nice day")
        counted = written.facts + written.repeats + written.off_topic + written.fillers + written.courtesies
        assert counted == len(said)


def test_courtesies_stand_at_the_ends() -> None:
    for written in draws(replace(ChatDemonstrator(), opens=1, closes=1), 100):
        assert sentences(written)[0] == "sure"
        assert sentences(written)[-1] == "have a nice day"


def test_the_default_demonstrator_is_uneven_in_every_respect() -> None:
    written = draws(ChatDemonstrator())
    for kind in ("facts", "repeats", "off_topic", "fillers", "courtesies"):
        assert len({getattr(demonstration, kind) for demonstration in written}) >= 3
    assert len({len(sentences(demonstration)) for demonstration in written}) >= 8


@pytest.mark.parametrize(
    "fields", [{"strays": -0.1}, {"opens": 1.1}, {"num_facts": (1, 1, 0, 0)}, {"num_facts": (0, 0, 0, 0)}]
)
def test_what_is_no_probability_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected probabilities"):
        ChatDemonstrator(**fields)


def test_straying_needs_another_topic() -> None:
    alone = replace(SMALL, facts={"ice": ICE})
    with pytest.raises(ValueError, match="topics besides ice"):
        ChatDemonstrator()("ice", alone, random.Random(0))
    assert PLAIN("ice", alone, random.Random(0)).facts >= 1


def test_demonstrations_are_the_same_in_every_process() -> None:
    program = (
        "import random; from kit.tasks.chat_demonstrations import ChatDemonstrator\n"
        "from kit.tasks.knowledge import load_knowledge\n"
        "knowledge, rng = load_knowledge(), random.Random(7)\n"
        "for topic in knowledge.topics: print(ChatDemonstrator()(topic, knowledge, rng).text)"
    )
    knowledge, rng, root = load_knowledge(), random.Random(7), Path(__file__).parents[1]
    expected = [ChatDemonstrator()(topic, knowledge, rng).text for topic in knowledge.topics]
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert found.stdout.splitlines() == expected
