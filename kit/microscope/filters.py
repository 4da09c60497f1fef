"""Which completions are looked for."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("training", "evaluation")
RANGES = ("step", "reward", "age", "tokens")


@dataclass(frozen=True)
class Filter:
    """What a completion must be; None asks nothing. Texts are compared as they are: no patterns, no folding of case.

    Attributes:
        run: name of the run directory.
        kind: "training" or "evaluation".
        task: name of the task.
        prompt_id: of the prompt.
        role: a part of its role and reason, such as "chosen", "advantage=-", "unused" or "tie".
        text: a part of its prompt or of its completion.
        step_min, step_max: of the optimizer step, bounds included; the others likewise.
        reward_min, reward_max: of the total reward; a completion that was not judged is in no range.
        age_min, age_max: updates between the weights that wrote it and the step.
        tokens_min, tokens_max: of its length.

    Raises:
        ValueError: for another kind, or a range that is empty.
        TypeError: for a bound that is no number or a text that is no string.
    """

    run: str | None = None
    kind: str | None = None
    task: str | None = None
    prompt_id: str | None = None
    role: str | None = None
    text: str | None = None
    step_min: float | None = None
    step_max: float | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    age_min: float | None = None
    age_max: float | None = None
    tokens_min: float | None = None
    tokens_max: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_bound = getattr(self, field.name), field.name.endswith(("_min", "_max"))
            is_right = isinstance(value, int | float) and value == value if is_bound else isinstance(value, str)
            if value is not None and (not is_right or isinstance(value, bool)):
                raise TypeError(f"Filter.{field.name} must be {'a number' if is_bound else 'text'}, got {value!r:.80}")
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"Filter.kind must be one of {KINDS}, got {self.kind!r:.80}")
        for name in RANGES:
            low, high = self.bounds(name)
            if low is not None and high is not None and low > high:
                raise ValueError(f"Filter.{name}_min must be at most {name}_max, got {low} and {high}")

    def bounds(self, name: str) -> tuple[float | None, float | None]:
        return getattr(self, f"{name}_min"), getattr(self, f"{name}_max")

    def rows(self, table: pa.Table) -> pa.Array:
        """Numbers of the rows of `kit.microscope.Rollouts.table` that match, whatever `text` says, ascending."""
        holds: list[pa.Array | pa.ChunkedArray] = []
        for name in ("run", "kind", "task", "prompt_id"):
            if getattr(self, name) is not None:
                holds.append(pc.equal(table[name], getattr(self, name)))
        if self.role is not None:
            holds.append(pc.match_substring(table["role"], self.role))
        for name in RANGES:
            low, high = self.bounds(name)
            holds += [] if low is None else [pc.greater_equal(table[name], pa.scalar(low, pa.float64()))]
            holds += [] if high is None else [pc.less_equal(table[name], pa.scalar(high, pa.float64()))]
        if not holds:
            return pa.array(range(table.num_rows), pa.int64())
        found = holds[0]
        for other in holds[1:]:
            found = pc.and_kleene(found, other)
        return pc.indices_nonzero(pc.fill_null(found, False)).cast(pa.int64())
