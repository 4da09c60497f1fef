"""YAML as data only, in which a key that is there twice is a mistake rather than the last one winning."""

from collections.abc import Iterator
from typing import Any

import yaml


def read_yaml(text: str, mistakes: list[str]) -> Any:
    """The content of a YAML text; what is wrong with it is added to `mistakes`, one line each.

    >>> found: list[str] = []
    >>> read_yaml("a: 1\\na: 2", found)
    >>> found
    ['line 2: the key a is there twice, first in line 1: remove one']
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        mistakes += [] if node is None else list(_repeated(node, set()))
        return None if mistakes else yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = f"line {mark.line + 1}: " if mark else ""
        mistakes.append(f"{place}this is no YAML: {' '.join(str(problem).split())}")
    except (ValueError, RecursionError, TypeError) as error:  # an impossible date, an anchor within itself
        mistakes.append(f"this YAML cannot be read: {' '.join(str(error).split())}")
    return None


def _repeated(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    yield f"line {line}: the key {key.value} is there twice, first in line {lines[name]}: remove one"
                lines.setdefault(name, line)
            yield from _repeated(value, seen)
