"""The kit's shape: imports point down, files and functions stay small, and nothing dangerous or nameless creeps in.

Every rule is a pure function from source text to a list of complaints, and is shown to catch a sample that violates it.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "kit").rglob("*.py"))

LAYERS = {
    0: "types config",
    1: "masking logprobs kl advantages pairing importance offpolicy losses objectives presets sync statistics rewards "
    "rollouts toy preferences winrate ranking selection progress printable differences latency team",
    2: "tasks models samplers reference learner gap combinations interrupt columns recording runlog checkpoint doctor "
    "export costs memory timing settings controls fork trainer ray_address recorded",
    3: "run training recipe replay evaluate workload head_to_head study trackers distributed faults",
    4: "report plots gap_plots output compare dashboard microscope trl_callback exercises answers figures cli",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60  # docstring included

# All that L0 and L1 may import; answers are judged by math-verify, whose options live in latex2sympy2_extended, and
# the two logistic models are pure functions too, fitted by scikit-learn rather than by a solver of our own.
PURE_PACKAGES = {"kit", "torch", "jaxtyping"} | sys.stdlib_module_names
PURE_EXCEPTIONS = {
    "rewards": {"math_verify", "latex2sympy2_extended"},
    "winrate": {"sklearn"},
    "statistics": {"scipy"},
    "ranking": {"sklearn"},
}
# Imported by the function that needs them.
OPTIONAL_PACKAGES = {"vllm", "ray", "bitsandbytes", "datasets", "peft", "accelerate"}
ORACLES = {"trl"}  # for tests only
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "os.system"}
# A judge's process: whatever a candidate answer raises becomes a message to the pool, which counts and logs it. And an
# exercise: whatever a reader's attempt raises is printed, and the notebook goes on.
PROCESS_BOUNDARIES = {"kit.rewards.worker", "kit.exercises"}
NAMELESS = {"utils", "util", "helpers", "common", "misc"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, module: str, is_package: bool = False) -> Iterator[tuple[str, bool, int]]:
    """(absolute name, whether a function holds it, line) of every import; `from a import b` gives `a.b`."""
    inside = {id(node) for function in ast.walk(tree) if isinstance(function, FUNCTIONS) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            yield from ((f"{origin}.{alias.name}", id(node) in inside, node.lineno) for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`torch.load` for the expression `torch.load`; an empty string for anything that is not a dotted name."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def wrong_direction(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports go to the same layer or lower, and every module has a layer."""
    if module == "kit":
        return [
            f"kit/__init__.py imports {n}"
            for n, _, _ in imports(ast.parse(source), "kit", True)
            if n.startswith("kit.")
        ]
    concept = module.split(".")[1]
    if concept not in LAYER_OF:
        return [f"{module}: {concept!r} is in no layer; add it to LAYERS or rename it"]
    complaints = []
    for name, _, line in imports(ast.parse(source), module, is_package):
        if name.startswith("kit."):
            target = name.split(".")[1]
            if target not in LAYER_OF:
                complaints.append(f"{module}:{line} imports {name}, which is in no layer")
            elif LAYER_OF[target] > LAYER_OF[concept]:
                complaints.append(f"{module}:{line} (L{LAYER_OF[concept]}) imports {name} (L{LAYER_OF[target]})")
    return complaints


def impure(source: str, module: str, is_package: bool = False) -> list[str]:
    """L0 and L1 import the standard library, torch and jaxtyping; rewards may ask math-verify."""
    concept = module.partition(".")[2].split(".")[0]
    if LAYER_OF.get(concept, 9) > 1:
        return []
    allowed = PURE_PACKAGES | PURE_EXCEPTIONS.get(concept, set())
    found = imports(ast.parse(source), module, is_package)
    return [f"{module}:{line} imports {name}" for name, _, line in found if name.split(".")[0] not in allowed]


