"""Fine-tuning from a file of weights, accel_restore's or another project's."""

import io
import json
import pickle
import re
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bombs import Bomb
from weight_files import build, write

import accel_restore
from accel_restore.config.load import config_from, to_yaml
from accel_restore.config.model import Model
from accel_restore.config.safe_yaml import parse_yaml
from accel_restore.errors import UserError
from accel_restore.models import ImageSpec, build_model
from accel_restore.models.pretrained import build_or_load_model, describe

DATA = {"train": {"gt": "photos"}}


def start(path: Path, channels: int = 3, scale: int = 1, **model) -> torch.nn.Module:
    return build_or_load_model(Model(checkpoint=str(path), **model), ImageSpec.of(channels, scale))


def equal(one: torch.nn.Module | dict, other: torch.nn.Module | dict) -> bool:
    first, second = (each if isinstance(each, dict) else each.state_dict() for each in (one, other))
    return list(first) == list(second) and all(value.equal(second[name]) for name, value in first.items())


def saved(path: Path, tree: object, **options) -> Path:
    torch.save(tree, path, **options)
    return path


def test_a_checkpoint_determines_the_model_unless_a_name_is_given():
    assert config_from({"data": DATA}).model.name == "unet"
    assert config_from({"data": DATA, "model": {"width": 8}}).model.name == "unet"
    config = config_from({"data": DATA, "model": {"checkpoint": "a.pth"}})
    assert (config.model.name, config.model.checkpoint, config.model.arguments) == (None, "a.pth", {})
    assert config_from(parse_yaml(to_yaml(config), "config.yaml")) == config
    both = config_from({"data": DATA, "model": {"width": 8}}, ["model.name=unet", "model.checkpoint=a.pth"]).model
    assert (both.name, both.checkpoint) == ("unet", "a.pth")
    for wrong, said in (
        ({"checkpoint": "a.pth", "width": 8}, r"model\.width: unknown key, because .*; set model\.name too"),
        ({"name": None}, r"model\.name: missing; choose one of: unet"),
        ({"checkpoint": 3}, r"model\.checkpoint: "),
        ({"chekpoint": "a.pth", "checkpoint": None, "name": "unet", "optimizer": 1}, None),  # keys of the class
    ):
        if said is None:
            config_from({"data": DATA, "model": wrong})
            continue
        with pytest.raises(UserError, match=said):
            config_from({"data": DATA, "model": wrong})


def test_best_safetensors_determines_its_model(tmp_path):
    net = build(3)
    file = write(tmp_path / "best.safetensors", net)
    assert equal(start(file), net)
    assert describe(Model(checkpoint=str(file)), ImageSpec.of(3)) == {"name": "unet", "arguments": {"width": 8}}
    assert equal(start(file, name="unet", width=8), net)
    for channels, scale, said in ((1, 1, "data.channels=3, but data.channels is 1"), (3, 2, "data.scale=1, but")):
        with pytest.raises(UserError, match=rf"^model\.checkpoint: {file}: is a model for {said}"):
            start(file, channels, scale)
    data = file.read_bytes()
    file.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    for model in ({}, {"name": "unet", "width": 8}):
        with pytest.raises(UserError, match=rf"^model\.checkpoint: {file}: is damaged"):
            start(file, **model)


def test_the_stored_scale_is_compared_even_if_the_shapes_fit(tmp_path):
    net = build_model("dncnn", {"width": 8, "depth": 3}, 3, 2)
    metadata = {"model": '{"name": "dncnn", "arguments": {}}', "data": '{"channels": 3, "scale": 2}'}
    file = write(tmp_path / "x2.safetensors", net, **metadata)
    assert equal(start(file, 3, 2, name="dncnn", width=8, depth=3), net)
    with pytest.raises(UserError, match=r"data\.scale=2, but data\.scale is 1"):
        start(file, 3, 1, name="dncnn", width=8, depth=3)
    plain = saved(tmp_path / "x2.pth", net.state_dict())
    start(plain, 3, 1, name="dncnn", width=8, depth=3)  # the control: such weights fit


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "params_ema", "params", "state_dict", "model"])
def test_weights_are_found_under_the_keys_and_prefixes_of_trainers(wrapper, prefix, tmp_path):
    net = build(3)
    weights = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    tree = weights if wrapper is None else {"epoch": 3, "optimizer": {"lr": 0.1}, wrapper: weights}
    assert equal(start(saved(tmp_path / "a.pth", tree), name="unet", width=8), net)


