"""Which values a parameter can have, where its help states it in a fixed notation.

A range is a clause of the help: from its start, or a comma, semicolon or colon, to the next one or the end.

    in (0, 1]    in [1, inf)    > 0    < 1    at least 1    at most 5    one of dpo | grpo | group_dpo

There is no `>=`: papermill does not read a line with a second `=`. Several clauses must hold together.
"""

import re
from dataclasses import dataclass
from typing import Any

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|inf)"
CLAUSE = re.compile(
    r"(?:^|[,;:]\s)\s*(?P<text>"
    rf"in (?P<left>[\[(])(?P<low>{NUMBER}), (?P<high>{NUMBER})(?P<right>[\])])"
    rf"|(?P<word>>|<|at least|at most) (?P<bound>{NUMBER})"
    r"|one of (?P<names>[\w.+-]+(?: \| [\w.+-]+)+)"
    r")(?=[,;:]\s|$)"
)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, which belong to it or not; or, if `names` is not None, one of these texts."""

    text: str  # as the help has it
    low: float = float("-inf")
    high: float = float("inf")
    has_low: bool = True
    has_high: bool = True
    names: tuple[str, ...] | None = None

    def __contains__(self, value: Any) -> bool:
        if self.names is not None:
            return value in self.names
        if not isinstance(value, int | float):
            return False
        is_above = value >= self.low if self.has_low else value > self.low
        return is_above and (value <= self.high if self.has_high else value < self.high)


def read_ranges(text: str) -> tuple[Range, ...]:
    """The ranges that a help states.

    >>> [found.text for found in read_ranges("DPO: pull toward the reference, > 0")]
    ['> 0']
    >>> [value in read_ranges("in (0, 1]")[0] for value in (0, 0.5, 1)]
    [False, True, True]
    >>> read_ranges("completions, at least 8 of them, or in (nats)")
    ()
    """
    return tuple(_range(found) for found in CLAUSE.finditer(text))


def _range(found: re.Match[str]) -> Range:
    text = found["text"]
    if found["names"]:
        return Range(text, names=tuple(found["names"].split(" | ")))
    if found["left"]:
        return Range(text, float(found["low"]), float(found["high"]), found["left"] == "[", found["right"] == "]")
    bound = float(found["bound"])
    if found["word"] in (">", "at least"):
        return Range(text, low=bound, has_low=found["word"] == "at least")
    return Range(text, high=bound, has_high=found["word"] == "at most")
