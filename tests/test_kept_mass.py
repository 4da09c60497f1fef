"""What top-k and top-p leave of a distribution: by hand, by transformers' own rule, and as the sampler draws."""

import math

import pytest
import torch
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from kit.config import Sampling
from kit.logprobs import log_kept_mass
from kit.samplers.transformers import draw

PROBS = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)  # in descending order: tokens 1, 3, 2, 0


def kept(token: int, **cuts: float | int | None) -> tuple[float, bool]:
    log_mass, is_cut = log_kept_mass(PROBS.log()[None], torch.tensor([token]), **cuts)  # pyright: ignore[reportArgumentType]
    return log_mass.exp().item(), bool(is_cut)


@pytest.mark.parametrize(
    ("cuts", "token", "mass", "is_cut"),
    [
        ({}, 0, 1.0, False),
        ({"top_p": 0.6}, 1, 0.7, False),  # .4 does not reach .6, so the next stays: .4 + .3
        ({"top_p": 0.6}, 3, 0.7, False),
        ({"top_p": 0.6}, 2, 0.9, True),  # .7 before it; with it, .9 is kept
        ({"top_p": 0.6}, 0, 1.0, True),
        ({"top_p": 0.01}, 1, 0.4, False),  # the most likely one always stays
        ({"top_k": 2}, 3, 0.7, False),
        ({"top_k": 2}, 2, 0.9, True),
        ({"top_k": 9}, 0, 1.0, False),
        # Of .4 and .3 renormalized, .571 reaches .5 alone; without top-k, .4 would not.
        ({"top_k": 2, "top_p": 0.5}, 1, 0.4, False),
        ({"top_p": 0.5}, 1, 0.7, False),
        ({"top_k": 2, "top_p": 0.5}, 3, 0.7, True),
    ],
)
def test_the_kept_mass_is_the_one_counted_by_hand(
    cuts: dict[str, float | int | None], token: int, mass: float, is_cut: bool
) -> None:
    found = kept(token, **cuts)
    assert found == (pytest.approx(mass, abs=1e-12), is_cut)


def test_temperature_comes_before_the_cut() -> None:
    # Logits 2 log p at temperature 2 are log p. Cut before tempering, .16 of .30 would reach top_p = .5 alone.
    log_mass, _ = log_kept_mass(2 * PROBS.log()[None], torch.tensor([1]), temperature=2.0, top_p=0.5)
    assert log_mass.item() == pytest.approx(math.log(0.7), abs=1e-12)


def test_of_equally_likely_tokens_at_the_edge_each_may_have_been_kept() -> None:
    log_mass, is_cut = log_kept_mass(torch.zeros(4, 4), torch.arange(4), top_p=0.5)
    assert log_mass.tolist() == pytest.approx([math.log(0.5)] * 4) and not is_cut.any()


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.8), (5, 1.0), (20, 0.6), (40, 0.99)])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 7])
def test_the_kept_mass_is_that_of_transformers_warpers(
    top_k: int | None, top_p: float, chunk_tokens: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    logits, labels = hidden @ weight.T / 0.7, torch.randint(60, (50,), generator=generator)
    warpers = LogitsProcessorList([TopKLogitsWarper(top_k)] if top_k else [])
    warpers.append(TopPLogitsWarper(top_p))
    warped = warpers(torch.zeros(50, 1, dtype=torch.long), logits)  # -inf where cut
    log_mass, is_cut = log_kept_mass(
        hidden, labels, weight=weight, temperature=0.7, top_p=top_p, top_k=top_k, chunk_tokens=chunk_tokens
    )
    rows = torch.arange(50)
    assert torch.equal(is_cut, warped[rows, labels].isinf()) and 0 < is_cut.sum() < 50
    expected = (warped.logsumexp(-1) - logits.logsumexp(-1))[~is_cut]
    torch.testing.assert_close(log_mass[~is_cut], expected, rtol=0, atol=1e-12)


def test_a_drawn_token_has_the_logprob_it_was_drawn_with() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 50, generator=generator)
    sampling = Sampling(temperature=0.8, top_p=0.7)
    token, logprob, _ = draw(logits, torch.rand(400, generator=generator), sampling)
    log_mass, is_cut = log_kept_mass(logits, token, temperature=0.8, top_p=0.7)
    full = (logits / 0.8).log_softmax(-1)[torch.arange(400), token]
    torch.testing.assert_close(full - log_mass, logprob, rtol=0, atol=2e-6)
    assert not is_cut.any() and math.log(0.7) <= log_mass.min() and log_mass.max() < 0


@pytest.mark.parametrize(
    "change", [{"top_p": 0.0}, {"top_p": 1.1}, {"top_p": math.nan}, {"top_k": 0}, {"top_k": -1}], ids=str
)
def test_a_cut_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected top_p in .* and top_k >= 1 or None, came"):
        kept(0, **change)
