"""Checks of what one architecture can do, on a small network of it. `contract` makes a table of them.

A check returns "yes", or a shorter fact such as the scales. It raises `MissingError` with the reason for a "no".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from onnx_check import measure_onnx
from runs import make_photos, small_config
from torch import Tensor, nn

from accel_restore import fit, load
from accel_restore.models import ImageSpec, build_model
from accel_restore.models.branches import freeze_unused
from accel_restore.models.tiling import tiled

SIZES = ((17, 13), (1, 1), (33, 40))  # height, width
REACH = 24  # pixels: what `tiled` with an overlap of 64 keeps between an output pixel and a cut

_SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}
SMALL: dict[str, dict[str, Any]] = {
    "atd": {**_SWIN, "category_size": 16, "num_tokens": 8, "reducted_dim": 4},
    "compact": {"num_feat": 8, "num_conv": 2},
    "craft": {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2]},
    "dat": {"embed_dim": 32, "depth": [2], "num_heads": [2], "split_size": [4, 8], "expansion_factor": 2.0},
    "dctlsa": {"nf": 20, "num_head": 5},
    "ditn": {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "UFONE_blocks": 1},
    "dncnn": {"depth": 4, "width": 8},
    "drct": {**_SWIN, "gc": 4, "window_size": 8},
    "drunet": {"nc": [8, 8, 16, 16], "nb": 1},
    "esrgan": {"num_filters": 8, "num_blocks": 1},
    "fdat": {"embed_dim": 16, "num_groups": 1, "depth_per_group": 2, "num_heads": 2},
    "fftformer": {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1},
    "grl": {"embed_dim": 12, "depths": [2], "num_heads_window": [2], "num_heads_stripe": [2]},
    "hat": {**_SWIN, "window_size": 8, "compress_ratio": 3, "squeeze_factor": 6, "num_feat": 8},
    "hvicidnet": {"channels": [8, 8, 16, 16], "heads": [1, 2, 2, 2]},
    "ipt": {"n_feats": 8, "num_layers": 1, "num_heads": 4, "patch_size": 24},
    "kbnet": {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "kbnet_l": {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1},
    "kbnet_s": {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "mixdehazenet": {"embed_dims": [8, 16, 32, 16, 8]},
    "moesr": {"dim": 8, "n_blocks": 1, "n_block": 1, "upsample_dim": 8},
    "mosr": {"n_block": 2, "dim": 8},
    "nafnet": {"width": 4, "encoder_blocks": [1, 1], "middle_blocks": 1, "decoder_blocks": [1, 1]},
    "omnisr": {"num_feat": 16, "res_num": 1},
    "plksr": {"dim": 8, "n_blocks": 2, "kernel_size": 5},
    "rcan": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 8, "reduction": 2},
    "realplksr": {"dim": 16, "n_blocks": 2, "kernel_size": 5},
    "restormer": {"width": 8, "blocks": [1, 1, 1, 1], "refinement_blocks": 1, "heads": [1, 1, 2, 2]},
    "retinexformer": {"n_feat": 8, "stage": 1},
    "rgt": {"embed_dim": 12, "depth": [2], "num_heads": [2]},
    "safmn": {"dim": 8, "n_blocks": 1},
    "safmnbcie": {"dim": 12, "n_blocks": 1, "num_layers": 1},
    "scunet": {"config": [1] * 7},
    "seemore": {"num_experts": 3, "num_layers": 1, "embedding_dim": 8},
    "span": {"feature_channels": 8},
    "swiftsrgan": {"num_channels": 8, "num_blocks": 1},
    "swin2sr": _SWIN,
    "swinir": _SWIN,
    "uformer": {"embed_dim": 8, "depths": [1] * 9},
    "unet": {"width": 8, "multipliers": [1, 2]},
}


# How the configuration of a run has to differ, and why.
CONDITIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "fftformer": ("train", {"channels_last": False}, "with train.channels_last=false: a parameter has five dimensions"),
    "hvicidnet": ("data", {"degradation": [{"name": "low_light"}]}, "not with pixels below 0, which give NaN"),
    "ipt": ("train", {"channels_last": False}, "with train.channels_last=false: its forward views contiguous images"),
}


class MissingError(Exception):
    """Says why an architecture cannot do something."""


@dataclass
class Subject:
    """A small network of an architecture, and the runs that were made with it."""

    name: str
    folder: Path
    reasons: dict[str, str] = field(default_factory=dict)  # column → why not

    def build(self, channels: int = 3, scale: int | None = None, input_channels: int | None = None) -> nn.Module:
        """Return the network with the same weights each time."""
        torch.manual_seed(0)
        return build_model(self.name, SMALL.get(self.name, {}), channels, scale or self.scales[0], input_channels)

    @cached_property
    def scales(self) -> list[int]:
        """The factors by which the architecture can enlarge, with weights that matter."""
        found: list[int] = []
        error: Exception = MissingError("has no scale")
        for scale in (1, 2, 4, 3):
            if scale == 3 and found:  # tried for a network that has no other scale
                break
            try:
                self.build(scale=scale).train()(torch.rand(2, 3, 16, 16)).sum().backward()
            except Exception as raised:
                error = raised
            else:
                found.append(scale)
        if not found:
            raise MissingError(first_line(error))
        return found

    def config(self, name: str, **more: Any) -> dict[str, Any]:
        """Return the configuration of a run of two epochs with one step each."""
        photos = self.folder / "train", self.folder / "val"
        if not photos[0].exists():
            make_photos(photos[0], 4, least=66, most=70)
            make_photos(photos[1], 1, seed=1)
        size = 16 * self.scales[0]
        source = {"scale": self.scales[0], "patch_size": size, "batch_size": 4}
        if self.scales[0] > 1:
            source["degradation"] = [{"name": "downscale"}]
        config = small_config(*photos, self.folder / self.name, run={"name": name, **more}, data=source)
        config["checkpoint"], config["validation"] = {"keep": 9}, {"metrics": ["psnr"], "num_samples": 0}
        if self.name in CONDITIONS:
            section, changes, self.reasons["trains"] = CONDITIONS[self.name]
            config[section] |= changes
        config["model"] = {"name": self.name, **SMALL.get(self.name, {})}
        return config


def scales(subject: Subject) -> str:
    return " ".join(map(str, subject.scales))


def any_size(subject: Subject, channels: int = 3, input_channels: int | None = None) -> str:
    """Images of odd sizes, at the lowest and highest scale."""
    for scale in {subject.scales[0], subject.scales[-1]}:
        model = subject.build(channels, scale, input_channels).eval()
        for height, width in SIZES:
            with torch.no_grad():
                output = model(torch.rand(1, input_channels or channels, height, width))
            if output.shape != (1, channels, height * scale, width * scale):
                raise MissingError(f"{width}x{height} gives {list(output.shape)}")
            if not output.isfinite().all():
                raise MissingError(f"{width}x{height} gives NaN or inf")
    return "yes"


def gray(subject: Subject) -> str:
    return any_size(subject, 1)


def many_channels(subject: Subject) -> str:
    return any_size(subject, 31)


def other_channels(subject: Subject) -> str:
    """Packed Bayer to RGB, at each scale that the network has."""
    possible, reason = [], ""
    for scale in subject.scales:
        try:
            model = subject.build(3, scale, 4).train()
            model(torch.rand(2, 4, 16, 16)).sum().backward()
        except Exception as error:
            reason = reason or first_line(error)
        else:
            possible.append(scale)
    if not possible:
        raise MissingError(reason)
    return "yes" if possible == subject.scales else " ".join(map(str, possible))


def gradients(subject: Subject) -> str:
    """Every trained parameter gets a gradient. Training freezes those on which the output does not depend."""
    model = subject.build()
    freeze_unused(model, ImageSpec.of(3, subject.scales[0]))
    model.train()(torch.rand(2, 3, 16, 16)).square().mean().backward()
    names = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    if trained := [name for name in names if model.get_parameter(name).requires_grad]:
        raise MissingError(f"{_some(trained)} get none")
    if names:
        subject.reasons["gradients"] = f"the output does not depend on {_some(names)}; they are not trained"
        return f"{len(names)} frozen"
    return "yes"


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def trains(subject: Subject) -> str:
    """Two steps change the weights, and best.safetensors alone restores."""
    config = subject.config("whole")
    folder = fit(config, cpu=True)
    states = [last_weights_at(folder, step) for step in (1, 2)]
    if all(tensor.equal(states[1][name]) for name, tensor in states[0].items()):
        raise MissingError("the second step changes nothing")
    scale = subject.scales[0]
    output = load(folder / "best.safetensors")(torch.rand(1, 3, 9, 11))
    assert output.shape == (1, 3, 9 * scale, 11 * scale) and output.isfinite().all()
    return "yes"


def continues(subject: Subject) -> str:
    """A run that starts from the commit of step 1 is bit-identical after step 2."""
    whole = subject.folder / subject.name / "whole"
    config = subject.config("parts", resume=str(whole / "checkpoints" / "step-00000001"))
    parts = fit(config, cpu=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        expected, found = (last_weights_at(folder, 2, file) for folder in (whole, parts))
        if different := [name for name, tensor in expected.items() if not tensor.equal(found[name])]:
            raise MissingError(f"{len(different)} tensors of {file} differ, such as {different[0]}")
    return "yes"


def tiles(subject: Subject) -> str:
    """Tiles give what the whole image gives, if no output pixel depends on pixels more than 24 away."""
    model, scale = disturbed(subject.build()).eval(), subject.scales[0]
    image = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole, parts = model(image), tiled(model, image, 112, 64, scale)
    if torch.allclose(whole, parts, rtol=0, atol=1e-5 * float(whole.abs().max())):
        return "yes"
    raise MissingError(f"an output pixel depends on pixels {reach(model, image, scale)} away")


def disturbed(model: nn.Module) -> nn.Module:
    """Change all weights a little: many networks start with scales of 0, at which whole branches have no effect."""
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return model


def reach(model: nn.Module, image: Tensor, scale: int) -> str:
    """Return the distance of the farthest input pixel that influences the output in the middle."""
    image = image.clone().requires_grad_()
    output = model(image)
    row, column = (side // 2 for side in image.shape[-2:])
    output[..., row * scale, column * scale].sum().backward()
    assert image.grad is not None
    used = image.grad.abs().amax((0, 1))
    rows, columns = (used > 1e-7 * used.max()).nonzero(as_tuple=True)
    distance = int(max((rows - row).abs().max(), (columns - column).abs().max()))
    return f"{distance} or more" if distance >= column - 1 else str(distance)


def onnx(subject: Subject) -> str:
    """onnxruntime gives torch's output from the exported network."""
    cell, reason = measure_onnx(disturbed(subject.build()).eval(), subject.name, subject.scales[0], subject.folder)
    if cell == "no":
        raise MissingError(reason)
    if reason:
        subject.reasons["ONNX"] = reason
    return cell


