"""The widget's Python side: what the browser asks for is what it is sent, and a page for where there is no browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.microscope import Filter, Microscope, Rollouts
from kit.run import Run
from tests.recorded import row, write_run, write_step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", steps=20)


def ask(microscope: Microscope, **changes: Any) -> dict[str, Any]:
    """As the browser does."""
    before = microscope.asked
    microscope.asked = before | changes | {"number": before["number"] + 1}
    assert microscope.listing["answered"] == before["number"] + 1
    return microscope.listing


def test_it_opens_with_what_it_was_asked_for(folder: Path) -> None:
    asked = Filter(role="chosen", step_min=3)
    microscope, rollouts = Microscope(folder, asked, sort="mean reward", descending=True), Rollouts(folder)
    found = rollouts.find(asked, sort="mean reward", descending=True)
    assert [line["number"] for line in microscope.listing["lines"]] == list(found.groups[:50])
    assert microscope.group["number"] == found.groups[0]
    assert microscope.listing["told"] == f"{found.completions} of 320 completions, in {len(found.groups)} groups"


def test_pages_hold_every_group_once(folder: Path) -> None:
    microscope = Microscope(folder)
    assert microscope.listing["pages"] == 2
    pages = [ask(microscope, page=page)["lines"] for page in (0, 1)]
    assert [line["number"] for page in pages for line in page] == list(range(80))
    assert [len(page) for page in pages] == [50, 30]
    assert ask(microscope, page=7)["page"] == 1 and ask(microscope, page=-3)["page"] == 0


def test_a_filter_changes_the_list_and_not_the_group(folder: Path) -> None:
    microscope, rollouts = Microscope(folder), Rollouts(folder)
    before = microscope.group
    asked = {"text": "carry", "reward_min": 0.5}
    found = rollouts.find(Filter(text="carry", reward_min=0.5))
    assert [line["number"] for line in ask(microscope, filter=asked)["lines"]] == list(found.groups[:50])
    assert microscope.group is before


def test_a_group_is_sent_with_what_is_told_of_it(folder: Path) -> None:
    microscope, rollouts = Microscope(folder), Rollouts(folder)
    ask(microscope, group=41)
    group = rollouts.group(41)
    assert [one["index"] for one in microscope.group["completions"]] == [c.index for c in group.completions]
    for one, completion in zip(microscope.group["completions"], group.completions, strict=True):
        assert "".join(one["pieces"]).replace("↵", "") == completion.text and one["rest"] == 0
        assert one["role"].startswith(str(completion.role)) and f"age {completion.age}" in one["facts"]
        assert (one["numbers"]["ratio"] is None) == (completion.logprobs is None)
        assert one["numbers"]["kl"] is None  # there was no reference
    assert [other["number"] for other in microscope.group["same"]] == rollouts.same_prompt(41)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter": {"step_min": 3, "step_max": 1}}, "step_min must be at most step_max"),
        ({"filter": {"luck": 1}}, "luck"),
        ({"sort": "luck"}, "sort must be one of"),
        ({"group": 80}, "expected a group from 0 to 79, came 80"),
    ],
)
def test_what_cannot_be_asked_is_told_and_changes_nothing(folder: Path, changes: Any, message: str) -> None:
    microscope = Microscope(folder)
    before = microscope.listing, microscope.group, microscope.html()
    assert message in ask(microscope, **changes)["error"]
    assert (microscope.listing["lines"], microscope.group, microscope.html()) == (before[0]["lines"], *before[1:])
    assert ask(microscope, filter={}, sort="step", group=3)["error"] == ""


def test_reading_again_finds_what_was_written_since(folder: Path) -> None:
    microscope = Microscope(folder)
    write_step(folder, 20, [row("new", 0, task="later")])
    assert "320 of 320" in ask(microscope, page=0)["told"]
    assert "321 of 321" in ask(microscope, reading=1)["told"]
    assert [choice["value"] for choice in microscope.about["choices"]["task"]] == ["chat", "later", "sums"]


def test_nothing_found_is_shown_as_such(folder: Path) -> None:
    microscope = Microscope(folder, Filter(text="nowhere"))
    assert microscope.listing["lines"] == [] and microscope.group == {}
    assert "0 of 320 completions, in 0 groups" in microscope.html()


def test_a_run_is_opened_as_its_directory(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(tmp_path, max_steps=2)
    run.finish()
    assert Microscope(run).listing == Microscope(tmp_path).listing == Microscope([str(tmp_path)]).listing


@pytest.mark.parametrize(("name", "value"), [("colour_by", "luck"), ("sort", "luck")])
def test_what_there_is_not_is_refused_before_anything_is_shown(folder: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*got 'luck'"):
        Microscope(folder, **{name: value})
