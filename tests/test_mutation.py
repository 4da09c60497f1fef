"""The mutator: which mistakes it makes of a formula, what it leaves alone, and that each is noticed or reported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import KINDS, mutants

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("a + b * c", "operator", {"a - b * c", "a + b / c"}),
        ("p & q | {}", "operator", {"p & q & {}", "p | q | {}"}),
        ("logprobs - old", "operands", {"old - logprobs"}),
        ("a / (b - c)", "operands", {"(b - c) / a", "a / (c - b)"}),
        ("-x * -1", "sign", {"x * -1"}),
        ("not a > b", "negation", {"a > b"}),
        ("x[~mask]", "negation", {"x[mask]"}),
        ("[0, 0.5, -1, True, 'one', None]", "constant", {
            "[1, 0.5, -1, True, 'one', None]", "[0, 1.5, -1, True, 'one', None]", "[0, 0.5, 0, True, 'one', None]",
            "[0, 0.5, -1, False, 'one', None]",
        }),
        ("0 <= a < b", "comparison", {"0 < a < b", "0 >= a < b", "0 <= a <= b", "0 <= a > b"}),
        ("a == b", "comparison", {"a != b"}),
        ("a is None", "comparison", {"a is not None"}),
        ("a and b", "connective", {"a or b"}),
        ("x.sum(-1) + max(a, b)", "name", {"x.mean(-1) + max(a, b)", "x.sum(-1) + min(a, b)"}),
        ("x.clamp(min=1).sum", "name", {"x.clamp(max=1).sum"}),
        ("masked_mean(x, m)", "name", {"masked_sum(x, m)"}),
        ("x.detach() + torch.exp(y)", "dropped call", {"x + torch.exp(y)"}),
        ("ratio.clamp(low, high)", "dropped call", {"ratio"}),
        ("kl(policy, reference)", "arguments", {"kl(reference, policy)"}),
        ("Surrogate(loss, x, x)", "arguments", {"Surrogate(x, loss, x)"}),
        ("ratio.clamp(1 - low, high, *rest)", "arguments", {"ratio.clamp(high, 1 - low, *rest)"}),
        ("require_same_shape(a, b), x.sum(a, 1), torch.min(a, b)", "arguments", set()),
        ("torch.where(mask, x, 0.0)", "selection", {"x", "torch.where(mask, 0.0, x)"}),
        ("masked_sum(x, t.completion_mask)", "shifted mask", {"masked_sum(x, t.completion_mask.roll(1, -1))"}),
        ("x[mask] + mask.dtype + zeros_like(mask) + _require_valid(mask)", "shifted mask", {
            "x[mask.roll(1, -1)] + mask.dtype + zeros_like(mask) + _require_valid(mask)"
        }),
        ("if x:\n    raise E\nif y:\n    z = 1", "check", {"if False:\n    raise E\nif y:\n    z = 1"}),
        ("def f(x):\n    require(x)\n    g = x()", "check", {"def f(x):\n    None\n    g = x()"}),
    ],
)  # fmt: skip
def test_each_kind_makes_its_mistakes_and_no_others(source: str, kind: str, expected: set[str]) -> None:
    assert {mutant.source for mutant in mutants(source) if mutant.kind == kind} == expected


def test_every_kind_has_an_example_above() -> None:
    (table,) = (mark for mark in test_each_kind_makes_its_mistakes_and_no_others.pytestmark)
    assert {kind for _, kind, _ in table.args[1]} == set(KINDS)


UNTOUCHED = '''
"""Minus 1 is -1."""

__all__ = ["a"]
KINDS: dict[str, Float[Tensor, "2 3"] | int] = {"a": a}


@dataclass(frozen=True)
def a(x: int | None) -> Literal[1]:
    """One - two."""
    message = f"{x + 1} of {len(x) - 1}"
    raise ValueError("expected 1" + f"came {x - 1}")
    return zip(x, x, strict=True)
'''


def test_annotations_decorators_messages_and_docstrings_are_left_alone() -> None:
    assert mutants(UNTOUCHED) == []


def test_a_mutant_is_named_by_scope_line_and_change_and_an_import_goes_along() -> None:
    source = (
        "from kit.masking import masked_sum\nclass A:\n    def f(x):\n        return masked_sum(0 + x) + 0  # why\n"
    )
    found = mutants(source)
    assert {(mutant.line, mutant.scope, mutant.text) for mutant in found} == {
        (4, "A.f", "return masked_sum(0 + x) + 0  # why")
    }
    changes = [mutant.change for mutant in found]
    assert "masked_sum -> masked_mean" in changes and {"0 -> 1", "0 -> 1 #2"} < set(changes)
    assert len(changes) == len(set(changes))
    renamed = found[changes.index("masked_sum -> masked_mean")].source
    assert renamed.startswith("from kit.masking import masked_sum, masked_mean\n")
    assert "return masked_mean(0 + x) + 0" in renamed


FORMULA = "def squared_difference(a, b):\n    return (a - b) ** 2\n"
TEST = """
from formula import squared_difference

