"""Demonstrations of uneven quality for the arithmetic task: what the seed model imitates.

A model trained on them knows the right procedure and several wrong ones, and samples from all of them. That is what
gives reinforcement learning something to find; a model that is merely under-trained errs in the same way every time.
"""

import random
from dataclasses import dataclass
from itertools import pairwise
from re import findall


@dataclass(frozen=True)
class Demonstrator:
    """How often a demonstrator goes wrong; every field is a probability."""

    forgets_carry: float = 0.5  # at each step whose units digits carry or borrow
    slips: float = 0.08  # one step of the working is off by one
    skips_working: float = 0.15  # writes the (right) answer at once, which is hard to imitate
    forgets_box: float = 0.15  # a right answer that no verifier can find

    def __call__(self, expression: str, rng: random.Random) -> str:
        r"""A worked answer to `expression`, e.g. `25+39-15` -> `25+39=64;64-15=49;\boxed{49}`.

        >>> Demonstrator(0, 0, 0, 0)("25+39-15", random.Random(0))
        '25+39=64;64-15=49;\\boxed{49}'
        >>> Demonstrator(1, 0, 0, 0)("25+39-15", random.Random(0))
        '25+39=54;54-15=49;\\boxed{49}'
        """
        terms = [int(term) for term in findall(r"[+-]?\d+", expression)]
        totals, working = [terms[0]], []
        slip_at = rng.randrange(1, len(terms)) if rng.random() < self.slips else None
        for position, term in enumerate(terms[1:], start=1):
            forgets = rng.random() < self.forgets_carry
            total = add_without_carry(totals[-1], term) if forgets else totals[-1] + term
            totals.append(total + rng.choice((-1, 1)) if position == slip_at else total)
        for (before, after), term in zip(pairwise(totals), terms[1:], strict=True):
            working.append(f"{before}{term:+d}={after};")
        if rng.random() < self.skips_working:
            working, totals = [], [sum(terms)]
        answer = str(totals[-1]) if rng.random() < self.forgets_box else rf"\boxed{{{totals[-1]}}}"
        return "".join(working) + answer


FAULTLESS = Demonstrator(0.0, 0.0, 0.0, 0.0)


def add_without_carry(a: int, b: int) -> int:
    """`a + b` by someone who forgets what the units digits carry to, or borrow from, the tens.

    >>> add_without_carry(25, 39), add_without_carry(52, -17), add_without_carry(20, 7)
    (54, 45, 27)
    """
    if (a < 0) == (b < 0):
        small, large, sign = abs(a), abs(b), (-1 if a < 0 else 1)
        return sign * ((large // 10 + small // 10) * 10 + (large % 10 + small % 10) % 10)
    small, large = sorted((a, b), key=abs)
    sign = -1 if large < 0 else 1
    small, large = abs(small), abs(large)
    return sign * ((large // 10 - small // 10) * 10 + (large % 10 - small % 10) % 10)
