"""M2PO: which tokens of a step are left out, by hand and by trying, and that micro-batches leave out the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kit.importance import M2PO, Tokens


def nats(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def kept(correction: M2PO, log_ratios: list[float]) -> list[float]:
    """The squares of those that train."""
    row = nats(log_ratios)
    found = correction.surrogate(Tokens(row, torch.zeros_like(row), row, nats([1.0]), torch.ones_like(row).bool()))
    is_out = found.is_low_clipped | found.is_high_clipped
    assert torch.equal(found.loss[~is_out], -row[~is_out].exp()) and not found.loss[is_out].any()
    return row[~is_out].square().tolist()


@settings(deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=12), st.sampled_from([0.005, 0.04, 0.5, 4.0]))
def test_m2po_keeps_as_many_as_the_bound_allows(tenths: list[int], max_m2: float) -> None:
    log_ratios = [number / 10 for number in tenths]
    squares = kept(M2PO(max_m2), log_ratios)
    assert sum(squares) <= max_m2 * len(squares) + 1e-12
    others = sorted(number**2 for number in log_ratios)[len(squares) :]
    if others:  # those at the next distance, all of them, would be too much
        more = squares + [square for square in others if square < others[0] + 1e-9]
        assert sum(more) > max_m2 * len(more)
        assert max(squares, default=-1.0) < others[0]


def test_m2po_leaves_out_what_is_too_far_by_hand() -> None:
    # Squares sorted: 0.01, 0.04, 0.09, 0.16; means 0.01, 0.025, 0.0467, 0.075. Within 0.04 are the first two.
    assert kept(M2PO(0.04), [-0.3, 0.1, 0.4, -0.2]) == pytest.approx([0.01, 0.04], abs=1e-12)
    # Squares 0.01, 0.09, 0.09: one of the equals would do (mean 0.05), both would not (0.0633); neither is kept.
    assert kept(M2PO(0.05), [0.3, 0.1, -0.3]) == pytest.approx([0.01], abs=1e-12)


def test_m2po_fitted_to_a_step_leaves_out_the_same_in_every_micro_batch() -> None:
    # Squares sorted: 0, 0.01, 0.01, 0.09, 0.25, 0.49; means 0, .005, .0067, .0275, .072: 0.04 keeps the
    # first four, and the bound lies halfway to the fifth, where another rounding of a ratio cannot reach it.
    log_ratios = nats([0.1, 0.3, 9.0], [-0.5, 0.0, -0.1], [0.7, 9.0, 9.0])
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    whole = Tokens(log_ratios, torch.zeros(3, 3).double(), log_ratios, nats([1.0], [-2.0], [0.5]), mask)
    fitted = M2PO(0.04).fitted(log_ratios[mask])
    assert fitted.bound == pytest.approx(0.4, abs=1e-12) and M2PO(0.04).needs_fit
    expected = M2PO(0.04).surrogate(whole)
    assert (expected.loss == 0)[mask].tolist() == [False, False, True, False, False, True]
    alone = []
    for rows in ([0], [1], [2], [0, 1], [1, 2]):
        part = Tokens(*(tensor[rows] for tensor in whole))
        found = fitted.surrogate(part)
        assert all(torch.equal(a, b[rows]) for a, b in zip(found, expected, strict=True))
        alone.append(torch.equal(M2PO(0.04).surrogate(part).loss, expected.loss[rows]))
    assert not all(alone)  # that is what fitting is for


def test_m2po_fitted_to_a_ratio_beyond_all_bounds_leaves_it_out() -> None:
    fitted = M2PO(0.04).fitted(torch.tensor([0.1, 50.0]))
    assert kept(fitted, [0.1, 50.0]) == pytest.approx([0.01], abs=1e-12)


def test_m2po_counts_only_the_tokens_that_count() -> None:
    # Of two counted tokens at 0.3 neither is within 0.05; with the masked 0 in place of one, both would be: 0.045.
    row = nats([0.3, 0.3, 0.0])
    mask = torch.tensor([[True, True, False]])
    found = M2PO(0.05).surrogate(Tokens(row, torch.zeros_like(row), row, nats([1.0]), mask))
    assert not found.loss[mask].any() and found.is_high_clipped[mask].all()


def test_m2po_keeps_what_reaches_its_bound_exactly_and_has_the_published_one() -> None:
    assert kept(M2PO(0.25), [0.5, 0.5]) == [0.25, 0.25]
    assert M2PO().max_m2 == 0.04
