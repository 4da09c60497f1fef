"""The hidden gold utility of the chat task: it stands for the human judge.

Preferences are drawn from it and completions are compared by it; nothing that trains a policy may see it.
Higher is better: facts about the topic that was asked, each once, a courtesy, and nothing else.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kit.rewards.completion import Completion, completion_text
from kit.tasks.knowledge import Knowledge, load_knowledge
from kit.winrate import outcome

SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")  # up to a mark, or an unfinished rest


@dataclass(frozen=True, slots=True)
class Contents:
    """What a completion is made of. Every sentence is one of the first six; marks are not words."""

    facts: int  # different ones about the topic
    repeats: int  # of those
    off_topic: int  # facts about other topics, every time
    courtesies: int
    fillers: int
    garbled: int  # in no list: a slip, an invention, a mark without words
    words: int
    fact_words: int  # words of the different facts about the topic: what has to be said


@dataclass(frozen=True)
class Gold:
    r"""What the judge values, in utility units; u(a) - u(b) = 1 is a log-odds of 1 at temperature 1.

    .. math:: u = w_f F + w_c \min(C, 1) - w_o O - w_g G - w_w (W - W_F)

    with F different facts about the topic, C courtesies, O facts about other topics, G garbled sentences, W words and
    W_F those of the F facts. A repeated fact, a phrase without content and a second courtesy cost their words; a
    sentence off topic or garbled costs its words and more.

    Range: at most `4 * fact + courtesy - word` (all facts, and a courtesy of one word), 0 for nothing at all, and
    without a lower bound: n words and marks are worth at least `-n * (max(off_topic, garbled) + word)`.

    The default weights are dyadic, so that equal contents give exactly equal utilities.
    """

    fact: float = 1.0  # each different fact about the topic
    courtesy: float = 0.5  # the first one
    off_topic: float = 0.5  # each fact about another topic, besides its words
    garbled: float = 1.0  # each sentence that is in no list, besides its words
    word: float = 0.0625  # each word beyond those of the facts about the topic

    def __post_init__(self) -> None:
        weights = (self.fact, self.courtesy, self.off_topic, self.garbled, self.word)
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"expected finite weights >= 0, since their signs are in the equation, came {self}")

    def __call__(self, topic: str, text: str, knowledge: Knowledge) -> float:
        """The utility of the completion `text` to a request about `topic`.

        >>> knowledge = Knowledge({"ice": ("ice is cold", "ice floats")}, ("sure",), (), ("let me think",))
        >>> Gold()("ice", "sure . ice is cold .", knowledge)  # 1 + .5 - 1 word / 16
        1.4375
        >>> Gold()("ice", "ice is cold . let me think . ice is cold .", knowledge)  # 1 - 6 words / 16
        0.625
        """
        found = contents(topic, text, knowledge)
        return (
            self.fact * found.facts
            + self.courtesy * min(found.courtesies, 1)
            - self.off_topic * found.off_topic
            - self.garbled * found.garbled
            - self.word * (found.words - found.fact_words)
        )


def contents(topic: str, text: str, knowledge: Knowledge) -> Contents:
    """The sentences of `text` by kind. Spaces between words and the kind of mark at the end do not matter.

    Raises:
        KeyError: if the table does not know the topic.
    """
    about, courtesies = knowledge.facts[topic], (*knowledge.openings, *knowledge.closings)
    told: list[str] = []
    repeats = off_topic = courteous = fillers = garbled = words = 0
    for match in SENTENCE.findall(text.strip()):
        sentence = " ".join(match.rstrip(".!?").split())
        words += len(sentence.split())
        if sentence in told:
            repeats += 1
        elif sentence in about:
            told.append(sentence)
        elif sentence in knowledge.all_facts:
            off_topic += 1
        elif sentence in courtesies:
            courteous += 1
        elif sentence in knowledge.fillers:
            fillers += 1
        else:
            garbled += 1
    fact_words = sum(len(fact.split()) for fact in told)
    return Contents(len(told), repeats, off_topic, courteous, fillers, garbled, words, fact_words)


def gold_utility(completions: Sequence[Completion], topic: Sequence[str], **columns: Any) -> list[float]:
    """The utility of every completion under the default weights, on TRL's contract; for evaluation only."""
    gold, knowledge = Gold(), load_knowledge()
    return [gold(asked, completion_text(text), knowledge) for text, asked in zip(completions, topic, strict=True)]


def gold_judge(
    completions: Sequence[Completion], topic: Sequence[str], baseline: Sequence[str], **columns: Any
) -> list[float]:
    """Whether each completion beats the baseline's by utility: 1, 0, or 0.5 for a tie, on TRL's contract."""
    own, other = gold_utility(completions, topic), gold_utility(baseline, topic)
    return [outcome(*pair) for pair in zip(own, other, strict=True)]
