"""The completions of run directories: a few small columns of all of them, the tokens of those that are shown."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from kit.columns import schema
from kit.microscope.filters import KINDS, Filter
from kit.microscope.group import Completion, Group
from kit.runlog import RunDirectoryError

SCALARS = ["prompt_id", "task", "index", "reward", "version", "tokens", "role", "reason"]
AT_ONCE = 64  # files whose texts are searched together
FOLDERS = {"training": "rollouts", "evaluation": "evaluations"}
STEP = re.compile(r"(?:.*_)?step_(\d+)\.parquet", re.DOTALL)
SORTS = {
    "step": "step",
    "mean reward": "reward_mean",
    "spread of rewards": "spread",
    "age": "age",
    "tokens": "tokens_mean",
    "prompt": "prompt_id",
}  # what a person chooses -> column of `Rollouts.groups`


@dataclass(frozen=True)
class File:
    """One file of a run directory."""

    path: Path
    run: str
    kind: str
    step: int


@dataclass(frozen=True)
class Found:
    """The answer to a filter."""

    completions: int
    groups: Sequence[int]  # numbers of those that hold a matching completion, in the order asked for
    matches: Sequence[int]  # matching completions in each of them


class Rollouts:
    """Everything that was recorded of the completions of one run directory, or of several, such as a fork and its
    parent.

    Only small columns are held: `table` has a row a completion, `groups` a row a group. Texts are read when a filter
    asks for one, tokens when a group is shown.

    Raises:
        FileNotFoundError: if a folder is no run directory, or none of them holds completions.
        RunDirectoryError: if a file cannot be read, or was written without what is needed.
    """

    def __init__(self, folders: str | Path | Iterable[str | Path]) -> None:
        folders = [folders] if isinstance(folders, str | Path) else list(folders)
        self.files = [file for name, folder in _named(map(Path, folders)).items() for file in _files(name, folder)]
        if not self.files:
            raise FileNotFoundError(
                f"expected completions below {[str(folder) for folder in folders]}, came none: let the run make a step"
            )
        self.table = _read(self.files)
        self.groups = _groups(self.table)
        sizes = {count["values"]: count["counts"] for count in self.table["file"].value_counts().to_pylist()}
        self._starts = [0, *accumulate(sizes.get(file, 0) for file in range(len(self.files)))]  # each file's first row

    def __len__(self) -> int:
        """Completions."""
        return self.table.num_rows

    def find(self, asked: Filter | None = None, *, sort: str = "step", descending: bool = False) -> Found:
        """The groups with a completion that matches; of equals, the one recorded first comes first.

        Raises:
            ValueError: for an unknown order.
        """
        if sort not in SORTS:
            raise ValueError(f"sort must be one of {list(SORTS)}, got {sort!r:.80}")
        rows = self.rows(asked or Filter())
        counts = self.table["group"].take(rows).value_counts()
        numbers, matches = counts.field("values"), counts.field("counts")
        keys = pa.table({"number": numbers, "matches": matches, "key": self.groups[SORTS[sort]].take(numbers)})
        order = [("key", "descending" if descending else "ascending"), ("number", "ascending")]
        keys = keys.take(pc.sort_indices(keys, sort_keys=order))
        return Found(len(rows), keys["number"].to_pylist(), keys["matches"].to_pylist())

    def rows(self, asked: Filter) -> pa.Array:
        """Numbers of the matching rows of `table`, ascending."""
        rows = asked.rows(self.table)
        if not asked.text:
            return rows
        files = pc.unique(self.table["file"].take(rows)).to_pylist()
        hits = [
            hit for at in range(0, len(files), AT_ONCE) for hit in self._with_text(asked.text, files[at : at + AT_ONCE])
        ]
        return rows.filter(pc.is_in(rows, value_set=pa.array(hits, pa.int64())))

    def _with_text(self, text: str, files: Sequence[int]) -> list[int]:
        """Rows of these files with this text in the prompt or the completion."""
        texts = _table([self.files[file].path for file in files], ["prompt", "completion", "__fragment_index"])
        is_hit = pc.or_kleene(*(pc.match_substring(texts[name], text) for name in ("prompt", "completion")))
        sizes = [self._starts[file + 1] - self._starts[file] for file in files]
        moved = [self._starts[file] - start for file, start in zip(files, accumulate(sizes, initial=0), strict=False)]
        hits = pc.indices_nonzero(pc.fill_null(is_hit, False))
        return pc.add(hits.cast(pa.int64()), pa.array(moved).take(texts["__fragment_index"].take(hits))).to_pylist()

    def lines(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What a list shows of these groups."""
        found = self.groups.take(pa.array(numbers, pa.int64())).to_pylist()
        prompts = {
            file: _table([self.files[file].path], ["prompt"])["prompt"] for file in {line["file"] for line in found}
        }
        for line in found:
            line["rewards"] = self.table["reward"].slice(line["row"], line["size"]).to_pylist()
            line["prompt"] = prompts[line["file"]][line["row"] - self._starts[line["file"]]].as_py()
        return found

    def group(self, number: int) -> Group:
        """A group with all that was recorded of its tokens.

        Raises:
            IndexError: if there is no group with this number.
        """
        if not 0 <= number < self.groups.num_rows:
            raise IndexError(f"expected a group from 0 to {self.groups.num_rows - 1}, came {number}")
        [line] = self.groups.slice(number, 1).to_pylist()
        ages = self.table["age"].slice(line["row"], line["size"]).to_pylist()
        start = line["row"] - self._starts[line["file"]]
        rows = _table([self.files[line["file"]].path], None).slice(start, line["size"]).to_pylist()
        completions = tuple(_completion(row, age) for row, age in zip(rows, ages, strict=True))
        named = {name: line[name] for name in ("run", "kind", "step", "task", "prompt_id")}
        return Group(number=number, prompt=rows[0]["prompt"] or "", completions=completions, **named)

    def same_prompt(self, number: int) -> list[int]:
        """All groups of this group's prompt, itself included, in the order of their steps: before and after a sync."""
        [line] = self.groups.slice(number, 1).to_pylist()
        same = pc.equal(self.groups["prompt_id"], line["prompt_id"])
        if line["task"] is not None:
            same = pc.and_kleene(same, pc.equal(self.groups["task"], line["task"]))
        found = pc.indices_nonzero(same)
        steps = self.groups["step"].take(found).to_pylist()
        return [n for _, n in sorted(zip(steps, found.to_pylist(), strict=True))]

    def choices(self) -> dict[str, list[str]]:
        """The runs, kinds and tasks that there are."""
        return {name: sorted(set(self.groups[name].to_pylist()) - {None}) for name in ("run", "kind", "task")}


