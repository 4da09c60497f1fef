"""The rollout microscope on 102,400 completions: to open them, to filter, to search their texts, to show a group.

    python tests/bench/microscope.py --files 400

Writes the files (about 10 s) into a temporary folder, with the kit's own writer. Seconds, and nothing passes or fails.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[2])  # of a script it is its own folder

from tests.recorded import write_run  # noqa: E402


def timed(name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    found = work()
    print(f"{name:<46} {time.perf_counter() - start:7.3f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=400, help="training steps, of 256 completions each")
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as scratch:
        folder = timed("write", lambda: write_run(Path(scratch) / "run", files, groups=32, size=8, tokens=40))
        size = sum(path.stat().st_size for path in (folder / "rollouts").iterdir())
        print(f"{files * 256:,} completions, {size / files / 256:.0f} bytes each")
        timed("import kit.microscope", lambda: __import__("kit.microscope"))
        from kit.microscope import Filter, Microscope, Rollouts

        rollouts = timed("open", lambda: Rollouts(folder))
        timed("open again", lambda: Rollouts(folder))
        asked = Filter(task="chat", reward_min=0.5, age_min=1)
        found = timed("filter and sort", lambda: rollouts.find(asked, sort="mean reward", descending=True))
        timed("a page of 50 groups", lambda: rollouts.lines(found.groups[:50]))
        timed("search all texts", lambda: rollouts.find(Filter(text="nowhere to be found")))
        timed("a group with its tokens", lambda: rollouts.group(found.groups[0]))
        timed("the same prompt at other steps", lambda: rollouts.same_prompt(found.groups[0]))
        timed("the widget, from nothing", lambda: Microscope(folder))


if __name__ == "__main__":
    main()
