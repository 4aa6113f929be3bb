"""`accel-restore restore`: what it writes, keeps, refuses and skips; tiles and memory."""

import io
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from photographs import photograph
from PIL import Image, ImageCms
from weight_files import build, write

from accel_restore.cli import main
from accel_restore.data.decode import read_image
from accel_restore.data.encode import encode, read_mark
from accel_restore.data.metadata import About
from accel_restore.inference import apply as applying
from accel_restore.inference import files as restoring
from accel_restore.inference import restorer
from accel_restore.inference.apply import Settings
from accel_restore.inference.jobs import mark_of, recipe_of
from accel_restore.utils.files import short_name

pytestmark = pytest.mark.usefixtures("one_thread")

PHOTO = photograph("astronaut")[100:141, 200:233].copy()  # odd sides
ICC = {"RGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[int, Path]:
    """Weights files by their channels; 33 is a second one for colour."""
    folder = tmp_path_factory.mktemp("weights")
    files = {channels: write(folder / f"{channels}.safetensors", build(channels), channels) for channels in (1, 3)}
    other = build(3)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    return {**files, 33: write(folder / "other.safetensors", other)}


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "sub/c.png"):
        Image.fromarray(PHOTO).save(folder / name)
    return folder


def restore(*arguments) -> int:
    return main(["restore", *map(str, arguments), "--cpu"])


def expected(file: Path, weights: Path, channels: int = 3, bits: int = 8, **options) -> np.ndarray:
    """The output of a weights file for an image file, through Python."""
    pixels = read_image(file, channels, f"uint{bits}")
    return restorer.load(weights)(pixels, **options)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_is_restored_to_a_file(weights, photos, tmp_path, capsys):
    assert restore(weights[3], photos / "b.png", "-o", tmp_path / "out.png") == 0
    written = np.asarray(Image.open(tmp_path / "out.png"))
    assert np.array_equal(written, expected(photos / "b.png", weights[3])) and not np.array_equal(written, PHOTO)
    assert "restored 1 file" in capsys.readouterr().out


def test_folders_patterns_and_formats(weights, photos, tmp_path):
    assert restore(weights[3], photos, "-o", tmp_path / "flat") == 0
    assert files_in(tmp_path / "flat") == ["a.jpg", "b.png"]
    assert restore(weights[3], photos, "-o", tmp_path / "deep", "--recursive", "--format", "webp") == 0
    assert files_in(tmp_path / "deep") == ["a.webp", "b.webp", "sub/c.webp"]
    assert restore(weights[3], photos / "**/*.png", "-o", tmp_path / "glob") == 0
    assert files_in(tmp_path / "glob") == ["b.png", "sub/c.png"]
    Image.fromarray(PHOTO).save(photos / "d.bmp")  # cannot be written
    assert restore(weights[3], photos / "d.bmp", photos / "a.jpg", "-o", tmp_path / "two") == 0
    assert files_in(tmp_path / "two") == ["a.jpg", "d.png"]
    assert restore(weights[3], photos, "-o", photos / "out", "--recursive") == 0
    count = len(files_in(photos / "out"))
    assert restore(weights[3], photos, "-o", photos / "out", "--recursive") == 0
    assert len(files_in(photos / "out")) == count == 4  # outputs are no inputs of the next call
    for _ in range(2):
        assert restore(weights[3], photos / "**/*.png", "-o", photos / "again") == 0
        assert files_in(photos / "again") == ["b.png", "out/b.png", "out/d.png", "out/sub/c.png", "sub/c.png"]
    assert restore(weights[3], photos / "sub", "-o", photos) == 0  # the inputs are below the output
    assert (photos / "c.png").exists()


