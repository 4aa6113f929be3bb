"""Every model can be exported to a file that restores images of any size like the model; else no file is written."""

import importlib.util
import json
import math

import pytest
import torch
from weight_files import write

from accel_restore.cli import main
from accel_restore.inference import export as exported
from accel_restore.models import blocks, build_model
from accel_restore.registry import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "unet": {"width": 4, "multipliers": [1, 2], "blocks": 1},
    "dncnn": {"width": 4, "depth": 3},
    "nafnet": {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]},
    "restormer": {"width": 4, "blocks": [1, 1, 1, 1], "heads": [1, 1, 1, 1], "refinement_blocks": 1},
}
SIZES = [(1, 33, 47), (2, 64, 48), (1, 40, 40), (3, 19, 21)]  # (B, H, W): padded or not, one image or several


class Branches(torch.nn.Module):
    """A user's model whose code depends on the image size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.layer(input) if input.sum() * input.shape[2] > 1e9 else input - self.layer(input)


class Halves(Branches):
    """A model that is another network for small images."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layer(part) for part in input.split(8 if input.shape[2] > 8 else 4, dim=2)], dim=2)


def weights(tmp_path, name: str, scale: int = 1):
    """Return the best.safetensors of a tiny model without zero parameters, and the model."""
    torch.manual_seed(0)
    net = build_model(name, TINY.get(name, {}), 3, scale).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    model = json.dumps({"name": name, "arguments": TINY.get(name, {})})
    metadata = {"model": model, "data": json.dumps({"channels": 3, "scale": scale})}
    return write(tmp_path / "best.safetensors", net, **metadata), net


def check(run, net, sizes=SIZES) -> None:
    for batch, height, width in sizes:
        images = torch.rand(batch, 3, height, width)
        with torch.no_grad():
            assert (run(images) - net(images)).abs().max() <= 1e-5, (batch, height, width)


# torch takes long to think about the sizes within these two; the trace of NAFNet is tested as .pt2 below.
LONG = ("nafnet", "restormer")
PARTS = [pytest.param(name, 1 + (name in ("dncnn", "nafnet")), id=name, marks=pytest.mark.sweep if name in LONG else ())
         for name in MODELS]  # fmt: skip


