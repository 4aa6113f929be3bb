"""The data sets of an option file: folders, crops, augmentation, batches, progressive training."""

import re
from pathlib import PurePosixPath
from typing import Any

from accel_restore.config.convert.draft import Draft
from accel_restore.config.convert.steps import Steps

_PAIRED = ("PairedImageDataset", "Dataset_PairedImage", "RealESRGANPairedDataset", "PairedImageLMDBDataset")
_CLEAN = ("RealESRGANDataset", "Dataset_GaussianDenoising", "HFDataset")  # inputs are made of clean images
PLACEHOLDER = "path/to/clean_images"


def convert_data(draft: Draft) -> None:
    """Carry the sources of images, the crops and the augmentation over."""
    _convert_source(draft, "datasets.train", "data.train")
    _convert_validation(draft)
    if "val" not in draft.config.get("data", {}):
        draft.changes.append(
            "Without a validation source, a tenth of the training images is held out (data.val_fraction)."
        )
    _convert_crops(draft)
    _convert_augmentation(draft)
    _convert_gaussian_denoising(draft)


def _convert_validation(draft: Draft) -> None:
    """Carry the validation sources over: one without a name, or several with the names of their sections."""
    options: dict[str, str] = {}  # by name of the set
    for section in [name for name in draft.section("datasets") if name.startswith("val")]:
        option = f"datasets.{section}"
        if draft.peek(option) is None:
            continue  # an empty section, which the tables explain
        if not _has_clean(draft, option):
            draft.lose(option, "has no clean images")
            continue
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(draft.peek(f"{option}.name")))
        is_taken = name in options or not re.match("[A-Za-z]", name)
        options[section if is_taken else name] = option
    for name, option in options.items():
        _convert_source(draft, option, f"data.val.{name}" if len(options) > 1 else "data.val")


def _has_clean(draft: Draft, option: str) -> bool:
    return draft.peek(f"{option}.dataroot_gt") is not None


def _convert_source(draft: Draft, option: str, target: str) -> None:
    """Carry the folders of one data set over."""
    kind = draft.take(f"{option}.type")
    template = draft.take(f"{option}.filename_tmpl")
    sides = {"gt": f"{option}.dataroot_gt", "input": f"{option}.dataroot_lq"}
    if kind in _CLEAN and kind != "HFDataset":
        sides.pop("input")
    elif kind not in (None, *_PAIRED):
        draft.change(f"{option}.type", "inputs and clean images are paired by their names")
    for side, folder in sides.items():
        value = draft.take(folder)
        if value is None:
            continue
        if not isinstance(value, str | list) or not value or not all(isinstance(item, str) for item in value):
            draft.refuse(folder, "is not a folder")
            continue
        draft.put(f"{target}.{side}", _without_lmdb(draft, folder, value), folder)
    if template not in (None, "{}") and side_of(draft, target, "input"):
        _use_template(draft, option, target, template)
    elif side_of(draft, target, "gt") and side_of(draft, target, "input") == side_of(draft, target, "gt"):
        draft.todo.append(
            f"{target}: input and gt are the same folder, so each image is its own pair; name two folders"
        )
    if not side_of(draft, target, "gt"):
        draft.put(f"{target}.gt", PLACEHOLDER)
        draft.todo.append(f"{target}.gt: name the folder of the clean images")


def side_of(draft: Draft, target: str, side: str) -> Any:
    """Return the folder, or the folders, of the inputs or the clean images."""
    place = draft.config
    for section in target.split("."):
        place = place.get(section, {})
    return place.get(side)


