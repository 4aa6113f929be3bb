"""Architectures of spandrel, built from scratch by name."""

import copy
import subprocess
import sys

import pytest
import torch
from configurations import LEAST, problems
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from accel_restore.config.load import config_from
from accel_restore.config.schema import Config
from accel_restore.errors import UserError
from accel_restore.models import ImageSpec, build_model
from accel_restore.models.architectures import find_architectures, model_names
from accel_restore.models.load_weights import _check_skeleton, limited
from accel_restore.models.pretrained import describe, initial_model
from accel_restore.registry import MODELS

HAT = {"embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8, "squeeze_factor": 4}
SWINIR = {"embed_dim": 12, "depths": [2], "num_heads": [2]}
SMALL: list[tuple[str, dict, int]] = [  # name, arguments, scale
    ("hat", HAT, 4),
    ("swinir", SWINIR, 1),
    ("swinir", SWINIR, 3),
    ("span", {"feature_channels": 8}, 2),
    ("drunet", {"nc": [4, 4, 4, 4], "nb": 1}, 1),
    ("compact", {"num_feat": 8, "num_conv": 2}, 4),
    ("rcan", {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 8, "reduction": 4}, 1),
    ("esrgan", {"num_filters": 8, "num_blocks": 1}, 4),
    ("seemore", {"num_layers": 1, "embedding_dim": 8, "num_experts": 2}, 2),
]


def config(name: str, arguments: dict, scale: int = 1, channels: int = 3, seed: int = 0):
    data = {**LEAST["data"], "scale": scale, "channels": channels, "patch_size": 48}
    return config_from({**LEAST, "data": data, "model": {"name": name, **arguments}, "run": {"seed": seed}})


def test_names_are_those_of_the_installed_spandrel_and_never_replace_ours():
    from spandrel import MAIN_REGISTRY

    ids = {architecture.architecture.id.lower() for architecture in MAIN_REGISTRY.architectures()}
    assert ids <= set(find_architectures()) and {"realplksr", "kbnet_s", "upcunet2x"} <= set(find_architectures())
    names = model_names()
    assert list(names)[: len(MODELS)] == list(MODELS) and names["nafnet"] == MODELS["nafnet"]


def test_names_are_checked_without_importing_torch_or_spandrel():
    code = (
        "import sys; from accel_restore.config.load import config_from; print({'torch', 'spandrel'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_architecture_that_needs_more_than_an_image_is_refused_with_the_reason():
    for name in ("lama", "LaMa"):
        assert problems(f"model.name={name}") == [
            "model.name: 'lama' cannot be trained on pairs of images: it needs a mask of the pixels to fill in"
        ]
    with pytest.raises(UserError, match="'fbcnn' cannot be trained"):
        build_model("fbcnn", {}, 3, 1)


@pytest.mark.parametrize(("name", "arguments", "scale"), SMALL)
def test_an_architecture_maps_images_of_any_size_and_trains_every_unfrozen_parameter(name, arguments, scale):
    model = initial_model(config(name, arguments, scale))
    images = torch.rand(2, 3, 9, 21)
    before = copy.deepcopy(images)
    output = model(images)
    assert output.shape == (2, 3, 9 * scale, 21 * scale) and images.equal(before)  # RCAN changes its input in place
    output.sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        for size in ((1, 1), (7, 33)):
            together = model.eval()(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)))
            assert together.shape == (2, 3, size[0] * scale, size[1] * scale)
    assert all(tensor.equal(state[key]) for key, tensor in model.state_dict().items())


def test_control_spandrels_span_changes_its_weights_in_eval_mode():
    from spandrel.architectures.SPAN import SPAN

    model = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8).eval()
    before = copy.deepcopy(model.state_dict())
    model(torch.rand(1, 3, 8, 8))
    assert any(not tensor.equal(before[key]) for key, tensor in model.state_dict().items())


def test_evaluation_equals_spandrels_with_the_same_weights():
    from spandrel import ModelLoader

    for name, arguments, scale in (("span", {"feature_channels": 8}, 2), ("drunet", {"nc": [4, 4, 4, 4]}, 1)):
        model = build_model(name, arguments, 3, scale).eval()
        image = torch.rand(1, 3, 16, 24)
        expected = ModelLoader().load_from_state_dict(copy.deepcopy(model.state_dict()))(image)
        with torch.no_grad():
            assert torch.allclose(model(image).clamp(0, 1), expected, atol=1e-5), name


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, other = (initial_model(config("hat", HAT, seed=seed)).state_dict() for seed in (0, 1))
    assert torch.random.get_rng_state().equal(state)
    again = initial_model(config("hat", HAT, seed=0)).state_dict()
    assert all(tensor.equal(again[key]) for key, tensor in one.items())
    assert any(not tensor.equal(other[key]) for key, tensor in one.items())


