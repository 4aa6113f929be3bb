"""The degradation of Real-ESRGAN's option files, which traiNNer-redux took over: two stages, then the final size.

Options of the second stage end in 2. Those of the blur kernels are at the data set, the others at the top of the file.
"""

from typing import Any

from accel_restore.config.convert.draft import Draft

_KERNELS: dict[str, tuple[str | None, dict[str, Any]]] = {  # type: the option with its exponents, its arguments here
    "iso": (None, {}),
    "aniso": (None, {"angle": [-180, 180]}),
    "generalized_iso": ("betag_range", {}),
    "generalized_aniso": ("betag_range", {"angle": [-180, 180]}),
    "plateau_iso": ("betap_range", {"profile": "plateau"}),
    "plateau_aniso": ("betap_range", {"profile": "plateau", "angle": [-180, 180]}),
}
_METHODS = ("area", "bilinear", "bicubic")
_SMALL_SINC = 6  # kernels of less than 13 pixels, whose radius is below this, have a higher cut-off


def convert_degradation(draft: Draft) -> None:
    """Carry the two stages of blur, resizing, noise and compression over, if the option file has them."""
    if draft.peek("lq_usm") is not True:
        draft.skip("lq_usm_radius_range", "there is no sharpening")
    has_stages = draft.peek("resize_range") is not None and draft.peek("high_order_degradation") is not False
    if draft.peek("datasets.train.type") == "RealESRGANPairedDataset" or not has_stages:
        return
    draft.take("high_order_degradation")
    steps = [*_stage(draft, ""), *_jpeg(draft, ""), *_stage(draft, "2")]
    finish: list[dict[str, Any]] = [{"name": "downscale", "method": _methods(draft, "3")}]
    chance = draft.number("datasets.train.final_sinc_prob")
    radius = _radius(draft, "datasets.train.final_kernel_range")
    if chance:
        finish.append({"name": "sinc", "cutoff": [0.333, 1], "radius": radius, **_with(chance)})
    last: dict[str, Any] = finish[0] if len(finish) == 1 else {"name": "sequence", "of": finish}
    if jpeg := _jpeg(draft, "2"):
        last = {"name": "random_order", "of": [last, *jpeg]}
    draft.put("data.degradation", [*steps, last, {"name": "quantize"}], "resize_range")
    draft.changes.append(
        "data.degradation antialiases reductions, draws the exponents of blur kernels uniformly, and gives "
        "every sample its own degradation."
    )


def _stage(draft: Draft, suffix: str) -> list[dict[str, Any]]:
    """Return the blur, the resizing and the noise of one stage."""
    return [*_blur(draft, suffix), *_resize(draft, suffix), *_noise(draft, suffix)]


def _blur(draft: Draft, suffix: str) -> list[dict[str, Any]]:
    place = "datasets.train."
    option = draft.first(f"blur_prob{suffix}", "second_blur_prob" if suffix else "first_blur_prob")
    chance = draft.number(option)
    kinds, weights = (draft.take(f"{place}{name}{suffix}") for name in ("kernel_list", "kernel_prob"))
    sigma = _range(draft, f"{place}blur_sigma{suffix}") or [0.2, 3]
    sinc = draft.number(f"{place}sinc_prob{suffix}") or 0.0
    radius = _radius(draft, f"{place}kernel_range{suffix}")
    betas = {name: _range(draft, f"{place}{name}{suffix}") for name in ("betag_range", "betap_range")}
    draft.take(f"{place}blur_kernel_size{suffix}")  # the size to which kernels are padded
    known = isinstance(kinds, list) and isinstance(weights, list) and len(kinds) == len(weights)
    if not known and chance != 0:
        for name in (option, f"{place}kernel_list{suffix}", f"{place}kernel_prob{suffix}"):
            draft.refuse(name, "there is no blur without kernel_list and kernel_prob of equal lengths")
    if not known or chance == 0:
        return []
    choices, shares = [], []
    for kind, weight in zip(kinds, weights, strict=True):
        if kind not in _KERNELS or not isinstance(weight, int | float):
            draft.refuse(f"{place}kernel_list{suffix}", f"the kernel {kind} is not known")
            continue
        exponent, arguments = _KERNELS[kind]
        beta = {"beta": betas[exponent]} if exponent and betas[exponent] else {}
        across = {"sigma_y": sigma} if "angle" in arguments else {}
        choices.append({"name": "gaussian_blur", "sigma": sigma, **across, **arguments, **beta, "radius": radius})
        shares.append(round((1 - sinc) * weight, 6))
    if sinc:
        for cutoff, ends in (([0.333, 1], [radius[0], _SMALL_SINC - 1]), ([0.2, 1], [_SMALL_SINC, radius[1]])):
            low, high = max(ends[0], radius[0]), min(ends[1], radius[1])
            if low <= high:
                choices.append({"name": "sinc", "cutoff": cutoff, "radius": [low, high]})
                shares.append(round(sinc * (high - low + 1) / (radius[1] - radius[0] + 1), 6))
    return [_choice(choices, shares, _with(chance))] if choices else []


