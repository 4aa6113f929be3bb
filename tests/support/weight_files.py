"""Weight files of small models, written as by a run."""

import json
from pathlib import Path

import torch

from accel_restore.checkpoint.state_dict import serialize
from accel_restore.models import build_model, weights_file


def build(channels: int) -> torch.nn.Module:
    """Return a tiny UNet whose weights visibly change an image."""
    generator = torch.Generator().manual_seed(channels)
    net = build_model("unet", {"width": 8}, channels)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return net


def write(path: Path, net: torch.nn.Module, channels: int = 3, **metadata: str | None) -> Path:
    """Write a weight file as a run does. Keywords replace metadata; None removes an entry."""
    weights = net.state_dict()
    stored = {
        "format": "pt", "version": "0.1.0", "sha256": weights_file.digest(weights),
        "model": json.dumps({"name": "unet", "arguments": {"width": 8}}),
        "data": json.dumps({"channels": channels, "scale": 1}),
        "epoch": "3", "step": "40", "metrics": json.dumps({"psnr": 30.5}), **metadata,
    }  # fmt: skip
    path.write_bytes(serialize(weights, {name: value for name, value in stored.items() if value is not None}))
    return path
