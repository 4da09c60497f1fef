"""Mutants of a module: its source with one formula made wrong, the way formulas of losses go wrong.

General tools flip operators; they do not drop a stop-gradient, reverse a KL or shift a mask. `mutants` changes one node
of the syntax tree at a time. Left alone: annotations, decorators, what is raised, f-strings, and `strict=` of zip.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Names of what is called. A module that imports one of them gets the other too, so that the mutant is no NameError.
RENAMED = {"sum": "mean", "min": "max", "amin": "amax", "masked_sum": "masked_mean", "expm1": "exp"}
RENAMED |= {after: before for before, after in RENAMED.items()}
DROPPED = {"detach", "clamp", "abs", "exp", "square", "sqrt"}  # x.detach() -> x
UNORDERED = {"where", "isinstance", "getattr", "zip", "min", "max"}  # where has mutations of its own
COMPARED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.Gt], ast.LtE: [ast.Lt, ast.GtE], ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.In: [ast.NotIn], ast.NotIn: [ast.In], ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}  # fmt: skip
OPERATED: dict[type[ast.operator], list[type[ast.operator]]] = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
}  # fmt: skip
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list"}
MASK = re.compile(r"mask$|^counted$|^is_correct$")
IGNORES_VALUES = {"zeros_like", "expand_as"}  # a mask's shape is all they read


@dataclass(frozen=True)
class Mutant:
    """One wrong version of a module. (scope, text, change) names it without a line number."""

    line: int
    scope: str  # qualified name of the function or class; empty at module level
    text: str  # the line as it was, stripped
    kind: str
    change: str  # before -> after; " #2" when one line offers the same change twice
    source: str  # of the whole mutated module


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            wanted = [RENAMED[alias.name] for alias in node.names if alias.name in RENAMED]
            node.names += [ast.alias(name) for name in wanted if name not in {alias.name for alias in node.names}]
    lines, seen, found = source.splitlines(), Counter[tuple[str, str, str]](), []
    for place in _places(tree):
        for kind, mutate in KINDS.items():
            for replacement in mutate(place.node, place.parent):
                if ast.dump(replacement) == ast.dump(place.node):
                    continue  # f(x, x) with its arguments swapped
                text = lines[place.node.lineno - 1].strip()
                change = f"{ast.unparse(place.node)} -> {ast.unparse(replacement)}"
                seen[place.scope, text, change] += 1
                nth = seen[place.scope, text, change]
                place.put(replacement)
                mutated = ast.unparse(ast.fix_missing_locations(tree))
                place.put(place.node)
                change += f" #{nth}" if nth > 1 else ""
                found.append(Mutant(place.node.lineno, place.scope, text, kind, change, mutated))
    return sorted(found, key=lambda mutant: mutant.line)


@dataclass(frozen=True)
class _Place:
    """Where an expression stands, and how to put another there."""

    node: ast.expr
    parent: ast.AST
    scope: str
    field: str
    index: int | None  # within a field that is a list

    def put(self, node: ast.expr) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def _places(parent: ast.AST, scope: str = "") -> Iterator[_Place]:
    """Every expression below a node that may be mutated."""
    for field, value in ast.iter_fields(parent):
        if field in SKIPPED_FIELDS:
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or isinstance(node, ast.Raise | ast.JoinedStr):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue
            if isinstance(node, ast.expr):
                yield _Place(node, parent, scope, field, index if isinstance(value, list) else None)
            inner = f"{scope}.{node.name}".lstrip(".") if isinstance(node, ast.FunctionDef | ast.ClassDef) else scope
            yield from _places(node, inner)


Mutations = Iterator[ast.expr]


def _operators(node: ast.AST, parent: ast.AST) -> Mutations:
    """a - b -> a + b, a * b -> a / b, a & b -> a | b, and back."""
    if isinstance(node, ast.BinOp):
        for operator in OPERATED.get(type(node.op), []):
            yield ast.BinOp(node.left, operator(), node.right)


def _operands(node: ast.AST, parent: ast.AST) -> Mutations:
    """a - b -> b - a, a / b -> b / a: a log-ratio or a quotient upside down."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.Div | ast.FloorDiv):
        yield ast.BinOp(node.right, node.op, node.left)


def _signs(node: ast.AST, parent: ast.AST) -> Mutations:
    """-x -> x; a negative constant is left to `_constants`."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand


def _negations(node: ast.AST, parent: ast.AST) -> Mutations:
    """not x -> x, ~x -> x."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield node.operand


