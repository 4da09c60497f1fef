"""Bytes that operations allocate, counted from outside; real tensors or fake ones."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is active, now and at most; not those of `old`."""

    def __init__(self, old: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakKeyDictionary({tensor.untyped_storage(): None for tensor in old})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen[storage] = None
                self._add(storage.nbytes())
                finalize(storage, self._add, -storage.nbytes()).atexit = False
        return output

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)