def _named(folders: Iterable[Path]) -> dict[str, Path]:
    """Run directories by name; of two with the same name, by as much of their paths as tells them apart."""
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"expected a run directory with config.json, came {str(path)!r}: give the out_dir of a run"
            )
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return {"/".join(path.parts[-depth:]): path for path in paths}


def _files(run: str, folder: Path) -> list[File]:
    """Training first, each kind in the order of steps."""
    found = []
    for kind in KINDS:
        paths = sorted((folder / FOLDERS[kind]).glob("*.parquet"))
        named = [(int(match[1]), path) for path in paths if (match := STEP.fullmatch(path.name))]
        found += [File(path, run, kind, step) for step, path in sorted(named)]
    return found


def _read(files: Sequence[File]) -> pa.Table:
    """The small columns of all files, one after the other, and of each row: file, run, kind, step, age and group."""
    table = _table([file.path for file in files], [*SCALARS, "__fragment_index"])
    file = table["__fragment_index"].combine_chunks()
    if table["index"].null_count:
        old = files[file[pc.index(pc.is_null(table["index"]), True).as_py()].as_py()].path
        raise RunDirectoryError(f"expected the columns of kit.columns, came {old} without them: make the run again")
    of_file = {name: pa.array([getattr(f, name) for f in files]) for name in ("run", "kind", "step")}
    columns = {name: values.take(file) for name, values in of_file.items()}
    version = pc.coalesce(table["version"], columns["step"])  # an evaluation samples from the policy of its step
    explained = pc.binary_join_element_wise(table["role"], table["reason"], ": ")  # null without a reason
    return pa.table(
        {name: table[name] for name in SCALARS if name != "reason"}
        | columns
        | {
            "file": file,
            "role": pc.coalesce(explained, table["role"]),
            "age": pc.subtract(columns["step"], version),
            "group": pc.subtract(pc.cumulative_sum(pc.equal(table["index"], 0).cast(pa.int64())), 1),
        }
    ).combine_chunks()


def _groups(table: pa.Table) -> pa.Table:
    """One row a group, in the order of `table`."""
    parts = [("reward", "mean"), ("reward", "min"), ("reward", "max"), ("age", "max"), ("tokens", "mean")]
    told = table.group_by("group").aggregate([*parts, ("group", "count")]).sort_by("group")
    rows = pc.indices_nonzero(pc.equal(table["index"], 0))
    first = {name: table[name].take(rows) for name in ("run", "kind", "step", "task", "prompt_id", "file")}
    return pa.table(
        first
        | {
            "number": told["group"],
            "row": rows.cast(pa.int64()),
            "size": told["group_count"],
            "reward_mean": told["reward_mean"],
            "spread": pc.subtract(told["reward_max"], told["reward_min"]),
            "age": told["age_max"],
            "tokens_mean": told["tokens_mean"],
        }
    )


def _table(paths: Sequence[Path], names: Sequence[str] | None) -> pa.Table:
    """Columns of files, one after the other; those that a file does not have are null."""
    try:
        # Left to itself a dataset takes its schema from its first file.
        dataset = ds.dataset([str(path) for path in paths], schema=schema(), format="parquet")
        return dataset.to_table(columns=names).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise RunDirectoryError(f"expected completions written by a run, came what cannot be read: {error}") from error


def _completion(row: dict[str, Any], age: int) -> Completion:
    same = ("index", "tokens", "reward", "role", "reason", "finish_reason", "pieces")
    numbers = ("old_logprobs", "entropies", "logprobs", "ref_logprobs")
    return Completion(
        text=row["completion"],
        rewards=dict(row["rewards"] or ()),
        age=age,
        **{name: row[name] for name in same + numbers},
    )
