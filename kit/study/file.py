"""study.yaml: a notebook, and the runs of it that belong together.

    notebook: notebooks/05_one_run.ipynb     from the current folder, or from that of the file
    shared: {max_steps: 200}                 parameters of all runs
    arms:                                    name -> parameters of its own; `after: ARM` starts from what that arm,
      online: {sync_interval: 1}             earlier in the file, saved as its policy with the same seed
    grid: {beta: [0.1, 1.0]}                 every arm with every combination: online,beta=0.1 and online,beta=1.0
    seeds: [0, 1, 2]                         every arm with every seed
    resources: {threads: 1, gpus: 0}         of one run; gpus are assigned by CUDA_VISIBLE_DEVICES

`shared` and `resources` may be absent, and one of `arms` and `grid`. All of it is checked before anything runs.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.study.parameters import Parameter, ParameterError, complaints, notebook_parameters, suggestion
from kit.study.strict_yaml import read_yaml

KEYS = ("notebook", "shared", "arms", "grid", "seeds", "resources")
SMALLEST = {"threads": 1, "gpus": 0}
OF_THE_STUDY = {"seed": "list it in `seeds`", "out_dir": "the study chooses it"}
NAME = re.compile(r"[A-Za-z0-9][\w.+:@,=-]*")  # what can be a file's name everywhere, and no option


class StudyError(ValueError):
    """A study cannot be run as it is written: one line a mistake, with the file, the key and what to do."""


@dataclass(frozen=True)
class StudyRun:
    """One run. `given` are its parameters as the file has them, without paths that depend on where the study lies."""

    name: str
    arm: str
    seed: int
    given: Mapping[str, Any]
    parameters: Mapping[str, Any]  # what the notebook is executed with
    out_dir: Path
    after: str | None  # the run that has to be finished before
    threads: int | None
    gpus: int | None

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.out_dir.with_name(f"{self.name}.ipynb")


@dataclass(frozen=True)
class Study:
    """A file that was found to be right. The runs are in the order in which they start: all arms of a seed first."""

    path: Path
    notebook: Path
    declared: Mapping[str, Parameter]
    runs: Mapping[str, StudyRun]
    shard: str | None = None  # I/N, where only these of its runs are here (`kit.study.shard`)

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def lock(self) -> Path:
        """Held by who executes it. Shards have one each; what two of them share is locked run by run."""
        part = "" if self.shard is None else f"_{self.shard.replace('/', '_of_')}"
        return self.folder / "runs" / f"study{part}.lock"

    def run_directories(self) -> dict[str, dict[int, Path]]:
        """Arm -> seed -> run directory, in the file's order; they need not exist yet."""
        found: dict[str, dict[int, Path]] = {}
        for run in self.runs.values():
            found.setdefault(run.arm, {})[run.seed] = run.out_dir
        return found


def read_study(place: Path) -> Study:
    """The study of a file, or of the `study.yaml` in a folder.

    Raises:
        FileNotFoundError: if there is none.
        StudyError: with every mistake that was found, one line each.
    """
    path = place / "study.yaml" if place.is_dir() else place
    if not path.is_file():
        raise FileNotFoundError(f"there is no study at {str(path)!r}: give a study.yaml, or the folder that holds one")
    mistakes: list[str] = []
    content = read_yaml(path.read_text(encoding="utf-8", errors="replace"), mistakes)
    if not mistakes:
        reader = _Reader(path, content, mistakes)
        study = reader.study()
        if not mistakes and study is not None:
            return study
    raise StudyError("\n".join(f"{path}: {mistake}" for mistake in dict.fromkeys(mistakes)))


