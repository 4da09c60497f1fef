"""The text of a completion, in either of the two forms of TRL's contract."""

from collections.abc import Sequence
from typing import Any

Completion = str | Sequence[dict[str, Any]]


def completion_text(completion: Completion) -> str:
    """What the model wrote: the string itself, or the content of the last message.

    Raises:
        TypeError: if it is neither a string nor messages with text.

    >>> completion_text("79"), completion_text([{"role": "assistant", "content": "79"}])
    ('79', '79')
    """
    text = completion if isinstance(completion, str) else completion[-1].get("content") if completion else None
    if not isinstance(text, str):
        raise TypeError(
            "expected a completion as a string or as [{'role': 'assistant', 'content': <string>}], "
            f"got {type(completion).__name__}: {completion!r:.200}"
        )
    return text
