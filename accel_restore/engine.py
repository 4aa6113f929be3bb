"""The flow: weights change in `optimizer.step()`, every batch; the learning rate in `scheduler.step()`, every epoch.

    once          model = build; optimizer; scheduler over epochs; accelerator.prepare(...)
    every epoch   train_epoch → validate (no gradients, no step) → scheduler.step() once, on every rank → save if best
    every batch   zero_grad → output = model(input) → loss(output, gt) → accelerator.backward → optimizer.step

A batch is one optimizer step; with gradient accumulation it comes in several micro-batches. Hooks observe.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast
from torch import Tensor, nn

from accel_restore.config.schema import Config
from accel_restore.data.loader import TrainLoader
from accel_restore.data.val_dataset import ValidationDataset
from accel_restore.distributed.fsdp import autocast_forward, copy_full_state, full_tensor, gather_by_block, shard
from accel_restore.errors import PreemptedError
from accel_restore.losses import Loss
from accel_restore.metrics import Measure, get_metric
from accel_restore.metrics.protocol import Protocol
from accel_restore.models.blocks import upscale
from accel_restore.models.compile import compile_blocks
from accel_restore.models.parameters import freeze
from accel_restore.models.pretrained import build_or_load_model
from accel_restore.optim import get_optimizer
from accel_restore.optim.ema import Ema
from accel_restore.optim.schedules import get_scheduler, step_scheduler
from accel_restore.state import Callback, TrainState


def setup_model_and_optimizer(config: Config, accelerator: Accelerator, epochs: int) -> TrainState:
    """Model, optimizer and scheduler at epoch 0, prepared for this rank's device; the same weights on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model = build_or_load_model(config.model, config.data.channels, config.data.scale)
    freeze(model, config.train.freeze)
    torch.manual_seed(config.run.seed + accelerator.process_index)  # only models with dropout draw from it
    if config.train.channels_last and not accelerator.is_fsdp2:  # which shards contiguous weights alone
        model = model.to(memory_format=torch.channels_last)
    ema = None
    plain = copy.deepcopy(model).to(accelerator.device) if accelerator.is_fsdp2 else None
    if config.train.ema_decay is not None:
        ema = Ema(model, config.train.ema_decay, config.train.ema_warmup)
        ema.module.to(accelerator.device)
    if config.train.compile:
        compile_blocks(model)
    # With fp16 a fused step would unscale gradients inside, where neither clipping nor a logged norm can see them.
    fused = accelerator.device.type in ("cpu", "cuda") and accelerator.mixed_precision != "fp16"
    optimizer = get_optimizer(model, config.optimizer, fused)
    scheduler = get_scheduler(optimizer, config.scheduler, epochs)
    if accelerator.is_fsdp2:
        gather_by_block(model, accelerator)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if accelerator.is_fsdp2:
        autocast_forward(model, accelerator)
        if ema is not None:
            ema.module = shard(ema.module, accelerator)
    warm_up_ddp_buckets(model, config, accelerator)
    terms = tuple(sorted(config.loss)) if len(config.loss) > 1 else ()  # a resumed run may name them in another order
    sums = torch.zeros(2 + len(terms), dtype=torch.float64, device=accelerator.device)
    return TrainState(model, optimizer, scheduler, ema, plain, terms=terms, epoch_sums=sums, window_sums=sums.clone())


def warm_up_ddp_buckets(model: nn.Module, config: Config, accelerator: Accelerator) -> None:
    """Run one backward whose gradients are thrown away, where the order of a sum over ranks matters: from 3 ranks on.

    DDP lays out its gradient buckets anew after the first backward, which changes the order in which ranks are added
    up; so a resumed run would round differently from one that was not interrupted.
    """
    if accelerator.num_processes < 3 or accelerator.is_fsdp2:
        return
    model.eval()  # leaves batch statistics alone
    size = config.data.patch_size // config.data.scale
    for _ in range(2):  # the layout changes at the second forward
        images = torch.zeros(1, config.data.channels, size, size, device=accelerator.device)
        with torch.compiler.set_stance("force_eager"):
            accelerator.backward(model(images).sum())
    model.zero_grad()


