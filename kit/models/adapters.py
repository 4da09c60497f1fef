"""Low-rank adapters and quantized bases: put on a model, written, and read again, as PEFT's own folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from kit.config import Lora
from kit.models.weights import POLICY, add_named_adapter, copy_weights, weights_of

Quantization = Literal["nf4", "int8"]
PREFIX = "base_model.model."  # of every tensor in a PEFT folder


class AdapterError(ValueError):
    """The adapter cannot be put on this model."""


def quantization_config(quantization: Quantization, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes stores the frozen model: NF4 with its constants quantized too (QLoRA, arXiv 2305.14314,
    sections 2 and 3), or LLM.int8 (arXiv 2208.07339).

    Raises:
        ImportError: if bitsandbytes is not installed, with the command that installs it.
    """  # fmt: skip
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError(
            f"quantization={quantization!r} needs bitsandbytes, which is not installed: pip install -e '.[gpu]'"
        ) from error
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )  # fmt: skip


def add_adapter(model: PreTrainedModel, lora: Lora, *, seed: int) -> None:
    """Put the adapter `policy` on the model, which is frozen from then on. In float32, whatever the model's dtype.

    A new adapter changes nothing yet: A is random, B zero.

    Raises:
        AdapterError: if a target does not exist, is the output layer or the embedding, or the folder's adapter is none.
    """
    from peft import LoraConfig

    config = (
        LoraConfig(
            r=lora.lora_r, lora_alpha=lora.lora_alpha, lora_dropout=0.0, bias="none",  # pyright: ignore[reportArgumentType]
            target_modules=_target_modules(model, lora.lora_target_modules),
        )
        if lora.adapter_path is None
        else _saved_config(model, Path(lora.adapter_path), lora)
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_named_adapter(model, config, POLICY)
    if lora.adapter_path is not None:
        saved = load_file(Path(lora.adapter_path) / "adapter_model.safetensors")
        copy_weights({name.removeprefix(PREFIX): tensor for name, tensor in saved.items()}, weights_of(model))


def adapter_config(policy: PreTrainedModel) -> dict[str, Any]:
    """The configuration of the adapter in training, as its `adapter_config.json` holds it."""
    config: Any = policy.peft_config[POLICY]
    return config.to_dict()


def save_adapter(tensors: Mapping[str, Tensor], config: Any, folder: Path) -> None:
    """Write an adapter as PEFT and vLLM read it: `adapter_config.json` and `adapter_model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"{PREFIX}{name}": t.detach().cpu().contiguous() for name, t in tensors.items()},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    config.save_pretrained(str(folder))


def _target_modules(model: PreTrainedModel, asked: str | tuple[str, ...]) -> list[str]:
    """The last parts of the names of the layers to adapt; every one asked for must exist."""
    untouched = [model.get_output_embeddings(), model.get_input_embeddings()]
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)}
    linear = sorted({n.rpartition(".")[2] for n, layer in layers.items() if not any(layer is u for u in untouched)})
    if asked == "all-linear":
        return linear
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        found = [layer for key, layer in layers.items() if key == name or key.endswith(f".{name}")]
        if not found:
            raise AdapterError(f"lora_target_modules: {type(model).__name__} has no layer {name!r}; it has {linear}")
        if any(layer is u for layer in found for u in untouched):
            raise AdapterError(
                f"lora_target_modules: {name!r} is the embedding or the output layer. These are often one tensor, and "
                f"log-probs are read with the output layer's own matrix: leave it out; choose from {linear}"
            )
    return names


def _saved_config(model: PreTrainedModel, folder: Path, lora: Lora) -> Any:
    from peft import LoraConfig

    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    if not all(file.is_file() for file in files):
        raise AdapterError(f"adapter_path: expected a folder with {[f.name for f in files]}, came {str(folder)!r}")
    saved: dict[str, Any] = json.loads(files[0].read_text())
    if (saved.get("r"), saved.get("lora_alpha")) != (lora.lora_r, lora.lora_alpha):
        raise AdapterError(
            f"adapter_path: the adapter in {folder} has r={saved.get('r')} and alpha={saved.get('lora_alpha')}, asked "
            f"were lora_r={lora.lora_r} and lora_alpha={lora.lora_alpha}: ask for the adapter's own"
        )
    config = LoraConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    _target_modules(model, tuple(config.target_modules or ()))
    config.inference_mode = False
    config.lora_dropout = 0.0
    return config