@pytest.mark.parametrize(
    ("name", "arguments", "channels", "scale", "message"),
    [
        ("hat", {"embed_dimm": 60}, 3, 1, r"^model\.embed_dimm: unknown key; did you mean 'model\.embed_dim'\?$"),
        ("hat", {"upscale": 2}, 3, 1, r"^model\.upscale: unknown key; set data\.scale, from which"),
        ("hat", {"in_chans": 1}, 3, 1, r"^model\.in_chans: unknown key; set data\.channels, from which"),
        ("hat", {"norm_layer": "x"}, 3, 1, r"^model\.norm_layer: unknown key"),
        ("hat", {"embed_dim": 10**6}, 3, 1, r"^model\.embed_dim: 1000000 is too large"),
        ("hat", {"depths": [1] * 300}, 3, 1, r"^model\.depths: has 300 entries"),
        ("scunet", {"config": [1] * 7, "dim": 64}, 3, 2, r"^data\.scale: 2, but the model 'scunet' has only 1$"),
        ("realcugan", {}, 3, 1, r"^data\.scale: 1, but the model 'realcugan' has only 2, 3, 4$"),
        ("realplksr", {"n_blocks": 1, "dim": 8}, 1, 2, r"^data\.channels: 1, but the model 'realplksr' has only 3$"),
        ("hat", {"embed_dim": "abc"}, 3, 1, r"^model\.embed_dim: 'abc' is not a number, such as its default, 96$"),
        ("hat", {"depths": 2}, 3, 1, r"^model\.depths: 2 is not a list, such as its default, \(6, 6, 6, 6\)$"),
        ("realplksr", {"n_blocks": -2}, 3, 1, r"^model\.n_blocks: -2 is negative; use at least 0$"),
        ("realplksr", {"use_ea": "off"}, 3, 1, r"^model\.use_ea: 'off' is not true or false"),
        ("swinir", {"num_heads": [5]}, 3, 1, r"^model: swinir cannot be built: [^\n]+; accel-restore models swinir "),
        ("swinir", {**SWINIR, "upsampler": "no"}, 3, 2, r"has only 1 with these arguments \(returns images of"),
    ],
)
def test_a_wrong_argument_is_one_sentence(name, arguments, channels, scale, message):
    with pytest.raises(UserError, match=message):
        build_model(name, arguments, channels, scale)


def test_all_arguments_are_stored_and_rebuild_the_model():
    arguments = {**SWINIR, "resi_connection": "3conv"}
    stored = describe(config("swinir", arguments, 2).model, ImageSpec.of(3, 2))
    assert stored["name"] == "swinir" and stored["arguments"].items() >= arguments.items()
    assert stored["arguments"]["upsampler"] == "pixelshuffle" and "upscale" not in stored["arguments"]
    one, other = (build_model("swinir", given, 3, 2).state_dict() for given in (arguments, stored["arguments"]))
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in other.items()}


def test_dropout_layers_keep_both_modes():
    model = initial_model(config("hat", {**HAT, "depths": [2], "drop_path_rate": 0.5}))
    paths = [module for module in model.modules() if type(module).__name__ == "DropPath"]
    assert paths and all(module.training for module in paths)
    assert not any(module.training for module in (model.eval(), *paths))
    assert isinstance(model, nn.Module)


def test_a_hostile_file_takes_no_memory(tmp_path):
    """The skeleton of each architecture is built without values, also where the class reads some."""
    header = {"head.weight": ([3], True)}
    for name, arguments in (
        ("rcan", {"n_feats": 60_000}),
        ("ipt", {"n_feats": 60_000}),
        ("swinir", {"embed_dim": 60_000}),
        ("swinir", {"depths": [60_000] * 256, "num_heads": [1] * 256}),  # rates of 15 million blocks
    ):
        with pytest.raises(UserError, match="much larger than the weights"), limited(header):
            _check_skeleton(name, arguments, ImageSpec.of(3, 2), header)


def test_names_in_a_file_do_not_decide_how_much_is_built(tmp_path):
    built = []
    weights = {"body.0.weight": [8, 3, 3, 3], "body.1.weight": [8], "body.20000.bias": [12]}
    save_file({name: torch.zeros(shape) for name, shape in weights.items()}, tmp_path / "net.safetensors")
    given = {"name": "compact", "num_feat": 8, "num_conv": 1, "checkpoint": str(tmp_path / "net.safetensors")}
    handle = register_module_module_registration_hook(lambda *part: built.append(part))
    try:
        with pytest.raises(UserError, match="does not fit the model 'compact'"):
            initial_model(config_from({**LEAST, "model": given}))
    finally:
        handle.remove()
    assert len(built) < 10_000


def test_the_schema_knows_the_names():
    assert {"hat", "unet"} <= set(Config.model_json_schema()["$defs"]["Model"]["properties"]["name"]["examples"])