def train(
    state: TrainState,
    loader: TrainLoader,
    images: ValidationDataset,
    loss_fn: Loss,
    accelerator: Accelerator,
    config: Config,
    epochs: int,
    callbacks: Sequence[Callback],
    protocol: Protocol,
    save_best: Callable[[TrainState], None],
    look: Callable | None = None,
    stop: Callable[[], bool] = bool,
) -> None:
    """Train until `epochs` epochs are complete, from wherever `state` stands.

    Raises: PreemptedError where `stop` says so during validation; what else ends a run early, hooks raise.
    """
    while state.epoch < epochs:
        epoch, lr = state.epoch, state.lr
        steps = loader.steps(epoch, state.epoch_step)
        train_loss = train_epoch(state, steps, loss_fn, accelerator, callbacks, config.train.max_grad_norm)

        scores, is_best = {}, False
        if (epoch + 1) % config.validation.every_epochs == 0 or epoch + 1 == epochs:
            model = accelerator.unwrap_model(state.model) if state.ema is None else state.ema.module
            model = model if state.plain is None else copy_full_state(state.plain, model)
            broadcast_buffers(model, accelerator)
            at_once = config.validation.batch_size
            scores = validate(model, images, loss_fn, protocol, accelerator, look, stop, at_once)
            for callback in callbacks:
                callback.on_validation(state)
        val_loss = monitored_value(scores, config.validation.monitor)

        step_scheduler(
            state.scheduler, val_loss
        )  # scheduler.step(): once an epoch, on every rank; only here the rate changes

        if val_loss < state.best_val_loss:
            is_best, state.best_val_loss = True, val_loss
            state.best = {"epoch": epoch, "step": state.step, **scores}
            save_best(state)

        record = {
            "epoch": epoch,
            "step": state.step,
            "train_loss": train_loss,
            "lr": lr,
            "scores": scores,
            "is_best": is_best,
            "optimizer_steps": state.epoch_step,
        }
        state.epoch, state.epoch_step = epoch + 1, 0
        state.epoch_sums.zero_()
        for callback in callbacks:
            callback.on_epoch(state, record)


def train_epoch(
    state: TrainState,
    steps: Iterable[Iterable[dict]],
    loss_fn: Loss,
    accelerator: Accelerator,
    callbacks: Sequence[Callback] = (),
    max_grad_norm: float | None = None,
) -> float:
    """The mean loss over all samples of all ranks in this epoch; makes one optimizer step for each element of `steps`.

    The gradient of a step is that of the mean loss over the step's real samples, whatever the ranks, the accumulation
    and the padding: a sample's weight is ranks / real samples (0: padding), and the ranks' gradients are averaged.
    A step whose gradient is no number is skipped, by all ranks alike; losses that are none do not count in the mean.
    """
    state.model.train()
    for micro_batches in steps:  # one optimizer step each
        state.optimizer.zero_grad()
        state.losses.clear()
        for batch in micro_batches:
            # Ranks exchange gradients once a step, with the last micro-batch.
            with nullcontext() if batch["is_last"] else accelerator.no_sync(state.model):
                output = state.model(batch["input"])
                terms = loss_fn.terms(output, batch["gt"])  # name → (B,), weighted
                losses = sum(terms.values())
                loss = (losses * batch["weight"]).sum()
                accelerator.backward(propagate_nan(loss))
            state.count(losses, terms, batch)
        state.grad_norm = gradient_norm(state.model, accelerator, max_grad_norm)
        is_number = state.grad_norm.isfinite()  # equal on all ranks, as gradients are; still on the device
        if arm_skip_if_nan(state.optimizer, accelerator, is_number) or is_number:
            state.optimizer.step()  # the only place where weights change
        was_made = bool(is_number)  # waits for the device, which has the optimizer's step in its queue
        state.skipped_in_row = 0 if was_made else state.skipped_in_row + 1
        if state.ema is not None and was_made:
            state.ema.update(accelerator.unwrap_model(state.model))
        state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
        for callback in callbacks:
            callback.on_step(state)

    loss_sum, num_samples, *_ = accelerator.reduce(state.epoch_sums, reduction="sum").tolist()
    return loss_sum / num_samples if num_samples else math.nan


def propagate_nan(loss: Tensor) -> Tensor:
    """The loss; where it is no number all its gradients are none, and so, once exchanged, those of every rank."""
    return loss * (1 + 0 * loss.detach())


