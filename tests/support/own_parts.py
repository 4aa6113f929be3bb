"""Optimizers and schedules of a user's own: some that work, and one for each way in which one can be wrong."""

import math
import random
from collections import deque

import numpy as np
import torch
from pytorch_optimizer import ScheduleFreeWrapper
from torch.optim import lr_scheduler


def wrapped(params, lr=0.01, momentum=0.9, betas=(0.0, 0.99)):
    """Return ScheduleFree around AdamW: its state_dict has a form of its own, and it starts in evaluation mode."""
    return ScheduleFreeWrapper(torch.optim.AdamW(params, lr=lr, betas=betas), momentum=momentum)


class Plain(torch.optim.Optimizer):
    """Gradient descent, with each kind of state that can be stored."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, scales=(1.0, 0.5)):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "scales": scales, "kind": torch.float32})
        assert isinstance(scales, tuple)
        self.state["calls"] = {"count": 0}

    @torch.no_grad()
    def step(self, closure=None):
        self.state["calls"]["count"] += 1
        for group in self.param_groups:
            group["counter"] = group.get("counter", 0) + 1
            group["total"] = group.get("total", torch.zeros(3)) + 1
            for parameter in group["params"]:
                own = self.state[parameter]
                if not own:
                    half = torch.zeros(parameter.shape, dtype=torch.bfloat16)
                    own |= {"half": half, "mask": parameter > 0, "last": deque(maxlen=2), "none": None, "word": "abc"}
                    own |= {"nested": {1: [torch.zeros(2), ()], "x": (1, 2.5, math.inf)}, "flag": True, "count": 0}
                own["count"] += 1
                own["half"] = (0.9 * own["half"] + parameter.grad).to(torch.bfloat16)
                own["last"].append(parameter.grad.clone())
                own["nested"][1][0] += own["count"]
                step = own["half"] + own["mask"] * 0.1 + sum(own["last"]) + own["nested"][1][0].sum()
                step = step * group["scales"][1] * (1 + group["counter"] / 7) * group["total"].sum().sqrt()
                parameter.sub_(step * group["lr"] * (1 + self.state["calls"]["count"] / 11))


class Descent(torch.optim.Optimizer):
    """Gradient descent; the base of those that are wrong."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def factor(self):
        return 1.0

    @torch.no_grad()
    def step(self, closure=None):
        factor = self.factor()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad * factor, alpha=group["lr"])


class Hidden(Descent):
    """Its count of steps is not in state_dict()."""

    calls = 0

    def factor(self):
        self.calls += 1
        return 1 / self.calls


class Drawing(Descent):
    def factor(self):
        return torch.rand(())


class DrawingInPython(Descent):
    def factor(self):
        return random.random()


class DrawingInNumPy(Descent):
    def factor(self):
        return np.random.rand()  # noqa: NPY002  as optimizers of others do


class Warming(Descent):
    def factor(self):
        self.param_groups[0]["lr"] *= 1.1
        return 1.0


class Keeping(Descent):
    def factor(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["generator"] = torch.Generator()
        return 1.0


class Closing(Descent):
    def step(self, closure):
        closure()
        super().step()


class Failing(Descent):
    def factor(self):
        raise KeyError("momentum")


class Viewing(Descent):
    def factor(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.view(-1)
        return 1.0


class Forgetful(Descent):
    """Evaluates other weights than it trains, and does not come back to the same state."""

    count = 0

    def train(self):
        pass

    def eval(self):
        self.count += 1

    def factor(self):
        return 1 + self.count


def one_of_many(params, lr=0.1):
    """Leave out all parameters but the first."""
    return torch.optim.SGD(params[0]["params"][:1], lr=lr)


def no_rate(params):
    return torch.optim.SGD(params, lr=torch.tensor(0.1))


def nothing(params, lr=0.1):
    return {"lr": lr}


def triangle(optimizer, epochs, peak=3.0):
    """Rise to `peak` times the rate in the middle of the run."""
    return lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 1 + (peak - 1) * (1 - abs(2 * epoch / epochs - 1)) if epoch <= epochs else 1.0
    )


class Chained(lr_scheduler.LRScheduler):
    """Each rate follows from the one before; only state_dict() knows it."""

    def __init__(self, optimizer):
        self.factors = [1.0]
        super().__init__(optimizer)

    def get_lr(self):
        if self.last_epoch:
            self.factors.append(self.factors[-1] * 0.9)
        return [base * self.factors[-1] for base in self.base_lrs]


class OwnPlateau(lr_scheduler.ReduceLROnPlateau):
    def __init__(self, optimizer, factor=0.5):
        super().__init__(optimizer, factor=factor, patience=0)


def not_one(optimizer, epochs):
    return 3


def raising(optimizer, epochs):
    raise KeyError("peak")


def late(optimizer, epochs):
    """Raise in the third epoch."""
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: [1.0, 1.0][epoch])


def negative(optimizer, epochs):
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 - epoch)


def undefined(optimizer, epochs):
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: math.nan if epoch else 1.0)


def drawn(optimizer, epochs):
    return lr_scheduler.LambdaLR(optimizer, lambda epoch: random.random())


def of_another(optimizer, epochs):
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return lr_scheduler.ConstantLR(other)


def sneaking(optimizer, epochs):
    """Change the rate in the optimizer's step too."""

    def shrink(*_):
        optimizer.param_groups[0]["lr"] *= 0.9

    optimizer.register_step_post_hook(shrink)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


class Normed(torch.nn.Module):
    """A discriminator with batch statistics."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = torch.nn.Conv2d(channels, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.last = torch.nn.Conv2d(4, 1, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(images))))
