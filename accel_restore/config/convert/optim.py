"""The optimizer and the schedule of an option file."""

from dataclasses import dataclass
from typing import Any

from accel_restore.config.convert.draft import Draft
from accel_restore.config.convert.steps import Steps

# Types, in small letters, and their names here; an import path for those of a library.
_OF_TORCH = ("Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "ASGD", "Adagrad")
_OPTIMIZERS = {
    "adam": "adam",
    "adamw": "adamw",
    "sgd": "sgd",
    "muon": "muon",
    **{name.lower(): f"torch.optim:{name}" for name in _OF_TORCH},
    **{
        name.lower(): f"pytorch_optimizer:{name}"
        for name in (
            "AdaBelief", "AdamP", "Adan", "ADOPT", "CAME", "Lamb", "Lion", "MARS", "Prodigy", "Ranger21", "SOAP",
            "ScheduleFreeAdamW", "ScheduleFreeRAdam", "ScheduleFreeSGD", "StableAdamW",
        )
    },
    "adamw_sf": "pytorch_optimizer:ScheduleFreeAdamW",
    "adan_sf": "pytorch_optimizer:Adan",
    "adamwschedulefree": "pytorch_optimizer:ScheduleFreeAdamW",
    "radamschedulefree": "pytorch_optimizer:ScheduleFreeRAdam",
    "sgdschedulefree": "pytorch_optimizer:ScheduleFreeSGD",
    "soap_sf": "pytorch_optimizer:SOAP",
}  # fmt: skip
_ARGUMENTS = {
    "adam": ("lr", "weight_decay", "betas", "eps"),
    "adamw": ("lr", "weight_decay", "betas", "eps"),
    "sgd": ("lr", "weight_decay", "momentum", "nesterov"),
    "muon": ("lr", "weight_decay", "momentum", "betas", "eps"),
}
_SPEED = ("fused", "foreach", "capturable")  # arguments that do not change the steps


@dataclass(frozen=True)
class Owner:
    """Whose optimizer it is: its option, its key here, its name in sentences, and the optimizer without an option."""

    option: str
    target: str
    called: str
    default: str


GENERATOR = Owner("train.optim_g", "optimizer", "optimizer", "adamw")


def convert_optimizer(draft: Draft, owner: Owner) -> None:
    """Carry an optimizer over."""
    kind = draft.take(f"{owner.option}.type")
    if not isinstance(kind, str) or not kind.isidentifier():
        draft.lose(owner.option, f"names no optimizer, so it is {owner.default}")
        draft.changes.append(f"The file names no {owner.called}, so it is {owner.default} with its default rate.")
        return
    name = _OPTIMIZERS.get(kind.lower())
    if name is None:
        name = f"pytorch_optimizer:{kind}"
        draft.todo.append(f"{owner.target}.name: check that {name} exists, or write the import path of the class")
    if ":" in name and name.partition(":")[2] != kind:
        draft.change(f"{owner.option}.type", f"is {name} here")
    draft.put(f"{owner.target}.name", name, f"{owner.option}.type")
    for argument in draft.section(owner.option):
        option = f"{owner.option}.{argument}"
        if argument in _SPEED:
            draft.skip(option, "changes the speed only; accel_restore chooses it")
        elif argument == "schedule_free":
            _take_schedule_free(draft, option, name)
        elif argument not in _ARGUMENTS.get(name, (argument,)):
            draft.lose(option, f"{name} has no such argument here")
        elif argument != "type" and (value := draft.take(option)) is not None:
            draft.put(f"{owner.target}.{argument}", _as_float(value, argument), option)


def is_schedule_free(draft: Draft) -> bool:
    """Return whether the optimizer of the configuration averages the weights itself."""
    return "ScheduleFree" in draft.config.get("optimizer", {}).get("name", "")


def _take_schedule_free(draft: Draft, option: str, name: str) -> None:
    if "ScheduleFree" in name:
        draft.skip(option, f"{name} is schedule-free")
    else:
        draft.lose(option, f"{name} is not schedule-free")


def _as_float(value: Any, argument: str) -> Any:
    """Return 0 as 0.0, and so on, for keys that hold real numbers."""
    return float(value) if argument in ("lr", "weight_decay", "eps") and type(value) is int else value


@dataclass(frozen=True)
class _Length:
    """The length of the run and of its epochs."""

    steps: Steps
    total: int | None
    lr: float | None


def convert_schedule(draft: Draft, steps: Steps, total: int | None) -> None:
    """Carry `train.scheduler` and `train.warmup_iter` over; `total` is the number of steps of the run."""
    lr = draft.config.get("optimizer", {}).get("lr")
    length = _Length(steps, total, lr if isinstance(lr, int | float) else None)
    kind = draft.take("train.scheduler.type")
    convert = _SCHEDULES.get(kind) if isinstance(kind, str) else None
    if convert is None:
        draft.put("scheduler.name", "constant", "train.scheduler.type")
        if kind is not None:
            draft.refuse("train.scheduler.type", "is not a schedule of accel_restore, so the rate is constant")
            draft.todo.append(f"scheduler: {kind} has no counterpart; choose one (configs/README.md)")
    else:
        convert(draft, length)
    draft.lose("train.scheduler", "the schedule has no such argument here")
    _convert_warm_up(draft, steps)


def _convert_warm_up(draft: Draft, steps: Steps) -> None:
    option = draft.first("train.warmup_iter", "train.warmup_iters")
    if draft.is_positive(option) and (count := draft.whole(option)):
        epochs = steps.epochs(count, least=1)
        draft.put("scheduler.warmup_epochs", epochs, option)
        steps.explain(draft, option, [count], [epochs])


def _multistep(draft: Draft, length: _Length) -> None:
    option = "train.scheduler.milestones"
    given = draft.take(option)
    if not isinstance(given, list) or not all(isinstance(m, int | float) and 0 < m < 2**53 for m in given) or not given:
        draft.refuse(option, "is not a list of steps, so the rate is constant")
        draft.put("scheduler.name", "constant", "train.scheduler.type")
        return
    counts = [int(milestone) for milestone in given]
    epochs = [length.steps.epochs(count, least=1) for count in counts]
    draft.put("scheduler.name", "multistep", "train.scheduler.type")
    draft.put("scheduler.milestones", epochs, option)
    length.steps.explain(draft, option, counts, epochs)
    _put_gamma(draft)
    _take_if(draft, "restarts", [0])
    _take_if(draft, "restart_weights", [1])


def _step(draft: Draft, length: _Length) -> None:
    option = "train.scheduler.step_size"
    count = draft.whole(option) or length.steps.length
    epochs = length.steps.epochs(count, least=1)
    draft.put("scheduler.name", "step", "train.scheduler.type")
    draft.put("scheduler.step_size", epochs, option)
    length.steps.explain(draft, option, [count], [epochs])
    _put_gamma(draft)


def _put_gamma(draft: Draft) -> None:
    gamma = draft.number("train.scheduler.gamma")
    draft.put("scheduler.gamma", 0.1 if gamma is None else gamma, "train.scheduler.gamma")  # the default of both


def _cosine(draft: Draft, length: _Length) -> None:
    """Half a cosine over T_max steps, as torch has it."""
    draft.put("scheduler.name", "cosine", "train.scheduler.type")
    _put_end(draft, "train.scheduler.eta_min")
    period = draft.whole("train.scheduler.T_max")
    if period is not None and length.total is not None and period != length.total:
        draft.change("train.scheduler.T_max", f"the cosine ends with the run, after {length.total} steps")


def _periods(draft: Draft) -> list[int]:
    given = draft.take("train.scheduler.periods")
    given = given if isinstance(given, list) else [given]
    return [int(p) for p in given if isinstance(p, int | float) and not isinstance(p, bool) and 0 < p < 2**53]


def _restarts(draft: Draft, length: _Length) -> None:
    """Cosines one after the other, each from its own weight of the initial rate."""
    periods, option = _periods(draft), "train.scheduler.periods"
    _put_end(draft, "train.scheduler.eta_min")
    _take_if(draft, "restart_weights", [1] * len(periods))
    draft.lose("train.scheduler.restart_weights", "every cosine starts from the initial rate")
    _put_cosines(draft, length, periods, option)


def _put_cosines(draft: Draft, length: _Length, periods: list[int], option: str) -> None:
    if len(periods) < 2:
        draft.put("scheduler.name", "cosine", "train.scheduler.type")
        if periods and length.total is not None and periods[0] != length.total:
            draft.change(option, f"the cosine ends with the run, after {length.total} steps")
        return
    epochs = [length.steps.epochs(period, least=1) for period in periods]
    factor = epochs[1] // epochs[0] or 1
    draft.put("scheduler.name", "cosine_restarts", "train.scheduler.type")
    draft.put("scheduler.period", epochs[0], option)
    draft.put("scheduler.period_factor", factor, option)
    if epochs == [epochs[0] * factor**place for place in range(len(epochs))]:
        length.steps.explain(draft, option, periods, epochs)
    else:
        draft.change(
            option, f"each cosine is {factor} times as long as the one before it; the first has {epochs[0]} epochs"
        )


def _cyclic(draft: Draft, length: _Length) -> None:
    """Cosines with ends of their own. A first one that ends at the initial rate holds it: Restormer's schedule."""
    periods, option = _periods(draft), "train.scheduler.periods"
    ends = draft.take("train.scheduler.eta_mins")
    ends = ends if isinstance(ends, list) and ends else [0.0]
    holds = len(periods) == 2 and len(ends) == 2 and length.lr is not None and ends[0] == length.lr
    _take_if(draft, "restart_weights", [1] * len(periods))
    draft.lose("train.scheduler.restart_weights", "every cosine starts from the initial rate")
    draft.put("scheduler.min_lr", ends[-1], "train.scheduler.eta_mins")
    if holds:
        hold = length.steps.epochs(periods[0])
        draft.put("scheduler.name", "cosine", "train.scheduler.type")
        draft.put("scheduler.hold_epochs", hold, option)
        length.steps.explain(draft, option, periods[:1], [hold])
        if length.total is not None and sum(periods) != length.total:
            draft.change(option, f"the cosine ends with the run, after {length.total} steps")
        return
    if len(set(ends)) > 1:
        draft.change("train.scheduler.eta_mins", "all cosines end at one rate, that of the last")
    _put_cosines(draft, length, periods, option)


def _put_end(draft: Draft, option: str) -> None:
    end = draft.number(option)
    draft.put("scheduler.min_lr", 0.0 if end is None else float(end), option)


def _take_if(draft: Draft, name: str, value: list) -> None:
    """Read an argument of the schedule that has the value which is the only one here."""
    if draft.peek(f"train.scheduler.{name}") in (value, value[:1]):
        draft.take(f"train.scheduler.{name}")


_SCHEDULES = {
    "MultiStepLR": _multistep,
    "MultiStepRestartLR": _multistep,
    "StepLR": _step,
    "TrueCosineAnnealingLR": _cosine,
    "CosineAnnealingLR": _cosine,
    "CosineAnnealingRestartLR": _restarts,
    "CosineAnnealingRestartCyclicLR": _cyclic,
}