def gradient_norm(model: nn.Module, accelerator: Accelerator, max_norm: float | None) -> Tensor:
    """The L2 norm of all gradients together, which are then clipped to `max_norm`."""
    if max_norm is not None:
        return full_tensor(accelerator.clip_grad_norm_(model.parameters(), max_norm))
    accelerator.unscale_gradients()
    return full_tensor(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def arm_skip_if_nan(optimizer: AcceleratedOptimizer, accelerator: Accelerator, is_number: Tensor) -> bool:
    """Have the coming `optimizer.step()` change nothing where the gradient is no number; returns whether it can.

    torch's fused Adam and AdamW can, told as its GradScaler tells them: the device looks, and nobody waits. Its fused
    SGD cannot in the first step, which makes the momentum, nor can the parts of FSDP2. fp16's scaler leaves out such a
    step by itself, and lowers its scale.
    """
    inner = optimizer.optimizer
    if isinstance(inner, torch.optim.Adam) and not accelerator.is_fsdp2 and all(g["fused"] for g in inner.param_groups):
        inner.found_inf = (~is_number).float()
        return True
    return accelerator.scaler is not None


def broadcast_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all ranks the main process's buffers (batch statistics), which each has gathered from its own samples."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


@torch.no_grad()
def validate(
    model: nn.Module,
    images: ValidationDataset,
    loss_fn: Loss,
    protocol: Protocol,
    accelerator: Accelerator,
    look: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
    stop: Callable[[], bool] = bool,
    batch_size: int = 1,
) -> dict[str, float]:
    """The mean scores over whole images, each counted once: `loss`, the protocol's, and `input_…` of the input.

    For super-resolution the input is scored after bicubic enlarging. A loss of several terms adds `term_…` of each.

    Batches of at most `batch_size` images of equal size are dealt out to the ranks, one batch to one rank; which images
    share one, and so a score, does not depend on the number of ranks. The weights are not changed. `look(index, input,
    output, gt)` is shown every image that this rank scores; `stop` is asked before each batch.

    Raises: PreemptedError on all ranks, where `stop` was true on one.
    """
    model.eval()
    rank, world_size, metrics = accelerator.process_index, accelerator.num_processes, protocol.scores
    terms = loss_fn.names if len(loss_fn.names) > 1 else ()
    names = ["loss", *metrics, *(f"input_{name}" for name in metrics), *(f"term_{name}" for name in terms), "scored"]
    table = torch.zeros(len(images), len(names), dtype=torch.float64, device=accelerator.device)
    for indices in images.batches(batch_size)[rank::world_size]:
        if stop():
            break
        batch = images.batch(indices)
        # Where the model is compiled, not anew for the size of every image.
        with accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            output = protocol.output(model, batch["input"], images.scale)
        output, gt = output.to(batch["gt"].dtype), batch["gt"]
        before = upscale(batch["input"], images.scale)
        for index, *seen in zip(indices, *(part.split(1) for part in (before, output, gt)), strict=True):
            table[index] = scores_of(*seen, loss_fn, terms, metrics)
            if look is not None:
                look(index, *seen)
    means = accelerator.reduce(table, "sum").mean(0)  # each row is one rank's
    *means, scored = means.tolist()
    if scored < 1:
        raise PreemptedError("stopped during validation")
    return dict(zip(names[:-1], means, strict=True))


def scores_of(
    input: Tensor, output: Tensor, gt: Tensor, loss_fn: Loss, terms: Sequence[str], metrics: dict[str, Measure]
) -> Tensor:
    """The loss, the metrics of output and of input, the `terms` of the loss, and 1: a row of `validate`'s table."""
    values = loss_fn.terms(output, gt)
    scores = [sum(values.values())]
    scores += [metric(image, gt) for image in (output, input) for metric in metrics.values()]
    scores += [values[name] for name in terms]
    return torch.cat([*(score.double().to(gt.device) for score in scores), gt.new_ones(1).double()])


def monitored_value(scores: dict[str, float], monitor: str) -> float:
    """The value that decides which weights are best, lower is better; infinite without scores, never best if NaN."""
    if not scores:
        return math.inf
    return -scores[monitor] if monitor != "loss" and get_metric(monitor).higher_is_better else scores[monitor]
