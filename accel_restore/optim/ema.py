"""The weights that are validated and saved in place of the trained ones: their average, or the optimizer's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from accel_restore.config.schema import Config
from accel_restore.errors import UserError
from accel_restore.optim.own import has_modes


class Ema:
    """The exponential moving average of a model's weights, kept in `module`, a second model that was built like it.

    Buffers are copied from the model if `module` has them too, with the same shapes. A layer that creates a buffer in
    its forward creates its own in `module`.

    The first update copies the weights. Update t, counted from 0, has the decay `decay`, with `warm_up` at most
    (1 + t) / (10 + t), so that the first weights lose their influence soon. torch's AveragedModel counts updates on
    the device, and every update would wait for that count.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`. Deviation: the copy at t = 0, as in torch.
    """

    def __init__(self, module: nn.Module, decay: float, warm_up: bool):
        self.module = module.requires_grad_(False)
        self.decay, self.warm_up, self.num_updates = decay, warm_up, 0
        self._found: tuple[nn.Module, list[Tensor], list[Tensor]] | None = None  # a model, its weights, the averages

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        t = self.num_updates
        decay = min(self.decay, (1 + t) / (10 + t)) if self.warm_up else self.decay
        if self._found is None or self._found[0] is not model:  # finding them takes longer than averaging them
            self._found = model, list(model.parameters()), list(self.module.parameters())
        _, weights, averages = self._found
        torch._foreach_lerp_(averages, weights, 1 - decay if t else 1.0)
        _copy_buffers(model, self.module)
        self.num_updates = t + 1


class EvalWeights:
    """The weights that an optimizer with `train()` and `eval()` evaluates, such as ScheduleFree's, in a second model.

    Reading `module` first copies the weights if a step was made since the last copy. Its buffers are copied from the
    model: batch statistics are those of the training weights.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer):
        self._module, self.optimizer, self.num_updates = module.requires_grad_(False), optimizer, 0
        self._model: nn.Module | None = None  # trained since `module` was filled

    def update(self, model: nn.Module) -> None:
        """Record that the model's weights have changed."""
        self._model, self.num_updates = model, self.num_updates + 1

    @property
    def module(self) -> nn.Module:
        """The model with the optimizer's weights for evaluation."""
        if self._model is not None:
            self._fill(self._model)
            self._model = None
        return self._module

    @torch.no_grad()
    def _fill(self, model: nn.Module) -> None:
        """Copy the weights for evaluation. The weights of training are put back exactly; `train()` rounds them."""
        parameters = list(model.parameters())
        trained = [parameter.clone() for parameter in parameters]
        self.optimizer.eval()  # type: ignore[attr-defined]  # see `has_modes`
        for own, parameter in zip(self._module.parameters(), parameters, strict=True):
            own.copy_(parameter)
        self.optimizer.train()  # type: ignore[attr-defined]
        for parameter, weights in zip(parameters, trained, strict=True):
            parameter.copy_(weights)
        _copy_buffers(model, self._module)


Average = Ema | EvalWeights


def _copy_buffers(model: nn.Module, target: nn.Module) -> None:
    own = dict(target.named_buffers())
    buffers = dict(model.named_buffers()) if own else {}
    for name, buffer in own.items():
        if name in buffers and buffers[name].shape == buffer.shape:
            buffer.copy_(buffers[name])


def needs_copy(config: Config, optimizer: Optimizer) -> bool:
    """Return whether a second model is validated and saved.

    Raises: UserError if there are two reasons for one.
    """
    if config.train.ema_decay is not None and has_modes(optimizer):
        raise UserError(
            f"train.ema_decay: {config.optimizer.name} averages the weights itself (it has train() and eval()); set "
            "train.ema_decay=null"
        )
    return config.train.ema_decay is not None or has_modes(optimizer)


def get_average(config: Config, optimizer: Optimizer, build: Callable[[], nn.Module]) -> Average | None:
    """Return what is validated and saved in place of the model, if anything. `build` returns a model like it."""
    if not needs_copy(config, optimizer):
        return None
    if config.train.ema_decay is None:
        return EvalWeights(build(), optimizer)
    return Ema(build(), config.train.ema_decay, config.train.ema_warmup)
