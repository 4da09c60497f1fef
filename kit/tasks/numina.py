r"""NuminaMath as the paper uses it: problems with an answer that can be verified, without the synthetic subsets.

Source: Lanchantin et al. 2025, arXiv 2506.21495: proofs, multiple-choice questions and the subsets Orca math, synthetic
AMC and synthetic math are dropped, which leaves 261,440 problems; 1,980 of them validate and 1,980 test. The paper does
not say which of the two versions it filters (looked up on 2026-11-24; both Apache-2.0, one split `train` of use):

- `AI-MO/NuminaMath-1.5` (896,215 rows; the hub now also calls it `project-numina/NuminaMath-1.5`): columns `problem`,
  `solution`, `answer`, `problem_type`, `question_type` ("math-word-problem", "MCQ", "proof", "other"),
  `problem_is_valid`, `solution_is_valid`, `source`, `synthetic`. Its `answer` is the reference, unless it is "proof" or
  "notfound"; its solutions often have no box. The default, since only it says what kind of question a row is.
- `AI-MO/NuminaMath-CoT` (859,494 rows): columns `source`, `problem`, `solution`, `messages`. The reference is the last
  \boxed{...} of the solution. A problem without one counts as a proof here; one whose box holds a letter, or that lists
  options A, B, C, D, as multiple choice.

The same problem often stands there twice: it is kept once, where it first occurs, and then the splits are drawn. So
expect fewer problems than the paper counts; `NuminaMath().counts()` says what became of every row.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kit.tasks.dataset import (
    canonical,
    check_disjoint,
    check_sizes,
    column_of,
    describe_counts,
    each_row,
    in_order,
    is_text,
    place,
    prompt_id,
    read,
    user_turn,
)
from kit.tasks.task import Split, Verified
from kit.types import Prompt

SYNTHETIC = {"orca_math", "synthetic_amc", "synthetic_math"}  # values of the column `source`
NO_ANSWER = {"notfound", "proof"}  # what NuminaMath-1.5 writes instead of one

# Source: figure 4 of the paper. {PROBLEM} is replaced and everything else stays as it is.
MATH_TEMPLATE = (
    "Given the following problem, reason and give a final answer to the problem.\n"
    "Problem: {PROBLEM}\n"
    r"Your response should end with 'The final answer is $\boxed{[answer]}$. I hope it is correct.' where [answer] is "
    "the response to the problem."
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
MARK = re.compile(r"\\.|[{}]", re.DOTALL)  # a brace, or whatever a backslash makes something else
LETTER = re.compile(r"(?:\\(?:text|textbf|textrm|mathrm|mathbf)\s*\{\s*)*(?:\(?[A-E]\)?[\s}.]*$|\([A-E]\))")
OPTION = re.compile(r"(?<![A-Za-z])([A-E])\s*[.:)]")  # A. or A: or (A)


@dataclass(frozen=True)
class NuminaMath(Verified):
    """Problems under the paper's prompt, scored by math-verify against the column `solution`.

    A problem's place in the splits is decided by a hash of its text. So the held-out problems do not change with
    `num_train`, and any slice of a split is a fair sample.

    Attributes:
        path: a name on the hub or a file (see `kit.tasks.dataset.read`), of either schema in the module's docstring.
        num_train: how many train; None = all that are not held out. The paper's combined run: 100,000.
        num_validation, num_test: held out.
        max_characters: longer problems are dropped; None = none. The paper's limit is not stated.
        seed: of the shuffle.
    """

    path: str = "AI-MO/NuminaMath-1.5"
    num_train: int | None = None
    num_validation: int = 1980
    num_test: int = 1980
    max_characters: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(
            1, num_train=self.num_train, num_validation=self.num_validation, num_test=self.num_test,
            max_characters=self.max_characters,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return "numina_math"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        return _load(self)[0][name]

    def counts(self) -> dict[str, int]:
        """`rows`, then how many of them were dropped and why, then `kept`: the problems to draw splits from."""
        return dict(_load(self)[1])


def math_prompt(problem: str) -> str:
    """The paper's user turn for a math problem."""
    return MATH_TEMPLATE.replace("{PROBLEM}", problem)


