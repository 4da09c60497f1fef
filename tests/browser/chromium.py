"""The browser of the tests: a Chromium that is installed, or Debian's, installed where this may be done.

python -m tests.browser.chromium
"""

import os
import shutil
import subprocess
import sys

from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = ("apt-get update -qq", "apt-get install -qq -y --no-install-recommends chromium")
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # /dev/shm of a container is too small
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a page that names a host gets an error at once
)


class NoChromium(RuntimeError):
    """There is no browser, and none can be installed from here."""


def path() -> str:
    """Where the browser is.

    Raises:
        NoChromium: saying what to install.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise NoChromium(
            f"expected a browser named {', '.join(NAMES)} on PATH, found none. On Debian install one with "
            "`sudo apt-get install chromium`, elsewhere install Chromium or Chrome, and try again."
        )
    return found


def install() -> None:
    """Installs Debian's package quietly if there is no browser, apt-get is there and this is root."""
    if any(map(shutil.which, NAMES)) or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    for command in INSTALL:
        finished = subprocess.run(
            command.split(), env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if finished.returncode:
            raise NoChromium(f"no browser is installed, and `{command}` failed:\n{finished.stdout[-2000:]}")


def launch(playwright: Playwright) -> Browser:
    """Starts it without a window. As root, as in a container, it has no sandbox, which it refuses to set up there."""
    return playwright.chromium.launch(
        executable_path=path(), args=["--headless=new", *FLAGS], chromium_sandbox=os.geteuid() != 0
    )


if __name__ == "__main__":
    try:
        install()
        print(f"    {path()}")
    except NoChromium as error:
        sys.exit(f"error: {error}")
