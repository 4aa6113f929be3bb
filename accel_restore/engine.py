"""The flow: weights change in `optimizer.step()`, every batch; the learning rate in `scheduler.step()`, every epoch.

    once          model = build; optimizer; scheduler over epochs; accelerator.prepare(...)
    every epoch   train_epoch → validate (no gradients, no step) → scheduler.step() once, on every rank → save if best
    every batch   zero_grad → output = model(input) → loss(output, gt) → accelerator.backward → optimizer.step

With adversarial training there is a second network, the discriminator; optim/adversary.py has its step.

A batch is one optimizer step. With gradient accumulation it comes in several micro-batches. Callbacks observe.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from accelerate import Accelerator
from torch import nn

from accel_restore.config.schema import Config
from accel_restore.data.loader import TrainLoader
from accel_restore.data.val_dataset import ValidationSets
from accel_restore.distributed import fsdp
from accel_restore.distributed.collective import broadcast_buffers, warm_up_ddp_buckets
from accel_restore.errors import PreemptedError
from accel_restore.losses import Loss
from accel_restore.metrics.protocol import score_image
from accel_restore.metrics.validation_sets import SetProtocols, mean_scores
from accel_restore.models.blocks import upscale
from accel_restore.models.compile import compile_blocks, force_eager
from accel_restore.models.parameters import unwrapped
from accel_restore.models.pretrained import initial_model
from accel_restore.models.recomputation import checkpoint_blocks
from accel_restore.optim import get_optimizer, gradient_norm, propagate_nan, step_unless
from accel_restore.optim.adversary import COLUMNS, adversarial_step, setup_adversary
from accel_restore.optim.ema import get_average
from accel_restore.optim.schedules import get_scheduler, step_scheduler
from accel_restore.state import Callback, EpochRecord, Scores, TrainState, sum_names
from accel_restore.utils.stoppable import stoppable


@dataclass
class TrainingRun:
    """What the loop needs."""

    config: Config
    accelerator: Accelerator
    state: TrainState
    loader: TrainLoader
    images: ValidationSets
    loss_fn: Loss
    protocols: SetProtocols


def setup_model_and_optimizer(config: Config, accelerator: Accelerator, epochs: int) -> TrainState:
    """Model, optimizer and scheduler at epoch 0, prepared for this rank's device; the same weights on every rank."""
    model = initial_model(config)
    full_copy = initial_model(config).to(accelerator.device) if accelerator.is_fsdp2 else None  # to validate
    is_channels_last = config.train.channels_last and not accelerator.is_fsdp2  # FSDP2 shards contiguous weights only
    layout = torch.channels_last if is_channels_last else torch.preserve_format
    model.to(memory_format=layout)
    if config.train.checkpoint_blocks:
        checkpoint_blocks(model)
    compile_blocks(model, config.train.compile)
    # With fp16, a fused step unscales the gradients itself: after the norm and clipping, which is too late.
    fused = accelerator.device.type in ("cpu", "cuda") and accelerator.mixed_precision != "fp16"
    optimizer = get_optimizer(model, config.optimizer, fused)
    ema = get_average(config, optimizer, lambda: initial_model(config).to(accelerator.device).to(memory_format=layout))
    scheduler = get_scheduler(optimizer, config.scheduler, epochs)
    model, optimizer, scheduler = fsdp.prepare(model, optimizer, scheduler, ema, accelerator)  # by Accelerate
    size = config.data.patch_size // config.data.scale
    warm_up_ddp_buckets(model, (config.data.image_spec.input_channels, size, size), accelerator)
    adversary = setup_adversary(config, accelerator, epochs)
    names = {*config.loss} if adversary is None else {*config.loss, "adversarial"}
    terms = tuple(sorted(names)) if len(names) > 1 else ()  # sorted: a resumed run may reorder them
    sets = tuple(config.data.train_sets) if len(config.data.train_sets) > 1 else ()
    judged = () if adversary is None else COLUMNS
    sums = torch.zeros(len(sum_names(terms, judged, sets)), dtype=torch.float64, device=accelerator.device)
    return TrainState(
        model, optimizer, scheduler, epochs, sums, ema, full_copy,
        terms=terms, judged=judged, sets=sets, adversary=adversary,
    )  # fmt: skip