def _resize(draft: Draft, suffix: str) -> list[dict[str, Any]]:
    span, weights = _range(draft, f"resize_range{suffix}"), draft.take(f"resize_prob{suffix}")
    methods = _methods(draft, suffix)
    if span is None or not isinstance(weights, list) or len(weights) != 3:
        return []
    base = {"base": "input"} if suffix else {}
    method = {"method": methods} if methods != list(_METHODS) else {}
    scales = [[1, max(1, span[1])], [min(1, span[0]), 1], 1]
    return [_choice([{"name": "resize", **base, "scale": scale, **method} for scale in scales], weights, {})]


def _noise(draft: Draft, suffix: str) -> list[dict[str, Any]]:
    share = draft.number(f"gaussian_noise_prob{suffix}")
    gray = draft.number(f"gray_noise_prob{suffix}")
    sigma, strength = _range(draft, f"noise_range{suffix}"), _range(draft, f"poisson_scale_range{suffix}")
    share, colour = 0.5 if share is None else share, {"gray": gray} if gray else {}
    kinds = [
        ({"name": "gaussian_noise", "sigma": sigma, **colour}, share, sigma),
        ({"name": "poisson_noise", "strength": strength, **colour}, 1 - share, strength),
    ]
    used = [(step, weight) for step, weight, amount in kinds if weight > 0 and amount and max(amount) > 0]
    if not used:
        return []
    missing = 1 - sum(weight for _, weight in used)
    if len(used) == 1:
        return [{**used[0][0], **_with(round(1 - missing, 6))}]
    return [_choice([step for step, _ in used], [weight for _, weight in used], {})]


def _jpeg(draft: Draft, suffix: str) -> list[dict[str, Any]]:
    quality, chance = _range(draft, f"jpeg_range{suffix}"), draft.number(f"jpeg_prob{suffix}")
    return [] if quality is None or chance == 0 else [{"name": "jpeg", "quality": quality, **_with(chance)}]


def _methods(draft: Draft, suffix: str) -> list[str]:
    """Return how a stage resizes; accel_restore has no nearest and no Lanczos."""
    option, weights = f"resize_mode_list{suffix}", f"resize_mode_prob{suffix}"
    given = draft.take(option)
    if not isinstance(given, list):
        return list(_METHODS)
    used = [method for method in _METHODS if method in given] or ["bicubic"]
    if len(used) != len(given):
        draft.change(option, f"images are resized by {', '.join(used)}")
    if isinstance(chances := draft.take(weights), list) and len({*chances}) > 1:
        draft.change(weights, "methods are drawn with equal probabilities")
    return used


def _choice(steps: list[dict[str, Any]], weights: list, probability: dict[str, Any]) -> dict[str, Any]:
    if len(steps) == 1:
        return {**steps[0], **probability}
    equal = {"weights": weights} if len({*weights}) > 1 else {}
    return {"name": "choice", **probability, **equal, "of": steps}


def _with(chance: float | None) -> dict[str, Any]:
    """Return the key for a step that is not always applied."""
    return {} if chance is None or chance == 1 else {"probability": chance}


def _radius(draft: Draft, option: str) -> list[int]:
    """Return the radii of kernels whose sides are odd numbers in a range, by default 7 to 21."""
    sides = _range(draft, option) or [7, 21]
    return [max(1, int(side) // 2) for side in sides]


def _range(draft: Draft, option: str) -> list | None:
    value = draft.take(option)
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
        return value
    draft.refuse(option, "is not a range [low, high]")
    return None
