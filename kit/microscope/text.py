"""What a model wrote, so that it cannot be mistaken for anything else: every invisible character is written out."""

import unicodedata
from collections.abc import Iterator, Sequence

from kit.printable import printable

LIMIT = 2000  # characters of a prompt or a completion that are shown unless told otherwise
MARKS = 2  # combining characters in a row that are drawn; more are written out, so that they do not pile up


def visible(text: str) -> str:
    r"""`text` with what cannot be seen written out as Python writes it: control characters, ANSI codes, text direction,
    zero width. A line break stays one, behind a sign; a combining character without a letter gets a dotted circle.

    >>> visible("a\x00\u202eb")
    'a\\x00\\u202eb'
    >>> visible("a\nb")
    'a↵\nb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_characters(text))


def _characters(text: str) -> Iterator[str]:
    marks, has_letter = 0, False
    for character in text:
        if character == "\n":
            yield "↵\n"
            has_letter = False
        elif unicodedata.category(character) in ("Mn", "Me"):
            marks += 1
            if not has_letter:
                yield "\u25cc" + character
                has_letter, marks = True, 1
            else:
                yield character if marks <= MARKS else character.encode("unicode_escape").decode()
        else:
            marks, has_letter = 0, True
            yield printable(character)


def cut(pieces: Sequence[str], limit: int) -> tuple[list[str], int]:
    """The first pieces, up to `limit` characters in all, and how many characters are left out.

    >>> cut(["abc", "def", "g"], 4)
    (['abc', 'd'], 3)
    """
    shown, left = [], limit
    for piece in pieces:
        if left <= 0:
            break
        shown.append(piece[:left])
        left -= len(piece)
    return shown, max(sum(map(len, pieces)) - limit, 0)


def excerpt(text: str, limit: int) -> str:
    """The start of a text, on one line, with a mark where it was cut."""
    return visible(text[:limit].replace("\n", " ")) + ("…" if len(text) > limit else "")
