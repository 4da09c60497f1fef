"""Checksums of weights: exact, cheap on any device, and blind to what an engine may do to a tensor without changing it.

The checksum of a matrix is the sum over its elements of mixed bits × row weight × column weight, modulo 2^64. The bits
are the element's own as an integer, mixed by a one-to-one map that keeps zero; the weights are fixed odd numbers. So a
change of one element always changes the sum, however small, since an odd number has an inverse modulo 2^64; several
changes would have to cancel by chance. Rows and columns of zeros below and right of the tensor add nothing: an engine
may pad a vocabulary or a rank. The sign of a zero is ignored: an engine may hold weights in a form from which only a
product brings them back.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

CHUNK = 2**22  # elements at a time: 32 MiB for each of the few integers an element needs
MIX = -0x61C8864680B583EB  # 2^64 / golden ratio, made odd, as a signed number
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
ZERO = f"{0:016x}"
UNREADABLE = ("use_rslora", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save")


@torch.no_grad()
def checksum(tensor: torch.Tensor) -> str:
    """16 hex digits for a tensor of any shape and number type; a vector counts as one row.

    >>> one = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> checksum(one) == checksum(torch.nn.functional.pad(one, (0, 3, 0, 5)))
    True
    >>> checksum(one) == checksum(one.flip(0)) or checksum(one) == checksum(one.nextafter(one + 1))
    False
    """
    matrix = tensor.detach()
    matrix = matrix.reshape(1, -1) if matrix.ndim < 2 else matrix.reshape(matrix.shape[0], -1)
    total = torch.zeros((), dtype=torch.int64, device=matrix.device)
    columns = _odd_numbers(0, matrix.shape[1], 1, matrix.device)
    step = max(1, CHUNK // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        rows = (matrix[start : start + step] + 0).contiguous()  # -0.0 + 0 is 0.0
        bits = rows.view(INTEGERS[rows.element_size()]).long() * MIX
        bits ^= _shifted(bits, 32)  # or the highest bits would meet the lowest of the weights only
        total += ((bits * columns).sum(1) * _odd_numbers(start, len(rows), 0, matrix.device)).sum()
    return f"{int(total) % 2**64:016x}"


def _odd_numbers(start: int, count: int, stream: int, device: torch.device) -> torch.Tensor:
    """`count` outputs of splitmix64 seeded with 0, from number `start` on, made odd; streams are 2^40 outputs apart."""
    x = (torch.arange(start, start + count, device=device) + (stream << 40) + 1) * MIX
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return (x ^ _shifted(x, 31)) | 1


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # as if without a sign


def weight_checksums(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> dict[str, str]:
    """The checksum of each tensor once it is cast to `dtype`; tied tensors (one memory) under the first name only."""
    return {name: checksum(tensor.detach().to(dtype or tensor.dtype)) for name, tensor in distinct(tensors).items()}


def distinct(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict without second names of the same memory, as tied weights have."""
    found: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in tensors.items():
        if (tensor.data_ptr(), tensor.shape) not in seen:
            found[name] = tensor
        seen.add((tensor.data_ptr(), tensor.shape))
    return found


def num_bytes(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Of all tensors once they are cast to `dtype`, those of one memory counted once: what one copy of them moves.

    >>> half = torch.zeros(3, dtype=torch.float16)
    >>> num_bytes({"a": half, "tied to a": half}), num_bytes({"a": half}, torch.float32)
    (6, 12)
    """
    return sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in distinct(tensors).values())


def adapter_checksums(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, str]:
    """The checksum of each of a LoRA adapter's tensors as an engine holds it: cast to `dtype`, then B times alpha / r.

    A tensor of zeros is left out: that is also what a layer without an adapter holds. Names are peft's.

    Raises:
        ValueError: if the adapter is more than a plain LoRA.
    """
    scale = adapter_scale(config)
    sums = {}
    for name, tensor in tensors.items():
        held = tensor.detach().to(dtype)
        if ".lora_B." in name and scale != 1:
            held = held * scale
        sums[name] = checksum(held)
    return {name: value for name, value in sums.items() if value != ZERO}


def adapter_scale(config: Mapping[str, Any]) -> float:
    """alpha / r of a plain LoRA's configuration (the content of peft's adapter_config.json)."""
    odd = [name for name in UNREADABLE if config.get(name)]
    if odd or config.get("bias", "none") != "none":
        raise ValueError(
            f"expected a plain LoRA adapter, whose weights can be checked in the engine, came one with "
            f"{', '.join([*odd, *(['bias'] if config.get('bias', 'none') != 'none' else [])])}: train without"
        )
    return config["lora_alpha"] / config["r"]


def summary(checksums: Mapping[str, str]) -> str:
    """One hash for all of a model's checksums, 16 hex digits: what a receipt shows."""
    return hashlib.sha256("".join(f"{n}={v}\n" for n, v in sorted(checksums.items())).encode()).hexdigest()[:16]


def differing(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of tensors whose checksums differ, or that only one side has."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