def test_a_file_too_large_to_read_is_still_recognised_as_done(weights, photos, tmp_path, monkeypatch):
    command = (weights[3], photos / "b.png", "-o", tmp_path / "out.png")
    assert restore(*command) == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_mark(tmp_path / "out.png").startswith("accel_restore") and Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_exif_and_icc_profiles_are_kept(weights, tmp_path, suffix, channels):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # rotated
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0xA002: PHOTO.shape[1], 0x829A: (1, 50)}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=exif, icc_profile=ICC["RGB"])
    assert restore(weights[channels], tmp_path / "in.jpg", "-o", tmp_path / f"out{suffix}") == 0
    # Restored again, from the written file, whose format stores them differently.
    assert restore(weights[channels], tmp_path / f"out{suffix}", "-o", tmp_path / f"again{suffix}") == 0
    for name in ("out", "again"):
        with Image.open(tmp_path / f"{name}{suffix}") as image:
            assert image.size == (PHOTO.shape[0], PHOTO.shape[1])  # upright
            kept = image.getexif()
            inner = kept.get_ifd(0x8769)
            assert (kept[0x0112], kept[0x010F], kept.get_ifd(0x8825)[2]) == (1, "Maker", (1.0, 2.0, 3.0))
            assert (inner[0x9003], inner[0xA002]) == ("2020:01:02 03:04:05", PHOTO.shape[0])
            # A colour profile does not describe gray.
            assert image.info.get("icc_profile") == (ICC["RGB"] if channels == 3 else None)
            image.load()
    want = expected(tmp_path / "in.jpg", weights[channels], channels)
    difference = np.abs(read_image(tmp_path / f"out{suffix}", channels).astype(int) - want)
    assert difference.max() == 0 if suffix in (".png", ".tif") else difference.mean() < 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_kept(weights, tmp_path, suffix, channels):
    deep = PHOTO.astype(np.uint16) * 257 - np.arange(PHOTO.size).reshape(PHOTO.shape).astype(np.uint16) % 200
    tifffile.imwrite(tmp_path / "in.tif", deep)
    for name in (f"out{suffix}", "eight.jpg"):
        assert restore(weights[channels], tmp_path / "in.tif", "-o", tmp_path / name) == 0
    want = expected(tmp_path / "in.tif", weights[channels], channels, 16)
    written = read_image(tmp_path / f"out{suffix}", channels, "uint16")
    assert np.array_equal(written, want) and len(np.unique(written % 257)) > 100  # not of 8 bits
    assert np.abs(read_image(tmp_path / "eight.jpg", channels) * 257.0 - want).mean() < 1000


def test_a_large_tiff_of_many_strips_is_read_by_other_libraries():
    pixels = np.random.default_rng(0).integers(0, 65536, (300, 601, 3), np.uint16)
    data = encode(pixels, "TIFF", About(), "mark")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages[0].dataoffsets) > 3 and np.array_equal(file.asarray(), pixels)
    eight = (pixels >> 8).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(eight, "TIFF", About(), "m")))), eight)


@pytest.mark.parametrize(("format", "side"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_an_image_that_a_format_cannot_hold_is_refused_with_the_limit(format, side, capfd):
    with pytest.raises(ValueError, match=f"a {format} has at most {side:,} pixels a side; use the suffix"):
        encode(np.zeros((1, side + 1, 3), np.uint8), format, About(), "mark")
    assert capfd.readouterr() == ("", "")  # of the encoder
    assert encode(np.zeros((1, side, 3), np.uint8), format, About(), "mark")


def test_transparent_and_damaged_files_are_reported_and_the_others_restored(weights, photos, tmp_path, capsys):
    clear = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 100, np.uint8)])
    Image.fromarray(clear).save(photos / "clear.png")
    Image.fromarray(np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])).save(photos / "opaque.png")
    (photos / "damaged.png").write_bytes((photos / "b.png").read_bytes()[:500])
    assert restore(weights[3], photos, "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert (
        "clear.png: has transparent pixels" in message and "damaged.png: is damaged" in message and "2 of 5" in message
    )
    assert files_in(tmp_path / "out") == ["a.jpg", "b.png", "opaque.png"]
    opaque = np.asarray(Image.open(tmp_path / "out" / "opaque.png"))
    assert np.array_equal(opaque, np.asarray(Image.open(tmp_path / "out" / "b.png")))


