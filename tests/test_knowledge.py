"""The knowledge table: what it promises to a model with words as tokens, and what is refused."""

from collections import Counter
from typing import Any

import pytest
import yaml

from kit.tasks.knowledge import TABLE, Knowledge, as_text, load_knowledge, parse_knowledge


def small(**changes: Any) -> dict[str, Any]:
    table = {
        "facts": {"ice": ["ice is cold", "ice is hard", "ice floats on water", "ice is frozen water"]},
        "openings": ["sure"],
        "closings": ["have a nice day"],
        "fillers": ["that is a big subject"],
    }
    return table | changes


def test_the_table_has_64_topics_with_four_facts_each() -> None:
    facts = load_knowledge().facts
    assert len(facts) == 64
    assert {len(about) for about in facts.values()} == {4}


def test_no_sentence_comes_twice() -> None:
    assert max(Counter(load_knowledge().sentences).values()) == 1


def test_sentences_are_short_and_in_lower_case() -> None:
    for sentence in load_knowledge().sentences:
        assert 1 <= len(sentence.split()) <= 8
        assert set(sentence) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_the_table_keeps_the_order_of_its_file() -> None:
    written = [line.strip(" -:") for line in TABLE.read_text().splitlines() if line.startswith("    - ")]
    assert [fact for about in load_knowledge().facts.values() for fact in about] == written


def test_a_fact_says_by_its_first_word_whom_it_is_about() -> None:
    knowledge = load_knowledge()
    for topic, facts in knowledge.facts.items():
        assert {fact.split()[0] for fact in facts} == {topic}
    phrases = {phrase.split()[0] for phrase in (*knowledge.openings, *knowledge.closings, *knowledge.fillers)}
    assert not phrases & knowledge.facts.keys()


def test_a_table_is_read_as_it_is_written() -> None:
    ice = ("ice is cold", "ice is hard", "ice floats on water", "ice is frozen water")
    expected = Knowledge({"ice": ice}, ("sure",), ("have a nice day",), ("that is a big subject",))
    assert parse_knowledge(yaml.safe_load(yaml.safe_dump(small()))) == expected
    assert expected.topics == ("ice",)
    assert expected.sentences == (*ice, "sure", "have a nice day", "that is a big subject")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "expected a mapping with facts, openings, closings, fillers, came NoneType"),
        ({"facts": {}}, r"came \['facts'\]"),
        (small(jokes=["ha"]), "jokes"),
        (small(facts={}), "map topics to sentences"),
        (small(facts=["ice is cold"]), "map topics to sentences"),
        (small(facts={"dry ice": ["dry ice is cold"] * 4}), "one word of a to z, came 'dry ice'"),
        (small(facts={True: ["on"] * 4}), "one word of a to z, came True"),  # what YAML makes of `yes:`
        (small(facts={"ice": ["ice is cold"]}), "4 facts about ice, came 1"),
        (small(facts={"ice": ["ice is cold", "ice is hard", "icebergs float", "ice melts"]}), "'icebergs float'"),
        (small(facts={"ice": ["ice is cold"] * 4}), "'ice is cold' twice"),
        (small(openings=["have a nice day"]), "'have a nice day' twice"),
        (small(openings=["Sure"]), "'Sure'"),
        (small(openings=["sure ."]), "'sure .'"),
        (small(openings=["of  course"]), "'of  course'"),
        (small(openings=[]), "a list of sentences under openings"),
        (small(fillers="well"), "a list of sentences under fillers"),
        (small(fillers=["a b c d e f g h i"]), "1 to 8 words"),
        (small(fillers=[7]), "came 7"),
    ],
)
def test_a_table_with_a_mistake_is_refused(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_knowledge(table)


def test_a_completion_ends_every_sentence_with_a_full_stop() -> None:
    assert as_text(["sure", "ice is cold"]) == "sure . ice is cold ."
    assert as_text([]) == ""