class _Reader:
    """Looks at each part of the file once and collects the mistakes."""

    def __init__(self, path: Path, content: Any, mistakes: list[str]) -> None:
        self.path, self.mistakes = path, mistakes
        self.content = self._mapping("the file", content or None, f"a mapping with the keys {', '.join(KEYS)}")
        for key in self.content:
            if key not in KEYS:
                self.mistakes.append(f"{key}: no such key{suggestion(key, dict.fromkeys(KEYS))}")

    def study(self) -> Study | None:
        found = self._notebook() if self.content else None
        if found is None:
            return None
        notebook, declared = found
        self._declared, self._called = declared, notebook.name
        for name in OF_THE_STUDY:
            if name not in declared:
                self.mistakes.append(f"notebook: {notebook.name} has no parameter {name!r}, which a study sets: add it")
        shared = self._parameters("shared", self.content.get("shared"))
        arms, seeds, resources = self._arms(), self._seeds(), self._resources(shared)
        points = self._grid()
        if self.mistakes:
            return None
        runs: dict[str, StudyRun] = {}
        for seed, (arm, own), point in itertools.product(seeds, arms.items(), points):
            run = self._run(arm, {**shared, **own}, point, seed, resources, runs)
            runs[run.name] = run
        return Study(self.path, notebook, declared, runs)

    def _mapping(self, key: str, value: Any, expected: str) -> dict[Any, Any]:
        if not isinstance(value, dict):
            self.mistakes.append(f"{key}: expected {expected}, got {_shown(value)}")
            return {}
        return value

    def _notebook(self) -> tuple[Path, dict[str, Parameter]] | None:
        given = self.content.get("notebook")
        if not isinstance(given, str):
            self.mistakes.append(f"notebook: expected the path of a notebook, got {_shown(given)}")
            return None
        places = (Path(given), self.path.parent / given)
        notebook = next((place for place in places if place.is_file()), None)
        if notebook is None:
            self.mistakes.append(f"notebook: {given} is neither in the current folder nor beside the study: correct it")
            return None
        try:
            return notebook, notebook_parameters(notebook)
        except ParameterError as error:
            self.mistakes.append(f"notebook: {error}")
            return None

    def _parameters(self, key: str, value: Any, extra: Sequence[str] = ()) -> dict[Any, Any]:
        """A mapping of parameters, each checked against the notebook; an absent one is empty."""
        given = {} if value is None else self._mapping(key, value, "a mapping of parameters")
        for name, remedy in OF_THE_STUDY.items():
            if name in given:
                self.mistakes.append(f"{key}.{name}: not here, {remedy}")
        checked = {name: each for name, each in given.items() if name not in (*OF_THE_STUDY, *extra)}
        for name, each in checked.items():
            if not _is_plain(each):
                self.mistakes.append(f"{key}.{name}: expected a number, text, list or mapping, got {_shown(each)}")
        plain = {name: each for name, each in checked.items() if _is_plain(each)}
        for name, said in complaints(self._called, self._declared, plain).items():
            self.mistakes.append(f"{key}.{name}: {said}")
        return given

    def _arms(self) -> dict[str, dict[Any, Any]]:
        if "arms" not in self.content:
            if "grid" not in self.content:
                self.mistakes.append("arms: expected `arms`, `grid` or both, got neither")
            return {"": {}}
        arms = self._mapping("arms", self.content["arms"], "a mapping of names to parameters")
        if not arms and isinstance(self.content["arms"], dict):
            self.mistakes.append("arms: expected at least one arm, got none")
        found: dict[str, dict[Any, Any]] = {}
        for name, own in arms.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.mistakes.append(f"arms: expected a name of letters, digits and _ . + : @ , = -, got {_shown(name)}"
                                     f"{'' if isinstance(name, str) else '; write it in quotes'}")  # fmt: skip
                continue
            found[name] = self._parameters(f"arms.{name}", own, ("after",))
            self._after(name, found)
        return found

    def _after(self, arm: str, arms: Mapping[str, Mapping[Any, Any]]) -> None:
        """The arms of `arms` stand above `arm`, which is its last."""
        if (before := arms[arm].get("after")) is None:
            return
        shared = self.content.get("shared")
        earlier = {} if before == arm or not isinstance(before, str) else arms.get(before, {})
        if not {**(shared if isinstance(shared, dict) else {}), **earlier}.get("save_policy") or not earlier:
            self.mistakes.append(f"arms.{arm}.after: must name an arm above it with save_policy, got {before!r}")
        if "model_name_or_path" in arms[arm]:
            self.mistakes.append(f"arms.{arm}.model_name_or_path: not together with `after`, which sets it: remove one")
        if "model_name_or_path" not in self._declared:
            self.mistakes.append(f"arms.{arm}.after: {self._called} has no parameter 'model_name_or_path' for it")

    def _grid(self) -> list[dict[Any, Any]]:
        """The combinations, the last name varying fastest."""
        if "grid" not in self.content:
            return [{}]
        grid = self._mapping("grid", self.content["grid"], "a mapping of parameters to lists of values")
        if not grid and isinstance(self.content["grid"], dict):
            self.mistakes.append("grid: expected at least one parameter with a list of values, got none")
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                self.mistakes.append(f"grid.{name}: expected a list of values, got {_shown(values)}")
                continue
            for number, value in enumerate(values):
                self._parameters("grid", {name: value})
                if not NAME.fullmatch(f"{name}={value}"):
                    self.mistakes.append(f"grid.{name}: {_shown(value)} cannot be in a file's name: make it an arm")
                if value in values[:number]:
                    self.mistakes.append(f"grid.{name}: {_shown(value)} is there twice: remove one")
        if self.mistakes:
            return [{}]
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def _seeds(self) -> list[Any]:
        seeds = self.content.get("seeds")
        if not isinstance(seeds, list) or not seeds:
            self.mistakes.append(f"seeds: expected a list of whole numbers such as [0, 1, 2], got {_shown(seeds)}")
            return []
        for number, seed in enumerate(seeds):
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                self.mistakes.append(f"seeds[{number}]: expected a whole number, 0 or more, got {_shown(seed)}")
            elif seed in seeds[:number]:
                self.mistakes.append(f"seeds[{number}]: {seed} is there twice: remove one")
        return seeds

    def _resources(self, shared: Mapping[Any, Any]) -> dict[Any, Any]:
        if "resources" not in self.content:
            return {}
        given = self._mapping("resources", self.content["resources"], "a mapping with threads, gpus or both")
        for name, value in given.items():
            if name not in SMALLEST:
                self.mistakes.append(f"resources.{name}: no such resource{suggestion(name, SMALLEST)}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < SMALLEST[name]:
                self.mistakes.append(
                    f"resources.{name}: expected a whole number, {SMALLEST[name]} or more, got {_shown(value)}"
                )
        threads = given.get("threads")
        if threads is not None and shared.get("num_threads", threads) != threads:
            self.mistakes.append(f"resources.threads: {threads} against shared.num_threads {shared['num_threads']}: "
                                 "remove one of them")  # fmt: skip
        return given

    def _run(
        self, arm: str, base: dict[str, Any], point: Mapping[str, Any], seed: int, resources: Mapping[str, int],
        earlier: Mapping[str, StudyRun],
    ) -> StudyRun:  # fmt: skip
        combination = ",".join(f"{name}={value}" for name, value in point.items())
        name = ",".join(filter(None, (arm, combination)))
        given = {**base, **point, "seed": seed}
        threads = resources.get("threads")
        if threads is not None and "num_threads" in self._declared:
            given.setdefault("num_threads", threads)
        elif "num_threads" in self._declared:
            threads = given.get("num_threads", self._declared["num_threads"].default)
        out_dir = self.path.parent / "runs" / f"{name}_seed{seed}"
        parameters, before = {**given, "out_dir": str(out_dir)}, None
        if (first := parameters.pop("after", None)) is not None:
            before = ",".join(filter(None, (first, combination))) + f"_seed{seed}"
            parameters["model_name_or_path"] = str(earlier[before].out_dir / "policy")
        return StudyRun(out_dir.name, name, seed, given, parameters, out_dir, before, threads, resources.get("gpus"))


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it: YAML knows dates and sets, too."""
    try:
        return bool(json.dumps(value))
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return "nothing" if value is None else text if len(text) <= 60 else f"{text[:57]}..."
