"""A bare training loop in plain PyTorch.

`bench train` compares the trainer's speed with it. `data.batch_size: auto` tries sizes with it.
"""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel_restore.config.schema import Config
from accel_restore.inference.apply import PRECISIONS
from accel_restore.losses import Loss
from accel_restore.losses.adversarial import Objective, r1
from accel_restore.models.compile import compile_blocks
from accel_restore.models.pretrained import initial_model
from accel_restore.models.recomputation import checkpoint_blocks
from accel_restore.models.spectral_norm import power_iteration
from accel_restore.optim import get_optimizer
from accel_restore.optim.adversary import fixed, initial_discriminator
from accel_restore.optim.ema import get_average


class BareLoop:
    """Optimizer steps as the trainer makes them, without everything around them.

    Model, loss, optimizer, clipping, EMA, precision and number of micro-batches are those of the configuration, and so
    is the discriminator with adversarial training. The batch is always the same. Several ranks use
    `DistributedDataParallel`. There is no data loading, no logging, no check and no Accelerate.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        loss_fn: Loss,
        batch: dict[str, Tensor],
        accumulation: int = 1,
        exchanging: bool = True,
    ):
        """Build the model and its optimizer. Without `exchanging`, each rank trains alone.

        Shapes: `input` and `gt` of `batch` are (B, C, H, W), on the device.
        """
        self.device, self.loss_fn, self.accumulation = accelerator.device, loss_fn, accumulation
        self.input, self.gt = batch["input"], batch["gt"]
        self.max_grad_norm, self.dtype = config.train.max_grad_norm, PRECISIONS[accelerator.mixed_precision]
        layout = torch.channels_last if config.train.channels_last else torch.preserve_format
        model = initial_model(config).to(self.device).to(memory_format=layout).train()
        if config.train.checkpoint_blocks:
            checkpoint_blocks(model)
        compile_blocks(model, config.train.compile)
        fused = self.device.type in ("cpu", "cuda") and self.dtype is not torch.float16
        self.optimizer = get_optimizer(model, config.optimizer, fused)
        self.ema = get_average(
            config, self.optimizer, lambda: initial_model(config).to(self.device).to(memory_format=layout)
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.module, self.ddp = model, None
        if exchanging and accelerator.num_processes > 1:
            self.ddp = _parallel(model, self.device)
        self.judge = None if config.adversarial is None else _BareDiscriminator(config, self, fused)

    def __call__(self, steps: int) -> None:
        """Make `steps` optimizer steps."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            for micro_step in range(self.accumulation):
                self.backward(is_last=micro_step == self.accumulation - 1)
            if self.max_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.ema is not None:
                self.ema.update(self.module)
            if self.judge is not None:
                self.judge.step()

    def backward(self, is_last: bool = True) -> None:
        """Add the gradients of one micro-batch; ranks exchange them with the last one."""
        with nullcontext() if is_last or self.ddp is None else self.ddp.no_sync():
            self.scaler.scale(self.loss() / self.accumulation).backward()
        if self.judge is not None:
            self.judge.backward(is_last)

    def loss(self) -> Tensor:
        """Return the mean loss of the batch."""
        with self.autocast():
            output = (self.ddp or self.module)(self.input)
        self.output = output.detach()
        loss = self.loss_fn(output, self.gt).mean()
        return loss if self.judge is None else loss + self.judge.term(output)

    def autocast(self) -> torch.autocast:
        """Return the context of forwards in the run's precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)


class _BareDiscriminator:
    """The discriminator of a `BareLoop`, which trains it in every step."""

    def __init__(self, config: Config, loop: BareLoop, fused: bool):
        assert config.adversarial is not None
        self.loop, self.config, self.max_grad_norm = loop, config.adversarial, config.train.max_grad_norm
        self.steps = 0
        self.objective = Objective(config.adversarial.loss)
        layout = torch.channels_last if config.train.channels_last else torch.preserve_format
        self.module = initial_discriminator(config).to(loop.device).to(memory_format=layout).train()
        compile_blocks(self.module, config.train.compile)
        self.optimizer = get_optimizer(self.module, config.adversarial.optimizer, fused)
        self.scaler = torch.amp.GradScaler(loop.device.type, enabled=loop.dtype is torch.float16)
        self.ddp = None if loop.ddp is None else _parallel(self.module, loop.device)
        self.optimizer.zero_grad()

    def term(self, output: Tensor) -> Tensor:
        """Return the generator's adversarial term, weighted."""
        with fixed(self.module), self.loop.autocast():
            real = self.module(self.loop.gt) if self.objective.is_relativistic else None
            fake = self.module(output)
        return self.config.weight * self.objective.generator(fake, real).mean()

    def backward(self, is_last: bool) -> None:
        """Add the gradient of the discriminator's loss on gt and on the last output."""
        with nullcontext() if is_last or self.ddp is None else self.ddp.no_sync():
            network = self.ddp or self.module
            with self.loop.autocast():
                real, fake = network(self.loop.gt), network(self.loop.output)
            loss = self.objective.discriminator(real, fake).mean()
            if self.config.r1 > 0 and self.steps % self.config.r1_every == 0:
                loss = loss + self.config.r1 * self.config.r1_every * r1(self.module, self.loop.gt).mean()
            self.scaler.scale(loss / self.loop.accumulation).backward()

    def step(self) -> None:
        """Step the optimizer, and update the vectors of spectral norm."""
        if self.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        power_iteration(self.module)
        self.optimizer.zero_grad()
        self.steps += 1


def _parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