def misplaced_packages(source: str, module: str, is_package: bool = False) -> list[str]:
    """Optional packages are imported inside functions, TRL nowhere."""
    complaints = []
    for name, in_function, line in imports(ast.parse(source), module, is_package):
        package = name.split(".")[0]
        if package in ORACLES:
            complaints.append(f"{module}:{line} imports {package}, which is for tests")
        if package in OPTIONAL_PACKAGES and not in_function:
            complaints.append(f"{module}:{line} imports {package} outside of a function")
    return complaints


def too_long(source: str, module: str) -> list[str]:
    lines = len(source.splitlines())
    complaints = [f"{module} has {lines} lines, more than {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                complaints.append(
                    f"{module}:{node.lineno} {node.name} has {length} lines, more than {MAX_FUNCTION_LINES}"
                )
    return complaints


def unsafe(source: str, module: str) -> list[str]:
    """No evaluation of text, no pickle, no code from a hub."""
    tree = ast.parse(source)
    complaints = [
        f"{module}:{line} imports {n}" for n, _, line in imports(tree, module) if n.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func).removeprefix("builtins.") in UNSAFE_CALLS:
            complaints.append(f"{module}:{node.lineno} calls {dotted(node.func)}")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and is_true(node.value):
            complaints.append(f"{module}:{node.lineno} trusts remote code")
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            if any(isinstance(k, ast.Constant) and k.value == "trust_remote_code" and is_true(v) for k, v in pairs):
                complaints.append(f"{module}:{node.lineno} trusts remote code")
        if isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args][len(node.posonlyargs) + len(node.args) - len(node.defaults) :]
            pairs = [*zip(named, node.defaults, strict=True), *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            if any(argument.arg == "trust_remote_code" and is_true(default) for argument, default in pairs):
                complaints.append(f"{module} trusts remote code by default")
    return complaints


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def catch_alls(source: str, module: str) -> list[str]:
    """`except:`, `except Exception:` and `suppress(Exception)` hide mistakes, unless the handler raises again."""
    everything = {"Exception", "BaseException"}
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            catches_all = any(kind is None or dotted(kind).removeprefix("builtins.") in everything for kind in kinds)
            if catches_all and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                complaints.append(f"{module}:{node.lineno} catches everything and does not raise")
        is_suppress = isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "suppress"
        if is_suppress and everything & {dotted(argument) for argument in node.args}:
            complaints.append(f"{module}:{node.lineno} suppresses everything")
    return complaints


def nameless(module: str) -> list[str]:
    return [f"{module}: {part!r} says nothing about its content" for part in module.split(".") if part in NAMELESS]


def test_there_is_something_to_check() -> None:
    assert len(FILES) >= 20, f"only {len(FILES)} files found under {ROOT / 'kit'}"


def check_all(path: Path) -> list[str]:
    source, module, is_package = path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"
    return [
        *wrong_direction(source, module, is_package),
        *impure(source, module, is_package),
        *misplaced_packages(source, module, is_package),
        *too_long(source, module),
        *unsafe(source, module),
        *(catch_alls(source, module) if module not in PROCESS_BOUNDARIES else []),
        *nameless(module),
    ]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_file_follows_every_rule(path: Path) -> None:
    assert check_all(path) == []


VIOLATIONS: dict[str, Callable[[], list[str]]] = {
    "an import that points up": lambda: wrong_direction("from kit.run import Run", "kit.losses.dpo"),
    "an import that points up, inside a function": lambda: wrong_direction("def f():\n import kit.plots", "kit.run"),
    "an import that points up, by `from kit`": lambda: wrong_direction("from kit import cli", "kit.evaluate"),
    "a relative import that points up": lambda: wrong_direction("from ..run import Run", "kit.losses.dpo"),
    "a relative import that points up, from a package": lambda: wrong_direction(
        "from ..run import Run", "kit.tasks", True
    ),
    "a module without a layer": lambda: wrong_direction("", "kit.nowhere"),
    "an import of a module without a layer": lambda: wrong_direction("import kit.nowhere", "kit.run"),
    "an eager import in kit itself": lambda: wrong_direction("from kit import losses", "kit", True),
    "a model library in the mathematics": lambda: impure("import transformers", "kit.losses.dpo"),
    "a verifier outside of rewards": lambda: impure("def f():\n import math_verify", "kit.kl"),
    "an optional package at import time": lambda: misplaced_packages("import peft.utils", "kit.models.adapters"),
    "an optional package at import time, in a class": lambda: misplaced_packages(
        "class A:\n from ray import get", "kit.study"
    ),
    "an oracle": lambda: misplaced_packages("def f():\n from trl import DPOTrainer", "kit.run"),
    "a long file": lambda: too_long("x = 1\n" * (MAX_FILE_LINES + 1), "kit.run"),
    "a long function": lambda: too_long("def f():\n" + " x = 1\n" * MAX_FUNCTION_LINES, "kit.run"),
    "a long method": lambda: too_long("class A:\n async def f():\n" + "  x = 1\n" * MAX_FUNCTION_LINES, "kit.run"),
    "eval": lambda: unsafe("x = eval('1')", "kit.run"),
    "exec by its full name": lambda: unsafe("builtins.exec('1')", "kit.run"),
    "pickle": lambda: unsafe("from pickle import loads", "kit.run"),
    "torch.load": lambda: unsafe("torch.load('weights.pt')", "kit.checkpoint"),
    "yaml.load": lambda: unsafe("yaml.load(text)", "kit.study"),
    "remote code": lambda: unsafe("load(name, trust_remote_code=True)", "kit.models.policy"),
    "remote code in a dictionary": lambda: unsafe("load(**{'trust_remote_code': True})", "kit.models.policy"),
    "remote code by default": lambda: unsafe("def load(name, trust_remote_code=True): ...", "kit.models.policy"),
    "remote code by keyword default": lambda: unsafe(
        "def load(*, a, trust_remote_code=True): ...", "kit.models.policy"
    ),
    "a bare except": lambda: catch_alls("try: f()\nexcept: pass", "kit.run"),
    "except Exception": lambda: catch_alls("try: f()\nexcept Exception as error: print(error)", "kit.run"),
    "BaseException among others": lambda: catch_alls("try: f()\nexcept (OSError, BaseException): pass", "kit.run"),
    "a suppressed Exception": lambda: catch_alls("with contextlib.suppress(Exception): f()", "kit.run"),
    "a module called utils": lambda: nameless("kit.models.utils"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_violation_is_caught(violation: str) -> None:
    assert len(VIOLATIONS[violation]()) == 1


INNOCENT: dict[str, Callable[[], list[str]]] = {
    "an import that points down": lambda: wrong_direction(
        "from kit.types import Group\nimport torch", "kit.losses.dpo"
    ),
    "an import in the same layer": lambda: wrong_direction("from .masking import masked_mean", "kit.kl"),
    "a package's own relative import": lambda: wrong_direction("from .dpo import dpo_loss", "kit.losses", True),
    "the mathematics on torch": lambda: impure("import math\nfrom torch import Tensor", "kit.kl"),
    "a model library above the mathematics": lambda: impure("import transformers", "kit.models.policy"),
    "a verifier in rewards": lambda: impure("import math_verify", "kit.rewards.math_worker"),
    "an optional package in a method": lambda: misplaced_packages(
        "class A:\n def f(self):\n  import vllm", "kit.samplers.vllm"
    ),
    "a file and a function of the largest size": lambda: too_long(
        "def f():\n" + " x = 1\n" * (MAX_FUNCTION_LINES - 1) + "x = 1\n" * (MAX_FILE_LINES - MAX_FUNCTION_LINES),
        "kit.run",
    ),
    "a model's eval and remote code that the user asks for": lambda: unsafe(
        "def f(trust_remote_code=False):\n model.eval()\n load(trust_remote_code=trust_remote_code)",
        "kit.models.policy",
    ),
    "a narrow except and one that raises again": lambda: catch_alls(
        "try: f()\nexcept OSError: pass\nexcept BaseException: raise", "kit.run"
    ),
    "a module with a name": lambda: nameless("kit.advantages"),
}


@pytest.mark.parametrize("innocent", INNOCENT)
def test_innocent_code_passes(innocent: str) -> None:
    assert INNOCENT[innocent]() == []