def _constants(node: ast.AST, parent: ast.AST) -> Mutations:
    """0 -> 1, 0.5 -> 1.5, -1 -> 0, True -> False."""
    if isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.USub):
        return  # part of a negative constant
    is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    constant = node.operand if is_negative else node
    if not isinstance(constant, ast.Constant):
        return
    if isinstance(constant.value, bool):
        yield ast.Constant(not constant.value)
    elif isinstance(constant.value, int | float):
        yield ast.Constant(1 - constant.value if is_negative else constant.value + 1)


def _comparisons(node: ast.AST, parent: ast.AST) -> Mutations:
    """a < b -> a <= b and a > b; each operator of a chain."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in COMPARED[type(operator)]:
                operators = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield ast.Compare(node.left, operators, node.comparators)


def _connectives(node: ast.AST, parent: ast.AST) -> Mutations:
    """a and b -> a or b, and back."""
    if isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def _names(node: ast.AST, parent: ast.AST) -> Mutations:
    """x.sum() -> x.mean(), min(a, b) -> max(a, b), clamp(min=1) -> clamp(max=1), and back."""
    if isinstance(parent, ast.Call) and node is parent.func:
        if isinstance(node, ast.Name) and node.id in RENAMED:
            yield ast.Name(RENAMED[node.id])
        if isinstance(node, ast.Attribute) and node.attr in RENAMED:
            yield ast.Attribute(node.value, RENAMED[node.attr])
    if isinstance(node, ast.Call) and _called(node) == "clamp":
        for index, keyword in enumerate(node.keywords):
            renamed = ast.keyword(RENAMED[keyword.arg or ""], keyword.value)
            yield ast.Call(node.func, node.args, [*node.keywords[:index], renamed, *node.keywords[index + 1 :]])


def _dropped_calls(node: ast.AST, parent: ast.AST) -> Mutations:
    """x.detach() -> x, x.clamp(0, 1) -> x."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in DROPPED:
        return
    if ast.unparse(node.func.value) != "torch":  # torch.exp(x) is not called on what it changes
        yield node.func.value


def _arguments(node: ast.AST, parent: ast.AST) -> Mutations:
    """kl(policy, reference) -> kl(reference, policy), x.clamp(low, high) -> x.clamp(high, low): neighbours swapped."""
    if not isinstance(node, ast.Call) or _called(node) in UNORDERED or _is_check(node):
        return
    for index, (first, second) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if not any(isinstance(argument, ast.Starred | ast.Constant) for argument in (first, second)):
            yield ast.Call(node.func, [*node.args[:index], second, first, *node.args[index + 2 :]], node.keywords)


def _selections(node: ast.AST, parent: ast.AST) -> Mutations:
    """torch.where(c, a, b) -> a and b, unless they are constants, and torch.where(c, b, a)."""
    if isinstance(node, ast.Call) and _called(node) == "where" and len(node.args) == 3:
        condition, yes, no = node.args
        yield from (branch for branch in (yes, no) if not isinstance(branch, ast.Constant))
        yield ast.Call(node.func, [condition, no, yes], node.keywords)


def _shifts(node: ast.AST, parent: ast.AST) -> Mutations:
    """A mask shifted by one, where it selects: mask -> mask.roll(1, -1)."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    is_argument = (
        isinstance(parent, ast.Call)
        and node is not parent.func
        and _called(parent) not in IGNORES_VALUES
        and not _is_check(parent)
    )
    is_index = isinstance(parent, ast.Subscript) and node is parent.slice
    if MASK.search(name) and (is_argument or is_index) and isinstance(node, ast.expr):
        yield ast.Call(ast.Attribute(node, "roll"), [ast.Constant(1), ast.Constant(-1)], [])


def _checks(node: ast.AST, parent: ast.AST) -> Mutations:
    """A refusal that never comes: `if x: raise` -> `if False: raise`, and `require_positive(x)` -> `None`."""
    if isinstance(parent, ast.If) and node is parent.test and isinstance(parent.body[0], ast.Raise):
        yield ast.Constant(False)
    if isinstance(parent, ast.Expr) and isinstance(node, ast.Call):
        yield ast.Constant(None)


def _called(call: ast.Call) -> str:
    """The last part of the name of what is called."""
    return ast.unparse(call.func).rsplit(".", 1)[-1]


def _is_check(call: ast.Call) -> bool:
    """A name such as require_same_shape: what is required is required of all arguments alike."""
    return _called(call).lstrip("_").startswith("require")


KINDS: dict[str, Callable[[ast.AST, ast.AST], Mutations]] = {
    "operator": _operators,
    "operands": _operands,
    "sign": _signs,
    "negation": _negations,
    "constant": _constants,
    "comparison": _comparisons,
    "connective": _connectives,
    "name": _names,
    "dropped call": _dropped_calls,
    "arguments": _arguments,
    "selection": _selections,
    "shifted mask": _shifts,
    "check": _checks,
}
