"""The architectures of spandrel by name. Names are read from its folders, so nothing heavy is imported.

A folder of spandrel.architectures is an architecture, and its lower-case name is the model's name. A folder with
several classes, such as PLKSR with RealPLKSR, also gives each class its own name.
"""

import ast
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from accel_restore.registry import MODELS

PACKAGE = "spandrel.architectures"

# Parameters that the data decides, by the names that architectures give them.
SCALE = ("scale", "upscale", "up_scale", "upscale_factor", "upscaling_factor")
INPUT_CHANNELS = (
    "in_chans", "in_channels", "in_ch", "in_nc", "inp_channels", "num_in_ch", "img_channel", "dd_in", "n_colors",
)  # fmt: skip
OUTPUT_CHANNELS = ("out_chans", "out_channels", "out_ch", "out_nc", "num_out_ch")
MISNAMED = {("uformer", "in_chans")}  # channels of the output; dd_in has those of the input
# Channels besides those of the image: DRUNet's noise map, and the scale of every pixel that MixDehazeNet returns.
EXTRA_CHANNELS = {("drunet", "in_nc"): 1, ("mixdehazenet", "out_chans"): 1}
# Arguments without a default, and defaults that the class itself refuses: windows must divide the image or its overlap.
DEFAULTS: dict[str, dict[str, Any]] = {
    "drct": {"upsampler": "pixelshuffle"},  # its only one
    "hat": {"window_size": 16},
    "safmn": {"dim": 36},
    "safmnbcie": {"dim": 42},
    "swin2sr": {"window_size": 8},
    "swinir": {"window_size": 8},
}  # fmt: skip
# The scales of architectures that have an argument for it, but not each of 1, 2, 3 and 4.
SCALES = {"safmnbcie": (1,), "swiftsrgan": (1, 2, 4)}
# Why an architecture cannot be trained on pairs of images alone, where a trial does not show it.
REFUSED = {
    "aurasr": "draws random noise in each forward and needs a discriminator",
    "fbcnn": "also returns the quality of a JPEG file, which is trained on its true quality",
    "gfpgan": "restores faces of 512 x 512 pixels with a trained StyleGAN2 inside",
    "lama": "needs a mask of the pixels to fill in",
    "mmrealsr": "also returns the strength of the degradations, which is trained on their order",
    "restoreformer": "needs a trained dictionary of face parts",
}


@cache
def find_architectures() -> dict[str, tuple[str, ...]]:
    """Return the import paths of each architecture's classes by its name, in alphabetical order.

    Several classes differ in what they are for: the first that has the scale of the data is used.
    """
    spec = importlib.util.find_spec(PACKAGE.partition(".")[0])
    if spec is None or spec.submodule_search_locations is None:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for folder in Path(spec.submodule_search_locations[0], "architectures").iterdir():
        if folder.name.startswith("_") or not (folder / "__init__.py").is_file():
            continue
        classes = _classes(folder)
        paths = {name.lower(): (f"{PACKAGE}.{folder.name}:{name}",) for name in classes}
        found |= {folder.name.lower(): tuple(path for (path,) in paths.values()), **paths}
    return dict(sorted(found.items()))


def _classes(folder: Path) -> Sequence[str]:
    """Return the names of the networks that an architecture's folder exports."""
    text = (folder / "__init__.py").read_text("utf-8")
    _, _, names = text.partition("\n__all__ = [")
    found = ast.literal_eval(f"[{names.partition(']')[0]}]")
    return [name for name in found if name != f"{folder.name}Arch"] or [folder.name]


def model_names() -> dict[str, str]:
    """Return what every model's name stands for: ours, then those of spandrel, which never replace ours."""
    others = {name: paths[0] for name, paths in find_architectures().items() if name not in REFUSED}
    return MODELS | {name: path for name, path in others.items() if name not in MODELS}


def refused_names() -> dict[str, str]:
    """Return the architectures of spandrel that cannot be trained, each with a message of the reason."""
    return {
        name: f"'{name}' cannot be trained on pairs of images: it {reason}"
        for name, reason in REFUSED.items()
        if name in find_architectures()
    }


def is_architecture(name: str) -> bool:
    """Return whether the name is that of an architecture of spandrel, and not of a model of ours."""
    return name not in MODELS and name in find_architectures()
