"""A key-value cache that is allocated once, so that a new token never copies the old ones."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class PreallocatedLayer(CacheLayerMixin):
    """Keys and values of one layer, (row, head, capacity, head size); the first `length` columns are filled."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, size = key_states.shape
        self.keys = key_states.new_empty((rows, heads, self.capacity, size))
        self.values = value_states.new_empty((rows, heads, self.capacity, value_states.shape[-1]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            raise ValueError(f"the key-value cache was allocated for {self.capacity} tokens, and {end} are needed")
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: torch.Tensor) -> None:
        """Keep `rows` (indices, repeats allowed), in that order."""
        assert self.keys is not None and self.values is not None
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((len(rows), *old.shape[1:]))
            torch.index_select(old[:, :, : self.length], 0, rows, out=new[:, :, : self.length])
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class PreallocatedCache(Cache):
    """One `PreallocatedLayer` a layer, with the two row operations a group-wise sampler needs."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self._own_layers = [PreallocatedLayer(capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self._own_layers))

    def repeat_rows(self, times: int) -> None:
        """Each row `times` times in a row: what was read of a prompt serves its whole group."""
        keys = self._own_layers[0].keys
        assert keys is not None, "a cache that nothing was read into has no rows"
        self._select(torch.arange(len(keys), device=keys.device).repeat_interleave(times))

    def keep_rows(self, kept: torch.Tensor) -> None:
        """Drop the rows where the boolean `kept` (row,) is False."""
        self._select(kept.nonzero().squeeze(1))

    def _select(self, rows: torch.Tensor) -> None:
        for layer in self._own_layers:
            layer.select(rows)
