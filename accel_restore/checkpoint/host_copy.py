"""Copies of tensors in the host's memory, which a thread writes while training changes the originals."""

import torch
from torch import Tensor


class HostCopy:
    """Copies tensors to memory that the next copy of the same name reuses, because allocating memory takes longer.

    Copies from a CUDA device go to pinned memory without waiting: the device copies before it runs later operations.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor, in the same memory layout. Read it after `wait` and before the next copy."""
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
            self._buffers[name] = buffer
        buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            self._copied = torch.cuda.current_stream(tensor.device).record_event(self._copied)
        return buffer

    def wait(self) -> None:
        """Wait until the copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()
