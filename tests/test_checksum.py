"""Checksums see every change of a number, and nothing that an engine may do to a tensor without changing it."""

from typing import Any

import pytest
import torch

import kit.samplers.checksum as module
from kit.samplers.checksum import adapter_checksums, checksum, differing, summary, weight_checksums

CONFIG = {"r": 4, "lora_alpha": 6.0}


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(number: int) -> int:
    """Output `number`, from 0 on, of splitmix64 seeded with 0, after Vigna's C code (prng.di.unimi.it/splitmix64.c)."""
    z = (number + 1) * GOLDEN % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_value_by_hand() -> None:
    assert [splitmix64(0), splitmix64(1)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # published for seed 0
    total = 0
    # 1.0 and -2.0 in IEEE 754, the latter as a signed number
    for row, bits in enumerate((0x3F800000, 0xC0000000 - 2**32)):
        mixed = bits * GOLDEN % 2**64
        mixed ^= mixed >> 32
        total += mixed * (splitmix64(row) | 1) * (splitmix64(2**40) | 1)
    assert checksum(torch.tensor([[1.0], [-2.0]])) == f"{total % 2**64:016x}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_bit_of_one_number_shows_and_two_do(dtype: torch.dtype) -> None:
    tensor = some(6, 5).to(dtype)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = range(tensor.element_size() * 8 - 1)
    seen = [checksum(tensor)]
    for place, bit in [(place, bit) for place in range(tensor.numel()) for bit in bits]:
        changed = tensor.clone()
        changed.view(integers).view(-1)[place] ^= 1 << bit
        if changed.isfinite().all():
            seen.append(checksum(changed))
    assert len(set(seen)) == len(seen) > 30 * 13
    both = [checksum(torch.where(torch.eye(6, 5).roll(shift, 0) > 0, -tensor, tensor)) for shift in range(6)]
    assert len({*seen, *both}) == len(seen) + len(both)  # signs, which are the highest bits


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flip(0),
        lambda x: x.flip(1),
        lambda x: -x,
        lambda x: 2 * x,
        lambda x: x.bfloat16().float(),
        lambda x: torch.zeros_like(x),
        lambda x: x.roll(1, 0),
        lambda x: x.reshape(4, 6),
        lambda x: x + 1e-9 * some(6, 4, seed=1).sign() * (some(6, 4, seed=2) > 1),
    ],
)
def test_other_changes_show(change: Any) -> None:
    tensor = 1e-3 * some(6, 4)
    assert checksum(change(tensor)) != checksum(tensor)


def test_padding_strides_and_the_sign_of_zero_do_not_matter() -> None:
    tensor = some(6, 4)
    assert checksum(torch.nn.functional.pad(tensor, (0, 3, 0, 2))) == checksum(tensor)
    assert checksum(tensor.T.contiguous().T) == checksum(tensor)
    tensor[2] = 0.0
    other = tensor.clone()
    other[2] = -0.0
    assert checksum(other) == checksum(tensor)
    assert checksum(torch.zeros(3, 2)) == "0" * 16 == module.ZERO


def test_the_size_of_a_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = some(7, 3)
    whole = checksum(tensor)
    monkeypatch.setattr(module, "CHUNK", 7)  # two rows
    assert checksum(tensor) == whole


def test_tied_weights_are_named_once_and_cast_first() -> None:
    embedding = some(5, 4)
    sums = weight_checksums({"embed": embedding, "norm": some(4), "head": embedding}, torch.bfloat16)
    assert sums == {"embed": checksum(embedding.bfloat16()), "norm": checksum(some(4).bfloat16())}
    copies = {"embed": embedding, "head": embedding.clone()}
    assert list(weight_checksums(copies, torch.float32)) == ["embed", "head"]


def test_an_adapter_is_held_with_its_scale_in_b() -> None:
    a, b = some(4, 6), some(8, 4, seed=1)
    tensors = {"q.lora_A.weight": a, "q.lora_B.weight": b, "v.lora_A.weight": a, "v.lora_B.weight": torch.zeros(8, 4)}
    sums = adapter_checksums(tensors, CONFIG, torch.float32)
    assert sums == {
        "q.lora_A.weight": checksum(a), "q.lora_B.weight": checksum(1.5 * b), "v.lora_A.weight": checksum(a),
    }  # fmt: skip
    assert torch.equal(b, some(8, 4, seed=1))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"use_rslora": True}, "use_rslora"), ({"rank_pattern": {"q": 2}}, "rank_pattern"), ({"bias": "all"}, "bias")],
)
def test_more_than_a_plain_adapter_is_refused(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"expected a plain LoRA adapter.*came one with {name}: train without"):
        adapter_checksums({}, CONFIG | change, torch.float32)


def test_what_differs_is_named_and_a_summary_is_of_all() -> None:
    sums = {"a": "01", "b": "02"}
    assert differing(sums, dict(reversed(sums.items()))) == []
    assert differing(sums, {"a": "01", "b": "03", "c": "04"}) == ["b", "c"]
    assert differing(sums, {}) == ["a", "b"]
    assert summary(sums) == summary(dict(reversed(sums.items())))
    assert len({summary(sums), summary({"a": "01"}), summary({"a": "02", "b": "01"}), summary({})}) == 4
