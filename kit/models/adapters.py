"""Low-rank adapters and quantized bases: put on a model, written, and read again, as PEFT's own folders."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kit.config import Lora
from kit.models.weights import POLICY, add_named_adapter, copy_weights, weights_of

Quantization = Literal["nf4", "int8"]
PREFIX = "base_model.model."  # of every tensor in a PEFT folder
NF4_BLOCK = 64  # weights that share a scale
LINEAR = (nn.Linear, Conv1D)  # GPT-2's Conv1D is a linear layer, its matrix transposed
BEYOND_LORA = ("use_dora", "bias", "modules_to_save", "trainable_token_indices", "rank_pattern", "alpha_pattern",
               "target_parameters", "lora_bias", "use_qalora")  # fmt: skip


class AdapterError(ValueError):
    """The adapter cannot be put on this model."""


def require_bitsandbytes(setting: str) -> None:
    """Raises ImportError if bitsandbytes is not installed, with the command that installs it."""
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError(f"{setting} needs bitsandbytes, which is not installed: pip install -e '.[gpu]'") from error


def quantization_config(quantization: Quantization, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes stores the frozen model: NF4 with its constants quantized too (QLoRA, arXiv 2305.14314,
    sections 2 and 3), or LLM.int8 (arXiv 2208.07339).

    Raises:
        ImportError: if bitsandbytes is not installed, with the command that installs it.
    """  # fmt: skip
    require_bitsandbytes(f"quantization={quantization!r}")
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )  # fmt: skip


def settle_quantized(model: PreTrainedModel, quantization: Quantization) -> None:
    """Give quantized layers on a CPU one arithmetic, with and without gradients, whatever else is in the batch.

    Left to themselves (bitsandbytes 0.50) NF4 layers repack their weights on the first pass without a gradient and
    then pass none back; int8 layers quantize their inputs together, so that a log-prob depends on its neighbours.

    Raises:
        AdapterError: for NF4 layers whose rows are no whole blocks, which are read back wrongly on a CPU.
    """
    import bitsandbytes as bnb

    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer.weight.device.type != "cpu":
            continue
        if isinstance(layer, bnb.nn.Linear8bitLt):
            layer.training = True  # weights to floats, then a plain product
        elif isinstance(layer, bnb.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False
            if layer.in_features % NF4_BLOCK:
                raise AdapterError(
                    f"quantization={quantization!r} on a CPU needs layers with a multiple of {NF4_BLOCK} inputs, came "
                    f"{name} with {layer.in_features}: take quantization='int8', none, or a GPU"
                )


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
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        if lora.adapter_path is None
        else _saved_config(model, Path(lora.adapter_path), lora)
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_named_adapter(model, config, POLICY)
    if lora.adapter_path is not None:
        saved = load_file(Path(lora.adapter_path) / "adapter_model.safetensors")
        try:
            copy_weights({name.removeprefix(PREFIX): tensor for name, tensor in saved.items()}, weights_of(model))
        except ValueError as error:
            raise AdapterError(
                f"adapter_path: the adapter in {lora.adapter_path} is of another model than this {type(model).__name__}"
                f": {error}. Name the model that its adapter_config.json names"
            ) from error


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
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (*LINEAR, nn.Embedding))}
    inner = [n for n, layer in layers.items() if isinstance(layer, LINEAR) and not any(layer is u for u in untouched)]
    linear = sorted({name.rpartition(".")[2] for name in inner})
    if not linear:
        raise AdapterError(f"lora: {type(model).__name__} has no linear layers to adapt: train all of its weights")
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
    """The LoraConfig of a folder, whether PEFT or the kit wrote it; AdapterError unless this model can train it."""
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
    more = [name for name in BEYOND_LORA if saved.get(name) not in (None, False, "none", [], {})]
    if saved.get("init_lora_weights", True) not in (True, False, "gaussian"):  # PiSSA and others change W as well
        more.append("init_lora_weights")
    if saved.get("peft_type") != "LORA" or more:
        raise AdapterError(
            f"adapter_path: the adapter in {folder} is {saved.get('peft_type')} with {more}, and only W + scale * B A "
            "of one rank goes everywhere that the kit takes it: train a new one, or give a model with it merged in"
        )
    config = LoraConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    targets = config.target_modules or ()
    if isinstance(targets, str):  # PEFT's regular expression over whole names
        targets = {name for name, _ in model.named_modules() if re.fullmatch(targets, name)}
    _target_modules(model, tuple(targets))
    config.inference_mode = False
    config.lora_dropout = 0.0
    return config
