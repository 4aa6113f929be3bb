"""A bare training loop in plain PyTorch: the trainer's speed is compared with it, and it tries batch sizes."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel_restore.config.schema import Config
from accel_restore.inference.apply import PRECISIONS
from accel_restore.losses import Loss
from accel_restore.models.compile import compile_blocks
from accel_restore.models.pretrained import initial_model
from accel_restore.models.recomputation import checkpoint_blocks
from accel_restore.optim import get_optimizer
from accel_restore.optim.ema import get_average


class BareLoop:
    """Optimizer steps as the trainer makes them, without everything around them.

    Model, loss, optimizer, clipping, EMA, precision and number of micro-batches are those of the configuration. The
    batch is always the same. Several ranks use `DistributedDataParallel`. There is no data loading, no logging, no
    check and no Accelerate.
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
        if config.train.compile:
            compile_blocks(model)
        fused = self.device.type in ("cpu", "cuda") and self.dtype is not torch.float16
        self.optimizer = get_optimizer(model, config.optimizer, fused)
        self.ema = get_average(
            config, self.optimizer, lambda: initial_model(config).to(self.device).to(memory_format=layout)
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.module, self.ddp = model, None
        if exchanging and accelerator.num_processes > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.ddp = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def __call__(self, steps: int) -> None:
        """Make `steps` optimizer steps."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            for micro_step in range(self.accumulation):
                is_last = micro_step == self.accumulation - 1
                with nullcontext() if is_last or self.ddp is None else self.ddp.no_sync():
                    self.scaler.scale(self.loss() / self.accumulation).backward()
            if self.max_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.ema is not None:
                self.ema.update(self.module)

    def loss(self) -> Tensor:
        """Return the mean loss of the batch."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            output = (self.ddp or self.module)(self.input)
        return self.loss_fn(output, self.gt).mean()
