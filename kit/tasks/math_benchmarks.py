"""MATH-500 and AMC23, the paper's math benchmarks: for evaluation only, so each has a test split and no other.

Every row is kept, in its order, because the size of a benchmark is part of what its accuracy means. Prompt and reward
are those of NuminaMath. Looked up on 2026-11-24:

- `HuggingFaceH4/MATH-500`, split `test`, 500 rows: columns `problem`, `solution`, `answer`, `subject`, `level`,
  `unique_id`. The card states no licence; the data is from PRM800K (OpenAI, MIT) and MATH (Hendrycks et al. 2021, MIT).
- `math-ai/amc23`, split `test`, 40 rows, the problems of AMC 12A and 12B of 2023 with integer answers: columns `id`,
  `question`, `answer`, `url`. The card states no licence; the problems are those of the Mathematical Association of
  America. Other copies call the problem `problem` or write answers as 27.0, and `AI-MO/aimo-validation-amc` (split
  `train`, 83 rows, Apache-2.0) has the year before too: both are read, and rows whose `url` does not name 2023 are
  dropped and counted.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from kit.tasks.dataset import column_of, describe_counts, each_row, in_order, is_text, only_test, read, user_turn
from kit.tasks.numina import math_prompt
from kit.tasks.task import Split, Verified
from kit.types import Prompt


@dataclass(frozen=True)
class MATH500(Verified):
    """500 problems of MATH's test set, as `Let's Verify Step by Step` (Lightman et al. 2023) chose them.

    Attributes:
        path: a name on the hub or a file, see `kit.tasks.dataset.read`.
    """

    path: str = "HuggingFaceH4/MATH-500"

    @property
    def name(self) -> str:
        return "math_500"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        only_test(self.name, name)
        return _load(self.name, self.path, "test", "unique_id", None)[0]

    def counts(self) -> dict[str, int]:
        """`rows` and `kept`."""
        return dict(_load(self.name, self.path, "test", "unique_id", None)[1])


@dataclass(frozen=True)
class AMC23(Verified):
    """40 problems of the American Mathematics Competitions 12 of 2023.

    Attributes:
        path: a name on the hub or a file, see `kit.tasks.dataset.read`.
        hub_split: where the problems are in a data set on the hub: "train" in `AI-MO/aimo-validation-amc`.
    """

    path: str = "math-ai/amc23"
    hub_split: str = "test"

    @property
    def name(self) -> str:
        return "amc23"

    def split(self, name: Split) -> tuple[Prompt, ...]:
        only_test(self.name, name)
        return _load(self.name, self.path, self.hub_split, "id", "2023")[0]

    def counts(self) -> dict[str, int]:
        """`rows`, `of another year` and `kept`."""
        return dict(_load(self.name, self.path, self.hub_split, "id", "2023")[1])


def answer_text(answer: Any) -> str | None:
    """A reference answer as text, an integer without decimals; None if there is nothing in it.

    >>> answer_text(27.0), answer_text("27"), answer_text(2.5), answer_text(" "), answer_text(None)
    ('27', '27', '2.5', None, None)
    """
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    text = "" if answer is None else str(answer).strip()
    return text or None


@cache
def _load(task: str, path: str, hub_split: str, id_column: str, year: str | None) -> tuple[Any, dict[str, int]]:
    rows = read(path, hub_split)
    problem_column = column_of(rows, path, "question", "problem")
    columns = [problem_column, column_of(rows, path, "answer"), column_of(rows, path, id_column)]
    columns += ["url"] if year and "url" in rows.column_names else []
    counts, prompts = Counter(rows=0), {}
    for row in each_row(rows, columns):
        counts["rows"] += 1
        if year and year not in (row.get("url") or year):
            counts["of another year"] += 1
            continue
        problem, answer, id = row[problem_column], answer_text(row["answer"]), f"{task}/{row[id_column]}"
        if not is_text(problem) or answer is None or row[id_column] is None or id in prompts:
            raise ValueError(
                f"expected a problem, an answer and an {id_column} of its own in every row of {path}, came row "
                f"{counts['rows'] - 1}: {row!r:.200}: mend the file, since a benchmark is only comparable as a whole"
            )
        prompts[id] = user_turn(task, id, math_prompt(problem), solution=answer)
        counts["kept"] += 1
    if not prompts:
        raise ValueError(f"expected problems in {path}, came {describe_counts(counts)}: give path= another data set")
    return tuple(prompts.values()), in_order(counts)