def test_finished_files_are_skipped_unless_they_were_made_with_other_settings(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert restore(weights[3], photos, "-o", out) == 0
    first = {name: (out / name).stat().st_mtime_ns for name in files_in(out)}
    (out / "b.png").unlink()  # as if interrupted
    (out / f".{short_name(out / 'b.png')}.123.tmp").write_bytes(b"half")
    assert restore(weights[3], photos, "-o", out) == 0
    assert "1 of 2 files are done already" in capsys.readouterr().out
    assert files_in(out) == ["a.jpg", "b.png"] and (out / "a.jpg").stat().st_mtime_ns == first["a.jpg"]
    content = (out / "b.png").read_bytes()
    for number, *option in (
        [33],
        [3, "--tile", 96],
        [3, "--compare"],
        [3, "--self-ensemble"],
        [3, "--precision", "bf16"],
    ):
        assert restore(weights[number], photos, *option, "-o", out) == 2
        assert "b.png: was not made from" in capsys.readouterr().err
    os.utime(photos / "b.png", (1, 1))  # of the same content
    assert restore(weights[3], photos, "-o", out) == 0 and (out / "b.png").read_bytes() == content
    assert restore(weights[33], photos, "-o", out, "--overwrite") == 0
    assert np.array_equal(np.asarray(Image.open(out / "b.png")), expected(photos / "b.png", weights[33]))
    assert restore(weights[33], photos, "-o", out) == 0 and "2 of 2 files are done" in capsys.readouterr().out
    assert read_mark(photos / "b.png") is None


def test_a_process_killed_while_writing_leaves_no_half_written_target(weights, photos, tmp_path, monkeypatch):
    half = f".{short_name(Path('b.png'))}.1.tmp"

    def die(path, data):
        path.with_name(half).write_bytes(data[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "replace_file", die)
        assert restore(weights[3], photos / "b.png", "-o", tmp_path / "out") == 130
    assert files_in(tmp_path / "out") == [half]
    assert restore(weights[3], photos / "b.png", "-o", tmp_path / "out") == 0
    assert files_in(tmp_path / "out") == ["b.png"]


def test_an_input_is_never_overwritten(weights, photos, tmp_path, capsys):
    before = {name: (photos / name).read_bytes() for name in files_in(photos)}
    (tmp_path / "link.png").symlink_to(photos / "b.png")
    os.link(photos / "b.png", tmp_path / "hard.png")
    for given in ([photos, "-o", photos], [photos / "b.png", "-o", photos / "b.png"], [photos / "b.png", "-o", photos],
                  [photos / "*.png", "-o", photos], [photos / "b.png", "-o", tmp_path / "link.png"],
                  [photos / "b.png", "-o", tmp_path / "hard.png"]):  # fmt: skip
        assert restore(weights[3], *given, "--overwrite") == 2, given
        message = capsys.readouterr().err
        assert "never overwritten" in message
        assert ("name another file" in message) == (Path(given[-1]).suffix == ".png"), given
    assert {name: (photos / name).read_bytes() for name in files_in(photos)} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.png", "-o", "out"], "no.png: does not exist"), (["no/*.png", "-o", "out"], "holds no images"),
        (["photos", "-o", "out.png"], "name a folder"), (["photos", "-o", "photos/b.png"], "name a folder"),
        (["photos/b.png", "-o", "out.bmp"], "is neither a folder nor"),
        (["photos", "-o", "out", "--tile", "70"], "tile=70"),
        (["photos", "-o", "out", "--batch", "0"], "batch"), (["photos", "-o", "out", "--precision", "fp16"], "a GPU"),
        (["photos", "-o", "out", "--quality", "0"], "--quality"),
        (["twins", "-o", "out", "--format", "png"], "restore them separately"),
        (["photos", "-o", "photos/b.png/x"], None),
        (["photos/b.png", "-o", "out.png", "--format", "jpg"], "does not match --format"),
        (["photos/sub", "-o", "out", "--max-pixels", "99"], "more than 99 pixels"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused_with_their_name(
    weights, photos, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twins").mkdir()
    for name in ("x.png", "x.jpg"):
        Image.fromarray(PHOTO).save(tmp_path / "twins" / name)
    code, message = restore(weights[3], *arguments), capsys.readouterr().err
    assert (code, "Traceback" in message) == (2 if words else code, False) and (words or "") in message
    assert not words or not files_in(tmp_path / "out" if (tmp_path / "out").exists() else tmp_path / "twins")[2:]


def test_compare_writes_input_and_output_side_by_side(weights, photos, tmp_path):
    assert restore(weights[3], photos / "b.png", "-o", tmp_path / "both.png", "--compare") == 0
    both, width = np.asarray(Image.open(tmp_path / "both.png")), PHOTO.shape[1]
    assert np.array_equal(both[:, :width], PHOTO)
    assert np.array_equal(both[:, width:], expected(photos / "b.png", weights[3]))


def test_a_call_from_python_takes_the_same_options(weights):
    loaded = restorer.load(weights[3])
    photo = np.tile(PHOTO, (5, 5, 1))
    whole, cut = loaded(photo, tile=None), loaded(photo, tile=96, tile_overlap=48)
    assert np.abs(whole.astype(int) - cut).max() <= 1  # the receptive field is smaller than the overlap
    assert np.array_equal(cut, loaded(photo, tile=96, tile_overlap=48, batch=3))
    turned = [np.rot90(loaded(np.rot90(PHOTO / 255.0, k).copy()), -k) for k in range(4)]
    turned += [np.rot90(loaded(np.rot90(PHOTO[:, ::-1] / 255.0, k).copy()), -k)[:, ::-1] for k in range(4)]
    assert np.abs(loaded(PHOTO / 255.0, self_ensemble=True) - np.mean(turned, axis=0)).max() < 0.02  # clamped before
    assert np.abs(loaded(PHOTO, precision="bf16").astype(int) - loaded(PHOTO)).max() > 0
    for wrong in ({"tile": 70}, {"tile": "many"}, {"precision": "int8"}, {"batch": 0}, {"tile_overlap": -1}):
        with pytest.raises(ValueError):
            loaded(PHOTO, **wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_pictures_are_returned_in_16_bits(weights, channels):
    levels = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    loaded = restorer.load(weights[channels])
    for picture in (Image.fromarray(levels), Image.frombytes("I;16B", (40, 30), levels.astype(">u2").tobytes())):
        result = loaded(picture)
        assert (result.mode, result.size) == ("I;16", (40, 30))
        want = loaded(np.repeat(levels[..., None], channels, axis=2)).astype(float)
        want = want @ [0.299, 0.587, 0.114] if channels == 3 else want[..., 0]
        assert np.abs(np.asarray(result) - want).max() <= 2


def test_the_automatic_tile_fits_the_memory(weights, monkeypatch):
    loaded, images = restorer.load(weights[3]), torch.rand(1, 3, 400, 400)
    each = loaded._apply.bytes_per_pixel("no")
    assert 100 < each < 2000 and 50 < loaded._apply.bytes_per_pixel("bf16") <= each
    own = 400 * 400 * 3 * 4 * 3  # the image, and the output twice
    for free, most in ((2**40, None), (own + 2 * each * 200 * 200, 200), (0, 128)):
        monkeypatch.setattr(applying, "memory_bytes", lambda free=free: free)
        tile = loaded._apply.choose_tile(images, Settings())
        assert tile is None if most is None else most - 16 < tile <= most
    monkeypatch.setattr(applying, "memory_bytes", lambda: own + 2 * each * 200 * 200)
    sides = []
    callback = loaded.model.register_forward_pre_hook(lambda module, given: sides.append(max(given[0].shape[2:])))
    loaded(images[0])
    callback.remove()
    assert max(sides) <= 200 and len(sides) > 3


def test_no_seam_shows_where_tiles_meet(weights, tmp_path):
    photo = photograph("coffee")[:200, :300]
    loaded = restorer.load(weights[3])
    gap = loaded(photo / 255.0, tile=96, tile_overlap=32) - loaded(photo / 255.0, tile=None)
    steps = np.abs(np.diff(gap, axis=1)).max()
    hard = np.concatenate([loaded(photo[:, left:right] / 255.0) for left, right in pairwise([0, 64, 128, 192, 300])], 1)
    control = np.abs(np.diff(hard - loaded(photo / 255.0, tile=None), axis=1)).max()
    assert steps < control / 10


def test_the_mark_holds_only_what_changes_the_result(weights):
    loaded = restorer.load(weights[3])
    one, two = (recipe_of(loaded, Settings(batch=n), False, 95) for n in (1, 2))
    assert one == two != recipe_of(loaded, Settings(tile=96), False, 95)
    assert mark_of(one, "a") != mark_of(one, "b")


def test_no_output_is_named_that_was_not_written(weights, tmp_path, capsys):
    (broken := tmp_path / "broken\nname.png").write_bytes(b"no image")
    assert restore(weights[3], broken, "-o", tmp_path / "a.png") == 2
    printed = capsys.readouterr()
    assert "restored" not in printed.out and not (tmp_path / "a.png").exists()
    assert "broken\\nname.png: " in printed.err
    assert len([line for line in printed.err.splitlines() if line.startswith("  - ")]) == 1
    assert len(printed.err.splitlines()) == 2
