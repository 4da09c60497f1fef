"""Arithmetic over padded tokens.

A mask is boolean and `True` means *counts*. What stands at a masked position never matters: not its value, not NaN, not
infinity. So selection is done by `torch.where`; a product with the mask would turn `nan * 0` into `nan`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def require_same_shape(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all tensors have one shape: broadcasting would train on the wrong numbers in silence."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        came = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"expected tensors of one shape, came {came}: index, pad or expand them before the call")


def masked_sum(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, dim: int | None = None
) -> Float[Tensor, "*reduced"]:
    """Sum of the values that count.

    Args:
        values: numbers of any unit.
        mask: same shape, True = counts.
        dim: the axis to sum over; None sums everything.

    Returns:
        The sum, in the unit of `values`: a scalar, or one number per slice along `dim`.

    Raises:
        ValueError: if the shapes differ, or a sum has nothing to count.
        TypeError: if the mask is not boolean.

    >>> masked_sum(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([True, True, False])).item()
    3.0
    """
    require_same_shape({"values": values, "mask": mask})
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a boolean mask (True = counts), came {mask.dtype}: pass mask.bool()")
    if not bool((mask.any() if dim is None else mask.any(dim)).all()):
        where = "anywhere" if dim is None else f"in at least one slice along dim {dim}"
        raise ValueError(f"nothing counts {where} in a mask of shape {tuple(mask.shape)}: drop empty completions first")
    counted = torch.where(mask, values, 0.0)
    return counted.sum() if dim is None else counted.sum(dim)


def masked_mean(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, dim: int | None = None
) -> Float[Tensor, "*reduced"]:
    """Mean of the values that count: `masked_sum` divided by how many count.

    Args:
        values: numbers of any unit.
        mask: same shape, True = counts.
        dim: the axis to average over; None averages everything, so that longer rows weigh more.

    Returns:
        The mean, in the unit of `values`: a scalar, or one number per slice along `dim`.

    Raises:
        ValueError: if the shapes differ, or a mean has nothing to count.
        TypeError: if the mask is not boolean.

    >>> masked_mean(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([True, True, False])).item()
    1.5
    """
    total = masked_sum(values, mask, dim=dim)
    return total / (mask.sum() if dim is None else mask.sum(dim))


def right_pad(
    sequences: Sequence[Sequence[int] | Sequence[float]], pad_value: int | float
) -> tuple[Shaped[Tensor, "seq tok"], Bool[Tensor, "seq tok"]]:
    """Stack sequences of unequal length, filling on the right.

    Args:
        sequences: one list or tuple of numbers a row, such as token ids, or log-probabilities in nats.
        pad_value: what fills the gaps. Its kind fixes the kind of the result: int64, the default float, or bool.

    Returns:
        The tensor, as wide as the longest row, and the mask, True where a number came from a sequence.

    Raises:
        ValueError: if there are no sequences.
        TypeError: if `pad_value` would change the numbers, as an int would by truncating floats.

    >>> right_pad([(5, 6), (7,)], 0)[0].tolist()
    [[5, 6], [7, 0]]
    """
    if not sequences:
        raise ValueError("expected at least one sequence to pad, came none: skip the batch when it is empty")
    dtype = torch.tensor(pad_value).dtype
    flat = torch.tensor([value for sequence in sequences for value in sequence])
    if flat.numel() and not torch.can_cast(flat.dtype, dtype):
        raise TypeError(f"pad_value {pad_value!r} would turn {flat.dtype} into {dtype}: pass a pad_value of that kind")
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.full(mask.shape, pad_value, dtype=dtype)
    padded[mask] = flat.to(dtype)
    return padded, mask


# How per-token terms become one number. Unequal micro-batches must be weighted by what the outer mean runs over.
AGGREGATES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "sequence": lambda terms, mask, _: masked_mean(terms, mask, dim=-1).mean(),  # mean over sequences of the token mean
    "sum": lambda terms, mask, _: masked_sum(terms, mask, dim=-1).mean(),  # mean over sequences of the sum over tokens
    "token": lambda terms, mask, _: masked_mean(terms, mask),  # mean over all tokens of the batch
    "constant": lambda terms, mask, constant: masked_sum(terms, mask, dim=-1).mean() / constant,  # the sum, rescaled
}


def aggregate_tokens(
    terms: Float[Tensor, "seq tok"],
    completion_mask: Bool[Tensor, "seq tok"],
    how: str,
    *,
    constant: int | None = None,
) -> Float[Tensor, ""]:
    """Reduce per-token terms to a scalar, the same way in every loss.

    Args:
        terms: one term a token, in any unit.
        completion_mask: True = counts.
        how: "sequence" (mean over sequences of each one's token mean: every sequence weighs the same), "sum" (mean over
            sequences of the sum over tokens: no length normalization), "token" (mean over all tokens of the batch),
            "constant" (the sum over tokens divided by `constant`, the same for every sequence: Dr. GRPO's).
        constant: tokens, >= 1, for "constant" only, such as the longest completion allowed.

    Returns:
        Scalar in the unit of `terms` (with "sum", that unit per sequence).

    Raises:
        ValueError: if `how` is none of these, a sequence has no token that counts, or `constant` is missing or unused.

    >>> terms, mask = torch.tensor([[6.0, 0.0], [2.0, 2.0]]), torch.tensor([[True, False], [True, True]])
    >>> [round(aggregate_tokens(terms, mask, how).item(), 4) for how in ("sequence", "sum", "token")]
    [4.0, 5.0, 3.3333]
    """
    if how not in AGGREGATES:
        raise ValueError(f"expected one of {sorted(AGGREGATES)} for the aggregation, came {how!r}")
    if (how == "constant") != (constant is not None) or (constant is not None and constant < 1):
        raise ValueError(f'expected a constant >= 1 with "constant" and none otherwise, came {constant} with {how!r}')
    return AGGREGATES[how](terms, completion_mask, constant or 1)
