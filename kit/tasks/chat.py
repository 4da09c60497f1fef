"""Short requests about everyday things: the non-verifiable task of the embedded model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256

from kit.rewards.combine import RewardFunction
from kit.tasks.arithmetic import split_of
from kit.tasks.knowledge import Knowledge, load_knowledge
from kit.tasks.task import Judging, Split
from kit.types import Prompt

TEMPLATES = (
    "tell me about {topic} .",
    "what do you know about {topic} ?",
    "what should i know about {topic} ?",
    "can you tell me something about {topic} ?",
    "i want to learn about {topic} .",
    "give me some facts about {topic} .",
    "what is true of {topic} ?",
    "write a few lines about {topic} .",
    "teach me about {topic} .",
    "please say what you know of {topic} .",
)
DETAILS = (  # why someone asks, which does not change what a good answer is
    "",
    "i am writing a story .",
    "my child wants to know .",
    "it is for my class .",
    "we play a game tonight .",
    "a friend asked me .",
    "i have never read about this .",
    "i am new here .",
)


@dataclass(frozen=True)
class Chat:
    """Requests such as `what do you know about owls ? it is for my class .`, judged by the given reward functions.

    A request belongs to a split by the hash of its text, as a problem of the arithmetic task does. So each topic is in
    all splits, and no request in two.

    Attributes:
        reward_functions: on TRL's contract; they receive the columns `topic` and `task`. Nothing stands in for a reward
            model that is missing.
        weights: one a function.
        judging: how held-out completions are judged; by default by the mean reward alone.
    """

    reward_functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...]
    judging: Judging = field(default_factory=Judging)

    def __post_init__(self) -> None:
        if not self.reward_functions or len(self.reward_functions) != len(self.weights):
            raise ValueError(
                f"expected at least one reward function and a weight for each, came {len(self.reward_functions)} "
                f"functions and weights {self.weights}"
            )

    @property
    def name(self) -> str:
        return "chat"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        """The requests of a split, in the order of their hashes: any slice is a fair sample of topics and wordings."""
        return chat_prompts()[name]

    def rewards(self) -> tuple[list[RewardFunction], list[float]]:
        return list(self.reward_functions), list(self.weights)


def requests(topics: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs (topic, request): every topic in every wording with every detail.

    >>> [request for _, request in requests(["owls"])][:2]
    ['tell me about owls .', 'tell me about owls . i am writing a story .']
    """
    for topic in topics:
        for template in TEMPLATES:
            for detail in DETAILS:
                yield topic, f"{template.format(topic=topic)} {detail}".rstrip()


def chat_words(knowledge: Knowledge) -> tuple[str, ...]:
    """Every word and mark of the requests and of the table, sorted: what a tokenizer has to know."""
    texts = [*(request for _, request in requests(knowledge.topics)), *knowledge.sentences]
    return tuple(sorted({word for text in texts for word in text.split()}))


@cache
def chat_prompts() -> dict[Split, tuple[Prompt, ...]]:
    """The requests of every split."""
    found: dict[Split, list[Prompt]] = {"train": [], "validation": [], "test": []}
    in_order = sorted(requests(load_knowledge().topics), key=lambda pair: sha256(pair[1].encode()).digest())
    for topic, request in in_order:
        content = [{"role": "user", "content": request}]
        found[split_of(request)].append(Prompt(f"chat/{request}", content, {"topic": topic, "task": "chat"}))
    return {name: tuple(prompts) for name, prompts in found.items()}
