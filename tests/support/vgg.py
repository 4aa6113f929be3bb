"""Files like torchvision's VGG networks, with random weights, for tests of perceptual losses."""

from pathlib import Path

import torch


def random_weights(network: str) -> dict[str, torch.Tensor]:
    """Return the convolutional part of a state dict. He et al.'s variance keeps the scale of the features."""
    from torchvision import models

    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in getattr(models, network)(weights=None).state_dict().items()}
    return {
        name: torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        if len(shape) == 4
        else 0.1 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if name.startswith("features.")
    }


def write_weights(folder: Path, network: str) -> str:
    """Write random weights to a new .pth file and return its path."""
    path = folder / f"{network}.pth"
    torch.save(random_weights(network), path)
    return str(path)


def read_network(network: str, path: str) -> torch.nn.Sequential:
    """Return torchvision's convolutional layers with the weights of such a file."""
    from torchvision import models

    with torch.device("meta"):
        features = getattr(models, network)(weights=None).features
    state = torch.load(path, weights_only=True)
    features.load_state_dict({name.removeprefix("features."): value for name, value in state.items()}, assign=True)
    return features.eval()
