"""The preallocated cache holds what transformers' own cache holds, and never copies it for a new token."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from kit.models.policy import load_policy
from kit.samplers.kv_cache import PreallocatedCache, PreallocatedLayer

TOKENS = torch.tensor([[3, 20, 15, 21, 33], [3, 24, 15, 22, 33], [3, 28, 16, 29, 33]])
NEXT = torch.tensor([[21], [22], [23]])


def states(first: float, rows: int, tokens: int) -> torch.Tensor:
    """(row, 1 head, token, 1) holding first + 10 row + token."""
    return (first + 10 * torch.arange(rows)[:, None] + torch.arange(tokens)).view(rows, 1, tokens, 1).float()


def filled(capacity: int, rows: int, tokens: int) -> PreallocatedCache:
    cache = PreallocatedCache(1, capacity)
    cache.update(states(0, rows, tokens), states(100, rows, tokens), 0)
    return cache


@torch.no_grad()
def test_logits_equal_those_with_the_library_cache(tiny_folder: Path) -> None:
    model, _ = load_policy(str(tiny_folder))
    ours, theirs = PreallocatedCache(2, 8), DynamicCache(config=model.config)
    for tokens in (TOKENS, NEXT, NEXT + 1, NEXT + 2):
        found = [model(input_ids=tokens, past_key_values=cache, use_cache=True).logits for cache in (ours, theirs)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_dropping_and_repeating_rows_leaves_the_others_alone(tiny_folder: Path) -> None:
    model, _ = load_policy(str(tiny_folder))
    cache = PreallocatedCache(2, 8)
    model(input_ids=TOKENS, past_key_values=cache, use_cache=True)
    cache.repeat_rows(2)  # rows 0 0 1 1 2 2
    cache.keep_rows(torch.tensor([True, False, False, False, True, True]))  # rows 0 2 2
    found = model(input_ids=NEXT, past_key_values=cache, use_cache=True).logits[:, -1]
    expected = model(input_ids=torch.cat([TOKENS[[0, 2, 2]], NEXT], dim=1)).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_rows_by_hand() -> None:
    cache = filled(capacity=3, rows=2, tokens=2)
    cache.repeat_rows(2)
    keys, _ = cache.update(states(7, 4, 1), states(8, 4, 1), 0)
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 7], [0, 1, 17], [10, 11, 27], [10, 11, 37]]
    cache.keep_rows(torch.tensor([False, True, True, False]))
    layer = cache.layers[0]
    assert layer.keys is not None and layer.values is not None
    assert layer.keys[:, 0, :3, 0].tolist() == [[0, 1, 17], [10, 11, 27]]
    assert layer.values[:, 0, :3, 0].tolist() == [[100, 101, 18], [110, 111, 28]]


def test_a_new_token_does_not_move_the_old_ones() -> None:
    cache = filled(capacity=9, rows=2, tokens=2)
    keys = cache.layers[0].keys
    assert keys is not None
    before = keys.data_ptr()
    for step in range(7):
        cache.update(states(step, 2, 1), states(step, 2, 1), 0)
    assert keys is cache.layers[0].keys
    assert keys.data_ptr() == before


def test_length_counts_what_was_read() -> None:
    cache = filled(capacity=5, rows=1, tokens=2)
    assert cache.get_seq_length() == 2
    cache.update(states(0, 1, 3), states(0, 1, 3), 0)
    assert cache.get_seq_length() == 5


def test_more_tokens_than_the_capacity_are_refused() -> None:
    cache = filled(capacity=3, rows=1, tokens=2)
    with pytest.raises(ValueError, match="allocated for 3 tokens, and 4 are needed"):
        cache.update(states(0, 1, 2), states(0, 1, 2), 0)


def test_mask_covers_old_and_new_tokens() -> None:
    layer = PreallocatedLayer(6)
    layer.update(states(0, 1, 4), states(0, 1, 4))
    assert layer.get_mask_sizes(2) == (6, 0)
