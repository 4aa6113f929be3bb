"""The batches of each stage of training."""

from accel_restore.checkpoint.resume import Start
from accel_restore.config.data import Stage
from accel_restore.config.schema import Config
from accel_restore.data.batch_plan import BatchPlan, BatchSchedule, with_global_batch
from accel_restore.data.mixture import MixedSet
from accel_restore.errors import UserError


def make_stages(config: Config, sets: tuple[MixedSet, ...], world_size: int, start: Start) -> BatchSchedule:
    """Return the batch plan of each stage; a run that continues keeps the global batches of its commit.

    Raises: UserError if the commit has another number of stages, or a global batch does not fit the processes.
    """
    data, train = config.data, config.train
    stages = [*data.stages, Stage.model_validate({"until_epoch": 2**31})]  # the last one: as without stages
    if start.counters is not None:
        global_batches = start.counters["global_batches"]
        if len(global_batches) != len(stages):
            raise UserError(
                f"{start.commit}: does not fit this run: it has another number of stages; resume from another commit"
            )
        may_shrink = start.counters["world_size"] != world_size
    else:
        global_batches = [stage.global_batch_size or train.global_batch_size for stage in stages]
        may_shrink = False

    def keys(number: int, stage: Stage) -> tuple[str, str]:
        """The keys that set the stage's global batch and batch."""
        own = f"data.stages.{number}."
        return (
            f"{own if stage.global_batch_size else 'train.'}global_batch_size",
            f"{own if stage.batch_size else 'data.'}batch_size",
        )

    plans = []
    for number, (stage, global_batch) in enumerate(zip(stages, global_batches, strict=True)):
        plan = BatchPlan(
            sum(one.num_samples for one in sets),
            stage.batch_size or data.batch_size,
            train.gradient_accumulation_steps or 1,
            world_size,
            config.run.seed,
            stage.patch_size or data.patch_size,
            data.mixup.probability if data.mixup else 0.0,
            sets,
        )
        if global_batch is not None:
            plan = with_global_batch(plan, global_batch, may_shrink=may_shrink, keys=keys(number, stage))
        plans.append(plan)
    ends = tuple(stage.until_epoch for stage in data.stages)
    return BatchSchedule(tuple(plans), ends, train.steps_per_epoch, train.max_steps)
