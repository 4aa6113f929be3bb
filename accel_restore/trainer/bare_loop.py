"""A bare loop in plain PyTorch: what the trainer is measured beside, and how a batch size is tried."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel_restore.config.schema import Config
from accel_restore.inference.apply import PRECISIONS
from accel_restore.losses import Loss
from accel_restore.models.compile import compile_blocks
from accel_restore.models.parameters import freeze
from accel_restore.models.pretrained import build_or_load_model
from accel_restore.optim import get_optimizer
from accel_restore.optim.ema import Ema


class BareLoop:
    """Optimizer steps of the same model, loss, optimizer, clipping and EMA, in the same precision and number of
    micro-batches, on one batch that stays the same; `DistributedDataParallel` where there are several ranks.

    It loads no data, logs nothing, checks nothing, and trains without Accelerate.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        loss_fn: Loss,
        batch: dict,
        accumulation: int = 1,
        exchanging: bool = True,
    ):
        """`batch` has `input` and `gt`, (B, C, H, W) on the device; without `exchanging` each rank trains alone."""
        self.device, self.loss_fn, self.accumulation = accelerator.device, loss_fn, accumulation
        self.input, self.gt = batch["input"], batch["gt"]
        self.max_grad_norm, self.dtype = config.train.max_grad_norm, PRECISIONS[accelerator.mixed_precision]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            model = build_or_load_model(config.model, config.data.channels, config.data.scale)
        freeze(model, config.train.freeze)
        layout = torch.channels_last if config.train.channels_last else torch.preserve_format
        model = model.to(self.device, memory_format=layout).train()
        self.ema = None
        if config.train.ema_decay is not None:
            self.ema = Ema(model, config.train.ema_decay, config.train.ema_warmup)
        if config.train.compile:
            compile_blocks(model)
        fused = self.device.type in ("cpu", "cuda") and self.dtype is not torch.float16
        self.optimizer = get_optimizer(model, config.optimizer, fused)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.module = self.model = model
        if exchanging and accelerator.num_processes > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def __call__(self, steps: int) -> None:
        """Make so many optimizer steps."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            for micro_step in range(self.accumulation):
                is_last = micro_step == self.accumulation - 1
                with nullcontext() if is_last or self.model is self.module else self.model.no_sync():
                    self.scaler.scale(self.loss() / self.accumulation).backward()
            if self.max_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.ema is not None:
                self.ema.update(self.module)

    def loss(self) -> Tensor:
        """The mean loss of the batch."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            output = self.model(self.input)
        return self.loss_fn(output, self.gt).mean()
