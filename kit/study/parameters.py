"""The parameters of a notebook: read from its parameters cell, and values checked against them.

A line of the cell is `name: type = value  # help`, or `name = value  # type: int|None  help` where papermill could not
read the annotation. The cell is parsed as Python: papermill reads it by a regular expression, which loses unions,
`Literal`, and any line with a second `=`, and on an unknown name it only warns.
"""

import ast
import difflib
import io
import json
import math
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.study.ranges import Range, read_ranges

KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bool": (bool,),
    "list": (list, tuple),
    "tuple": (list, tuple),
    "dict": (dict,),
    "None": (type(None),),
}


class ParameterError(ValueError):
    """A notebook was given a parameter that it does not have, or a value that the parameter cannot have."""


@dataclass(frozen=True)
class Parameter:
    """A line of a parameters cell. `default` is the source text where it is no literal."""

    name: str
    type: str | None  # as written; None if it is not
    default: Any
    help: str
    ranges: tuple[Range, ...]

    def complaint(self, value: Any) -> str | None:
        """What is allowed and what came, if the value is not allowed; else None.

        >>> read_parameters("beta: float = 0.1  # pull, > 0")["beta"].complaint(-1)
        "parameter 'beta' must be > 0, got -1"
        """
        said = f"parameter {self.name!r} must be"
        if not self._has_type(value):
            hint = "; YAML reads 5e-5 as text, write 5.0e-5" if self._is_number_as_text(value) else ""
            return f"{said} {self.type or type(self.default).__name__}, got {value!r} ({type(value).__name__}){hint}"
        if isinstance(value, float) and math.isnan(value):
            return f"{said} a number, got nan"
        if value is None:
            return None
        broken = [each for each in self.ranges if value not in each]
        if not broken:
            return None
        close = difflib.get_close_matches(str(value), broken[0].names or (), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        allowed = " and ".join(each.text for each in broken) + (", or None" if self._has_type(None) else "")
        return f"{said} {allowed}, got {value!r}{hint}"

    def _has_type(self, value: Any) -> bool:
        if self.type is not None:
            return _fits(ast.parse(self.type, mode="eval").body, value)
        if isinstance(self.default, bool) or self.default is None:
            return self.default is None or isinstance(value, bool)
        kind = (int, float) if isinstance(self.default, int | float) else type(self.default)
        return isinstance(value, kind) and not isinstance(value, bool)

    def _is_number_as_text(self, value: Any) -> bool:
        return isinstance(value, str) and isinstance(parse_value(value), float) and self._has_type(parse_value(value))


def _fits(annotation: ast.expr, value: Any) -> bool:
    """Whether a value has the annotated type; a type that is not known here is not checked."""
    match annotation:
        case ast.Constant(None):
            return value is None
        case ast.Constant(str() as text):
            return _fits(ast.parse(text, mode="eval").body, value)
        case ast.BinOp(left, ast.BitOr(), right):
            return _fits(left, value) or _fits(right, value)
        case ast.Subscript(ast.Name("Optional"), inner):
            return value is None or _fits(inner, value)
        case ast.Subscript(ast.Name("Union"), ast.Tuple(inner)):
            return any(_fits(each, value) for each in inner)
        case ast.Subscript(ast.Name("Literal"), inner):
            allowed = [ast.literal_eval(each) for each in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
            return any(type(value) is type(each) and value == each for each in allowed)
        case ast.Subscript(ast.Name("list" | "List"), inner):
            return isinstance(value, list | tuple) and all(_fits(inner, each) for each in value)
        case ast.Subscript(ast.Name(name), _):
            return isinstance(value, KINDS.get(name.lower(), (object,)))
        case ast.Name(name) if name in KINDS:
            return isinstance(value, KINDS[name]) and (name == "bool" or not isinstance(value, bool))
    return True


def read_parameters(source: str) -> dict[str, Parameter]:
    """The parameters that a cell declares, in its order; lines that are no simple assignment are left alone.

    Raises:
        SyntaxError: if the cell is no Python.
    """
    body = ast.parse(source).body
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Parameter] = {}
    for node in body:
        match node:
            case ast.AnnAssign(ast.Name(name), annotation, ast.expr() as value):
                written: str | None = ast.unparse(annotation)
            case ast.Assign([ast.Name(name)], value):
                written = None
            case _:
                continue
        comment = comments.get(node.end_lineno or node.lineno, "")
        if comment.startswith("type:"):
            of_comment, comment = _type_comment(comment.removeprefix("type:").split())
            written = written or of_comment
        found[name] = Parameter(name, written, literal(value), comment, read_ranges(comment))
    return found


def _type_comment(words: list[str]) -> tuple[str | None, str]:
    """The type that a comment begins with, and the rest of it."""
    for count in range(1, len(words) + 1):
        rest = words[count:]
        text = " ".join(words[:count])
        if not (rest and rest[0].startswith("|")) and _parses(text):
            return text, " ".join(rest)
    return None, " ".join(words)


def _parses(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return True


def literal(node: ast.expr) -> Any:
    """The value of a literal, `float('inf')` as papermill writes it among them; the source of anything else."""
    match node:
        case ast.Call(ast.Name("float"), [ast.Constant(str() as text)], []) if text.strip("-") in ("nan", "inf"):
            return float(text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.unparse(node)


def notebook_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """What the notebook's `parameters` cell declares; nothing, if it has none.

    Raises:
        FileNotFoundError: if there is no such notebook.
        ParameterError: if the file is no notebook, or the cell no Python.
    """
    if not Path(notebook).is_file():
        raise FileNotFoundError(f"there is no notebook {str(notebook)!r}")
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
        return read_parameters("".join(tagged[0]["source"])) if tagged else {}
    except SyntaxError as error:
        raise ParameterError(f"{Path(notebook).name}: its parameters cell is no Python: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ParameterError(f"{notebook} is no notebook of nbformat 4: {type(error).__name__}: {error}") from error


def complaints(name: str, declared: Mapping[str, Parameter], given: Mapping[Any, Any]) -> dict[Any, str]:
    """What is wrong with the parameters given to the notebook called `name`: parameter -> one line."""
    found = {}
    for key, value in given.items():
        if key not in declared:
            found[key] = f"{name} has no parameter {key!r}{suggestion(key, declared)}"
        elif said := declared[key].complaint(value):
            found[key] = f"{name}: {said}"
    return found


def suggestion(name: Any, known: Mapping[str, Any]) -> str:
    """The end of a sentence that says that a name is not known: the closest known one, or all.

    >>> suggestion("setps", {"steps": 1, "rate": 2}), suggestion("x", {"steps": 1, "rate": 2})
    ("; did you mean 'steps'?", '; it has steps, rate')
    """
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has {', '.join(known)}" if known else "; it has none"


def checked_parameters(notebook: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, once every name is declared in the notebook and every value is of the type and in the range declared.

    Raises:
        ParameterError: one line a parameter that is wrong: what came, what is allowed, the closest known name.
    """
    found = complaints(Path(notebook).name, notebook_parameters(notebook), given)
    if found:
        raise ParameterError("\n".join(found.values()))
    return dict(given)


def parse_value(text: str) -> Any:
    """A command-line value as the Python literal that it is, or else as a string.

    >>> [parse_value(text) for text in ("10", "1e-4", "None", "dpo", "True")]
    [10, 0.0001, None, 'dpo', True]
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
