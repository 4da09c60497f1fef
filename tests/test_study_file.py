"""study.yaml: what is wrong with one is said before anything runs, in a line with the file, the key and the remedy."""

from pathlib import Path

import pytest

from kit.cli import main
from kit.study.file import StudyError, read_study
from tests.counting_study import write_notebook, write_study

ROOT = Path(__file__).parents[1]
GOOD = "notebook: {notebook}\nshared: {steps: 4}\narms:\n  low: {rate: 1.0}\n  high: {rate: 2.0}\nseeds: [0, 1]\n"


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


MALFORMED = {  # what is wrong -> the file, and the key and the remedy that its line must hold
    "nothing in it": ("", "the file: expected a mapping with the keys notebook, shared"),
    "a list": ("- 1", "the file: expected a mapping"),
    "a text": ("hello", "the file: expected a mapping"),
    "no YAML": ("notebook: [", "line 1: this is no YAML"),
    "a tab": ("notebook:\n\t- x", "line 2: this is no YAML"),
    "an object of Python's": ("notebook: !!python/object:os.system x", "no YAML: could not determine a constructor"),
    "an anchor that is not there": ("notebook: *x", "no YAML: found undefined alias"),
    "a control character": ("notebook: \x01", "no YAML"),
    "a key twice": (GOOD + "seeds: [3]\n", "line 7: the key seeds is there twice, first in line 6: remove one"),
    "a key twice, in a line": (changed("{steps: 4}", "{steps: 4, steps: 5}"), "the key steps is there twice"),
    "an arm twice": (changed("high", "low"), "the key low is there twice, first in line 4: remove one"),
    "an impossible date": (changed("steps: 4", "steps: 2024-13-45"), "cannot be read"),
    "an unknown key": (GOOD + "sedes: [1]\n", "sedes: no such key; did you mean 'seeds'?"),
    "a key of another kind": (GOOD + "1: 2\n", "1: no such key; it has notebook"),
    "no notebook": (changed("notebook: {notebook}\n", ""), "notebook: expected the path of a notebook, got nothing"),
    "a notebook that is a list": (changed("{notebook}", "[a]"), "notebook: expected the path of a notebook, got ['a']"),
    "an absent notebook": (changed("{notebook}", "absent.ipynb"), "absent.ipynb is neither in the current folder nor"),
    "a notebook that is none": (changed("{notebook}", "study.yaml"), "notebook: "),
    "a notebook that takes no seed": (
        changed("{notebook}", "seedless.ipynb"),
        "has no parameter 'seed', which a study",
    ),
    "shared as a list": (changed("{steps: 4}", "[steps]"), "shared: expected a mapping of parameters, got ['steps']"),
    "an unknown parameter": (
        changed("steps", "setps"),
        "shared.setps: counting.ipynb has no parameter 'setps'; did you",
    ),
    "an unknown parameter of an arm": (changed("rate: 1.0", "rat: 1"), "arms.low.rat: counting.ipynb has no parameter"),
    "a wrong type": (
        changed("rate: 1.0", "rate: fast"),
        "arms.low.rate: counting.ipynb: parameter 'rate' must be float",
    ),
    "a number that YAML reads as text": (changed("rate: 1.0", "rate: 5e-5"), "YAML reads 5e-5 as text, write 5.0e-5"),
    "a value out of range": (
        changed("rate: 1.0", "rate: 10"),
        "arms.low.rate: counting.ipynb: parameter 'rate' must be in",
    ),
    "no whole number": (
        changed("steps: 4", "steps: 4.5"),
        "shared.steps: counting.ipynb: parameter 'steps' must be int",
    ),
    "yes for a number": (changed("steps: 4", "steps: yes"), "must be int, got True (bool)"),
    "nothing for a number": (changed("steps: 4", "steps: "), "must be int, got None"),
    "a date": (changed("rate: 1.0", "rate: 2024-01-01"), "arms.low.rate: expected a number, text, list or mapping"),
    "an unknown name": (changed("rate: 1.0", "name: d"), "must be one of a | b | c, got 'd'"),
    "not a number": (changed("rate: 1.0", "rate: .nan"), "must be a number, got nan"),
    "a seed among the parameters": (changed("steps: 4", "seed: 4"), "shared.seed: not here, list it in `seeds`"),
    "an out_dir of an arm": (changed("rate: 1.0", "out_dir: x"), "arms.low.out_dir: not here, the study chooses it"),
    "neither arms nor grid": (
        "notebook: {notebook}\nseeds: [0]\n",
        "arms: expected `arms`, `grid` or both, got neither",
    ),
    "no arm": ("notebook: {notebook}\narms: {}\nseeds: [0]\n", "arms: expected at least one arm, got none"),
    "arms as a list": ("notebook: {notebook}\narms: [a]\nseeds: [0]\n", "arms: expected a mapping of names to"),
    "an arm called no": (
        changed("low:", "no:"),
        "arms: expected a name of letters, digits and _ . + : @ , = -, got False;",
    ),
    "an arm called 1": (changed("low:", "1:"), "got 1; write it in quotes"),
    "an arm with a slash": (changed("low:", "../low:"), "arms: expected a name of letters"),
    "an arm like an option": (changed("low:", "-low:"), "arms: expected a name of letters"),
    "an arm that is a number": (changed("{rate: 1.0}", "1.0"), "arms.low: expected a mapping of parameters, got 1.0"),
    "an empty grid": (GOOD + "grid: {}\n", "grid: expected at least one parameter"),
    "a grid of no lists": (GOOD + "grid: {rate: 1.0}\n", "grid.rate: expected a list of values, got 1.0"),
    "a grid without values": (GOOD + "grid: {rate: []}\n", "grid.rate: expected a list of values, got []"),
    "an unknown parameter in the grid": (
        GOOD + "grid: {rte: [1.0]}\n",
        "grid.rte: counting.ipynb has no parameter 'rte'",
    ),
    "a bad value in the grid": (
        GOOD + "grid: {rate: [1.0, x]}\n",
        "grid.rate: counting.ipynb: parameter 'rate' must be",
    ),
    "a value twice in the grid": (GOOD + "grid: {rate: [1.0, 1.0]}\n", "grid.rate: 1.0 is there twice: remove one"),
    "a path in the grid": (
        GOOD + "grid: {cause: [a/b]}\n",
        "grid.cause: 'a/b' cannot be in a file's name: make it an arm",
    ),
    "no seeds": (
        changed("seeds: [0, 1]\n", ""),
        "seeds: expected a list of whole numbers such as [0, 1, 2], got nothing",
    ),
    "empty seeds": (changed("[0, 1]", "[]"), "seeds: expected a list"),
    "one seed": (changed("[0, 1]", "3"), "seeds: expected a list of whole numbers such as [0, 1, 2], got 3"),
    "a seed that is a text": (changed("[0, 1]", "[0, a]"), "seeds[1]: expected a whole number, 0 or more, got 'a'"),
    "a negative seed": (changed("[0, 1]", "[-1]"), "seeds[0]: expected a whole number, 0 or more, got -1"),
    "a seed twice": (changed("[0, 1]", "[1, 1]"), "seeds[1]: 1 is there twice: remove one"),
    "resources as a number": (
        GOOD + "resources: 2\n",
        "resources: expected a mapping with threads, gpus or both, got 2",
    ),
    "an unknown resource": (
        GOOD + "resources: {thread: 2}\n",
        "resources.thread: no such resource; did you mean 'threads'?",
    ),
    "no threads": (GOOD + "resources: {threads: 0}\n", "resources.threads: expected a whole number, 1 or more, got 0"),
    "half a GPU": (GOOD + "resources: {gpus: 0.5}\n", "resources.gpus: expected a whole number, 0 or more, got 0.5"),
    "threads that contradict": (
        changed("steps: 4", "num_threads: 2") + "resources: {threads: 1}\n",
        "resources.threads: 1 against shared.num_threads 2: remove one of them",
    ),
    "after an absent arm": (
        changed("rate: 2.0", "after: lo"),
        "arms.high.after: must name an arm above it with save_policy",
    ),
    "after an arm below": (changed("rate: 1.0", "after: high"), "arms.low.after: must name an arm above it"),
    "after itself": (
        changed("rate: 1.0", "after: low, save_policy: true"),
        "arms.low.after: must name an arm above it",
    ),
    "after an arm that saves nothing": (changed("rate: 2.0", "after: low"), "got 'low'"),
    "after, with a model of its own": (
        changed("rate: 2.0", "after: low, model_name_or_path: x").replace("steps: 4", "save_policy: true"),
        "arms.high.model_name_or_path: not together with `after`, which sets it: remove one",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file_gives_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = MALFORMED[what]
    folder = write_study(tmp_path / "study", text)
    write_notebook(folder / "seedless.ipynb", 'steps: int = 1  # s\nrate: float = 1.0  # r\nout_dir: str = "x"  # o')
    assert main(["study", "run", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder / 'study.yaml'}: ") and said in line
    assert not (folder / "runs").exists()


def test_there_are_more_than_forty_of_them() -> None:
    assert len(MALFORMED) > 40


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = changed("steps", "setps").replace("rate: 1.0", "rate: 99").replace("[0, 1]", "[a]") + "resources: {gpus: -1}"
    with pytest.raises(StudyError) as error:
        read_study(write_study(tmp_path / "study", text))
    assert len(str(error.value).splitlines()) == 4


def test_hostile_text_reaches_the_terminal_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", str(write_study(tmp_path / "s", changed("steps", '"\\e[31m"')))]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("place", ["absent", "study/absent.yaml"])
def test_an_absent_study_is_named(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "plan", str(tmp_path / place)]) == 2
    assert "give a study.yaml, or the folder that holds one" in capsys.readouterr().err


def test_a_study_is_every_arm_with_every_seed(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", GOOD)
    study = read_study(folder / "study.yaml")
    assert list(study.runs) == ["low_seed0", "high_seed0", "low_seed1", "high_seed1"]
    assert study.runs["high_seed1"].parameters == {
        "steps": 4, "rate": 2.0, "seed": 1, "out_dir": str(folder / "runs" / "high_seed1")
    }  # fmt: skip
    assert study.run_directories() == {
        "low": {0: folder / "runs" / "low_seed0", 1: folder / "runs" / "low_seed1"},
        "high": {0: folder / "runs" / "high_seed0", 1: folder / "runs" / "high_seed1"},
    }


def test_a_grid_is_a_product_and_multiplies_the_arms(tmp_path: Path) -> None:
    grid = "grid: {steps: [1, 2], name: [a, b]}\n"
    alone = read_study(write_study(tmp_path / "alone", f"notebook: {{notebook}}\n{grid}seeds: [7]\n"))
    names = ["steps=1,name=a", "steps=1,name=b", "steps=2,name=a", "steps=2,name=b"]  # the last name varies fastest
    assert [run.arm for run in alone.runs.values()] == names
    assert [(run.given["steps"], run.given["name"]) for run in alone.runs.values()] == [
        (1, "a"), (1, "b"), (2, "a"), (2, "b")
    ]  # fmt: skip
    both = read_study(write_study(tmp_path / "both", changed("shared: {steps: 4}\n", "") + grid))
    assert list(both.runs)[:5] == [f"low,{name}_seed0" for name in names] + ["high,steps=1,name=a_seed0"]
    assert len(both.runs) == 2 * 4 * 2


def test_an_arm_after_another_starts_from_its_policy_at_the_same_seed_and_point(tmp_path: Path) -> None:
    text = (
        "notebook: {notebook}\narms:\n  first: {save_policy: true}\n  second: {after: first}\n"
        "grid: {rate: [1.0, 2.0]}\nseeds: [0, 1]\n"
    )
    folder = write_study(tmp_path / "study", text)
    run = read_study(folder).runs["second,rate=2.0_seed1"]
    assert run.after == "first,rate=2.0_seed1" and "after" not in run.parameters
    assert run.parameters["model_name_or_path"] == str(folder / "runs" / "first,rate=2.0_seed1" / "policy")


def test_threads_reach_the_parameter_of_that_name(tmp_path: Path) -> None:
    given = read_study(write_study(tmp_path / "a", GOOD + "resources: {threads: 3, gpus: 2}\n")).runs["low_seed0"]
    assert (given.threads, given.gpus, given.parameters["num_threads"]) == (3, 2, 3)
    of_notebook = read_study(write_study(tmp_path / "b", GOOD)).runs["low_seed0"]
    assert (of_notebook.threads, of_notebook.gpus) == (1, None) and "num_threads" not in of_notebook.parameters


COMMITTED = sorted(ROOT.glob("papermill_runs/*/study.yaml"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_the_committed_studies_are_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = read_study(path.relative_to(ROOT))
    assert len({run.out_dir for run in study.runs.values()}) == len(study.runs) >= 12
