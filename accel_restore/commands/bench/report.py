"""The report of `bench train`: the table of phases, the bottleneck, and the key that would change it."""

from statistics import median
from typing import Any

from accel_restore.commands.bench.phases import BACKWARD, BATCH, DISCRIMINATOR, EXCHANGE, FORWARD, OPTIMIZER, WAIT
from accel_restore.tracking.console import Console
from accel_restore.utils.words import counted

_LARGE = 0.1  # share of a step from which a phase other than the network's gets advice
_SLOW = 1.25  # a rank that takes this many times the others' median is reported as slow
_KEYS = {  # how often a callback does its work
    "MetricsLogger": ("tracking", "log_every_steps"),
    "Checkpointer": ("checkpoint", "every_steps"),
    "ReplicaCheck": ("train", "check_ranks_every_steps"),
}


def reported(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all ranks as one record.

    `bottleneck` is the longest phase of the slowest rank: the one with the longest step without gradient exchange. The
    other ranks wait for it within their exchange.

    Steps are timed twice: unobserved in rounds, and phase by phase afterwards, when the load of the machine may differ.
    The length of a step is the median of the rounds, and the phases have their mean shares of it. So all figures agree:
    the phases add up to `step_seconds`, and `samples_per_step` divided by it is `samples_per_second`.

    Units: seconds, bytes, samples per second.
    """
    main = ranks[0]
    rounds = list(zip(*(rank["rounds"] for rank in ranks), strict=True))
    pace = {kind: [_slowest(those, kind) for those in rounds] for kind in ("trainer", "bare")}
    step = median(max(one["trainer_seconds"] / one["steps"] for one in those) for those in rounds)
    samples = [sum(one["samples"] for one in rank["rounds"]) / _steps(rank) for rank in ranks]
    ranks = _scaled(ranks, step)
    batch = main["batch_size"] * len(ranks)
    ratios = sorted(bare / trainer for bare, trainer in zip(pace["bare"], pace["trainer"], strict=True))
    own = [_own(rank) for rank in ranks]
    slowest = own.index(max(own))
    critical = ranks[slowest]
    bottleneck = max(critical["phases"], key=lambda phase: critical["phases"][phase])
    return {
        "processes": len(ranks),
        "device": main["device"],
        "precision": main["precision"],
        "batch_size": main["batch_size"],
        "accumulation": main["accumulation"],
        "patch_size": main["config"]["data"]["patch_size"],
        "samples_per_second": sum(samples) / step,
        "samples_per_step": sum(samples),
        "step_seconds": step,
        "rounds": len(rounds),
        "timed_steps": _steps(main),
        "observed_steps": main["observed_steps"],
        "bare_samples_per_second": median(batch / seconds for seconds in pace["bare"]),
        "ratio": {"median": median(ratios), "lowest": ratios[0], "highest": ratios[-1], "pairs": len(ratios)},
        "cpu_ratio": sum(_cpu(those, "bare") for those in rounds) / sum(_cpu(those, "trainer") for those in rounds),
        "phases": {phase: sum(rank["phases"][phase] for rank in ranks) / len(ranks) for phase in main["phases"]},
        "ranks": [
            {
                "samples_per_second": count / step,
                "own_seconds": seconds,
                **{key: rank[key] for key in ("phases", "hooks", "peak_memory")},
            }
            for rank, count, seconds in zip(ranks, samples, own, strict=True)
        ],
        "bottleneck": bottleneck,
        "bottleneck_share": critical["phases"][bottleneck] / sum(critical["phases"].values()),
        "advice": _advice(critical, bottleneck, slowest, own),
    }


def _steps(rank: dict[str, Any]) -> int:
    return sum(one["steps"] for one in rank["rounds"])


def _scaled(ranks: list[dict[str, Any]], step: float) -> list[dict[str, Any]]:
    """Return the ranks with phases and callbacks in proportion to a step of `step` seconds on average."""
    factor = step * len(ranks) / sum(sum(rank["phases"].values()) for rank in ranks)
    return [
        rank | {kind: {name: factor * seconds for name, seconds in rank[kind].items()} for kind in ("phases", "hooks")}
        for rank in ranks
    ]


def _slowest(those: tuple[dict[str, Any], ...], kind: str) -> float:
    """Return the slowest rank's seconds per micro-batch in a round."""
    count = "micro_batches" if kind == "trainer" else "bare_micro_batches"
    return max(one[f"{kind}_seconds"] / one[count] for one in those)


def _cpu(those: tuple[dict[str, Any], ...], kind: str) -> float:
    count = "micro_batches" if kind == "trainer" else "bare_micro_batches"
    return sum(one[f"{kind}_cpu_seconds"] / one[count] for one in those)


def _own(rank: dict[str, Any]) -> float:
    """Return the seconds of a step in which a rank does not wait for others."""
    return sum(rank["phases"].values()) - rank["phases"][EXCHANGE]


def _advice(rank: dict[str, Any], bottleneck: str, slowest: int, own: list[float]) -> list[str]:
    """Return advice for the bottleneck, for other phases that are large, and for a slow rank."""
    step = sum(rank["phases"].values())
    large = [
        phase
        for phase in rank["phases"]
        if phase not in (bottleneck, FORWARD, BACKWARD, DISCRIMINATOR) and rank["phases"][phase] > _LARGE * step
    ]
    lines = [f"{phase}: {_remedy(phase, rank)}" for phase in (bottleneck, *large)]
    others = median(seconds for place, seconds in enumerate(own) if place != slowest) if len(own) > 1 else None
    if others is not None and own[slowest] > _SLOW * others:
        lines.append(
            f"rank {slowest} is slow: a step takes {1000 * own[slowest]:.1f} ms without gradient exchange, against "
            f"{1000 * others:.1f} ms on the others, which wait for it; check its device and its disk"
        )
    return lines


def _remedy(phase: str, rank: dict[str, Any]) -> str:
    data, train = rank["config"]["data"], rank["config"]["train"]
    if phase == WAIT:
        remedies = [f"raise data.num_threads ({data['num_threads']})"]
        if not rank["fits_in_memory"]:
            remedies.append("move data.cache_dir to a faster disk")
        remedies.append(
            f"raise data.crops_per_image ({data['crops_per_image']}) or train.steps_per_epoch if epochs are short "
            f"({rank['steps_per_epoch']} steps); run 'bench data' for details"
        )
    elif phase == BATCH:
        remedies = ["use fewer or cheaper steps in data.degradation and data.augment"]
    elif phase in (FORWARD, BACKWARD, DISCRIMINATOR):
        remedies = _faster_network(train)
    elif phase == EXCHANGE:
        remedies = [
            f"raise data.batch_size ({rank['batch_size']}) or train.gradient_accumulation_steps "
            f"({rank['accumulation']}) for fewer exchanges per sample",
            "use a faster network between the processes",
        ]
    elif phase == OPTIMIZER:
        remedies = [
            f"raise data.batch_size ({rank['batch_size']}) or train.gradient_accumulation_steps "
            f"({rank['accumulation']}) for fewer steps per sample"
        ]
        remedies += ["train without train.ema_decay"] * (train["ema_decay"] is not None)
    else:
        remedies = [_rarer_hook(rank)]
    return "; ".join(remedies)


def _faster_network(train: dict[str, Any]) -> list[str]:
    untried = [
        ("train.mixed_precision=bf16", train["mixed_precision"] == "no"),
        ("train.compile=true", not train["compile"]),
        ("train.channels_last=true", not train["channels_last"]),
    ]
    keys = [key for key, is_off in untried if is_off]
    return [f"try {', '.join(keys)}"] if keys else ["use a smaller model, smaller crops or more devices"]


def _rarer_hook(rank: dict[str, Any]) -> str:
    name = next(iter(rank["hooks"]))
    if name not in _KEYS:
        return f"{name} takes the most of it"
    section, key = _KEYS[name]
    return f"raise {section}.{key} ({rank['config'][section][key]}): {name} takes the most of it"


def show(record: dict[str, Any], console: Console) -> None:
    """Print a record made by `reported`."""
    ranks, step = record["ranks"], sum(record["phases"].values())
    several = len(ranks) > 1
    rows = []
    for phase, seconds in [*record["phases"].items(), ("step", step)]:
        of_ranks = [sum(r["phases"].values()) if phase == "step" else r["phases"][phase] for r in ranks]
        spread = (f"{1000 * min(of_ranks):.2f} to {1000 * max(of_ranks):.2f}",) if several else ()
        rows.append((phase, f"{1000 * seconds:.2f}", *spread, f"{seconds / step:.1%}"))
    size = record["patch_size"]
    console.log(
        f"{len(ranks)} × {record['device']}, precision {record['precision']}, crops of {size}x{size}, "
        f"{record['batch_size']} per device × {record['accumulation']} accumulated × {counted(len(ranks), 'rank')}"
    )
    console.table("where the time of a step goes", rows, ("phase", "ms", *(("by rank",) if several else ()), "share"))
    each = f" ({', '.join(format(r['samples_per_second'], '.1f') for r in ranks)} by rank)" if several else ""
    memory = max(r["peak_memory"] for r in ranks) / 1e9
    kind = "GPU tensors" if record["device"] == "cuda" else "the process"
    rate, samples, rounds = (record[name] for name in ("samples_per_second", "samples_per_step", "rounds"))
    console.log(
        f"{rate:.1f} samples/s{each}: {samples:.4g} samples (mean) in a step of {1000 * step:.2f} ms (median of "
        f"{rounds} rounds, {record['timed_steps']} steps); shares: mean of {record['observed_steps']} further steps"
    )
    console.log(f"peak memory of {kind} {memory:.2f} GB")
    ratio = record["ratio"]
    console.log(
        f"bare loop on one constant batch: {record['bare_samples_per_second']:.1f} samples/s (median); trainer/bare "
        f"{ratio['median']:.3f} (median of {ratio['pairs']} alternating pairs, {ratio['lowest']:.2f} to "
        f"{ratio['highest']:.2f}), by CPU time {record['cpu_ratio']:.3f}"
    )
    console.log(f"bottleneck: {record['bottleneck']}, {record['bottleneck_share']:.0%} of the step")
    for line in record["advice"]:
        console.log(f"  {line}")
