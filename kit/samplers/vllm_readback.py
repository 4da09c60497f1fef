"""What a vLLM engine really computes with, read inside its worker, under the names that the weights were sent by.

vLLM fuses query, key and value (and gate and up) into one matrix, adds zero rows to the vocabulary, multiplies an
adapter's B by alpha / r, and on a CPU moves a linear layer's weights into a packed form that only its kernel can read.
All of that can be undone exactly: rows are split again, and a packed layer is asked for its product with the identity,
in which each element is one weight times 1 plus zeros. Read for vLLM 0.32.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from kit.samplers.checksum import ZERO, checksum

PEFT_PREFIX = "base_model.model."
COMPUTED = " as computed with"  # a second form of the same weights, named only where it differs from the first


def weight_checksums_in_worker(worker: Any, dtype: torch.dtype) -> dict[str, str]:
    """Run in the worker: checksums of the model's weights as a Hugging Face state dict names them, adapters aside.

    A tied tensor, and a packed copy of one, are named only where they differ from the first that has their memory.
    """
    sums: dict[str, str] = {}
    first_name: dict[tuple[int, int], str] = {}  # of the memory
    for name, memory, held, is_copy in _held(worker.model_runner.get_model()):
        value = checksum(held.to(dtype))
        first = first_name.setdefault(memory, name)
        if value == sums.get(first):
            continue
        sums[f"{name}{COMPUTED}" if is_copy else name] = value
    return sums


def _held(model: nn.Module) -> Iterator[tuple[str, tuple[int, int], torch.Tensor, bool]]:
    """(name, memory, content, whether it is a packed copy of what the name holds too) of all weights."""
    fused: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, kind = name.rpartition(".")
        module = modules[owner]
        forms = [parameter.data] if parameter.numel() else []
        if kind == "weight" and hasattr(module, "cpu_linear"):
            forms.append(_product_with_identity(module, parameter.dtype))
        for number, form in enumerate(forms):
            for part, (layer, rows) in enumerate(_parts(owner.replace(".base_layer", ""), module, form, fused)):
                yield f"{layer}.{kind}", (id(parameter), part), rows, number > 0


def _parts(
    owner: str, module: nn.Module, form: torch.Tensor, fused: Mapping[str, list[str]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The layers that vLLM fused along the rows of `form`, by their own names."""
    parent, _, last = owner.rpartition(".")
    names, sizes = fused.get(last, [last]), getattr(module, "output_sizes", None)
    if sizes is None or len(names) != len(sizes):
        yield owner, form
    else:
        for name, rows in zip(names, form.split(list(sizes)), strict=True):
            yield f"{parent}.{name}" if parent else name, rows


def _product_with_identity(module: Any, dtype: torch.dtype) -> torch.Tensor:
    """The (out, in) matrix that a layer multiplies with, to the bit: sums of one weight and zeros are not rounded."""
    inputs = module.input_size if hasattr(module, "input_size") else module.embedding_dim
    return module.quant_method.apply(module, torch.eye(inputs, dtype=dtype), None).T


def adapter_checksums_in_worker(worker: Any, adapter_id: int, dtype: torch.dtype) -> dict[str, str]:
    """Run in the worker: checksums of the slot that adapter `adapter_id` occupies; empty if it occupies none.

    Every layer that could have an adapter is read, so that what an older adapter left behind would show.
    """
    manager = worker.model_runner.lora_manager._adapter_manager
    if adapter_id not in manager.lora_index_to_id:
        return {}
    slot = manager.lora_index_to_id.index(adapter_id)
    sums = {}
    for name, module in manager.modules.items():
        stacks = {"A": module.lora_a_stacked, "B": module.lora_b_stacked}
        for letter, stack in stacks.items():
            slices = stack if isinstance(stack, tuple) else (stack,)
            names = manager.packed_modules.get(name, [name])
            if len(names) != len(slices):
                names = [f"{name}[{i}]" for i in range(len(slices))]
            for part, held in zip(names, slices, strict=True):
                sums[f"{PEFT_PREFIX}{part}.lora_{letter}.weight"] = checksum(held[slot].squeeze(0).to(dtype))
    return {name: value for name, value in sums.items() if value != ZERO}


def repack_in_worker(worker: Any) -> int:
    """Run in the worker after new weights: pack tied output layers anew; returns how many.

    On a CPU an output layer that is tied to the embedding computes with a packed copy, which vLLM 0.32's
    `reload_weights` leaves as it was, because no weights of that name arrive.
    """
    model = worker.model_runner.get_model()
    owners: dict[int, list[Any]] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and hasattr(module, "cpu_linear"):
            owners.setdefault(id(weight), []).append(module)
    tied = [module for group in owners.values() if len(group) > 1 for module in group]
    for module in tied:
        module.quant_method.process_weights_after_loading(module)
    return len(tied)