def _without_lmdb(draft: Draft, option: str, value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not any(name.rstrip("/").endswith(".lmdb") for name in names):
        return value
    draft.change(option, "there is no LMDB: name the folder of its images, which are decoded once, into a cache")
    draft.todo.append(f"{option}: {names[0]} is an LMDB; name the folder with its images")
    names = [name.rstrip("/").removesuffix(".lmdb") for name in names]
    return names[0] if isinstance(value, str) else names


def _use_template(draft: Draft, option: str, target: str, template: Any) -> None:
    """Name inputs by their template, such as {}x4, and the clean images without it."""
    if not isinstance(template, str) or template.count("{}") != 1:
        draft.refuse(f"{option}.filename_tmpl", "is not a template such as {}x4")
        return
    for side, name in (("input", template), ("gt", "{}")):
        value = side_of(draft, target, side) or []
        patterns = [
            str(PurePosixPath(folder) / f"{name}.*") for folder in ([value] if isinstance(value, str) else value)
        ]
        key = f"{option}.dataroot_{'lq' if side == 'input' else 'gt'}"
        if patterns:
            draft.put(f"{target}.{side}", patterns if isinstance(value, list) else patterns[0], key)


def _convert_crops(draft: Draft) -> None:
    scale = draft.config.get("data", {}).get("scale", 1)
    option = draft.first("datasets.train.gt_size", "gt_size", "datasets.train.lq_size", "datasets.train.patch_size")
    size = draft.whole(option)
    if size is None:
        return
    if option.endswith("lq_size"):
        size *= scale
    if size % scale and size > scale:
        draft.change(option, f"is no multiple of the scale, so the patch has {size - size % scale} pixels")
        size -= size % scale
    draft.put("data.patch_size", size, option)
    if draft.peek("gt_size") == draft.peek("datasets.train.gt_size"):
        draft.take("gt_size")


def _convert_augmentation(draft: Draft) -> None:
    """BasicSR's rotation is a vertical flip and a quarter turn, each for half of the samples."""
    flip = draft.first("datasets.train.use_hflip", "datasets.train.use_flip")
    names = {flip: ["hflip"], "datasets.train.use_rot": ["vflip", "rot90"]}
    if draft.peek("datasets.train.geometric_augs") is not None:
        names = {"datasets.train.geometric_augs": ["hflip", "vflip", "rot90"]}
    given = [option for option in names if draft.peek(option) is not None]
    augment = [name for option in names if draft.flag(option) for name in names[option]]
    if given:
        draft.put("data.augment", augment, *given)
    beta = draft.number("train.mixing_augs.mixup_beta")
    identity = draft.flag("train.mixing_augs.use_identity")
    if draft.flag("train.mixing_augs.mixup"):
        mixup = {"probability": 0.5 if identity else 1.0, "alpha": 1.2 if beta is None else float(beta)}
        draft.put("data.mixup", mixup, "train.mixing_augs.mixup")


def _convert_gaussian_denoising(draft: Draft) -> None:
    """Restormer's data set of clean images: noise of one σ, of a range, or of one of several."""
    if draft.peek("datasets.train.type") != "Dataset_GaussianDenoising":
        return
    kind, sigma = draft.take("datasets.train.sigma_type"), draft.take("datasets.train.sigma_range")
    numbers = sigma if isinstance(sigma, list) else [sigma]
    if not numbers or not all(isinstance(s, int | float) and not isinstance(s, bool) for s in numbers):
        draft.refuse("datasets.train.sigma_range", "is not a noise level")
        return
    if kind == "choice" and len(numbers) > 1:
        steps = [{"name": "choice", "of": [{"name": "gaussian_noise", "sigma": s} for s in numbers]}]
    else:
        steps = [{"name": "gaussian_noise", "sigma": numbers if len(numbers) > 1 else numbers[0]}]
    draft.put("data.degradation", steps, "datasets.train.sigma_range", "datasets.train.sigma_type")
    channels = draft.take("datasets.train.in_ch")
    if channels in (1, 3):
        draft.put("data.channels", channels, "datasets.train.in_ch")
    test = draft.first("datasets.val.sigma_test", "datasets.val.sigma_range")
    if draft.peek(test) is not None:
        draft.lose(test, "validation adds the noise of data.degradation, drawn once for each image")


def convert_batches(draft: Draft, steps: Steps) -> None:
    """Carry batch sizes, the number of devices and progressive training over."""
    sizes = "datasets.train.mini_batch_sizes"
    stages = _stages(draft, steps) if isinstance(draft.peek(sizes), list) else []
    option = "datasets.train.batch_size_per_gpu"
    if stages:
        batch, option = stages[-1]["batch_size"], sizes
    else:
        batch = draft.whole(option) or 8
    draft.put("data.batch_size", batch, option)
    accumulated = draft.first("datasets.train.accum_iter", "train.accum_iter", "accum_iter")
    times = max(1, draft.whole(accumulated) or 1)
    devices = draft.peek("num_gpu")
    if isinstance(devices, int) and not isinstance(devices, bool) and 0 <= devices < 2**20:
        ranks = max(1, draft.take("num_gpu"))
        draft.put("train.global_batch_size", batch * ranks * times, option, "num_gpu", accumulated)
    else:
        ranks = 0
        if times > 1:
            draft.put("train.gradient_accumulation_steps", times, accumulated)
        why = "a step takes data.batch_size pairs on each device; train.global_batch_size sets their total"
        draft.change("num_gpu", why)
    for stage in stages:
        if ranks:
            stage["global_batch_size"] = stage["batch_size"] * ranks * times
    if len(stages) > 1:
        names = [f"datasets.train.{name}" for name in ("iters", "mini_batch_sizes", "gt_sizes")]
        draft.put("data.stages", stages[:-1], *names)


def _stages(draft: Draft, steps: Steps) -> list[dict[str, Any]]:
    """Return the stages of progressive training; the last one gives the settings of the rest of the run."""
    names = [f"datasets.train.{name}" for name in ("iters", "mini_batch_sizes", "gt_sizes")]
    lists = [draft.take(name) for name in names]
    lists = [value if isinstance(value, list) else [value] for value in lists]
    whole = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < 2**31 for v in lists for n in v)
    if not whole or len({len(value) for value in lists}) != 1:
        for name in names:
            draft.refuse(name, "progressive training needs lists of equal length: iters, mini_batch_sizes, gt_sizes")
        return []
    ends, total = [], 0
    for count in lists[0]:
        total += int(count)
        ends.append(total)
    epochs = [steps.epochs(end, least=1) for end in ends[:-1]]
    steps.explain(draft, names[0], ends[:-1], epochs)
    stages = [
        {"until_epoch": epoch, "patch_size": int(size), "batch_size": int(batch)}
        for epoch, batch, size in zip([*epochs, 0], lists[1], lists[2], strict=True)
    ]
    draft.put("data.patch_size", stages[-1]["patch_size"], names[2])
    draft.put("data.batch_size", stages[-1]["batch_size"], names[1])
    later = {stage["until_epoch"]: stage for stage in stages[:-1]}  # of stages that end in one epoch, the last
    return [*later.values(), stages[-1]]
