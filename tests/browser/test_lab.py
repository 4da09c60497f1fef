"""What the other tests of this folder stand on: that a failure in a notebook or on its page is noticed."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Lab, PageComplained
from tests.browser.notebook import CellFailed

WIDGETS = """
import ipywidgets
button, slider = ipywidgets.Button(description="Go"), ipywidgets.FloatSlider(description="rate", max=10.0, step=0.5)
seen = ipywidgets.Label("nothing yet")
def show(change): seen.value = f"{change.owner.description} is {change.new}"
slider.observe(show, "value")
def press(button): seen.value = "pressed"
button.on_click(press)
ipywidgets.VBox([button, slider, seen])
"""


def picture_of(failure: BaseException) -> Path:
    """The picture of the page that a failure leaves."""
    first = failure.__notes__[0].splitlines()[0]
    return Path(first.removeprefix("picture: "))


def test_widgets_hear_clicks_typed_values_and_drags(lab: Lab) -> None:
    with lab.open(cells=[WIDGETS, "print(slider.value)"]) as notebook:
        notebook.run(0)
        output = notebook.output(0)
        output.get_by_role("button", name="Go").click()
        expect(output.get_by_text("pressed")).to_be_visible()
        notebook.set_slider(0, "rate", 7.5)
        expect(output.get_by_text("rate is 7.5")).to_be_visible()
        notebook.drag_slider(0, "rate", 0.2)
        expect(output.get_by_text("rate is 2.0")).to_be_visible()
        notebook.run(1)
        assert notebook.text(1).strip() == "2.0"


def test_a_cell_that_runs_again_is_waited_for_again(lab: Lab) -> None:
    with lab.open(cells=["count = 0", "import time\ntime.sleep(0.3)\ncount += 1\nprint(count)"]) as notebook:
        notebook.run_all()
        assert notebook.text(1).strip() == "1"
        notebook.start(1)
        assert notebook.is_running(1)
        notebook.wait_for(1)
        assert notebook.text(1).strip() == "2" and not notebook.is_running(1)
        notebook.run_all()
        assert notebook.text(1).strip() == "1"


def test_a_cell_that_raises_gives_its_traceback(lab: Lab) -> None:
    said = r"(?s)cell 1 of .*ZeroDivisionError.*division by zero"
    with pytest.raises(CellFailed, match=said) as caught, lab.open(cells=["x = 0", "1 / x", "x"]) as notebook:
        notebook.run_all()
    picture_of(caught.value).unlink()


def test_a_kernel_that_dies_is_noticed(lab: Lab) -> None:
    with lab.open(cells=["import os\nos._exit(1)"]) as notebook:
        with pytest.raises(CellFailed, match=r"kernel of .* died"):
            notebook.run(0)
        notebook.problems.clear()


SCRIPT = """
alert('boo');
console.error('broken');
setTimeout(() => { throw new Error('late'); });
new Image().src = 'http://elsewhere.invalid/pixel';
"""


def test_what_a_script_does_on_the_page_is_noticed(lab: Lab) -> None:
    cell = f"from IPython.display import Javascript\nJavascript({SCRIPT!r})"
    with (
        pytest.raises(PageComplained) as caught,
        lab.open(cells=[cell]) as notebook,
        notebook.page.expect_event("pageerror"),
    ):
        notebook.run_all()
    said = str(caught.value)
    assert "alert: boo" in said and "console error: broken" in said and "page error: late" in said
    assert "request to another machine: http://elsewhere.invalid/pixel" in said
    picture_of(caught.value).unlink()


def test_a_page_opened_anew_has_the_same_kernel_and_what_was_saved(lab: Lab) -> None:
    with lab.open(cells=["kept = 7\nprint('first')", "print(kept)"]) as notebook:
        notebook.run(0)
        assert notebook.save().cells[0].outputs[0].text == "first\n"
        notebook.run(1)  # not saved
        notebook.load()
        assert (notebook.text(0).strip(), notebook.text(1)) == ("first", "")
        notebook.run(1)
        assert notebook.text(1).strip() == "7"


def test_themes_differ(lab: Lab) -> None:
    with lab.open(cells=["1"], theme="dark") as notebook:
        dark = notebook.javascript("return getComputedStyle(panel.node).backgroundColor")
        notebook.set_theme("light")
        assert notebook.javascript("return getComputedStyle(panel.node).backgroundColor") != dark


def test_pictures_hold_the_whole_notebook(lab: Lab) -> None:
    with lab.open(cells=["print('line\\n' * 100)"]) as notebook:
        notebook.run_all()
        picture = notebook.screenshot("long")
        assert int.from_bytes(picture.read_bytes()[20:24]) > 100 * 15  # a PNG's height; text of 13 px in lines of 17


@pytest.mark.parametrize(
    "given", [{}, {"notebook": "a.ipynb", "cells": ["1"]}, {"cells": ["1"], "parameters": {"seed": 1}}]
)
def test_a_notebook_comes_from_a_file_or_from_cells(given: dict[str, Any], lab: Lab) -> None:
    with pytest.raises(ValueError, match="expected either a notebook, with parameters or without, or cells"):
        lab.open(**given).__enter__()


def test_an_absent_cell_is_named(lab: Lab) -> None:
    with lab.open(cells=["first = 1", "second = 2"]) as notebook:
        assert notebook.find("second") == 1
        with pytest.raises(LookupError, match="'third'"):
            notebook.find("third")
