"""What the chat task can talk about: four short facts about each of a few dozen everyday things.

The table is a written file, `data/chat/knowledge.yaml`. A fact belongs to the topic that it starts with, so that
whether a sentence is about what was asked needs no opinion.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).resolve().parents[2] / "data" / "chat" / "knowledge.yaml"
FACTS_PER_TOPIC = 4
MAX_WORDS = 8  # in a fact or phrase
PHRASES = ("openings", "closings", "fillers")


@dataclass(frozen=True)
class Knowledge:
    """Sentences without their full stops. No sentence comes twice, and every order is that of the file.

    Attributes:
        facts: topic -> what is true of it; each starts with the topic.
        openings, closings: courtesies for either end of a completion.
        fillers: phrases that say nothing.
    """

    facts: Mapping[str, tuple[str, ...]]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    fillers: tuple[str, ...]

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(self.facts)

    @cached_property
    def all_facts(self) -> frozenset[str]:
        """Of every topic; asked for at each completion that is judged."""
        return frozenset(chain.from_iterable(self.facts.values()))

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every fact and phrase."""
        return (*chain.from_iterable(self.facts.values()), *self.openings, *self.closings, *self.fillers)


@cache
def load_knowledge(path: Path = TABLE) -> Knowledge:
    """The table at `path`, checked."""
    return parse_knowledge(yaml.safe_load(path.read_text(encoding="utf-8")))


def parse_knowledge(table: Any) -> Knowledge:
    """The table as a value.

    Args:
        table: a mapping with `facts` (topic -> four sentences), `openings`, `closings` and `fillers`.

    Raises:
        ValueError: if a part is missing or unknown, a topic is not one word or has not four facts, a sentence does not
            consist of 1 to 8 words of a to z, a fact does not start with its topic, or a sentence comes twice.
    """
    expected = ("facts", *PHRASES)
    if not isinstance(table, Mapping) or set(table) != set(expected):
        came = list(table) if isinstance(table, Mapping) else type(table).__name__
        raise ValueError(f"expected a mapping with {', '.join(expected)}, came {came}")
    if not isinstance(table["facts"], Mapping) or not table["facts"]:
        raise ValueError(f"expected facts to map topics to sentences, came {table['facts']!r:.80}")
    facts = {topic: _facts_of(topic, sentences) for topic, sentences in table["facts"].items()}
    knowledge = Knowledge(facts, *(_sentences(name, table[name]) for name in PHRASES))
    seen: set[str] = set()
    for sentence in knowledge.sentences:
        if sentence in seen:
            raise ValueError(f"expected every sentence once, came {sentence!r} twice")
        seen.add(sentence)
    return knowledge


def as_text(sentences: Iterable[str]) -> str:
    """A completion: every sentence with a full stop, which is a word of its own.

    >>> as_text(["sure", "rain falls from clouds"])
    'sure . rain falls from clouds .'
    """
    return " ".join(f"{sentence} ." for sentence in sentences)


def _facts_of(topic: Any, sentences: Any) -> tuple[str, ...]:
    if not isinstance(topic, str) or not re.fullmatch("[a-z]+", topic):
        raise ValueError(f"expected a topic to be one word of a to z, came {topic!r}")
    facts = _sentences(topic, sentences)
    if len(facts) != FACTS_PER_TOPIC:
        raise ValueError(f"expected {FACTS_PER_TOPIC} facts about {topic}, came {len(facts)}")
    for fact in facts:
        if not fact.startswith(f"{topic} "):
            raise ValueError(f"expected every fact about {topic} to start with it, came {fact!r}")
    return facts


def _sentences(name: str, sentences: Any) -> tuple[str, ...]:
    if not isinstance(sentences, Sequence) or isinstance(sentences, str) or not sentences:
        raise ValueError(f"expected a list of sentences under {name}, came {sentences!r:.80}")
    for sentence in sentences:
        if not isinstance(sentence, str) or not re.fullmatch(rf"[a-z]+( [a-z]+){{0,{MAX_WORDS - 1}}}", sentence):
            raise ValueError(
                f"expected 1 to {MAX_WORDS} words of a to z with single spaces under {name}, came {sentence!r}"
            )
    return tuple(sentences)