def train(run: TrainingRun, callbacks: Sequence[Callback], should_stop: Callable[[], bool] = bool) -> None:
    """Train from the state of `run` until its epochs are complete; callbacks may lower their number.

    Raises: PreemptedError if `should_stop` returns true during validation; whatever a callback raises.
    """
    state, config = run.state, run.config
    while state.epoch < state.epochs:
        fsdp.free_copy(state.full_copy)  # after the last validation
        epoch, lr = state.epoch, state.lr
        steps = run.loader.steps(epoch, state.epoch_step)
        train_loss = train_epoch(state, steps, run.loss_fn, run.accelerator, callbacks, config.train.max_grad_norm)

        scores, is_best = None, False
        if (epoch + 1) % config.validation.every_epochs == 0 or epoch + 1 == state.epochs:
            for callback in callbacks:
                callback.on_validation_start(state)
            scores = validate(
                state, run.images, run.loss_fn, run.protocols, run.accelerator, callbacks, should_stop,
                config.validation.batch_size,
            )  # fmt: skip
            for callback in callbacks:
                callback.on_validation(state)
        val_loss = run.protocols.whole.monitored_value(scores, config.validation.monitor)

        step_scheduler(state.scheduler, val_loss)  # scheduler.step(): the only place where the learning rate changes
        if state.adversary is not None:
            step_scheduler(state.adversary.scheduler, None)

        if scores is not None and val_loss < state.best_val_loss:
            is_best, state.best_val_loss = True, val_loss
            state.best = {"epoch": epoch, "step": state.step, **scores.record()}
            for callback in callbacks:
                callback.on_best(state)

        record = EpochRecord(epoch, state.step, train_loss, lr, scores, is_best, optimizer_steps=state.epoch_step)
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
    """Make one optimizer step for each element of `steps`; return the mean loss over the epoch's samples of all ranks.

    The gradient of a step is that of the mean loss over its real samples, on any number of ranks and for any
    accumulation. Each sample's loss is weighted by ranks / real samples (padding: 0), because gradients are averaged
    over the ranks. All ranks skip a step whose gradient is not finite. Losses that are not finite are left out of the
    mean.
    """
    state.model.train()
    make_step = train_step if state.adversary is None else adversarial_step
    for micro_batches in steps:  # one optimizer step each
        was_finite = make_step(state, micro_batches, loss_fn, accelerator, max_grad_norm)
        state.skipped_in_row = 0 if was_finite else state.skipped_in_row + 1
        state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
        for callback in callbacks:
            callback.on_step(state)

    loss_sum, num_samples, *_ = accelerator.reduce(state.epoch_sums, reduction="sum").tolist()
    return loss_sum / num_samples if num_samples else math.nan


def train_step(
    state: TrainState,
    micro_batches: Iterable[dict],
    loss_fn: Loss,
    accelerator: Accelerator,
    max_grad_norm: float | None,
) -> bool:
    """Make one optimizer step, or skip it; return whether its gradient was finite."""
    state.optimizer.zero_grad()
    state.micro_batches.clear()
    for batch in micro_batches:
        # Ranks exchange gradients once per step, with the last micro-batch.
        with nullcontext() if batch["is_last"] else accelerator.no_sync(state.model):
            output = state.model(batch["input"])
            terms = loss_fn.terms(output, batch["gt"])  # name → (B,), weighted
            losses = reduce(add, terms.values())
            loss = (losses * batch["weight"]).sum()
            accelerator.backward(propagate_nan(loss))
        state.count(losses, terms, batch)
    state.grad_norm = gradient_norm(state.model, accelerator, max_grad_norm)
    is_finite = state.grad_norm.isfinite()  # same on all ranks, as the gradients are; not yet copied to the host
    was_made = step_unless(~is_finite, state.optimizer, accelerator)  # the only place where weights change
    if state.ema is not None and was_made:
        state.ema.update(unwrapped(state.model))
    return was_made


def model_to_validate(state: TrainState, accelerator: Accelerator) -> nn.Module:
    """The unsharded model that is validated: EMA weights where EMA is on, with the same buffers on all ranks."""
    model = unwrapped(state.model) if state.ema is None else state.ema.module
    model = model if state.full_copy is None else fsdp.copy_full_state(state.full_copy, model)
    broadcast_buffers(model, accelerator)
    return model


@torch.no_grad()
def validate(
    state: TrainState,
    images: ValidationSets,
    loss_fn: Loss,
    protocols: SetProtocols,
    accelerator: Accelerator,
    callbacks: Sequence[Callback] = (),
    should_stop: Callable[[], bool] = bool,
    batch_size: int = 1,
) -> Scores:
    """The mean scores over the whole images of each set, each counted once. Changes no weights.

    Batches of at most `batch_size` images of one set and size are dealt out to the ranks. Which images share a batch
    does not depend on the number of ranks. For super-resolution the input is scored after bicubic enlarging.

    Raises: PreemptedError on all ranks if `should_stop`, asked between operations of torch, returns true on one.
    """
    model = model_to_validate(state, accelerator).eval()
    rank, world_size, metrics = accelerator.process_index, accelerator.num_processes, protocols.whole.metrics
    terms = tuple(loss_fn.names) if len(loss_fn.names) > 1 else ()
    inputs = metrics if protocols.whole.scores_input else ()
    columns = 1 + len(metrics) + len(inputs) + len(terms) + 1  # loss, metrics of output and of input, terms, images
    table = torch.zeros(len(images), columns, dtype=torch.float64, device=accelerator.device)
    with stoppable(should_stop), images.ahead(images.batches(batch_size)[rank::world_size], should_stop) as batches:
        for indices, batch in batches:
            protocol = protocols.sets[images.set_of[indices[0]]]
            with accelerator.autocast(), force_eager():  # a compiled model would be compiled again for each size
                output = protocol.output(model, batch["input"], images.scale).to(batch["gt"].dtype)
            whole = upscale(batch["input"], images.scale), output, batch["gt"]
            for index, *image in zip(indices, *(one.split(1) for one in whole), strict=True):
                table[index] = score_image(index, image, loss_fn, terms, protocol.scores, images.input_scores)
                for callback in callbacks:
                    callback.on_validation_image(state, index, *image)
            del batch, output, whole, image  # makes room for the next batch
    table = accelerator.reduce(table, "sum")  # each image's row was filled by one rank; the others hold zeros
    if not table[:, -1].all():
        raise PreemptedError("stopped during validation")
    return mean_scores(table, images.set_of, metrics, inputs, terms)
