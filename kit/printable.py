"""Text that somebody else wrote, so that it cannot steer a terminal, a page or its reader."""


def printable(text: str) -> str:
    r"""`text` with every character that is no visible one written out: control characters, ANSI codes, text direction.

    >>> printable("a\x1b[31m\n\u202eb")
    'a\\x1b[31m\\n\\u202eb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def excerpt(text: str, limit: int = 80) -> str:
    """The start of what a model wrote, quoted and printable.

    >>> excerpt("a" * 5, limit=3)
    '"aaa..."'
    """
    return f'"{printable(text[:limit])}{"..." if len(text) > limit else ""}"'
