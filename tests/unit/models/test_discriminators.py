"""Discriminators: against plain implementations and published sizes, their building, and files of other projects."""

import copy
import math

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from accel_restore.errors import UserError
from accel_restore.models.build_discriminator import build_discriminator, load_discriminator
from accel_restore.models.discriminators import VGG, Patch, UNetSN
from accel_restore.models.spectral_norm import power_iteration
from accel_restore.registry import DISCRIMINATORS

CROPS = {"data.patch_size": 64}


def build(name="unet_sn", channels=3, crops=CROPS, **arguments):
    torch.manual_seed(0)
    return build_discriminator(name, arguments, channels, crops)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(params=DISCRIMINATORS)
def name(request):
    return request.param


# Networks -------------------------------------------------------------------------------------------------------------


def test_the_numbers_of_parameters_are_the_published_ones():
    assert count(UNetSN()) == 4_376_897  # BasicSR's log of Real-ESRGAN
    assert count(Patch(norm="none")) == count(Patch()) == 2_764_737  # "2.765 M" in the log of CycleGAN
    assert count(VGG()) == 14_499_401  # ESRGAN's, 128 pixels
    with torch.device("meta"):
        assert count(VGG(size=256)) == 14_499_401 + (512 * 512 * 9 + 512 * 512 * 16 + 4 * 512)


def plain_unet(state, image, skip=True):
    """Return the logits of Real-ESRGAN's discriminator, from the table in its paper and a state dict."""

    def conv(i, x, stride=1):
        weight = state.get(f"conv{i}.weight_orig")
        if weight is None:
            return F.conv2d(x, state[f"conv{i}.weight"], state[f"conv{i}.bias"], padding=1)
        norm = state[f"conv{i}.weight_u"] @ weight.flatten(1) @ state[f"conv{i}.weight_v"]
        return F.conv2d(x, weight / norm, stride=stride, padding=1)

    levels = [F.leaky_relu(conv(0, image), 0.2)]
    for i in (1, 2, 3):
        levels.append(F.leaky_relu(conv(i, levels[-1], 2), 0.2))
    x = levels.pop()
    for i in (4, 5, 6):
        x = F.leaky_relu(conv(i, F.interpolate(x, scale_factor=2, mode="bilinear")), 0.2)
        x = x + skip * levels.pop()
    for i in (7, 8):
        x = F.leaky_relu(conv(i, x), 0.2)
    return conv(9, x)


@pytest.mark.parametrize("skip", [True, False])
def test_the_unet_equals_a_plain_implementation(skip):
    net = UNetSN(channels=2, width=4, skip=skip).double()
    image = images(2, 2, 24, 40).double()
    expected = plain_unet(net.state_dict(), image, skip)
    torch.testing.assert_close(net(image), expected, rtol=0, atol=1e-14)
    assert expected.shape == (2, 1, 24, 40)


def test_a_logit_of_patch_sees_70_by_70_pixels():
    net = Patch(channels=1, width=2, norm="none").double()
    image = images(1, 1, 160, 160).double().requires_grad_()
    logits = net(image)
    assert logits.shape == (1, 1, 18, 18)
    logits[0, 0, 9, 9].backward()
    rows, columns = (image.grad[0, 0].abs().sum(axis).nonzero() for axis in (1, 0))
    assert len(rows) == len(columns) == 70 and rows.max() - rows.min() == 69


def test_patch_and_vgg_equal_plain_stacks_of_layers():
    net, image = Patch(channels=1, width=3, norm="none"), images(2, 1, 40, 33)
    layers = []
    for i, conv in enumerate(net.convs):
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, 4, 2 if i < 3 else 1, 1)
        plain.load_state_dict(conv.state_dict())
        layers += [plain, nn.LeakyReLU(0.2)]
    torch.testing.assert_close(net(image), nn.Sequential(*layers[:-1])(image))

    net, image = VGG(size=32, width=4), images(3, 3, 32, 32)
    state, layers = net.state_dict(), []
    for name in ("0_0", "0_1", "1_0", "1_1", "2_0", "2_1"):
        weight, bias = state[f"conv{name}.weight"], state.get(f"conv{name}.bias")
        kernel, stride = (3, 1) if name[-1] == "0" else (4, 2)
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, stride, 1, bias=bias is not None)
        conv.load_state_dict({"weight": weight} | ({"bias": bias} if bias is not None else {}))
        layers += [conv, *([nn.BatchNorm2d(len(weight))] if name != "0_0" else []), nn.LeakyReLU(0.2)]
    linear = [nn.Linear(16 * 16, 100), nn.Linear(100, 1)]
    for number, layer in enumerate(linear, 1):
        layer.load_state_dict({part: state[f"linear{number}.{part}"] for part in ("weight", "bias")})
    plain = nn.Sequential(*layers, nn.Flatten(), linear[0], nn.LeakyReLU(0.2), linear[1])
    torch.testing.assert_close(net(image), plain(image))
    assert net(image).shape == (3, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels_and_every_weight_has_a_gradient(name, channels):
    net = build(name, channels, width=4).double()
    net(images(2, channels, 64, 64).double()).mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters() if parameter.dim() > 1)


