"""The losses of an option file: `train.losses`, a list, and `train.pixel_opt` and others, one section each."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accel_restore.config.convert.adversarial import GAN, convert_gan_loss
from accel_restore.config.convert.draft import Draft, is_loss

NO_LOSS = "No loss could be carried over, so the loss is l1."
_SSIM_SIDE = 176  # of the smallest crops that ms_ssim accepts
_ELSEWHERE = "accel_restore has no such loss; name your own as mypackage.losses:mine"


@dataclass(frozen=True)
class _Loss:
    """The name of a loss here, and its arguments: their names there, and their names and values here."""

    name: str
    arguments: dict[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)
    change: str = ""


def _same(value: Any) -> Any:
    return value


_LDL = _Loss(
    "ldl", change="the output of the EMA is not compared, so the weight is 0 nowhere; differences are absolute"
)
_BY_OPTION = {"ldl_opt": _LDL, "artifacts_opt": _LDL}  # whatever their type
_LOSSES = {
    "l1loss": _Loss("l1"),
    "mseloss": _Loss("mse"),
    "l2loss": _Loss("mse"),
    "charbonnierloss": _Loss("charbonnier"),  # its eps depends on the trainer
    "psnrloss": _Loss("psnr", {"toY": ("to_y", _same), "to_y": ("to_y", _same)}),
    "fftloss": _Loss("fft"),
    "edgeloss": _Loss("edge"),
    "ssimloss": _Loss("ssim", change="SSIM is the mean over R, G and B; there it may be measured in another space"),
    "mssimloss": _Loss(
        "ms_ssim", change="MS-SSIM of Wang et al. 2003, the mean over R, G and B; there it is a variant"
    ),
    "msssimloss": _Loss("ms_ssim"),
    "perceptualloss": _Loss(
        "perceptual",
        {
            "layer_weights": ("layers", lambda value: {str(k).replace("pooling", "pool"): v for k, v in value.items()}),
            "vgg_type": ("network", _same),
            "criterion": ("criterion", lambda value: {"l1": "l1", "l2": "mse", "mse": "mse"}.get(value, "l1")),
        },
    ),
    "lpipsloss": _Loss("lpips"),
    "distsloss": _Loss("dists", change="images are not resized"),
    "ldlloss": _LDL,
    "focalfrequencyloss": _Loss("focal_frequency", {"alpha": ("alpha", float), "log_matrix": ("log", bool)}),
    "contextualloss": _Loss(
        "contextual", {"band_width": ("bandwidth", float)}, "the layers are those of the paper; set layers for others"
    ),
}
_VGG16, _VGG19 = "vgg16-397923af.pth", "vgg19-dcbb9e9d.pth"  # torchvision's
_FILES = {"perceptual": _VGG19, "contextual": _VGG19, "lpips": _VGG16, "dists": _VGG16}
_DEFAULTS = {  # options that change nothing where they have this value
    "reduction": "mean",
    "use_input_norm": True,
    "range_norm": False,
    "style_weight": 0,
    "toY": False,
}


def convert_losses(draft: Draft, is_eps_squared: bool) -> None:
    """Carry the losses over. `is_eps_squared`: whether Charbonnier's eps is added to the squared error as it is."""
    names = [f"train.{name}" for name in draft.section("train") if is_loss(f"train.{name}") and name != "losses"]
    listed = draft.peek("train.losses")
    names += [f"train.losses.{place}" for place, _ in enumerate(listed if isinstance(listed, list) else [])]
    for option in names:
        _convert(draft, option, is_eps_squared)
    draft.skip("train.losses", "there are no losses")
    if not draft.config.get("loss"):
        draft.changes.append(NO_LOSS)


