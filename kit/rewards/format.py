r"""Format reward: does the completion end with one `\boxed{...}`, as the math prompt asks?"""

import re
from collections.abc import Sequence
from typing import Any

from kit.rewards.completion import Completion, completion_text

BOX = "\\boxed{"
ESCAPE_OR_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# What may follow the box: the end of its math mode, and the close of the paper's prompt template ("The final answer is
# $\boxed{[answer]}$. I hope it is correct.", arXiv 2506.21495, appendix), which would otherwise never score.
AFTER_BOX = re.compile(r"(?:\$\$?|\\\)|\\\])?[\s.]*(?:I hope it is correct)?[\s.]*")


def boxed_format_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    r"""1.0 for a completion that has exactly one `\boxed{...}`, closed and not empty, and ends with it; else 0.0.

    Whether the answer is right is for another function. After the box may come the end of math mode, whitespace, full
    stops and "I hope it is correct".

    Args:
        completions: strings, or lists of messages.
        columns: the other columns of the batch, which TRL passes to every function; not used.

    >>> boxed_format_reward([r"4+5=9, so \boxed{9}.", r"\boxed{9} or \boxed{8}", "9"])
    [1.0, 0.0, 0.0]
    """
    return [float(_ends_with_one_box(completion_text(completion))) for completion in completions]


def _ends_with_one_box(text: str) -> bool:
    if text.count("\\boxed") != 1 or BOX not in text:
        return False
    start = text.index(BOX) + len(BOX)
    end = _closing_brace(text, start)
    return end is not None and bool(text[start:end].strip()) and AFTER_BOX.fullmatch(text, end + 1) is not None


def _closing_brace(text: str, start: int) -> int | None:
    r"""Where the group that is open at `start` closes; braces after a backslash are text. `None` if it does not.

    >>> _closing_brace(r"a{b}\}c}d", 0)
    7
    """
    depth = 1
    for match in ESCAPE_OR_BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None
