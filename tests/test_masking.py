"""Masked arithmetic: what counts counts, and nothing else leaks in, neither into values nor into gradients."""

import math

import pytest
import torch

from kit.masking import aggregate_tokens, masked_mean, masked_sum, require_same_shape, right_pad

VALUES = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [False, False, True]])


@pytest.mark.parametrize(
    ("dim", "expected_sum", "expected_mean"),
    [
        (None, 35.0, 35 / 3),  # 1 + 2 + 32, three count
        (1, [3.0, 32.0], [1.5, 32.0]),  # rows: 1 + 2 of two, 32 of one
    ],
)
def test_only_what_counts_is_summed_and_averaged(dim: int | None, expected_sum: object, expected_mean: object) -> None:
    assert masked_sum(VALUES, MASK, dim=dim).tolist() == expected_sum
    assert masked_mean(VALUES, MASK, dim=dim).tolist() == pytest.approx(expected_mean, abs=1e-12)


def test_columns_are_averaged_along_the_first_axis() -> None:
    mask = torch.tensor([[True, True, False], [True, False, True]])
    # columns: (1 + 8) / 2, 2, 32
    assert masked_mean(VALUES, mask, dim=0).tolist() == [4.5, 2.0, 32.0]


@pytest.mark.parametrize("poison", [7.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dim", [None, -1])
def test_a_masked_value_never_matters(poison: float, dim: int | None) -> None:
    poisoned = torch.where(MASK, VALUES, poison).requires_grad_()
    clean = VALUES.clone().requires_grad_()
    for function in (masked_sum, masked_mean):
        results = [function(values, MASK, dim=dim) for values in (poisoned, clean)]
        assert torch.equal(*results)
        gradients = [
            torch.autograd.grad(result.sum(), values)[0]
            for result, values in zip(results, (poisoned, clean), strict=True)
        ]
        assert torch.equal(*gradients)
        assert torch.equal(gradients[0] != 0, MASK)


@pytest.mark.parametrize("function", [masked_sum, masked_mean])
def test_nothing_to_count_raises(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="nothing counts anywhere"):
        function(VALUES, torch.zeros_like(MASK))
    with pytest.raises(ValueError, match="at least one slice along dim 1"):
        function(VALUES, torch.tensor([[True, True, True], [False, False, False]]), dim=1)


@pytest.mark.usefixtures("_shapes_unchecked")
def test_a_mask_of_numbers_or_of_another_shape_raises() -> None:
    with pytest.raises(TypeError, match=r"boolean mask.*int64"):
        masked_sum(VALUES, MASK.long())
    with pytest.raises(ValueError, match="one shape"):  # would broadcast
        masked_mean(VALUES, MASK[:1])


def test_tensors_that_would_broadcast_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a \(2, 1\), b \(2,\)"):
        require_same_shape({"a": torch.zeros(2, 1), "b": torch.zeros(2)})
    require_same_shape({"a": torch.zeros(2), "b": torch.ones(2)})


def test_padding_goes_right_and_the_mask_says_where() -> None:
    tokens, mask = right_pad([(5, 6, 7), (), (8,)], 9)
    assert tokens.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert mask.tolist() == [[True, True, True], [False, False, False], [True, False, False]]
    assert tokens.dtype == torch.int64


@pytest.mark.parametrize(
    ("rows", "pad_value", "dtype"),
    [
        ([(-0.5,), (-1.5, -2.5)], 0.0, torch.float32),
        ([(1,), (2, 3)], 0.0, torch.float32),  # whole numbers among floats are floats
        ([(True,), (False, True)], False, torch.bool),
        ([()], 0, torch.int64),
    ],
)
def test_the_pad_value_fixes_the_kind(rows: list[tuple[float, ...]], pad_value: float, dtype: torch.dtype) -> None:
    padded, mask = right_pad(rows, pad_value)
    assert padded.dtype == dtype
    assert padded[mask].tolist() == [value for row in rows for value in row]


def test_padding_refuses_to_truncate_and_to_pad_nothing() -> None:
    with pytest.raises(TypeError, match="pad_value 0 would turn"):
        right_pad([(-0.5, -1.5)], 0)
    with pytest.raises(ValueError, match="at least one sequence"):
        right_pad([], 0)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sequence", 16.75),  # ((1 + 2) / 2 + 32) / 2
        ("sum", 17.5),  # ((1 + 2) + 32) / 2
        ("token", 35 / 3),  # (1 + 2 + 32) / 3
    ],
)
def test_aggregates_differ_in_what_the_mean_runs_over(how: str, expected: float) -> None:
    assert aggregate_tokens(VALUES, MASK, how).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("how", "shares"), [("sequence", (0.5, 0.5)), ("sum", (0.5, 0.5)), ("token", (2 / 3, 1 / 3))])
def test_weighted_micro_batches_add_up_to_the_batch(how: str, shares: tuple[float, float]) -> None:
    # Shares of sequences, or of tokens where the outer mean runs over tokens.
    parts = [aggregate_tokens(VALUES[[row]], MASK[[row]], how) * share for row, share in enumerate(shares)]
    assert torch.stack(parts).sum().item() == pytest.approx(aggregate_tokens(VALUES, MASK, how).item(), abs=1e-12)


@pytest.mark.parametrize("constant", [1, 4, 10])
def test_a_constant_divides_every_sequence_alike(constant: int) -> None:
    # ((1 + 2) + 32) / 2 sequences / constant: a token weighs the same in a short and in a long sequence.
    found = aggregate_tokens(VALUES, MASK, "constant", constant=constant)
    assert found.item() == pytest.approx(17.5 / constant, abs=1e-12)
    parts = [aggregate_tokens(VALUES[[row]], MASK[[row]], "constant", constant=constant) / 2 for row in range(2)]
    assert torch.stack(parts).sum().item() == pytest.approx(found.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("how", "constant"),
    [("constant", None), ("constant", 0), ("constant", -3), ("sequence", 5), ("sum", 1), ("token", 5)],
)
def test_a_constant_is_given_where_it_is_used_and_nowhere_else(how: str, constant: int | None) -> None:
    with pytest.raises(ValueError, match=rf'constant >= 1 with "constant" and none otherwise, came {constant}'):
        aggregate_tokens(VALUES, MASK, how, constant=constant)


def test_an_unknown_aggregate_is_refused_by_naming_the_known() -> None:
    with pytest.raises(ValueError, match=r"'sequence', 'sum', 'token'.*'mean'"):
        aggregate_tokens(VALUES, MASK, "mean")