def test_by_hand():
    assert squared_difference(5, 3) == 4
"""
TABLE = """
["formula.py"]
tests = ["test_formula.py"]
"""
REASON = """
[["formula.py".same]]
scope = "squared_difference"
line = "return (a - b) ** 2"
change = "{change}"
reason = "squared"
"""
KILLED, HARMLESS = "a - b -> a + b", "a - b -> b - a"


def mutate(root: Path, table: str, test: str = TEST) -> subprocess.CompletedProcess[str]:
    """The program on a project of one formula."""
    files = {"formula.py": FORMULA, "test_formula.py": test, "tests/mutation/targets.toml": table}
    files["pytest.ini"] = "[pytest]\npythonpath = .\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    command = [sys.executable, str(ROOT / "tests/mutation/run.py"), "--root", str(root), "--jobs", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (root / "formula.py").read_text() == FORMULA
    return finished


@pytest.mark.slow
def test_mutants_are_killed_and_survivors_need_a_reason(tmp_path: Path) -> None:
    # The mutants give (5 + 3) ** 2 = 64, (5 - 3) ** 3 = 8 and (3 - 5) ** 2 = 4.
    unexplained = mutate(tmp_path, TABLE)
    assert unexplained.returncode == 1, unexplained.stderr
    assert f"survived: formula.py:2 squared_difference: return (a - b) ** 2\n    {HARMLESS}\n" in unexplained.stdout
    assert unexplained.stdout.count("survived:") == 1
    explained = mutate(tmp_path, TABLE + REASON.format(change=HARMLESS))
    assert explained.returncode == 0, explained.stdout + explained.stderr
    assert explained.stdout.splitlines()[-2].split() == ["all", "3", "2", "1", "0", "100.0%"]


@pytest.mark.slow
def test_a_reason_for_a_mutant_that_dies_and_tests_that_fail_anyway_are_errors(tmp_path: Path) -> None:
    stale = mutate(tmp_path, TABLE + "".join(REASON.format(change=change) for change in (HARMLESS, KILLED)))
    assert stale.returncode == 1 and "killed, although targets.toml has a reason" in stale.stdout
    assert KILLED in stale.stdout and HARMLESS not in stale.stdout
    red = mutate(tmp_path, TABLE, TEST + "    assert False\n")
    assert red.returncode == 1 and "its tests fail without any mutation" in red.stderr
    elsewhere = mutate(tmp_path, TABLE, "def test_nothing():\n    pass\n")
    assert elsewhere.returncode == 1 and "no test file imported formula" in elsewhere.stderr


def test_every_file_in_the_table_exists() -> None:
    from tests.mutation.run import read_targets

    targets = read_targets(ROOT)
    assert targets
    for target in targets:
        assert (ROOT / target.path).exists() and target.tests
        assert all((ROOT / test).exists() for test in target.tests)