def test_crops_of_other_sizes_are_accepted_down_to_the_smallest_side():
    for net, least in ((UNetSN(width=2), 8), (Patch(width=2), 24)):
        assert net.smallest_side == least
        for height, width in ((least, least), (least + 5, least + 3), (least + 8, 3 * least + 1)):
            logits = net(images(1, 3, height, width))
            assert logits.shape[2:] == ((height, width) if least == 8 else (height // 8 - 2, width // 8 - 2))
        with pytest.raises(RuntimeError):  # control
            net(images(1, 3, least - 1, least - 1))
    for size, stages in ((8, 1), (48, 3), (64, 4), (96, 4), (128, 5), (192, 5), (256, 6)):
        with torch.device("meta"):
            net = VGG(size=size, width=2)
            assert net.stages == stages and net(torch.empty(1, 3, size, size)).shape == (1, 1)
    with pytest.raises(ValueError, match="is for images of 32x32 pixels, not 32x40"):
        VGG(size=32, width=2)(images(1, 3, 32, 40))


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_logits_of_an_image_do_not_depend_on_its_batch(name, norm):
    net = build(name, width=4, **({} if name == "unet_sn" else {"norm": norm})).double()
    image = images(3, 3, 64, 64).double()
    torch.testing.assert_close(net(image), torch.cat([net(one) for one in image.split(1)]))


def test_forwards_change_nothing_but_batch_statistics(name):
    net = build(name, width=4)
    before = copy.deepcopy(net.state_dict())
    net(images(2, 3, 64, 64)).mean().backward()
    changed = {key.rpartition(".")[2] for key, value in net.state_dict().items() if not value.equal(before[key])}
    assert changed == ({"running_mean", "running_var", "num_batches_tracked"} if name == "vgg" else set())


def test_discriminators_compile_and_run_in_bfloat16_and_channels_last(name):
    net, image = build(name, width=4), images(2, 3, 64, 64)
    net.eval()
    expected = net(image)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(image), expected)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(image.contiguous(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(image)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("unet_sn", {"width": 0}, r"unet_sn cannot be built: width=0 is not allowed"),
        ("unet_sn", {"skip": 1}, "skip=1 is not allowed: it must be true or false"),
        ("patch", {"norm": "batch"}, "norm='batch' is not allowed: it must be spectral or none"),
        ("vgg", {"norm": "layer"}, "it must be batch, spectral or none"),
        ("patch", {"widht": 4}, r"adversarial\.discriminator\.widht: unknown key; did you mean .*width"),
        ("patch", {"channels": 4}, r"discriminator\.channels: unknown key; set data\.channels, from which"),
        ("vgg", {"size": 64}, r"discriminator\.size: unknown key; set data\.patch_size"),
        ("torch.nn:functional", {}, r"discriminator\.name: 'torch\.nn:functional' is not a torch\.nn\.Module class"),
        ("no.such:Net", {}, r"discriminator\.name: cannot import 'no\.such:Net'"),
    ],
)
def test_invalid_discriminators_are_refused_with_their_key(name, arguments, message):
    with pytest.raises(UserError, match=message):
        build_discriminator(name, arguments, 3, CROPS)


# Building -------------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A discriminator of a user, with torch's spectral norm and dropout."""

    def __init__(self, channels, kind="fine"):
        super().__init__()
        wrap = nn.utils.spectral_norm if kind == "old" else parametrizations.spectral_norm
        self.conv = wrap(nn.Conv2d(channels, 4, 3))
        self.norm, self.kind = nn.BatchNorm2d(4), kind

    def forward(self, image):
        if self.kind == "fails":
            raise LookupError("no such layer")
        x = self.norm(self.conv(image))
        return {"mean": x.mean(), "two": (x, x)}.get(self.kind, x)


def test_an_own_discriminator_is_tried_and_unchanged_by_that():
    net = build("test_discriminators:Own", 2)
    assert net.training and net.norm.num_batches_tracked == 0
    before = net.conv.parametrizations.weight[0]._u.clone()
    net.train()(images(2, 2, 16, 16))
    assert net.conv.parametrizations.weight[0]._u.equal(before)
    power_iteration(net)
    assert not net.conv.parametrizations.weight[0]._u.equal(before)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("old", r"cannot be used: its part 'conv' has torch\.nn\.utils\.spectral_norm, which changes in every forward"),
        ("fails", r"does not work with images of 3 channels and 64x64 pixels: LookupError: no such layer"),
        ("mean", r"returns \(\) for 2 images, but must return logits"),
        ("two", r"returns tuple for 2 images"),
    ],
)
def test_unusable_own_discriminators_are_refused(kind, message):
    with pytest.raises(UserError, match=r"^adversarial\.discriminator: 'test_discriminators:Own' .*" + message):
        build("test_discriminators:Own", kind=kind)


