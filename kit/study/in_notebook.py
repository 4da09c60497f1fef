"""The check that a notebook makes of its own parameters, for those who call papermill directly: it only warns.

What is known inside a kernel is the history of executed cells. Under papermill it starts with the parameters cell and
the cell that papermill injected after it; in JupyterLab cells come in any order, twice, or edited.
"""

import ast
from collections.abc import Sequence

from IPython.core.getipython import get_ipython

from kit.study.parameters import ParameterError, complaints, literal, read_parameters

INJECTED = "# Parameters"  # papermill begins its cell with this line


def check_parameters() -> None:
    """Refuse parameters of this notebook that it does not have, or that are of a wrong type or out of range.

    Outside of a notebook, or where the history does not tell what was set, nothing happens.

    Raises:
        ParameterError: one line a parameter.
    """
    shell = get_ipython()
    if shell is not None:
        check_cells(shell.user_ns.get("In", ()))


def check_cells(executed: Sequence[str]) -> None:
    """Check the last parameters cell of a history, and what papermill injected right after it.

    >>> check_cells(["steps: int = 3  # how many", "# Parameters\\nsteps = 4"])

    Raises:
        ParameterError: see `check_parameters`.
    """
    at = max((i for i, source in enumerate(executed) if _is_parameters_cell(source)), default=None)
    if at is None:
        return
    declared = read_parameters(executed[at])
    given = {name: parameter.default for name, parameter in declared.items()}
    for source in executed[at + 1 :]:
        if not _is_injected_cell(source):
            break
        given |= {node.targets[0].id: literal(node.value) for node in ast.parse(source).body}  # type: ignore[attr-defined]
    found = complaints("this notebook", declared, given)
    if found:
        raise ParameterError("\n".join(found.values()))


def _is_parameters_cell(source: str) -> bool:
    """Whether a cell is nothing but typed names with a literal and a help each."""
    body = _statements(source)
    if not body or not all(
        isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None and _is_literal(node.value)
        for node in body
    ):
        return False
    declared = read_parameters(source)
    return len(declared) == len(body) and all(found.type and found.help for found in declared.values())


def _is_injected_cell(source: str) -> bool:
    """Whether a cell is what papermill writes: its comment, and names with literals."""
    if source.lstrip().partition("\n")[0].rstrip() != INJECTED:
        return False
    body = _statements(source)
    return bool(body) and all(
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and _is_literal(node.value)
        for node in body
    )


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) or not isinstance(literal(node), str)  # of anything else, its source


def _statements(source: str) -> list[ast.stmt]:
    """Of a cell that is Python without magics; none otherwise."""
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError):
        return []
