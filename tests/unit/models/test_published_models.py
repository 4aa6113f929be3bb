"""NAFNet and Restormer equal the authors' networks in names, shapes, sizes and results, so published weights load.

The published weights are too large for a test. spandrel and spandrel-extra-arches recognise a network by names and
shapes and build it from the authors' code. Ours must equal it up to rounding.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from accel_restore.models import build_model

GOPRO = {"encoder_blocks": [1, 1, 1, 28], "middle_blocks": 1, "decoder_blocks": [1, 1, 1, 1]}
DENOISING = {"layer_norm": "bias_free"}

# Model, arguments, channels, and the number of parameters of spandrel's network with this configuration.
PUBLISHED = {
    "NAFNet-SIDD-width32": ("nafnet", {}, 3, 29_159_715),
    "NAFNet-SIDD-width64": ("nafnet", {"width": 64}, 3, 115_982_915),
    "NAFNet-GoPro-width32": ("nafnet", GOPRO, 3, 17_111_907),
    "NAFNet-GoPro-width64": ("nafnet", {"width": 64, **GOPRO}, 3, 67_888_835),
    "Restormer-deraining": ("restormer", {}, 3, 26_126_644),
    "Restormer-denoising": ("restormer", DENOISING, 3, 26_111_668),
    "Restormer-denoising-gray": ("restormer", DENOISING, 1, 26_109_076),
}

NAFNET_BLOCK = {
    "norm1.weight": (64,), "norm1.bias": (64,), "norm2.weight": (64,), "norm2.bias": (64,),
    "beta": (1, 64, 1, 1), "gamma": (1, 64, 1, 1),
    "conv1.weight": (128, 64, 1, 1), "conv1.bias": (128,), "conv2.weight": (128, 1, 3, 3), "conv2.bias": (128,),
    "sca.1.weight": (64, 64, 1, 1), "sca.1.bias": (64,), "conv3.weight": (64, 64, 1, 1), "conv3.bias": (64,),
    "conv4.weight": (128, 64, 1, 1), "conv4.bias": (128,), "conv5.weight": (64, 64, 1, 1), "conv5.bias": (64,),
}  # fmt: skip
RESTORMER_BLOCK = {
    "norm1.body.weight": (96,), "norm1.body.bias": (96,), "norm2.body.weight": (96,), "norm2.body.bias": (96,),
    "attn.temperature": (2, 1, 1), "attn.qkv.weight": (288, 96, 1, 1), "attn.qkv_dwconv.weight": (288, 1, 3, 3),
    "attn.project_out.weight": (96, 96, 1, 1), "ffn.project_in.weight": (510, 96, 1, 1),
    "ffn.dwconv.weight": (510, 1, 3, 3), "ffn.project_out.weight": (96, 255, 1, 1),
}  # fmt: skip
# Parts outside the blocks, and one parameter of the last block of every level.
NAMES = {
    "nafnet": {
        "intro.weight": (32, 3, 3, 3), "intro.bias": (32,), "ending.weight": (3, 32, 3, 3), "ending.bias": (3,),
        "downs.0.weight": (64, 32, 2, 2), "downs.0.bias": (64,), "downs.3.weight": (512, 256, 2, 2),
        "ups.0.0.weight": (1024, 512, 1, 1), "ups.3.0.weight": (128, 64, 1, 1),
        "middle_blks.11.conv1.weight": (1024, 512, 1, 1), "encoders.3.7.beta": (1, 256, 1, 1),
        "decoders.0.1.gamma": (1, 256, 1, 1),
    },
    "restormer": {
        "patch_embed.proj.weight": (48, 3, 3, 3), "output.weight": (3, 96, 3, 3),
        "down1_2.body.0.weight": (24, 48, 3, 3), "down2_3.body.0.weight": (48, 96, 3, 3),
        "down3_4.body.0.weight": (96, 192, 3, 3), "up4_3.body.0.weight": (768, 384, 3, 3),
        "up3_2.body.0.weight": (384, 192, 3, 3), "up2_1.body.0.weight": (192, 96, 3, 3),
        "reduce_chan_level3.weight": (192, 384, 1, 1), "reduce_chan_level2.weight": (96, 192, 1, 1),
        "encoder_level1.3.attn.temperature": (1, 1, 1), "encoder_level3.5.attn.temperature": (4, 1, 1),
        "latent.7.attn.temperature": (8, 1, 1), "decoder_level3.5.attn.qkv.weight": (576, 192, 1, 1),
        "decoder_level2.5.attn.qkv.weight": (288, 96, 1, 1), "decoder_level1.3.attn.qkv.weight": (288, 96, 1, 1),
        "refinement.3.ffn.project_in.weight": (510, 96, 1, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "channels", "number"), PUBLISHED.values(), ids=PUBLISHED)
def test_number_of_parameters_equals_the_published_network(name, arguments, channels, number):
    with torch.device("meta"):
        model = build_model(name, arguments, channels)
    assert sum(parameter.numel() for parameter in model.parameters()) == number


@pytest.mark.parametrize(
    ("name", "prefix", "block"),
    [("nafnet", "encoders.1.0.", NAFNET_BLOCK), ("restormer", "encoder_level2.0.", RESTORMER_BLOCK)],
)
def test_parameters_have_their_published_names_and_shapes(name, prefix, block):
    with torch.device("meta"):
        ours = {key: tuple(tensor.shape) for key, tensor in build_model(name, {}, 3).state_dict().items()}
    assert NAMES[name].items() <= ours.items()
    assert {key.removeprefix(prefix): shape for key, shape in ours.items() if key.startswith(prefix)} == block
    assert {key.split(".")[0] for key in ours} == {key.split(".")[0] for key in [*NAMES[name], prefix]}


def test_restormer_has_the_multiplications_stated_in_the_paper():
    with torch.device("meta"):
        model, image = build_model("restormer", {}, 3), torch.empty(1, 3, 256, 256)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert round(convolutions / 2e9, 2) == 140.99  # the paper does not count the products inside the attention


def random_model(name: str, arguments: dict, channels: int) -> torch.nn.Module:
    """Return the model without zero parameters; a new NAFNet multiplies all its branches by zero."""
    torch.manual_seed(0)
    model = build_model(name, arguments, channels).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


COMPARED = {
    name: PUBLISHED[name][:3] for name in PUBLISHED if "width64" not in name
}  # takes 0.5 GB and covers nothing new
# These have the same parts in other numbers.
LONG = ("NAFNet-GoPro-width32", "Restormer-biases", "Restormer-deraining", "Restormer-denoising-gray")
COMPARED["Restormer-biases"] = ("restormer", {"bias": True}, 3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "arguments", "channels"),
    [
        pytest.param(*value, id=name, marks=pytest.mark.sweep if name in LONG else ())
        for name, value in COMPARED.items()
    ],
)
def test_spandrels_implementation_loads_the_weights_and_gives_the_same_output(name, arguments, channels):
    spandrel = pytest.importorskip("spandrel")
    registry = spandrel.ArchRegistry()
    registry.add(*spandrel.MAIN_REGISTRY)
    if name == "restormer":
        registry.add(*pytest.importorskip("spandrel_extra_arches").EXTRA_REGISTRY)
    source = random_model(name, arguments, channels)
    found = spandrel.ModelLoader(registry=registry).load_from_state_dict(source.state_dict())
    assert found.architecture.id.lower() == name
    theirs, ours = found.model.eval(), build_model(name, arguments, channels).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(1, channels, 40, 56)  # multiples of 8, because spandrel's Restormer does not pad
    assert (ours(images) - theirs(images)).abs().max() <= 1e-5
    assert (ours.double()(images.double()) - theirs.double()(images.double())).abs().max() <= 1e-10