def test_averaged_weights_are_preferred(tmp_path):
    net = build(3)
    tree = {"params": build_model("unet", {"width": 8}, 3).state_dict(), "params_ema": net.state_dict()}
    assert equal(start(saved(tmp_path / "a.pth", tree), name="unet", width=8), net)


@pytest.mark.parametrize("kind", ["safetensors", "legacy", "half", "without batch counts"])
def test_file_formats_and_precisions_are_read(kind, tmp_path):
    net = build_model("dncnn", {"width": 8, "depth": 4, "norm": "batch"}, 3)
    weights = net.state_dict()
    file = tmp_path / "a.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(weights, file)  # whatever the suffix says
    elif kind == "legacy":
        saved(file, weights, _use_new_zipfile_serialization=False)
    elif kind == "half":
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(parameter.half())
        saved(file, {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()})
    else:
        saved(file, {name: tensor for name, tensor in weights.items() if "num_batches" not in name})
    started = start(file, name="dncnn", width=8, depth=4, norm="batch")
    assert equal(started, net) and all(parameter.dtype == torch.float32 for parameter in started.parameters())


def test_weights_that_do_not_fit_are_rejected_with_their_names(tmp_path):
    weights = build(3).state_dict()
    some = saved(tmp_path / "some.pth", dict(list(weights.items())[5:]))
    with pytest.raises(UserError, match=r"does not fit the model 'unet' .*missing: (\S+, ){2}\S+ and 2 more\)$"):
        start(some, name="unet", width=8)
    with pytest.raises(UserError, match=r"missing: body\.0\.weight, .*; unexpected: head\.weight, \S+, \S+ and \d+ mo"):
        start(saved(tmp_path / "all.pth", weights), name="dncnn")
    x2 = saved(tmp_path / "x2.pth", build_model("unet", {"width": 8}, 3, 2).state_dict())
    with pytest.raises(UserError, match=r"data\.scale \(shape of tail\.weight \[12, 8, 3, 3\], not \[3, 8, 3, 3\]\)$"):
        start(x2, name="unet", width=8)
    with pytest.raises(UserError, match=r"model\.widht: unknown key; did you mean 'model\.width'"):
        start(x2, name="unet", widht=8)


def hostile(kind: str, folder: Path) -> Path:
    file, weights = folder / "hostile.pth", build(3).state_dict()
    if kind == "pickle":
        return saved(file, {"head.weight": Bomb(folder / "executed")})
    if kind == "bare pickle":
        file.write_bytes(pickle.dumps({"head.weight": Bomb(folder / "executed")}))
    elif kind == "script":
        torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(file))
    elif kind == "packed":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(10**7))
    elif kind == "repeated":
        saved(file, {**weights, "head.weight": torch.zeros(1).expand(30_000, 30_000)})
    elif kind == "shared":
        saved(file, {f"{index}": weights["tail.weight"].detach() for index in range(10_000)})
    elif kind == "beyond":
        return _beyond(file)
    elif kind == "other":
        saved(file, {"epoch": 3, "lr": torch.tensor(1.0)})
    elif kind == "list":
        saved(file, [torch.zeros(2)])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("no weights " * 20)
    elif kind == "sparse":
        saved(file, {"head.weight": torch.eye(3).to_sparse()})
    elif kind == "truncated":
        saved(file, weights)
        file.write_bytes(file.read_bytes()[:-50])
    elif kind == "lying header":
        header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    elif kind == "folder":
        file.mkdir()
    return file


