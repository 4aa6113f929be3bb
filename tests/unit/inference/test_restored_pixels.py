"""`restore` writes the kind of pixels that it reads: NumPy files, float TIFFs, OpenEXR, raw files as RGB."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from image_files import photo, save
from pixel_kinds import raws
from weight_files import write

from accel_restore import load
from accel_restore.cli import main
from accel_restore.data.decode import read_header, read_image
from accel_restore.data.pixels import Pixels
from accel_restore.errors import UserError
from accel_restore.models import build_model

RANGE = (-0.3, 2.2)


def weights(folder: Path, channels: int = 3, input_channels: int | None = None, scale: int = 1, **data) -> Path:
    """Weights that visibly change an image; `data` is added to the metadata."""
    net = build_model("unet", {"width": 8}, channels, scale, input_channels)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    inputs = {} if input_channels is None else {"input_channels": input_channels}
    stored = json.dumps({"channels": channels, "scale": scale, **inputs, **data})
    return write(folder / "best.safetensors", net, data=stored)


def pixels(kind: str, channels: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((20, 24, channels)) * 2.5 - 0.3
    return values.astype(kind)


def save_as(path: Path, image: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".tif":
        colours = "rgb" if image.shape[2] == 3 else "minisblack"
        tifffile.imwrite(path, image, photometric=colours, planarconfig="contig")
    else:
        openexr = pytest.importorskip("OpenEXR")
        names = "RGB" if image.shape[2] == 3 else [f"band{number:02d}" for number in range(image.shape[2])]
        planes = {name: np.ascontiguousarray(image[..., place]) for place, name in enumerate(names)}
        openexr.File({"owner": "the author"}, planes).write(str(path))
    return path


def restore(*arguments: Path | str) -> int:
    return main(["restore", *map(str, arguments), "--cpu"])


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".exr"])
@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("channels", [3, 5])
def test_floats_keep_kind_format_and_values_outside_of_the_range(suffix, kind, channels, tmp_path, capsys):
    both = {"input": kind, "gt": kind}
    best, image = weights(tmp_path, channels, range=RANGE, pixels=both), pixels(kind, channels)
    (tmp_path / "in").mkdir()
    source = save_as(tmp_path / "in" / f"a{suffix}", image)
    assert restore(best, source.parent, "-o", tmp_path / "out") == 0
    target = tmp_path / "out" / source.name
    assert [read_header(file).mode for file in (source, target)] == [read_header(source).mode] * 2
    result = read_image(target, channels)
    assert result.dtype == kind
    np.testing.assert_array_equal(result, load(best)(image))
    capsys.readouterr()
    assert restore(best, source.parent, "-o", tmp_path / "out") == 0  # the mark in the file says that it is done
    assert "1 of 1 files are done already" in capsys.readouterr().out
    other = weights(tmp_path / "out", channels, range=(0, 1), pixels=both)
    assert restore(other, source.parent, "-o", tmp_path / "out") == 2  # the control: of other weights


def test_openexr_keeps_attributes_and_names_of_channels(tmp_path):
    openexr = pytest.importorskip("OpenEXR")
    best = weights(tmp_path, 5, pixels={"input": "float32", "gt": "float32"})
    source = save_as(tmp_path / "a.exr", pixels("float32", 5))
    assert restore(best, source, "-o", tmp_path / "b.exr") == 0
    header = openexr.File(str(tmp_path / "b.exr"), separate_channels=True).header()
    assert header["owner"] == "the author" and next(channel.name for channel in header["channels"]) == "band00"


def test_integers_are_clamped_and_floats_become_integers_where_the_format_asks(tmp_path):
    best, image = weights(tmp_path, pixels={"input": "float32", "gt": "float32"}, range=RANGE), pixels("float32", 3)
    source = save_as(tmp_path / "a.npy", image)
    for suffix, kind, top in ((".png", "uint16", 65535), (".jpg", "uint8", 255)):
        assert restore(best, source, "-o", tmp_path / f"b{suffix}") == 0
        result = read_image(tmp_path / f"b{suffix}", 3)
        assert result.dtype == kind
        if suffix == ".png":
            want = np.clip((load(best)(image) + 0.3) / 2.5, 0, 1) * top
            np.testing.assert_allclose(result, want, atol=0.51)


def test_weights_that_turn_integers_into_floats_write_floats(tmp_path):
    best = weights(tmp_path, pixels={"input": "uint8", "gt": "float32"}, range=RANGE)
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.png", photo())
    assert restore(best, tmp_path / "in", "-o", tmp_path / "out") == 0
    result = tifffile.imread(tmp_path / "out" / "a.tif")
    assert result.dtype == np.float32 and result.min() < -0.31
    np.testing.assert_allclose(result, load(best)(photo()), atol=1e-6)


def test_raw_files_are_restored_as_16_bit_rgb_of_the_scale(tmp_path, capsys):
    pytest.importorskip("rawpy")
    raw, _ = raws(tmp_path / "in", 1)
    best = weights(tmp_path, 3, 4, 2)
    assert restore(best, raw, "-o", tmp_path / "out") == 0
    header = read_header(tmp_path / "out" / "0.png")
    assert (header.height, header.width, header.mode, header.depth) == (32, 32, "RGB", "16-bit")
    assert "the metadata of a raw file" in capsys.readouterr().out
    assert restore(best, raw, "-o", tmp_path / "beside", "--compare") == 2
    assert "--compare: the input has 4 channels, the output 3" in capsys.readouterr().err


def test_channels_that_a_format_does_not_hold_are_refused_with_others(tmp_path, capsys):
    best, source = weights(tmp_path, 5), save_as(tmp_path / "a.npy", (pixels("float32", 5) * 99 + 30).astype("uint8"))
    assert restore(best, source, "-o", tmp_path / "b.png") == 2
    assert "a PNG has 1 or 3 channels, not 5; use the suffix .tif or .npy" in capsys.readouterr().err
    assert restore(best, tmp_path / "a.npy", "-o", tmp_path / "b.tif") == 0
    assert read_header(tmp_path / "b.tif").mode == "5 channels"


def test_floats_far_outside_are_refused_unless_trained_on(tmp_path, capsys):
    source = save_as(tmp_path / "a.npy", pixels("float32", 3) * 100)
    assert restore(weights(tmp_path), source, "-o", tmp_path / "b.npy") == 2
    assert "a.npy: cannot be restored: floats must be in [0, 1], but the largest is" in capsys.readouterr().err
    floats = {"input": "float32", "gt": "float32"}
    assert restore(weights(tmp_path, pixels=floats), source, "-o", tmp_path / "b.npy") == 0


def evaluate(*arguments: Path | str) -> int:
    return main(["evaluate", *map(str, arguments), "--cpu"])


def test_evaluate_refuses_what_it_cannot_score_with_its_option(tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    floats = {"input": "float32", "gt": "float32"}
    one = weights(tmp_path / "one", pixels=floats)
    two = weights(tmp_path / "two", pixels=floats, range=RANGE)
    gt = tmp_path / "gt"
    gt.mkdir()
    save_as(gt / "a.npy", pixels("float32", 3))
    images = ["--gt", gt, "--degrade", "gaussian_noise"]
    assert evaluate(one, *images) == 0
    assert "range: float pixels, data.range [0, 1] as [0, 1], not clamped" in capsys.readouterr().out
    for arguments, message in (
        ((one, two, *images), "was trained with data.range [-0.3, 2.2], but"),
        ((one, *images, "--quantize"), "--quantize: rounds to 8 bits, but gt has float pixels; give --no-quantize"),
    ):
        assert evaluate(*arguments) == 2
        assert message in capsys.readouterr().err
    save(gt / "b.png")
    assert evaluate(one, *images) == 2
    assert "a.npy: has float pixels, but" in capsys.readouterr().err
    (gt / "b.png").unlink()
    save_as(gt / "a.npy", pixels("float32", 3) * 100)
    integers = weights(tmp_path / "two")
    assert evaluate(integers, *images) == 2
    assert "a.npy: floats must be in [0, 1], but the largest is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data",
    [{"range": [1, 0]}, {"range": "wide"}, {"range": [0, float("inf")]}, {"pixels": {"gt": "int32"}}, {"pixels": 3}],
)
def test_invalid_pixels_in_weights_are_refused_by_name(data, tmp_path):
    with pytest.raises(UserError, match="names invalid pixels or an invalid range"):
        Pixels.from_metadata(data)
    assert Pixels.from_metadata({}) == Pixels() and Pixels().metadata() == {}
    with pytest.raises(UserError, match="invalid"):
        load(weights(tmp_path, **data))
