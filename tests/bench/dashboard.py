"""What a dashboard costs a run: the same steps with one and without, in turns, in a Jupyter kernel.

Two runs of one configuration make the same steps; one has a dashboard to which a page listens, so that every new
number is sent through the kernel's own sockets. Both are the embedded task at its usual size. The ratio of a step to
its twin carries the noise of both; what the dashboard itself takes between two steps is therefore timed as well.
No page draws here: that happens in the browser's process, to which `measure` in a notebook of JupyterLab adds it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.measure import ROOT, Row, parser, ratios, report, seconds

NEVER = 10**9  # steps
WARM_UP = 3  # steps of each side that do not count


def measure(model: str, steps: int, threads: int, path: str) -> None:
    """In the kernel: step both runs in turns and write seconds by name to `path`."""
    from IPython.display import display

    from kit.config import RunConfig
    from kit.dashboard import Dashboard
    from kit.objectives import DPO
    from kit.run import Run
    from kit.sync import Every
    from kit.tasks import Arithmetic

    sizes: dict[str, Any] = {"max_steps": NEVER, "eval_steps": NEVER, "save_steps": NEVER, "num_threads": threads}
    config = RunConfig(model, **sizes)
    runs = {}
    for name in ("without", "with"):
        folder = Path(path).parent / name
        runs[name] = Run(config, task=Arithmetic(), objective=DPO(), sync=Every(1), out_dir=folder)
    dashboard = Dashboard(runs["with"])
    display(dashboard)
    dashboard.curves._handle_custom_msg({"kind": "ready"}, [])  # as if a page had opened
    own: list[float] = []
    runs["with"].listeners[:] = [timed(listener, own) for listener in runs["with"].listeners]
    poll = runs["with"].controls.poll
    assert poll is not None
    runs["with"].controls.poll = timed(poll, own)
    loops = {name: run.steps(NEVER) for name, run in runs.items()}
    found: dict[str, list[float]] = {"with": [], "without": [], "own": []}
    for turn in range(WARM_UP + steps):
        own.clear()
        order = ("with", "without") if turn % 2 else ("without", "with")
        taken = {name: seconds(lambda loop=loops[name]: next(loop)) for name in order}
        for name, value in (taken | {"own": sum(own)}).items():
            found[name].append(value)
    Path(path).write_text(json.dumps({name: values[WARM_UP:] for name, values in found.items()}))


def timed(function: Callable[..., None], into: list[float]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        started = time.perf_counter()
        function(*arguments)
        into.append(time.perf_counter() - started)

    return call


def main(arguments: argparse.Namespace) -> None:
    import nbformat
    import papermill

    count = arguments.repeats * arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "seconds.json")
        call = f"measure({arguments.model!r}, {count}, {arguments.threads}, {str(path)!r})"
        cells = [nbformat.v4.new_code_cell(f"from tests.bench.dashboard import measure\n{call}")]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), Path(folder, "bench.ipynb"))
        papermill.execute_notebook(
            f"{folder}/bench.ipynb", f"{folder}/done.ipynb", cwd=str(ROOT), progress_bar=False, kernel_name="python3"
        )
        found = json.loads(path.read_text())
    typical = statistics.median(found["without"])
    rows = [
        Row("step without a dashboard", "s", tuple(found["without"])),
        Row("step with a dashboard", "s", tuple(found["with"])),
        ratios("with / without, step by step", found["with"], found["without"]),
        Row("the dashboard's own time in a step", "ms", tuple(1000 * value for value in found["own"])),
        Row("the same, of the median step without", "%", tuple(100 * value / typical for value in found["own"])),
    ]
    report(rows, arguments.json)


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
