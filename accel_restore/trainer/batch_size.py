"""`data.batch_size: auto`: the largest power of two that fits into the device's memory.

It depends on the machine. It is therefore found before the plan is made and recorded in config.yaml and in every
commit, and a resumed run takes it from there.
"""

import gc
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from accel_restore.checkpoint.resume import Start
from accel_restore.config.schema import Config
from accel_restore.errors import UserError
from accel_restore.losses import Loss
from accel_restore.trainer.bare_loop import BareLoop
from accel_restore.utils.launch import launch_or_alone
from accel_restore.utils.memory import LiveBytes, is_out_of_memory, memory_bytes

_ASSUMED = 8
_MOST_ON_CPU = 64  # pairs: a CPU computes them one after the other, so more only make steps longer
_SHARE_ON_CPU = 0.5  # of the free memory: the scratch memory of kernels is not counted
_SHARE_ON_GPU = 0.9  # of the GPU's memory: validation and other processes need some
_STEPS = 2  # the optimizer's state exists in the second one only


def resolve_batch_size(
    config: Config, accelerator: Accelerator, loss_fn: Loss, num_samples: int, start: Start, log: Callable[[str], None]
) -> Config:
    """Return the configuration with a number in place of `data.batch_size: auto`, equal on all ranks. All call it.

    Raises: UserError if not even one pair fits.
    """
    if config.data.batch_size != "auto":
        return config
    if accelerator.is_fsdp2:
        raise UserError("data.batch_size: auto needs full weights, but FSDP2 shards them; set a number")
    if start.commit is not None and start.counters is not None:
        size, why = start.counters["config"]["data"]["batch_size"], f"as in {start.commit.name}"
    else:
        sizes = possible_sizes(config, num_samples, accelerator.num_processes)
        find = largest_on_gpu if accelerator.device.type == "cuda" else largest_on_cpu
        size = min(gather_object([find(config, accelerator, loss_fn, sizes)]))
        why = f"the largest from {sizes[0]} to {sizes[-1]} that fits into memory"
        if size == 0:
            raise UserError(
                f"data.batch_size: not even one pair of data.patch_size {_largest_patch(config)} fits into the memory "
                f"of {accelerator.device}; lower data.patch_size, or use a smaller model"
            )
    log(f"data.batch_size: auto is {size}, {why}")
    return _with_batch_size(config, size)


def assume_batch_size(config: Config, log: Callable[[str], None]) -> Config:
    """Return the configuration with the default in place of `auto`, for commands that try no batch sizes."""
    if config.data.batch_size != "auto":
        return config
    log(f"data.batch_size: auto is resolved when training starts; this command uses {_ASSUMED}")
    return _with_batch_size(config, _ASSUMED)


def _with_batch_size(config: Config, size: int) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"batch_size": size})})


def possible_sizes(config: Config, num_samples: int, world_size: int) -> list[int]:
    """Return the powers of two, ascending, that divide the global batch and fit into an epoch; at least 1.

    With `train.steps_per_epoch` an epoch has room for any size.
    """
    train, stages = config.train, [stage for stage in config.data.stages if stage.batch_size is None]
    wanted = {stage.global_batch_size or train.global_batch_size for stage in stages} | {train.global_batch_size}
    at_once = world_size * (train.gradient_accumulation_steps or 1)
    powers = (2**power for power in range(1, 24))
    fitting = [
        size
        for size in powers
        if (size * at_once <= num_samples or train.steps_per_epoch)
        and all(whole % (size * world_size) == 0 for whole in wanted if whole)
    ]
    return [1, *fitting]


def largest_on_gpu(config: Config, accelerator: Accelerator, loss_fn: Loss, sizes: list[int]) -> int:
    """Return the largest of ascending `sizes` whose training steps fit into the GPU's memory; 0 if none does."""
    largest = 0
    torch.cuda.set_per_process_memory_fraction(_SHARE_ON_GPU)
    try:
        for size in sizes:
            if not _fits(config, accelerator, loss_fn, size):
                break
            largest = size
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.reset_peak_memory_stats()  # the run reports its own peak
    return largest


def _fits(config: Config, accelerator: Accelerator, loss_fn: Loss, size: int) -> bool:
    try:
        _trial(config, accelerator, loss_fn, size)(_STEPS)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return True


def largest_on_cpu(config: Config, accelerator: Accelerator, loss_fn: Loss, sizes: list[int]) -> int:
    """Return the largest of ascending `sizes`, at most 64, whose tensors take half of the free memory; 0 if none does.

    It measures the tensors of a step with one pair, and the tensors that a second pair adds to the forward. In two
    cases the backward is measured too: with `train.checkpoint_blocks`, which recomputes the tensors of one block at a
    time, and with a discriminator, which has its own forward and backward.
    """
    free = _SHARE_ON_CPU * memory_bytes() / launch_or_alone().local_world_size
    with LiveBytes() as whole:
        _trial(config, accelerator, loss_fn, 1)(_STEPS)
    measure = _trace_backward if config.train.checkpoint_blocks or config.adversarial else _trace_forward
    one, two = (measure(_trial(config, accelerator, loss_fn, size)) for size in (1, 2))
    added = max(after - before for before, after in zip(one, two, strict=False))
    fitting = [size for size in sizes if size <= _MOST_ON_CPU and whole.most + (size - 1) * added <= free]
    return max(fitting, default=0)


def _trace_forward(bare: BareLoop) -> list[int]:
    """Return the most bytes of a forward's tensors. In a full step, the optimizer's could hide what a pair adds."""
    with LiveBytes() as live:
        bare.loss()
    return [live.most]


def _trace_backward(bare: BareLoop) -> list[int]:
    """Return the bytes of tensors after each operation of the forwards and backwards of a step.

    At the peak of a single pair, gradients of weights could hide what a second one adds elsewhere.
    """
    with LiveBytes() as live:
        bare.backward()
    return live.trace


def _trial(config: Config, accelerator: Accelerator, loss_fn: Loss, size: int) -> BareLoop:
    """Return training steps of `size` pairs on this rank alone; their model is thrown away."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
    side, images = _largest_patch(config), config.data.image_spec
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    shapes = {"input": (images.input_channels, side // images.scale), "gt": (images.channels, side)}
    batch = {
        name: torch.full((size, channels, pixels, pixels), 0.5, device=accelerator.device).to(memory_format=layout)
        for name, (channels, pixels) in shapes.items()
    }
    return BareLoop(config, accelerator, loss_fn, batch, exchanging=False)


def _largest_patch(config: Config) -> int:
    """Return the side of the largest crop that is batched with this size, in pixels of gt."""
    stages = [stage.patch_size for stage in config.data.stages if stage.batch_size is None and stage.patch_size]
    return max([*stages, config.data.patch_size])
