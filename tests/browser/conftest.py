"""JupyterLab and the browser, which all tests of this folder share; `make test-browser` runs them."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import sync_playwright

from tests.browser.chromium import launch
from tests.browser.lab import Lab
from tests.browser.server import serve


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """See `tests.browser.lab`."""
    with serve(tmp_path_factory.mktemp("lab")) as server, sync_playwright() as playwright:
        browser = launch(playwright)
        yield Lab.of(browser, server)
        browser.close()
