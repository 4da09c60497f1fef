"""What holds for every test: no network, one thread; tests marked `gpu` are skipped where there is none."""

import gc
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import is_hypothesis_test

# Set before any library is imported; processes that a test starts inherit it.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import torch

# The same sums in the same order whether pytest runs one worker or several, and no fight over the cores.
torch.set_num_threads(1)

if TYPE_CHECKING:  # a test that needs the kit imports it later than this, under the hook that checks shapes
    from transformers import PreTrainedModel

    from kit.run import Run
    from kit.tasks.task import Judging
    from kit.types import Prompt

LOCAL = {"127.0.0.1", "::1", "localhost"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that tries to leave this machine fails, instead of passing only where there is a network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and isinstance(address, tuple) and address[0] not in LOCAL:
            raise AssertionError(f"a test tried to reach {address}: tests use no network")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def _garbage_first(request: pytest.FixtureRequest) -> None:
    """Hypothesis takes a change of `random` while it generates for a fault of the strategy, and beartype draws from
    `random` to check a list: what earlier tests left to be finalized (a pool ends its list of workers) goes before."""
    if is_hypothesis_test(getattr(request, "function", None)):
        gc.collect()


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    """A test may set torch's number of threads; the next one starts with one again."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def _shapes_unchecked() -> Iterator[None]:
    """As in use outside of tests, where only the functions' own checks stand."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def first_token_is_even(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward that an untrained model gets half of the time and that training can raise."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


@dataclass(frozen=True)
class TinyTask:
    """Prompts of unequal length; `terms` makes them longer, `reward` is on TRL's contract."""

    size: int = 24  # training prompts
    terms: int = 1
    reward: Callable[..., list[float | None]] | Callable[..., list[float]] = first_token_is_even
    name: str = "tiny"
    judging: "Judging | None" = None

    def split(self, name: str) -> "tuple[Prompt, ...]":
        from kit.types import Prompt

        first, size = {"train": (0, self.size), "validation": (1000, 6), "test": (2000, 6)}[name]
        texts = ["+".join([str(3**number % 99991)] * self.terms) for number in range(first, first + size)]
        return tuple(
            Prompt(
                f"{self.name}/{name}/{i}", [{"role": "user", "content": text}], {"solution": text, "task": self.name}
            )
            for i, text in enumerate(texts)
        )

    def rewards(self) -> tuple[list[Callable[..., list[float | None]] | Callable[..., list[float]]], list[float]]:
        return [self.reward], [1.0]


def tiny_run(folder: Path, out_dir: Path, **changes: Any) -> "Run":
    """Twelve steps of online DPO in about a second; `changes` are arguments of Run or fields of its configuration."""
    from kit.config import RunConfig, Sampling
    from kit.objectives import DPO
    from kit.run import Run
    from kit.samplers import TransformersSampler
    from kit.sync import Every

    arguments: dict[str, Any] = {
        "task": TinyTask(),
        "objective": DPO(),
        "sync": Every(1),
        "ref_sync": None,
        "ref_mixup_alpha": 1.0,
        "ref_start": "policy",
        "sampler": TransformersSampler,
    }
    arguments |= {name: changes.pop(name) for name in arguments.keys() & changes.keys()}
    sizes: dict[str, Any] = {
        "model_name_or_path": str(folder), "prompts_per_step": 4, "group_size": 4, "max_steps": 12, "eval_steps": 4,
        "eval_prompts": 6, "eval_samples": 2, "save_steps": 3, "num_threads": 1, "learning_rate": 1e-2,
        "sampling": Sampling(max_completion_length=5),
    }  # fmt: skip
    return Run(RunConfig(**(sizes | changes)), out_dir=out_dir, **arguments)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of 24 thousand parameters and its tokenizer. Its distributions are far from uniform."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from kit.models.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ARCHITECTURES: dict[str, dict[str, Any]] = {  # each with what sets it apart from Llama
    "Qwen3": {"head_dim": 8},  # norms of queries and keys
    "Mistral": {"sliding_window": 4},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 4},  # local and global layers, scaled embeddings
    "Gemma2": {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 5.0},
    "Phi": {},  # a bias in the output layer
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.2},
}


def tiny_architecture(name: str) -> "PreTrainedModel":
    """An untrained model of another architecture, for the tokenizer of `tiny_folder`."""
    import transformers

    sizes = {
        "vocab_size": 261, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "eos_token_id": 1,
        "pad_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(sizes | ARCHITECTURES[name]))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):  # zero until it is trained
                parameter.normal_()
    return model


@pytest.fixture
def start(tiny_folder: Path) -> "Callable[..., Run]":
    """`start(out_dir, **changes)`: see `tiny_run`."""
    return partial(tiny_run, tiny_folder)


@pytest.fixture(scope="session")
def seed_folder() -> Path:
    """The embedded seed model."""
    return Path(__file__).parents[1] / "data" / "seed"


def happened(out_dir: Path) -> list[str]:
    """The names of a run's events, less what the doctor said: the tiny model's completions are cut, and it says so."""
    events = [json.loads(line)["event"] for line in (out_dir / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event != "doctor"]


def untimed(out_dir: Path) -> list[str]:
    """The lines of a run's metrics.jsonl without the fields that say how long things took and how much memory."""
    from kit.runlog import MEASURED

    records = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in record.items() if not k.startswith(MEASURED)}) for record in records]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file under a folder: its bytes and when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `datasets` keeps what it read from a file, instead of below the home directory."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"