def _convert(draft: Draft, option: str, is_eps_squared: bool) -> None:
    section = draft.section(option)
    if not section:
        draft.skip(option, "the loss is off")
        return
    kind = str(section.get("type")).lower()
    key = draft.first(f"{option}.loss_weight", f"{option}.perceptual_weight")
    weight = section.get(key.rpartition(".")[2], 1.0)
    if weight == 0:
        draft.skip(option, "its weight is 0")
    elif not isinstance(weight, int | float):
        draft.lose(option, "its weight is not a number")
    elif kind in GAN:
        convert_gan_loss(draft, option, weight, key)
    elif kind == "msssiml1loss":
        _convert_ms_ssim_l1(draft, option, key, weight)
    elif (loss := _BY_OPTION.get(option.rpartition(".")[2]) or _LOSSES.get(kind)) is None:
        draft.lose(option, _ELSEWHERE)
    else:
        arguments = _arguments(draft, option, loss)
        if loss.name == "charbonnier":
            arguments["eps"] = _eps(draft, f"{option}.eps", is_eps_squared)
        draft.take(f"{option}.type")
        draft.take(key)
        if loss.change:
            draft.change(f"{option}.type", loss.change)
        _add(draft, loss.name, weight, arguments, option)


def _arguments(draft: Draft, option: str, loss: _Loss) -> dict[str, Any]:
    found = {}
    for name, (ours, convert) in loss.arguments.items():
        value = draft.take(f"{option}.{name}")
        if value is None:
            continue
        try:
            found[ours] = convert(value)
        except (AttributeError, TypeError):
            draft.refuse(f"{option}.{name}", "has an unknown form")
    for name, value in _DEFAULTS.items():
        if draft.peek(f"{option}.{name}") == value:
            draft.take(f"{option}.{name}")
    if draft.peek(f"{option}.criterion") not in (None, "l1", "l2", "mse"):
        draft.change(f"{option}.criterion", "the criterion is l1 or mse, so it is l1")
    draft.lose(f"{option}.reduction", "the loss of a sample is a mean over its pixels")
    draft.lose(f"{option}.style_weight", "there is no style loss")
    return found


def _eps(draft: Draft, option: str, is_squared: bool) -> float:
    """Return the eps of sqrt(error² + eps²)."""
    eps = draft.number(option)
    if is_squared:  # BasicSR: sqrt(error² + eps), by default 1e-12
        value = math.sqrt(max(eps if eps is not None else 1e-12, 0.0))
        if eps is not None:
            draft.change(option, f"there eps is added to the squared error, here its square, so eps is {value:g}")
        return value
    return eps if eps is not None else 1e-3


def _convert_ms_ssim_l1(draft: Draft, option: str, key: str, weight: float) -> None:
    """MS-SSIM and l1 in one loss."""
    alpha = draft.number(f"{option}.alpha")
    alpha = 0.1 if alpha is None else alpha
    draft.take(key)
    draft.change(
        f"{option}.type",
        f"alpha · MS-SSIM + (1 - alpha) · l1, with alpha {alpha:g}; there the l1 part is weighted by a Gaussian window",
    )
    for name, part in (("ms_ssim", alpha), ("l1", 1 - alpha)):
        if part > 0:
            _add(draft, name, round(part * weight, 12), {}, option)


def _add(draft: Draft, name: str, weight: Any, arguments: dict[str, Any], option: str) -> None:
    """Add a term to the loss."""
    losses = draft.config.setdefault("loss", {})
    if name == "ms_ssim" and draft.config.get("data", {}).get("patch_size", 0) < _SSIM_SIDE:
        draft.change(f"{option}.type", f"ms_ssim needs crops of {_SSIM_SIDE} pixels, so the loss is ssim")
        name = "ssim"
    if name in _FILES:
        arguments = {"weights": _FILES[name], **arguments}
        network = "vgg16" if arguments.get("network") == "vgg16" else None
        if network:
            arguments["weights"] = _VGG16
        draft.todo.append(
            f"loss.{name}.weights: write where torchvision's {arguments['weights']} is; nothing is downloaded"
        )
    if name in losses and (arguments or isinstance(losses[name], dict)):
        draft.refuse(option, f"the loss {name} is already in use; one term of each name is possible")
    elif name in losses:
        losses[name] = round(losses[name] + weight, 12)
    else:
        draft.put(f"loss.{name}", {"weight": weight, **arguments} if arguments else weight, option)
    draft.lose(option, "the loss has no such argument here")