def last_boxed(solution: str) -> str | None:
    r"""What the last box of a solution holds, braces within it included; None if it is empty or does not close.

    >>> last_boxed(r"so $\boxed{1}$, or rather $\boxed{\frac{1}{2}}$."), last_boxed("so 2"), last_boxed(r"\boxed{2")
    ('\\frac{1}{2}', None, None)
    """
    boxes = list(BOX.finditer(solution))
    depth, start = 1, boxes[-1].end() if boxes else len(solution)
    for mark in MARK.finditer(solution, start):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return solution[start : mark.start()].strip() or None
    return None


def is_multiple_choice(problem: str, answer: str) -> bool:
    r"""A guess where no column says so: the answer is a letter or starts with one, or four options are listed.

    >>> is_multiple_choice("Which is prime? A: 4 B: 5 C: 6 D: 8", "5"), is_multiple_choice("?", r"\textbf{(B)}\ 5")
    (True, True)
    >>> is_multiple_choice("Find A. B is twice A.", "5"), is_multiple_choice("Factor it.", "(A+1)^2")
    (False, False)
    """
    return bool(LETTER.match(answer)) or "ABCD" in "".join(OPTION.findall(problem))


@cache
def _load(task: NuminaMath) -> tuple[dict[Split, tuple[Prompt, ...]], dict[str, int]]:
    counts: Counter[str] = Counter(rows=0)
    problems: dict[bytes, tuple[str, str]] = {}
    for problem, answer in _verifiable(task, counts):
        where = place(problem, task.seed)
        counts["duplicate" if where in problems else "kept"] += 1
        problems.setdefault(where, (problem, answer))
    held_out = task.num_validation + task.num_test
    if len(problems) < held_out + (task.num_train or 1):
        raise ValueError(
            f"expected num_validation={task.num_validation}, num_test={task.num_test} and num_train={task.num_train} "
            f"problems with an answer in {task.path}, came {describe_counts(counts)}: lower one of the three, or give "
            "path= a data set with more problems"
        )
    shuffled = [problems[where] for where in sorted(problems)]
    last = None if task.num_train is None else held_out + task.num_train
    slices: dict[Split, list[tuple[str, str]]] = {
        "train": shuffled[held_out:last],
        "validation": shuffled[: task.num_validation],
        "test": shuffled[task.num_validation : held_out],
    }
    splits: dict[Split, tuple[Prompt, ...]] = {
        name: tuple(_prompt(task.name, *pair) for pair in pairs) for name, pairs in slices.items()
    }
    check_disjoint(task.name, splits)
    return splits, in_order(counts)


def _prompt(task: str, problem: str, answer: str) -> Prompt:
    return user_turn(task, prompt_id(task, problem), math_prompt(problem), solution=answer)


def _verifiable(task: NuminaMath, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Problems and answers of the rows that the paper's filter leaves; the others are counted by reason."""
    rows = read(task.path)
    columns = [column_of(rows, task.path, name) for name in ("problem", "source")]
    has_answers = column_of(rows, task.path, "answer", "solution") == "answer"
    columns += [column_of(rows, task.path, "question_type"), "answer"] if has_answers else ["solution"]
    for row in each_row(rows, columns):
        counts["rows"] += 1
        problem = row["problem"]
        answer = row["answer"] if has_answers else last_boxed(row["solution"] or "")
        reason = _reason_to_drop(row, answer)
        if reason is None and task.max_characters is not None and len(problem) > task.max_characters:
            reason = "too long"
        if reason is None:
            yield problem, str(answer).strip()
        else:
            counts[reason] += 1


def _reason_to_drop(row: Mapping[str, Any], answer: str | None) -> str | None:
    kind = (row.get("question_type") or "").casefold()
    if row["source"] in SYNTHETIC:
        return "synthetic"
    if not is_text(row["problem"]):
        return "without a problem"
    if kind == "proof" or ("answer" not in row and answer is None):
        return "proof"
    if kind == "mcq" or ("answer" not in row and is_multiple_choice(row["problem"], answer or "")):
        return "multiple choice"
    if not is_text(answer) or canonical(str(answer)).casefold() in NO_ANSWER:
        return "without an answer"
    return None
