"""A notebook-first research kit for semi-online RL of language models (arXiv 2506.21495).

One dial, `s`: the number of optimizer steps between copies of the policy's weights into the sampler. Never is
offline, 1 is online, anything between is semi-online. Submodules load on first use, so `import kit` stays light.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """Import `kit.<name>` on first use, so that `import kit; kit.losses.dpo_loss` works without loading torch early."""
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
