"""The gold judge of the chat task: utilities by hand, what raises and what lowers them, and that training is blind."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.tasks.chat_demonstrations import FAULTLESS, ChatDemonstrator
from kit.tasks.gold import Contents, Gold, contents
from kit.tasks.knowledge import Knowledge, as_text, load_knowledge

ICE = ("ice is cold", "ice is hard", "ice floats on water", "ice is frozen water")  # 3, 3, 4, 4 words
TEA = ("tea is hot", "tea is green", "tea is black", "tea is made from leaves")  # 3, 3, 3, 5 words
FILLERS = ("let me think", "that is a big subject")
SMALL = Knowledge({"ice": ICE, "tea": TEA}, ("sure", "of course"), ("have a nice day",), FILLERS)
# Five different weights, all sums of powers of two: any confusion of two shows, and results are exact.
WEIGHTS = Gold(fact=8.0, courtesy=4.0, off_topic=2.0, garbled=16.0, word=0.25)


@pytest.mark.parametrize(
    ("text", "utility"),
    [
        ("", 0.0),
        ("ice is cold .", 8.0),
        ("ice is cold . ice floats on water .", 16.0),  # two facts, no word too many
        (as_text(ICE), 32.0),  # 4 * 8
        ("ice is cold . ice is cold .", 7.25),  # 8 - 3 words * .25
        ("sure . ice is cold .", 11.75),  # 8 + 4 - 1 * .25
        ("ice is cold . have a nice day .", 11.0),  # 8 + 4 - 4 * .25
        ("sure . of course . ice is cold . have a nice day .", 10.25),  # 8 + 4 once - (1 + 2 + 4) * .25
        ("tea is hot .", -2.75),  # -2 - 3 * .25
        ("tea is hot . tea is hot .", -5.5),  # each time: 2 * (-2 - 3 * .25)
        ("let me think . ice is cold .", 7.25),  # 8 - 3 * .25
        ("ice is warm .", -16.75),  # in no list: -16 - 3 * .25
        ("ice is cold ice is hard .", -17.5),  # two facts run together: -16 - 6 * .25
        ("is cold ice .", -16.75),  # the words of a fact in another order
        ("ice is cold . ice floats on", -8.75),  # cut off: 8 - 16 - 3 * .25
        ("ice is cold", 8.0),  # a missing last mark is forgiven
        ("  ice   is cold! ", 8.0),  # spaces and the kind of mark do not matter
        ("ice is cold\n.", 8.0),
        (".", -16.0),  # a mark without words; marks are not words
        ("ice is cold . . .", -24.0),  # 8 - 2 * 16
        ("Ice is cold .", -16.75),  # the table is in lower case
        ("sure . tea is hot . let me think . ice is cold . ice is cold . nonsense .", -8.75),
        # 8 + 4 - 2 - 16 - .25 * (1 + 3 + 3 + 3 + 3 + 1 words - 3 of the fact = 11 words): -6 - 2.75 = -8.75
    ],
)
def test_utility_by_hand(text: str, utility: float) -> None:
    assert WEIGHTS("ice", text, SMALL) == utility


def test_default_weights_by_hand() -> None:
    # 4 facts, "sure" is one word: 4 * 1 + .5 - 1/16. No completion is worth more.
    assert Gold()("ice", as_text(["sure", *ICE]), SMALL) == 4.4375
    # 1 fact - .5 off topic - 3 of its words / 16 - 1 garbled - 2 of its words / 16 = -.5 - .3125
    assert Gold()("ice", "ice is cold . tea is hot . blah blah .", SMALL) == -0.8125


def test_a_weight_of_zero_leaves_its_part_out() -> None:
    # 2 facts and a courtesy, off topic once: 2 + .5 - .5; the 1 + 3 words too many are free.
    assert Gold(word=0)("ice", "sure . ice is cold . tea is hot . ice is hard .", SMALL) == 2.0


def test_contents_by_hand() -> None:
    text = "sure . tea is hot . let me think . ice is cold . ice is cold . ice floats on water . nonsense . ."
    # words: 1 + 3 + 3 + 3 + 3 + 4 + 1 = 18, of which 3 + 4 have to be said
    assert contents("ice", text, SMALL) == Contents(2, 1, 1, 1, 1, 2, 18, 7)


def completions(knowledge: Knowledge = SMALL) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from([*knowledge.sentences, "ice is warm"]), max_size=8)


@given(completions(), st.sampled_from(ICE), st.integers(0, 8))
def test_a_missing_fact_raises_and_a_repeated_one_lowers(said: list[str], fact: str, position: int) -> None:
    more = as_text([*said[:position], fact, *said[position:]])
    before, after = Gold()("ice", as_text(said), SMALL), Gold()("ice", more, SMALL)
    assert after > before if fact not in said else after < before


@given(completions(), st.sampled_from([*FILLERS, *TEA, "ice is warm", "x"]), st.integers(0, 8))
def test_filler_another_topic_and_nonsense_lower(said: list[str], waste: str, position: int) -> None:
    assert Gold()("ice", as_text([*said[:position], waste, *said[position:]]), SMALL) < Gold()(
        "ice", as_text(said), SMALL
    )


@given(completions(), st.sampled_from(["sure", "of course", "have a nice day"]))
def test_the_first_courtesy_raises_and_a_second_lowers(said: list[str], courtesy: str) -> None:
    before, after = Gold()("ice", as_text(said), SMALL), Gold()("ice", as_text([*said, courtesy]), SMALL)
    polite = any(sentence in {"sure", "of course", "have a nice day"} for sentence in said)
    assert after < before if polite else after > before


@given(completions().flatmap(lambda said: st.tuples(st.just(said), st.permutations(said))))
def test_the_order_of_sentences_does_not_matter(orders: tuple[list[str], list[str]]) -> None:
    assert Gold()("ice", as_text(orders[0]), SMALL) == Gold()("ice", as_text(orders[1]), SMALL)


@given(st.lists(st.sampled_from(["ice", "is", "cold", ".", "tea", "hot", "sure", "x"]), max_size=30))
def test_utility_stays_in_its_range(pieces: list[str]) -> None:
    utility = Gold()("ice", " ".join(pieces), SMALL)
    assert -len(pieces) * (1 + 0.0625) <= utility <= 4.4375


def test_every_courtesy_of_the_table_is_worth_its_words() -> None:
    knowledge = load_knowledge()
    for courtesy in (*knowledge.openings, *knowledge.closings):
        assert Gold()("owls", as_text([courtesy]), knowledge) > 0


def test_the_judge_reads_what_demonstrators_say_they_wrote() -> None:
    knowledge, rng = load_knowledge(), random.Random(0)
    for topic in knowledge.topics:
        for demonstrator in (ChatDemonstrator(), FAULTLESS):
            written = demonstrator(topic, knowledge, rng)
            found = contents(topic, written.text, knowledge)
            read = (found.facts, found.repeats, found.off_topic, found.fillers, found.courtesies, found.garbled)
            assert read == (
                written.facts, written.repeats, written.off_topic, written.fillers, written.courtesies, 0
            )  # fmt: skip


def test_a_faultless_demonstration_beats_an_uneven_one() -> None:
    knowledge, rng = load_knowledge(), random.Random(1)
    for topic in knowledge.topics:
        good = Gold()(topic, FAULTLESS(topic, knowledge, rng).text, knowledge)
        assert good >= 4 + 0.5 - 5 / 16  # the longest opening has five words
        assert good >= Gold()(topic, ChatDemonstrator()(topic, knowledge, rng).text, knowledge) - 4 / 16


def test_an_unknown_topic_is_refused() -> None:
    with pytest.raises(KeyError, match="coal"):
        Gold()("coal", "coal is black .", SMALL)


@pytest.mark.parametrize("weights", [{"fact": -1.0}, {"word": -0.1}, {"garbled": float("nan")}, {"fact": float("inf")}])
def test_a_weight_with_a_sign_of_its_own_is_refused(weights: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="finite weights >= 0"):
        Gold(**weights)


def test_nothing_that_trains_or_writes_the_task_sees_the_judge() -> None:
    kit = Path(__file__).parents[1] / "kit"
    blind = ["run.py", "learner.py", "rollouts.py", "objectives", "losses", "rewards", "samplers", "models/seed.py"]
    blind += ["tasks/__init__.py", "tasks/task.py", "tasks/chat.py", "tasks/chat_demonstrations.py"]
    files = [file for name in blind for file in ([kit / name] if name.endswith(".py") else (kit / name).rglob("*.py"))]
    assert len(files) > 20
    assert [file.name for file in files if re.search(r"tasks(\.| import .*)gold", file.read_text())] == []
