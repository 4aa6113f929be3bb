"""Measure the memory of this machine and of this process."""

import weakref

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from accel_restore.utils.cgroups import memory_left


def memory_bytes() -> int:
    """Return the bytes that this process can still use: free or cached memory, within the limits of its groups."""
    return int(min(psutil.virtual_memory().available, memory_left()))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the host is out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations create; `most` is the peak, `trace` the bytes after each."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.known: set[int] = set()
        self.trace: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        self.trace.append(self.live)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self.known:
            return
        size = storage.nbytes()
        self.known.add(id(storage))
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._drop, id(storage), size)

    def _drop(self, number: int, size: int) -> None:
        self.known.discard(number)
        self.live -= size
