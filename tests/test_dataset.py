"""Reading through `datasets`: every format gives the same rows, and what cannot be read is named."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit.tasks.dataset import (
    MissingColumnError,
    OverlapError,
    check_disjoint,
    column_of,
    each_row,
    place,
    prompt_id,
    read,
    user_turn,
)  # fmt: skip
from tests.data_files import FORMATS, write

pytestmark = pytest.mark.usefixtures("datasets_cache")

ROWS = [{"text": "a", "size": 1}, {"text": None, "size": 2}, {"text": "ü", "size": 3}]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = read(write(tmp_path / f"rows{suffix}", ROWS))
    assert list(each_row(rows, ["text", "size"])) == ROWS
    assert list(each_row(rows, ["text", "text"])) == [{"text": row["text"]} for row in ROWS]


def test_a_glob_and_a_folder_give_the_rows_of_all_their_files(tmp_path: Path) -> None:
    (tmp_path / "folder" / "data").mkdir(parents=True)
    for part in range(2):
        write(tmp_path / "folder" / "data" / f"train-0000{part}-of-00002.parquet", ROWS)
    write(tmp_path / "folder" / "data" / "test-00000-of-00001.parquet", ROWS[:1])
    assert len(read(str(tmp_path / "folder" / "data" / "train-*.parquet"))) == 6
    assert len(read(str(tmp_path / "folder"))) == 6
    assert len(read(str(tmp_path / "folder"), "test")) == 1


def test_batches_lose_no_row(tmp_path: Path) -> None:
    numbers = [{"number": number} for number in range(2500)]  # two batches and a half
    assert list(each_row(read(write(tmp_path / "rows.parquet", numbers)), ["number"])) == numbers


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl, came none.*give path="):
        read(str(tmp_path / "missing.jsonl"))


def test_a_name_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"expected to reach the data set someone/something.*give path="):
        read("someone/something")


@pytest.mark.parametrize(("suffix", "text"), [(".jsonl", "{not json\n"), (".parquet", "not parquet")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=rf"expected {suffix} in .*bad{suffix}, came what cannot be read: .*(JSON|Parq)"
    ):
        read(str(path))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"at least one row in .*came none"):
        read(str(tmp_path / "empty.jsonl"))
    whole = read(write(tmp_path / "whole.parquet", ROWS))
    whole.select([]).to_parquet(str(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match=r"at least one row in .*came none"):
        read(str(tmp_path / "none.parquet"))


def test_a_loading_script_is_not_run_and_what_to_give_instead_is_said(tmp_path: Path) -> None:
    (tmp_path / "alpaca_eval").mkdir()
    (tmp_path / "alpaca_eval" / "alpaca_eval.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ValueError, match="came a loading script: give path= one of its files, hf://datasets/"):
        read(str(tmp_path / "alpaca_eval"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[gpu\]'"):
        read("rows.jsonl")


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "rows.jsonl", ROWS))
    assert column_of(rows, "rows.jsonl", "body", "text", "size") == "text"
    with pytest.raises(
        MissingColumnError, match=r"'body' or 'head' in rows.jsonl, came the columns \['text', 'size'\]"
    ):
        column_of(rows, "rows.jsonl", "body", "head")


def test_ids_and_places_depend_on_the_words_alone() -> None:
    # printf 'a b' | sha256sum, and printf '3/a b' | sha256sum
    assert prompt_id("task", " a\n\tb ") == prompt_id("task", "a b") == "task/c8687a08aa5d6ed2"
    assert place(" a\n\tb ", 3) == place("a b", 3) != place("a b", 4)
    assert place("a b", 3).hex().startswith("fcfed315c5c4")
    assert prompt_id("task", "a B") != prompt_id("task", "a b") != prompt_id("task", "ab")


def test_a_prompt_in_two_splits_or_twice_in_one_is_an_error() -> None:
    one, spaced, two = (user_turn("t", f"t/{i}", text) for i, text in enumerate(("a b", "a  b\n", "c")))
    check_disjoint("t", {"train": [one], "test": [two]})
    with pytest.raises(OverlapError, match="every prompt of t once, came 't/1' in train and in test"):
        check_disjoint("t", {"train": [one], "test": [two, spaced]})
    with pytest.raises(OverlapError, match="in test and in test"):
        check_disjoint("t", {"test": [one, spaced]})


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="came none in validation"):
        check_disjoint("t", {"train": [user_turn("t", "t/0", "a")], "validation": []})


def test_the_loaders_import_datasets_only_when_they_load() -> None:
    code = (
        "import sys, kit.tasks.numina, kit.tasks.math_benchmarks, kit.tasks.wildchat, kit.tasks.instructions; "
        "kit.tasks.numina.NuminaMath(); sys.exit('datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
