"""Exercises that check themselves: an attempt is compared with the library; whatever it does, the notebook goes on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kit.printable import printable

NOT_ATTEMPTED = "○ not attempted yet"
WIDTH = 200  # characters of a value that are shown


def check(
    attempt: Callable[..., Any],
    expected: Callable[..., Any],
    cases: Sequence[tuple[Any, ...] | Mapping[str, Any]],
    *,
    tolerance: float = 1e-5,
) -> None:
    """Call both functions with every case and print *correct*, *not attempted yet*, or the first case that differs.

    Not attempted is what raises NotImplementedError or returns `...`. Any other error of the attempt is printed too.

    Args:
        attempt: the reader's function.
        expected: one that is right.
        cases: each the arguments of a call, a tuple by position or a mapping by name; at least one.
        tolerance: of numbers and tensors, absolute and relative.

    Raises:
        ValueError: if there is no case.

    >>> check(lambda x: x + x, lambda x: x**2, [(2.0,), (3.0,)])
    ✗ case 2 of 2: for (3.0) expected 9.0, came 6.0
    >>> check(lambda x: x * x, lambda x: x**2, [(2.0,), (3.0,)])
    ✓ correct: 2 of 2 cases agree
    >>> def my_square(x):
    ...     raise NotImplementedError
    >>> check(my_square, lambda x: x**2, [(2.0,)])
    ○ not attempted yet
    """
    if not cases:
        raise ValueError("expected at least one case to call the functions with, came none")
    for number, case in enumerate(cases, start=1):
        positional, named = ((), case) if isinstance(case, Mapping) else (case, {})
        wanted = expected(*_copied(positional), **_copied(named))
        where = f"✗ case {number} of {len(cases)}: for ({_call(positional, named)}) expected {_shown(wanted)}"
        try:
            came = attempt(*_copied(positional), **_copied(named))
        except NotImplementedError:
            print(NOT_ATTEMPTED)
            return
        except Exception as error:  # whatever a reader's code may raise: it is said, and the notebook goes on
            print(f"{where}, came {type(error).__name__}: {printable(str(error))[:WIDTH]}")
            return
        if came is Ellipsis:
            print(NOT_ATTEMPTED)
            return
        if not _agree(came, wanted, tolerance):
            hint = " (does the function return its result?)" if came is None else ""
            print(f"{where}, came {_shown(came)}{hint}")
            return
    print(f"✓ correct: {len(cases)} of {len(cases)} cases agree")


def check_answer(answer: object, expected: object, *, tolerance: float = 1e-5) -> None:
    """The same for a single answer, such as a prediction or a name; None or `...` is one not attempted yet.

    Of a wrong number it says on which side it is, of anything else nothing more: there is another try.

    >>> check_answer(0.5, 0.25)
    ✗ too large: 0.5
    >>> check_answer("clip", "k3"), check_answer("k3", "k3"), check_answer(None, "k3")
    ✗ it is something else than 'clip'
    ✓ correct: 'k3'
    ○ not attempted yet
    (None, None, None)
    """
    if answer is None or answer is Ellipsis:
        print(NOT_ATTEMPTED)
    elif _agree(answer, expected, tolerance):
        print(f"✓ correct: {_shown(answer)}")
    elif _is_number(answer) and _is_number(expected) and answer == answer:  # no NaN
        print(f"✗ too {'large' if answer > expected else 'small'}: {_shown(answer)}")  # pyright: ignore[reportOperatorIssue]
    else:
        print(f"✗ it is something else than {_shown(answer)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _agree(came: object, wanted: object, tolerance: float) -> bool:
    """Numbers and tensors to a tolerance, NaN with NaN; containers by their elements; anything else exactly."""
    if isinstance(wanted, torch.Tensor) or isinstance(came, torch.Tensor):
        if not all(_is_number(each) or isinstance(each, (bool, torch.Tensor)) for each in (came, wanted)):
            return False
        came, wanted = torch.as_tensor(came).detach().double(), torch.as_tensor(wanted).detach().double()
        return came.shape == wanted.shape and torch.allclose(came, wanted, tolerance, tolerance, equal_nan=True)
    if _is_number(wanted) and _is_number(came):
        return _agree(torch.tensor(came), wanted, tolerance)
    if isinstance(wanted, Mapping) and isinstance(came, Mapping):
        return wanted.keys() == came.keys() and all(_agree(came[key], wanted[key], tolerance) for key in wanted)
    if isinstance(wanted, (list, tuple)) and isinstance(came, (list, tuple)):
        return len(wanted) == len(came) and all(map(_agree, came, wanted, [tolerance] * len(wanted)))
    return type(came) is type(wanted) and came == wanted


def _copied(value: Any) -> Any:
    """So that an attempt that writes into its arguments does not change the next call's."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


def _call(positional: Sequence[Any], named: Mapping[str, Any]) -> str:
    return ", ".join([*map(_shown, positional), *(f"{name}={_shown(value)}" for name, value in named.items())])


def _shown(value: object) -> str:
    """A value on one line, its floats to six digits; a tensor as nested lists."""
    text = repr(_rounded(value.tolist() if isinstance(value, torch.Tensor) else value))
    return printable(text if len(text) <= WIDTH else text[:WIDTH] + "…")


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
