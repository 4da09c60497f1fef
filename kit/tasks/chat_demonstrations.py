"""Demonstrations of uneven quality for the chat task: what the seed model imitates.

They know the facts and also stray, repeat themselves, pad, and forget their manners, each now and then and
independently of the rest. So a model that imitates them samples good and bad completions for the same request.
"""

import random
from dataclasses import dataclass

from kit.tasks.knowledge import FACTS_PER_TOPIC, Knowledge, as_text


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A completion and what it is made of, counted while it was written.

    `facts` counts different ones about the topic; `off_topic` every sentence about another topic, repeated or not.
    """

    text: str
    facts: int
    repeats: int  # of facts about the topic
    off_topic: int
    fillers: int
    courtesies: int


@dataclass(frozen=True)
class ChatDemonstrator:
    """How a demonstrator writes. Every field is a probability; those of `num_facts` are for 1, 2, 3 and 4 facts."""

    strays: float = 0.25  # at each fact: one about another topic takes its place
    repeats: float = 0.2  # after each sentence with a fact: says again one of those said so far
    pads: float = 0.25  # before each fact: a phrase without content
    opens: float = 0.4  # a courtesy first
    closes: float = 0.4  # a courtesy last
    num_facts: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        rates = (self.strays, self.repeats, self.pads, self.opens, self.closes, *self.num_facts)
        if not all(0 <= rate <= 1 for rate in rates) or abs(sum(self.num_facts) - 1) > 1e-9:
            raise ValueError(f"expected probabilities, those of num_facts with sum 1, came {self}")

    def __call__(self, topic: str, knowledge: Knowledge, rng: random.Random) -> Demonstration:
        """A completion for a request about `topic`.

        Raises:
            KeyError: if the table does not know the topic.
            ValueError: if the demonstrator may stray, and the table has no other topic.
        """
        others = [other for other in knowledge.topics if other != topic]
        if self.strays and not others:
            raise ValueError(f"expected a table with topics besides {topic}, or strays=0, came strays={self.strays}")
        told: list[str] = []  # facts in the order told, of any topic
        text: list[str] = []
        fillers = courtesies = 0
        if rng.random() < self.opens:
            text.append(rng.choice(knowledge.openings))
            courtesies += 1
        (count,) = rng.choices(range(1, FACTS_PER_TOPIC + 1), self.num_facts)
        for fact in rng.sample(knowledge.facts[topic], count):
            if rng.random() < self.pads:
                text.append(rng.choice(knowledge.fillers))
                fillers += 1
            strays = rng.random() < self.strays
            told.append(rng.choice(knowledge.facts[rng.choice(others)]) if strays else fact)
            text.append(told[-1])
            if rng.random() < self.repeats:
                told.append(rng.choice(told))
                text.append(told[-1])
        if rng.random() < self.closes:
            text.append(rng.choice(knowledge.closings))
            courtesies += 1
        about = [fact for fact in told if fact in knowledge.facts[topic]]
        return Demonstration(
            as_text(text), len(set(about)), len(about) - len(set(about)), len(told) - len(about), fillers, courtesies
        )


FAULTLESS = ChatDemonstrator(strays=0, repeats=0, pads=0, opens=1, closes=0, num_facts=(0, 0, 0, 1))