def _beyond(file: Path) -> Path:
    """Return a file that claims 65,535 values for a tensor of 64, so reading it would go beyond its memory."""
    good = saved(io.BytesIO(), {"head.weight": torch.zeros(64)})
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(file, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith("data.pkl"):
                assert data.count(b"K@") == 2  # 64, as the size of the storage and of the tensor
                data = data.replace(b"K@", b"M\xff\xff")
            target.writestr(member, data)
    return file


KINDS = ["pickle", "bare pickle", "script", "packed", "repeated", "shared", "beyond", "other", "list", "empty", "text",
         "sparse", "truncated", "lying header", "folder", "missing"]  # fmt: skip


@pytest.mark.parametrize("model", [{}, {"name": "unet", "width": 8}], ids=["alone", "named"])
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_and_damaged_files_are_rejected_on_one_line(kind, model, tmp_path):
    file = hostile(kind, tmp_path)
    with pytest.raises(UserError, match=rf"^model\.checkpoint: {file}: [^\n]{{10,400}}$") as caught:
        start(file, **model)
    assert "weights_only" not in str(caught.value)  # torch's message advises to switch it off
    assert not (tmp_path / "executed").exists()


def test_controls_of_hostile_files(tmp_path):
    torch.load(hostile("pickle", tmp_path), weights_only=False)
    assert (tmp_path / "executed").exists()
    with zipfile.ZipFile(hostile("packed", tmp_path)) as archive:
        assert len(archive.read("archive/data.pkl")) > 100 * (tmp_path / "hostile.pth").stat().st_size
    assert torch.load(hostile("repeated", tmp_path), weights_only=True)["head.weight"].numel() == 9 * 10**8


# Models of other projects ---------------------------------------------------------------------------------------------


def foreign(kind: str) -> torch.nn.Module:
    """Return a tiny model built by spandrel, with random weights."""
    pytest.importorskip("spandrel", reason="the optional library spandrel is not installed")
    from spandrel.architectures import SAFMN, SPAN, DnCNN, FFTformer, LaMa, NAFNet, SwinIR

    torch.manual_seed(1)
    small = {"img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8}
    return {
        "nafnet": lambda: NAFNet.NAFNet(width=4, enc_blk_nums=[1], middle_blk_num=1, dec_blk_nums=[1]),
        "swinir": lambda: SwinIR.SwinIR(**small, upscale=2, upsampler="pixelshuffledirect", resi_connection="1conv"),
        "safmn": lambda: SAFMN.SAFMN(dim=8, n_blocks=1, upscaling_factor=4),
        "dncnn": lambda: DnCNN.DnCNN(in_nc=1, out_nc=1, nc=4, nb=17, act_mode="R"),
        "noise map": lambda: DnCNN.DnCNN(in_nc=2, out_nc=1, nc=4, nb=17, act_mode="R", mode="FDnCNN"),
        "mask": lambda: LaMa.LaMa(),
        "fusing": lambda: SPAN.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=4, upscale=2),
        "unused": lambda: FFTformer.FFTformer(dim=4, num_blocks=[1, 1, 1], num_refinement_blocks=1),
    }[kind]()


FOREIGN = {"nafnet": (3, 1), "swinir": (3, 2), "safmn": (3, 4), "dncnn": (1, 1)}  # channels, scale


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_model_of_another_project_equals_spandrels(kind, tmp_path):
    net, (channels, scale) = foreign(kind), FOREIGN[kind]
    import spandrel

    file = saved(tmp_path / "net.pth", {"params": net.state_dict()})
    started = start(file, channels, scale).eval()
    assert equal(started, net)  # with the names of the file, so programs that use spandrel can read ours
    assert [name for name, _ in started.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert describe(Model(checkpoint=str(file)), ImageSpec.of(3)) == {"name": "spandrel", "arguments": {}}
    for size in ((16, 24), (5, 19), (1, 1)):
        image = torch.rand(1, channels, *size)
        with torch.no_grad():
            output = started(image)
        expected = spandrel.ModelLoader().load_from_state_dict(net.state_dict())(image)
        assert output.shape == (1, channels, size[0] * scale, size[1] * scale)
        assert torch.allclose(output.clamp(0, 1), expected, atol=1e-6)
    with pytest.raises(UserError, match=rf"is a model for data\.scale={scale}, but data\.scale is 3"):
        start(file, channels, 3)
    with pytest.raises(UserError, match=rf"is a model for data\.channels={channels}, but data\.channels is 4"):
        start(file, 4, scale)


def test_control_the_model_alone_rejects_odd_sizes():
    with pytest.raises(RuntimeError):
        foreign("safmn")(torch.rand(1, 3, 5, 19))


def test_a_recognised_model_draws_no_random_numbers_in_training(tmp_path):
    net, images = foreign("swinir"), torch.rand(64, 3, 8, 8)
    started = start(saved(tmp_path / "net.pth", net.state_dict()), 3, 2)
    for model, is_repeatable in ((started.train(), True), (net.train(), False)):  # the control: it drops paths
        with torch.no_grad():
            assert model(images).equal(model(images)) == is_repeatable


@pytest.mark.parametrize(
    ("kind", "channels", "said"),
    [
        ("noise map", 1, "is a DnCNN model, which needs more than an image"),
        ("mask", 3, "is a LaMa model, which does not map an image"),
    ],
)
def test_a_model_that_cannot_be_trained_is_rejected(kind, channels, said, tmp_path):
    file = saved(tmp_path / "net.pth", foreign(kind).state_dict())
    with pytest.raises(UserError, match=rf"^model\.checkpoint: {file}: {said}[^\n]*$"):
        start(file, channels)


def test_parameters_without_influence_are_not_trained(tmp_path):
    """DDP and the optimizer state require that every trained parameter has a gradient."""
    net = foreign("unused")
    started = start(saved(tmp_path / "net.pth", net.state_dict()))
    untrained = [name for name, parameter in started.named_parameters() if not parameter.requires_grad]
    assert untrained == ["reduce_chan_level2.weight"]
    started(torch.rand(1, 3, 32, 32)).sum().backward()
    assert [name for name, parameter in started.named_parameters() if parameter.grad is None] == untrained


def test_unrecognised_weights_are_rejected(tmp_path):
    pytest.importorskip("spandrel")
    file = saved(tmp_path / "net.pth", {"strange.weight": torch.zeros(2)})
    with pytest.raises(UserError, match=r"that spandrel does not recognise; set model\.name to the model\'s class$"):
        start(file)


def test_without_spandrel_the_message_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    file = saved(tmp_path / "net.pth", {"intro.weight": torch.zeros(2)})
    with pytest.raises(
        UserError, match=rf"^model\.checkpoint: {file}: needs .* pip install 'accel-restore\[spandrel\]'"
    ):
        start(file)
    best = write(tmp_path / "best.safetensors", build(3), model='{"name": "spandrel", "arguments": {}}')
    with pytest.raises(UserError, match=rf"^{best}: needs .* pip install"):
        accel_restore.load(best)


def test_false_metadata_of_a_recognised_model_is_rejected(tmp_path):
    net = foreign("nafnet")
    model = '{"name": "spandrel", "arguments": {}}'
    assert equal(accel_restore.load(write(tmp_path / "good.safetensors", net, model=model)).model, net)
    bad = write(tmp_path / "bad.safetensors", net, model=model, channels=1)
    with pytest.raises(UserError, match="gives 1 channel and scale 1, but its weights have 3 channels and scale 1"):
        accel_restore.load(bad)
    for name, changes in (
        ("arguments", {"model": '{"name": "spandrel", "arguments": {"a": 1}}'}),
        ("sum", {"sha256": "0"}),
    ):
        with pytest.raises(UserError, match=r"gives 3 channels|is damaged"):
            accel_restore.load(write(tmp_path / f"{name}.safetensors", net, **{"model": model, **changes}))


def test_nan_weights_are_rejected(tmp_path):
    weights = build_model("dncnn", {"width": 8, "depth": 3}, 3).state_dict()
    torch.save(weights, tmp_path / "good.pth")
    start(tmp_path / "good.pth", name="dncnn", width=8, depth=3)  # the control
    name = next(iter(weights))
    weights[name].view(-1)[0] = torch.nan
    torch.save(weights, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=f"bad.pth: holds NaN weights .{re.escape(name)}.*use another"):
        start(tmp_path / "bad.pth", name="dncnn", width=8, depth=3)
