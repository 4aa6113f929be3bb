"""best.safetensors alone restores images of every kind; damaged or foreign files are refused by name."""

import io

import huggingface_hub
import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from camera_files import RGB_PROFILE, camera_file, made_exif
from photographs import photograph
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from weight_files import build, write

import accel_restore
from accel_restore.data.encode import encode, read_mark
from accel_restore.data.metadata import About
from accel_restore.errors import UserError
from accel_restore.inference import restorer

pytestmark = pytest.mark.usefixtures("one_thread")

PHOTO = photograph("astronaut")[100:125, 200:219].copy()  # odd sides


@pytest.fixture
def colour(tmp_path):
    return (model := build(3)), restorer.load(write(tmp_path / "colour.safetensors", model))


@pytest.fixture
def gray(tmp_path):
    return (model := build(1)), restorer.load(write(tmp_path / "gray.safetensors", model, channels=1))


def expected(model: torch.nn.Module, photo: np.ndarray) -> np.ndarray:
    """The output of the weights for a uint8 image (H, W, C), computed by hand."""
    output = model(torch.tensor(photo).permute(2, 0, 1)[None].float() / 255)[0].detach()
    return (output.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def near(one: np.ndarray, other: np.ndarray) -> bool:  # equal except for values between two levels
    difference = one.astype(int) - other
    return one.shape == other.shape and np.abs(difference).max() <= 1 and abs(difference.mean()) < 0.1


def test_the_model_of_the_file_is_in_float32_and_eval_mode(colour):
    model, loaded = colour
    assert not loaded.model.training
    state, saved = loaded.model.state_dict(), model.state_dict()
    assert list(state) == list(saved)
    assert all(state[name].equal(value) and state[name].dtype == torch.float32 for name, value in saved.items())
    assert (loaded.channels, loaded.metadata["metrics"], loaded.metadata["step"]) == (3, {"psnr": 30.5}, "40")
    assert accel_restore.load is restorer.load


def test_arrays_keep_type_and_shape(colour):
    (model, restore), truth = colour, expected(colour[0], PHOTO)
    assert not near(truth, PHOTO)  # the weights do something
    assert restore(PHOTO).dtype == np.uint8 and near(restore(PHOTO), truth)
    for dtype in (np.float32, np.float64, np.float16):
        result = restore((PHOTO / 255).astype(dtype))
        assert result.dtype == dtype and result.shape == PHOTO.shape
        assert result.min() >= 0 and result.max() <= 1
        assert near((result.astype(np.float64) * 255).round(), truth)
    assert near(restore(PHOTO[:, ::-1]), expected(model, PHOTO[:, ::-1].copy()))  # a view with negative strides


def test_gray_arrays_may_have_a_channel_axis_or_not(gray):
    (model, restore), photo = gray, PHOTO[..., :1].copy()
    assert near(restore(photo), expected(model, photo))
    assert restore(photo[..., 0]).shape == photo.shape[:2]
    assert near(restore(photo[..., 0])[..., None], restore(photo))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tensors_keep_type_and_shape(colour, dtype):
    model, restore = colour
    images = torch.from_numpy(PHOTO).permute(2, 0, 1).to(dtype).div(255).repeat(2, 1, 1, 1)
    given = images.clone()
    truth = model(images.float()).clamp(0, 1).detach()
    result = restore(images)
    assert result.dtype == dtype and result.shape == images.shape and images.equal(given)
    torch.testing.assert_close(result.float(), truth, rtol=0, atol=1e-3)
    torch.testing.assert_close(restore(images[0]), result[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1"])
def test_pil_images_of_any_mode_are_restored_in_colour(colour, mode):
    (model, restore), image = colour, Image.fromarray(PHOTO).convert(mode)
    result = restore(image)
    assert (result.mode, result.size) == ("RGB", image.size)
    assert near(np.asarray(result), expected(model, np.asarray(image.convert("RGB"))))


def test_gray_weights_make_gray_images(gray):
    (model, restore), image = gray, Image.fromarray(PHOTO)
    result = restore(image)
    assert (result.mode, result.size) == ("L", image.size)
    assert near(np.asarray(result)[..., None], expected(model, np.asarray(image.convert("L"))[..., None]))


def test_a_16_bit_image_is_not_saturated(gray):
    levels = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    result = np.asarray(gray[1](Image.fromarray(levels)))
    truth = np.asarray(gray[1](Image.fromarray((levels // 257).astype(np.uint8))))
    assert result.dtype == np.uint16 and np.abs(result / 257 - truth).max() <= 4


def test_a_rotated_photograph_is_returned_upright(colour, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert image.size == (PHOTO.shape[1], PHOTO.shape[0])  # the control: the file is rotated
        upright = np.asarray(ImageOps.exif_transpose(image))
        result = colour[1](image)
    assert near(np.asarray(result), expected(colour[0], upright))
    assert result.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (PHOTO[..., 0], ValueError), (PHOTO[None], ValueError), (PHOTO.astype(int), TypeError), ("a.png", TypeError),
        (torch.zeros(3, 8, 8).byte(), TypeError), (torch.zeros(1, 8, 8), ValueError), (torch.zeros(8, 8), ValueError),
    ],
)  # fmt: skip
def test_unsupported_images_are_refused(colour, image, error):
    with pytest.raises(error):
        colour[1](image)


def test_weights_come_from_the_hub_if_no_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked, file = [], write(tmp_path / "best.safetensors", build(3))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *words: asked.append(words) or str(file))
    assert near(np.asarray(accel_restore.load("me/denoiser")(PHOTO)), expected(build(3), PHOTO))
    assert asked == [("me/denoiser", "best.safetensors")]
    (tmp_path / "me").mkdir()
    file.rename(tmp_path / "me" / "denoiser")
    assert accel_restore.load("me/denoiser").channels == 3 and len(asked) == 1, "a file that is there comes first"
    for name in ("runs/best.safetensors", "denoiser", "a/b/c", str(tmp_path / "no"), "../no", "no/net.pth"):
        with pytest.raises(UserError, match="does not exist"):
            accel_restore.load(name)
    assert len(asked) == 1


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_floats_up_to_255_are_refused(tmp_path, make):
    restorer = accel_restore.load(write(tmp_path / "best.safetensors", build(3)))
    image = np.random.default_rng(0).random((3, 16, 16) if make is torch.from_numpy else (16, 16, 3), np.float32)
    with pytest.raises(ValueError, match=r"floats must be in \[0, 1\], but the largest is 2.*divide by 255"):
        restorer(make(image * 255))
    restorer(make(image * 1.5))  # noise does that


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize(("value", "words"), [("nan", "NaN or inf"), ("inf", "NaN or inf"), ("-inf", "NaN or inf"),
                                              ("-255", "smallest is -255")])  # fmt: skip
def test_floats_that_are_no_image_are_refused(tmp_path, make, value, words):
    restorer = accel_restore.load(write(tmp_path / "best.safetensors", build(3)))
    image = np.full((3, 16, 16) if make is torch.from_numpy else (16, 16, 3), 0.5, np.float32)
    image[0, 0, 0] = float(value)
    with pytest.raises(ValueError, match=words):
        restorer(make(image))


def saved(image: Image.Image, format: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("target", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_restored_picture_is_saved_with_what_describes_it(colour, source, target):
    restored = colour[1](Image.open(io.BytesIO(camera_file(source))))
    copy = saved(restored, target)
    exif, is_turned = copy.getexif(), source != "TIFF"
    assert copy.info["icc_profile"] == RGB_PROFILE == restored.info["icc_profile"]
    assert copy.size == restored.size == ((30, 40) if is_turned else (40, 30))
    assert (exif[0x010F], exif[0x0112], exif.get_ifd(0x8769)[0xA002]) == ("A maker", 1, copy.width)
    if source != "TIFF":  # whose Interop Pillow does not pass on
        assert exif.get_ifd(0xA005)[1] == "R03"
    if target != "WEBP":
        assert tuple(round(float(side)) for side in copy.info["dpi"]) == ((120, 240) if is_turned else (240, 120))
    if target != "TIFF":
        assert b"A title" in (copy.info.get("xmp") or copy.info["XML:com.adobe.xmp"].encode())
    assert "icc_profile" not in saved(restored, target, icc_profile=None).info  # as the caller wishes
    gray = restored.convert("L")
    assert gray.size == restored.size and type(gray) is Image.Image


def test_a_restored_png_keeps_its_colours_and_no_mark(colour, gray, tmp_path):
    chunks = PngInfo()
    chunks.add(b"gAMA", (100_000).to_bytes(4))
    Image.fromarray(PHOTO).save(tmp_path / "a.png", pnginfo=chunks, icc_profile=RGB_PROFILE)
    colour[1](Image.open(tmp_path / "a.png")).save(tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").info["gamma"] == 1.0
    assert "icc_profile" not in gray[1](Image.open(tmp_path / "a.png")).info, "a colour profile does not describe gray"
    (tmp_path / "marked.png").write_bytes(encode(PHOTO, "PNG", About(made_exif()), "mark"))
    colour[1](Image.open(tmp_path / "marked.png")).save(tmp_path / "c.png")
    assert read_mark(tmp_path / "marked.png") == "mark" and read_mark(tmp_path / "c.png") is None


def transparent(mode: str) -> Image.Image:
    image = Image.fromarray(PHOTO).convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 254))
    return image.quantize(16) if mode == "P" else image.convert(mode)


def named_colour(mode: str, colour: object) -> Image.Image:
    image = Image.new(mode, (20, 20), 7 if mode != "RGB" else (7, 7, 7))
    image.info["transparency"] = colour
    return image


@pytest.mark.parametrize(
    ("image", "words"),
    [
        *((transparent(mode), "has transparent pixels") for mode in ("RGBA", "LA", "PA", "P")),
        (named_colour("RGB", (7, 7, 7)), "transparent"), (named_colour("L", 7), "transparent"),
        (named_colour("P", 7), "transparent"), (named_colour("I;16", 7), "transparent"),
        (Image.new("CMYK", (20, 20)), "is CMYK"),
        *((Image.new(mode, (20, 20)), f"pixel format {mode}") for mode in ("YCbCr", "HSV", "LAB", "RGBa", "RGBX")),
    ],
)  # fmt: skip
def test_pil_images_are_refused_by_the_rules_for_files(colour, gray, image, words):
    for _, restore in (colour, gray):
        with pytest.raises(ValueError, match=f"the image .*{words}"):
            restore(image)


def test_a_colour_named_as_transparent_that_no_pixel_has_is_no_transparency(colour):
    for mode, other in (("RGB", (1, 1, 1)), ("L", 1), ("I;16", 1)):
        assert colour[1](named_colour(mode, other)).size == (20, 20)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_rgb_of_which_pillow_keeps_8_bits_is_refused(colour, tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(encode(PHOTO.astype(np.uint16) * 257, {"png": "PNG", "tif": "TIFF"}[suffix], About(), "mark"))
    with pytest.raises(ValueError, match="Pillow keeps 8 bits; give a numpy array"):
        colour[1](Image.open(file))


DEEP = PHOTO.astype(np.uint16) * 257


def tiff_file(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def frames(format: str, **options) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(PHOTO)
    image.save(buffer, format, save_all=True, append_images=[Image.new("RGB", image.size)], **options)
    return buffer.getvalue()


OTHER = np.dstack([PHOTO, PHOTO[..., 0]])
REFUSED = {
    "white is 0": (lambda: tiff_file(DEEP[..., 0], photometric="miniswhite"), "inverted gray"),
    "16-bit PNG with alpha": (
        lambda: imagecodecs.png_encode(np.dstack([DEEP, DEEP[..., 0] | 65535])), "Pillow keeps 8 bits"),
    "16-bit TIFF with alpha": (
        lambda: tiff_file(np.dstack([DEEP, DEEP[..., 0] | 65535]), photometric="rgb", extrasamples=["unassalpha"]),
        "Pillow keeps 8 bits"),
    "JPEG2000": (lambda: imagecodecs.jpeg2k_encode(DEEP, level=0, codecformat="jp2"), "more than 8 bits"),
    "extra channel": (lambda: tiff_file(OTHER, photometric="rgb", extrasamples=["unspecified"]), "extra channel"),
    "pages": (lambda: frames("TIFF"), "contains 2 images"),
    "WEBP": (lambda: frames("WEBP"), "contains 2 images"),
    "APNG": (lambda: frames("PNG"), "contains 2 images"),
    "cut": (lambda: encode(PHOTO, "PNG", About(), "mark")[:-500], "is damaged"),
    "cut JPEG": (lambda: encode(PHOTO, "JPEG", About(), "mark")[:-300], "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_pil_image_of_a_file_is_refused_like_the_file(colour, tmp_path, name):
    data, words = REFUSED[name][0](), REFUSED[name][1]
    (tmp_path / "a").write_bytes(data)
    for image in (Image.open(tmp_path / "a"), Image.open(io.BytesIO(data))):
        with pytest.raises(ValueError, match=f"the image .*{words}"):
            colour[1](image)
    if "cut" not in name and name != "extra channel":
        with Image.open(tmp_path / "a") as image:
            image.load()
        with pytest.raises(ValueError, match="the image "):
            colour[1](image)


def test_a_draft_and_an_altered_picture_keep_their_own_pixels(colour, tmp_path):
    Image.fromarray(np.tile(PHOTO, (4, 4, 1))).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("RGB", (38, 50))
        assert colour[1](image).size == image.size == (38, 50)
    with Image.open(tmp_path / "a.jpg") as image:
        image.paste((0, 0, 0), (0, 0, *image.size))
        assert near(np.asarray(colour[1](image)), expected(colour[0], np.zeros((100, 76, 3), np.uint8)))


def test_either_byte_order_is_the_same_array(colour):
    assert np.array_equal(colour[1](DEEP.astype(">u2")), colour[1](DEEP))


@pytest.mark.parametrize("image", [PHOTO[:0], Image.new("RGB", (0, 0)), torch.zeros(3, 0, 8)])
def test_an_empty_picture_is_refused(colour, image):
    with pytest.raises(ValueError, match="empty"):
        colour[1](image)
