"""The verifier's process: judges math answers with math-verify, in the paper's configuration.

Run by `kit.rewards.math` as `python -m kit.rewards.math_worker`; never imported by the training process, which it keeps
free of sympy and of everything that a completion can make sympy do.

Source: Lanchantin et al. 2025, arXiv 2506.21495, section 4.2 (Math-Verify, binary), and the configuration in the
authors' code: the gold answer is LaTeX between dollars, the prediction is looked for in boxes first, numbers agree to 6
decimals.
"""

import logging
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from kit.rewards.worker import serve

FLOAT_DECIMALS = 6
GOLD_CACHE_SIZE = 4096  # distinct solutions kept parsed
GOLD_FORM = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
    )
)
PREDICTION_FORM = LatexExtractionConfig(boxed_match_priority=0)


class UnparsableSolutionError(ValueError):
    """The data's reference answer is not mathematics that the verifier can read: the completion cannot be judged."""


def judge(pair: tuple[str, str]) -> float:
    r"""1.0 if the completion's answer equals the solution, else 0.0. No time limit: the pool kills.

    Args:
        pair: completion and solution. A completion without an answer is wrong, not an error.

    Raises:
        UnparsableSolutionError: if the solution is empty or not LaTeX.
        Exception: whatever sympy raises while it compares. math-verify by itself would call the answer wrong.

    >>> judge((r"so \boxed{\frac{2}{4}}", "1/2")), judge((r"so \boxed{2}", "1/2")), judge(("so 1/2", "1/2"))
    (1.0, 0.0, 0.0)
    """
    completion, solution = pair
    gold = parse_solution(solution)
    prediction = parse(completion, [PREDICTION_FORM], parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
    return float(
        verify(
            # Both hold a sympy expression and then its text. Text first: it cannot raise, so equal texts always agree.
            gold[::-1],
            prediction[::-1],
            float_rounding=FLOAT_DECIMALS,
            timeout_seconds=None,
            raise_on_error=True,
        )
    )


@lru_cache(maxsize=GOLD_CACHE_SIZE)
def parse_solution(solution: str) -> list[Any]:
    """The forms in which math-verify can compare a reference answer.

    Raises:
        UnparsableSolutionError: if there are none.

    >>> parse_solution("0.5")
    [1/2, '\\\\frac{1}{2}']
    """
    one_line = " ".join(solution.splitlines())  # LaTeX reads a line break as a space; inline math may not hold one
    forms = parse(f"${one_line}$", [GOLD_FORM], parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
    if not forms:
        raise UnparsableSolutionError(
            f"expected a solution in LaTeX, such as '42' or '\\frac{{1}}{{2}}', got {solution!r}: mend it, or set it "
            "to None so that other reward functions judge the row"
        )
    return forms


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # math-verify warns that nothing limits its time; the pool does
    judge((r"\boxed{\frac{1}{2}}", "0.5"))  # builds the grammar's tables now, not on the first item's time
    serve(judge)