@pytest.mark.parametrize(("name", "scale"), PARTS)
def test_onnx_restores_any_size_and_holds_the_metadata(name, scale, tmp_path, capsys):
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file, net = weights(tmp_path, name, scale)
    assert main(["export", str(file), "-o", str(tmp_path / "model.onnx")]) == 0
    message = capsys.readouterr().out
    assert message.count("differs by at most") == 3 and "1 x 37 x 50" in message
    check(exported.open_onnx(tmp_path / "model.onnx"), net)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(stored["model"]) == {"name": name, "arguments": TINY[name]}
    assert json.loads(stored["data"])["scale"] == scale and json.loads(stored["metrics"])["psnr"] == 30.5
    assert stored["sha256"] and stored["version"] and stored["epoch"] == "3"
    (given,), (made,) = model.graph.input, model.graph.output
    sides = [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim]
    assert (given.name, made.name, sides) == ("input", "output", ["batch", 3, "height", "width"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "model.onnx"]


def test_pt2_restores_any_size_and_holds_the_metadata(tmp_path):
    file, net = weights(tmp_path, "nafnet", 2)
    assert main(["export", str(file), "-o", str(tmp_path / "model.pt2")]) == 0
    extra = {exported.METADATA: ""}
    run = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    check(run, net)
    assert json.loads(extra[exported.METADATA])["sha256"]


def test_half_precision_and_the_requested_opset(tmp_path):
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file, net = weights(tmp_path, "dncnn")
    out = tmp_path / "half.onnx"
    assert main(["export", str(file), "-o", str(out), "--half", "--opset", "19", "--check-size", "9x11"]) == 0
    model = onnx.load(out)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [19]
    images = torch.rand(1, 3, 20, 30)
    made = exported.open_onnx(out)(images.half())
    assert made.dtype == torch.float16 and (made.float() - net(images)).abs().max() < 1e-2


def test_an_exported_model_pads_like_the_trained_one(monkeypatch):
    exporting = False
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    for size in [(1, 1), (1, 30), (4, 5), (5, 4), (5, 9), (7, 8), (8, 16), (13, 50)]:
        image = torch.rand(2, 3, *size)
        for multiple in (2, 8, 16):
            for zeros in (False, True):
                exporting = False
                expected = blocks.pad_to_multiple(image, multiple, zeros)
                exporting = True
                assert blocks.pad_to_multiple(image, multiple, zeros).equal(expected), (size, multiple, zeros)


def test_a_file_that_differs_from_the_model_is_discarded(tmp_path, capsys, monkeypatch):
    file, _ = weights(tmp_path, "dncnn")
    opened = exported.open_pt2
    for change, message in ((2e-4, "differs from the weights by"), *((v, "NaN or inf") for v in (math.nan, math.inf))):
        monkeypatch.setattr(exported, "open_pt2", lambda path, c=change: lambda images: opened(path)(images) + c)
        assert main(["export", str(file), "-o", str(tmp_path / "m.pt2")]) == 1
        assert message in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == [file.name]
    monkeypatch.setattr(exported, "open_pt2", lambda path: lambda images: opened(path)(images) + 5e-5)
    assert main(["export", str(file), "-o", str(tmp_path / "m.pt2")]) == 0  # the control


class Large(Branches):
    """A model with values above the range of float16, or of float32."""

    factor = 1e6

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + self.layer(input).abs() * self.factor / self.factor


class Infinite(Large):
    """A model whose output is not finite."""

    factor = float("inf")


def test_an_output_of_nan_or_inf_is_named_and_no_file_is_kept(tmp_path, capsys):
    for name, options, code, words in (
        ("Large", ["--half"], 1, "float16 overflows above 65,504; export it without --half"),
        ("Infinite", [], 2, "best.safetensors: the network's output is NaN or inf"),
        ("Large", [], 0, ""),
    ):
        file, _ = weights(tmp_path, f"test_export:{name}")
        assert main(["export", str(file), "-o", str(tmp_path / "m.pt2"), *options]) == code
        assert words in capsys.readouterr().err and (tmp_path / "m.pt2").exists() == (code == 0)


def test_a_model_that_depends_on_the_size_is_exported_for_one_size(tmp_path, capsys):
    file, net = weights(tmp_path, "test_export:Branches")
    assert main(["export", str(file), "-o", str(tmp_path / "m.pt2")]) == 2
    assert "cannot be exported" in (message := capsys.readouterr().err) and "--size 256x256" in message
    assert len(list(tmp_path.iterdir())) == 1
    file, net = weights(tmp_path, "test_export:Halves")
    assert main(["export", str(file), "-o", str(tmp_path / "m.pt2"), "--size", "24x32"]) == 0
    check(torch.export.load(tmp_path / "m.pt2").module(), net, [(1, 24, 32)])


def test_invalid_options_are_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    onnx = str(tmp_path / "model.onnx")
    for options, message in (
        (["-o", str(tmp_path / "model.txt")], "name it .onnx or .pt2"),
        (["-o", str(tmp_path / "no" / "model.pt2")], "no does not exist"),
        (["-o", str(tmp_path / "model.pt2"), "--opset", "18"], "--opset: is for .onnx"),
        (["-o", str(tmp_path / "model.pt2")], "missing.safetensors: cannot be read"),
    ):
        assert main(["export", str(tmp_path / "missing.safetensors"), *options]) == 2
        err = capsys.readouterr().err
        assert message in err or "does not exist" in err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", "best.safetensors", "-o", onnx]) == 2
    assert "pip install 'accel-restore[onnx]'" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("onnx")
    assert main(["export", "best.safetensors", "-o", onnx, "--opset", "9"]) == 2
    assert "must be from 18 to" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_weights_are_never_overwritten(tmp_path, capsys):
    file = write(tmp_path / "best.pt2", build_model("dncnn", TINY["dncnn"], 3))
    content = file.read_bytes()
    (tmp_path / "link.onnx").symlink_to(file)
    (tmp_path / "hard.pt2").hardlink_to(file)
    (tmp_path / "model.onnx.data").hardlink_to(file)  # where ONNX puts large weights
    for target in ("best.pt2", "../" + tmp_path.name + "/best.pt2", "link.onnx", "hard.pt2", "model.onnx"):
        assert main(["export", str(file), "-o", str(tmp_path / target)]) == 2
        assert "is an input, which is never overwritten; name another file" in capsys.readouterr().err
    assert file.read_bytes() == content
