"""The exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of a model's weights. Buffers are copied from the model.

    The first update copies the weights. Update t, counted from 0, has the decay `decay`, with `warm_up` at most
    (1 + t) / (10 + t), so that the first weights lose their influence soon. torch's AveragedModel counts updates on
    the device, and every update would wait for that count.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`. Deviation: the copy at t = 0, as in torch.
    """

    def __init__(self, model: nn.Module, decay: float, warm_up: bool):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.warm_up, self.num_updates = decay, warm_up, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        t = self.num_updates
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay if t else 1.0)
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
        self.num_updates = t + 1
