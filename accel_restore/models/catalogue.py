"""What `accel-restore models` lists: every model's presets, parameters, scales, licence and paper."""

import inspect
from typing import Any

from accel_restore.models import ImageSpec, architectures
from accel_restore.models.presets import FAMILIES, presets_of
from accel_restore.registry import MODELS
from accel_restore.utils.imports import resolve

_OURS = "Apache-2.0 (accel_restore)"
# The licences of the projects that spandrel's code is from; the package carries no licence files.
_LICENCES = {
    "Apache-2.0": "atd aurasr dat esrgan fbcnn gfpgan hat ipt lama omnisr restoreformer rgt safmn scunet span swin2sr "
    "swinir",
    "MIT": "drct drunet fftformer hvicidnet plksr realcugan retinexformer swiftsrgan uformer upcunet2x upcunet2x_fast "
    "upcunet3x upcunet4x",
    "BSD-3-Clause": "compact mmrealsr",
}
_OTHER_LICENCE = "permissive (spandrel accepts MIT, Apache-2.0, BSD and public domain only)"
_PAPERS = {  # of models without presets
    "unet": "Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI",
    "fdat": "none; github.com/stinkybread/fdat",
    "ipt": "Chen et al. 2021, Pre-Trained Image Processing Transformer, CVPR",
    "kbnet": "Zhang et al. 2023, KBNet: Kernel Basis Network for Image Restoration, arXiv 2303.02881",
    "moesr": "none; github.com/umzi2/MoESR",
    "realcugan": "none; github.com/bilibili/ailab, Real-CUGAN",
    "safmnbcie": "Sun et al. 2023, Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution, ICCV",
    "swiftsrgan": "Krishnan and Krishnan 2021, SwiftSRGAN: Rethinking Super-Resolution for Efficient and Real-time "
    "Inference, ICICyTA",
}
_PAPERS |= {f"upcunet{kind}": _PAPERS["realcugan"] for kind in ("2x", "2x_fast", "3x", "4x")}


def describe_model(name: str) -> dict[str, Any]:
    """Return all that is known about a model, by the names of the columns; the parameters are those of its defaults."""
    scales = scales_of(name)
    return {
        "name": name,
        "source": "accel_restore" if name in MODELS else "spandrel",
        "presets": presets_of(name),
        "parameters": count_parameters(name, scales[0]),
        "scales": scales,
        "arguments": arguments_of(name),
        "licence": licence_of(name),
        "paper": FAMILIES[name].paper if name in FAMILIES else _PAPERS.get(name, "none known"),
    }


def licence_of(name: str) -> str:
    """Return the licence of a model's code."""
    known = (licence for licence, names in _LICENCES.items() if name in names.split())
    return _OURS if name in MODELS else next(known, _OTHER_LICENCE)


def scales_of(name: str) -> list[int]:
    """Return the values of data.scale that a model's class has an argument for, or the one that it is made for."""
    keys = set(inspect.signature(_class_of(name)).parameters)
    if keys & set(architectures.SCALE):
        return list(architectures.SCALES.get(name, (1, 2, 3, 4)))
    fixed = [scale for scale in (2, 3, 4) for path in _paths(name) if f"{scale}x" in path]
    return list(dict.fromkeys(fixed)) or [1]


def _paths(name: str) -> tuple[str, ...]:
    return () if name in MODELS else architectures.find_architectures()[name]


def _class_of(name: str) -> Any:
    return resolve(MODELS[name] if name in MODELS else _paths(name)[0], {}, "model.name")


def arguments_of(name: str) -> dict[str, Any]:
    """Return the keyword arguments of a model that a configuration can give, with their defaults."""
    if name not in MODELS:
        from accel_restore.models.build_spandrel import describe_architecture

        return describe_architecture(name, {}, ImageSpec.of(3, scales_of(name)[0]))["arguments"]
    parameters = inspect.signature(_class_of(name)).parameters.items()
    return {key: parameter.default for key, parameter in parameters if key not in ImageSpec._fields}


def count_parameters(name: str, scale: int) -> int:
    """Return the number of parameters of a model with its defaults, for 3 channels. It takes no memory."""
    from accel_restore.models import build_model
    from accel_restore.models.spandrel_models import skeleton_device

    with skeleton_device():
        model = build_model(name, {}, 3, scale)
    return sum(parameter.numel() for parameter in model.parameters())
