"""The microscope in JupyterLab: what a model wrote is shown as it is, and does nothing to the page."""

from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from kit.microscope.text import LIMIT, visible
from tests.browser.lab import Lab
from tests.recorded import row, write_step
from tests.test_microscope_html import HOSTILE

MATH = r"so $x^2$ and \(y\) and \[z\] make \begin{align}1\end{align} \boxed{79}"
LONG = "<b>carry</b> \u202e" * 7000  # about 100 kB
TEXTS = HOSTILE | {"mathematics": MATH, "long": LONG}
CELLS = ["from kit.microscope import Microscope", "print('a cell beside it')", "Microscope({folder!r})"]
ELEMENTS = "img, script, style, a, iframe, object, svg, mjx-container, .MathJax"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which each of the texts stands wherever a text can stand, one step a text."""
    made = tmp_path_factory.mktemp("hostile")
    for step, text in enumerate(TEXTS.values()):
        one = row(text[:200], 0, task=text[:200], prompt=text, completion=text, pieces=[text, "b"],
                  rewards=[(text[:200], 1.0)], reason=text[:200], finish_reason=text[:200])  # fmt: skip
        write_step(made, step, [one, one | {"index": 1, "role": "unused"}])
    return made


def shown(text: str) -> str:
    """What a reader sees of a text that is cut where the microscope cuts."""
    return visible(text[:LIMIT])


def harmless(output: Locator, outside: int) -> None:
    """No element came from a text, and nothing sticks out of the page."""
    assert [element.evaluate("node => node.outerHTML") for element in output.locator(ELEMENTS).all()] == []
    assert output.evaluate("node => document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert output.page.locator("body > *").count() == outside


def test_hostile_completions_are_shown_and_do_nothing(lab: Lab, folder: Path) -> None:
    with lab.open(cells=[cell.format(folder=str(folder)) for cell in CELLS]) as notebook:
        notebook.run_all()  # an alert, an error or a request elsewhere fails when the block ends
        outside = notebook.page.locator("body > *").count()
        live = notebook.output(2)
        lines = live.get_by_role("option").and_(live.locator(".list > *"))
        expect(lines).to_have_count(len(TEXTS))
        for number, text in enumerate(TEXTS.values()):
            lines.nth(number).click()
            completion = live.locator(".completion").first
            expect(completion).to_contain_text(shown(text)[:400], use_inner_text=False)
            harmless(live.locator(".kit-microscope"), outside)
        expect(live.locator(".completion").first).to_contain_text("more characters")
        notebook.screenshot("microscope_hostile", cell=2)
        assert notebook.text(1).strip() == "a cell beside it"


def test_the_page_of_a_file_shows_them_too(lab: Lab, folder: Path) -> None:
    display = "from IPython.display import HTML\nHTML(Microscope({folder!r}).html(groups=99))"
    with lab.open(cells=[cell.format(folder=str(folder)) for cell in (*CELLS[:2], display)]) as notebook:
        notebook.run_all()
        outside = notebook.page.locator("body > *").count()
        page = notebook.output(2)
        expect(page.locator("section")).to_have_count(len(TEXTS))
        written = page.evaluate("node => node.textContent")
        assert all(shown(text) in written for text in TEXTS.values())
        harmless(page.locator(".jp-RenderedHTML"), outside)
