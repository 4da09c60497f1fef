"""Small studies for tests: a notebook that counts, as resumable as a run of the kit but without a model."""

from pathlib import Path

import nbformat

PARAMETERS = """steps: int = 3  # how many, at least 1
rate: float = 0.5  # a number, in (0, 10)
name: str = "a"  # one of a | b | c
pause: float = 0.0  # seconds a step
cause: str = ""  # of a failure at the last step; kill is the kernel's death
seed: int = 0  # of the run
num_threads: int = 1  # of nothing
save_policy: bool = False  # whether to make out_dir/policy
model_name_or_path: str = "."  # a folder
out_dir: str = "x"  # the run directory
"""
# A step reads nothing but the seed and the step, and appends one line: what was torn by a kill is cut off first.
COUNT = """import json, os, random, signal, time
from pathlib import Path

folder = Path(out_dir)
folder.mkdir(parents=True, exist_ok=True)
assert Path(model_name_or_path).is_dir(), "no folder to start from"
path = folder / "metrics.jsonl"
lines = path.read_text().split("\\n")[:-1] if path.exists() else []
path.write_text("".join(line + "\\n" for line in lines))
with (folder / "starts.txt").open("a") as file:
    file.write(f"{len(lines)} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ.get('OMP_NUM_THREADS')}\\n")
"""
STEPS = """stopped = []
previous = signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
for step in range(len(lines), steps):
    time.sleep(pause)
    if cause and step == steps - 1:
        os.kill(os.getpid(), signal.SIGKILL) if cause == "kill" else None
        raise ValueError(f"first line\\n{cause}")
    accuracy = random.Random(f"{seed} {step} {rate} {name}").random()
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "reward": accuracy, "eval/accuracy": accuracy}) + "\\n")
    (folder / "status.partial").write_text(json.dumps({"state": "running", "step": step + 1}))
    os.replace(folder / "status.partial", folder / "status.json")
    if stopped:
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, previous)
"""
LAST = """if save_policy:
    (folder / "policy").mkdir(exist_ok=True)
print("counted to", steps)
"""
CHECK = "from kit.study import check_parameters\n\ncheck_parameters()"


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of these cells, the first of them that of the parameters."""
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


def write_study(folder: Path, text: str) -> Path:
    """A study of the counting notebook; `{notebook}` in the text is where that lies."""
    folder.mkdir(parents=True, exist_ok=True)
    notebook = folder / "counting.ipynb"
    if not notebook.exists():
        write_notebook(notebook, PARAMETERS, COUNT, STEPS, LAST)
    (folder / "study.yaml").write_text(text.replace("{notebook}", str(notebook)))
    return folder


def starts(folder: Path, name: str) -> list[int]:
    """The steps at which the executions of a run began."""
    lines = (folder / "runs" / name / "starts.txt").read_text().splitlines()
    return [int(line.split()[0]) for line in lines]