def bf16(subject: Subject) -> str:
    """After ten steps in bf16, the loss is within 5 % of float32's, or both are below 1 % of the first loss."""
    first, exact = _losses(subject, torch.float32)
    _, rounded = _losses(subject, torch.bfloat16)
    if not abs(rounded - exact) <= 0.05 * exact + 0.01 * first:
        raise MissingError(f"the loss after ten steps is {rounded:.4g}, with float32 {exact:.4g}")
    return "yes"


def _losses(subject: Subject, dtype: torch.dtype) -> tuple[float, float]:
    """Return the losses of the first and the tenth step."""
    model, scale = subject.build().train(), subject.scales[0]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    random = torch.Generator().manual_seed(1)
    gt = nn.functional.interpolate(torch.rand(2, 3, 4, 4, generator=random), scale_factor=4 * scale, mode="bilinear")
    input = nn.functional.avg_pool2d(gt, scale) + 0.1 * torch.randn(2, 3, 16, 16, generator=random)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        torch.manual_seed(2)  # for stochastic depth
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            output = model(input)
        loss = (output.float() - gt).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


COLUMNS: dict[str, Callable[[Subject], str]] = {
    "scales": scales,
    "any size": any_size,
    "gray": gray,
    "31 channels": many_channels,
    "4 to 3": other_channels,
    "gradients": gradients,
    "trains": trains,
    "continues": continues,
    "tiles": tiles,
    "bf16": bf16,
    "ONNX": onnx,
}


def last_weights_at(folder: Path, step: int, file: str = "model.safetensors") -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "checkpoints" / f"step-{step:08d}" / file)


def first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if isinstance(error, MissingError) else f"{line:.160}"