def test_crops_must_fit_the_discriminator():
    with pytest.raises(UserError, match=r"'patch' needs images of at least 24 pixels a side, but data\.patch_"):
        build("patch", crops={"data.patch_size": 16})
    stages = {"data.stages.0.patch_size": 32, "data.patch_size": 64}
    with pytest.raises(UserError, match=r"'vgg' works with crops of one size, .*\(data\.stages\.0\.patch_size=32"):
        build("vgg", crops=stages)
    assert build("vgg", crops=dict.fromkeys(stages, 32), width=2).size == 32
    build("unet_sn", crops=stages, width=2)


# Files ----------------------------------------------------------------------------------------------------------------


def with_torchs_names(net, new=False):
    """Return the state dict that BasicSR or a project with torch's newer function writes for this network."""
    names = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}
    state = {}
    for key, value in net.state_dict().items():
        stem, _, last = key.rpartition(".")
        state[f"{stem}.parametrizations.weight.{names[last]}" if new and last in names else key] = value.clone()
    return state


@pytest.mark.parametrize("kind", ["BasicSR", "newer names", "prefix", "without v", "safetensors"])
def test_files_of_other_projects_are_read(tmp_path, kind):
    torch.manual_seed(7)
    source, path = UNetSN(width=4), tmp_path / "net_d.pth"
    state = with_torchs_names(source, new=kind == "newer names")
    if kind == "prefix":
        state = {f"module.{key}": value for key, value in state.items()}
    if kind == "without v":
        state = {key: value for key, value in state.items() if not key.endswith("weight_v")}
    if kind == "safetensors":
        path = tmp_path / "net_d.safetensors"
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"params": state}, path)
    net = build(width=4)
    load_discriminator(net, path)
    image = images(1, 3, 16, 16)
    if kind != "without v":
        assert net(image).equal(source(image))
        return
    assert all(net.get_buffer(f"conv{i}.weight_u").equal(source.get_buffer(f"conv{i}.weight_u")) for i in range(1, 9))
    for i in range(1, 9):
        conv = net.get_submodule(f"conv{i}")
        assert math.isclose(conv.weight_v.norm().item(), 1, rel_tol=1e-5)
        expected = (conv.weight_orig.detach().flatten(1).t() @ conv.weight_u).norm()
        torch.testing.assert_close(conv.weight_u @ conv.weight_orig.detach().flatten(1) @ conv.weight_v, expected)


def test_torchs_own_layers_write_the_names_that_are_read(tmp_path):
    """The names of the older and of the newer function of torch, as they are today."""
    conv = build(width=4).conv1
    for wrap in (nn.utils.spectral_norm, parametrizations.spectral_norm):
        theirs = wrap(nn.Conv2d(4, 8, 4, 2, 1, bias=False))
        torch.save(theirs.state_dict(), tmp_path / "layer.pth")
        load_discriminator(conv, tmp_path / "layer.pth")
        x = images(1, 4, 8, 8)
        torch.testing.assert_close(conv(x), theirs.eval()(x))
    torch.save(conv.state_dict(), tmp_path / "layer.pth")
    load_discriminator(theirs, tmp_path / "layer.pth")
    torch.testing.assert_close(theirs(x), conv(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 8}, r"other shapes: conv0\.weight \[8, 3, 3, 3\], not \[4, 3, 3, 3\], conv0\.bias .* and \d+ more"),
        ({"channels": 1}, r"conv0\.weight \[4, 1, 3, 3\], not \[4, 3, 3, 3\]\); set name, its arguments and data"),
    ],
)
def test_files_of_other_discriminators_are_refused(tmp_path, change, message):
    torch.save({"params": UNetSN(**{"width": 4, **change}).state_dict()}, tmp_path / "net_d.pth")
    with pytest.raises(UserError, match=message):
        load_discriminator(build(width=4), tmp_path / "net_d.pth")
    with pytest.raises(UserError, match=r"missing: convs\.0\.weight, .*; unexpected: conv0\.weight"):
        load_discriminator(build("patch", width=4), tmp_path / "net_d.pth")


def test_a_hostile_or_damaged_file_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"params": [1, 2]}, tmp_path / "list.pth")
    for file in ("text.pth", "list.pth", "none.pth"):
        with pytest.raises(UserError):
            load_discriminator(build(width=4), tmp_path / file)
    state = UNetSN(width=4).state_dict()
    state["conv1.weight_orig"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"holds NaN weights \(conv1\.weight_orig\)"):
        load_discriminator(build(width=4), tmp_path / "nan.pth")
