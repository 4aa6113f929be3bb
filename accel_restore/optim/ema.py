"""The exponential moving average of the weights."""

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of a model's weights, kept in `module`, a second model that was built like it.

    Buffers are copied from the model. A module that makes buffers in its forward makes its own here.

    The first update copies the weights. Update t, counted from 0, has the decay `decay`, with `warm_up` at most
    (1 + t) / (10 + t), so that the first weights lose their influence soon. torch's AveragedModel counts updates on
    the device, and every update would wait for that count.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`. Deviation: the copy at t = 0, as in torch.
    """

    def __init__(self, module: nn.Module, decay: float, warm_up: bool):
        self.module = module.requires_grad_(False)
        self.decay, self.warm_up, self.num_updates = decay, warm_up, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        t = self.num_updates
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay if t else 1.0)
        buffers = dict(model.named_buffers())
        for name, average in self.module.named_buffers():
            if name in buffers and buffers[name].shape == average.shape:
                average.copy_(buffers[name])
        self.num_updates = t + 1
