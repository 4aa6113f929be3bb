"""Pixels of any kind: NumPy and OpenEXR files, arrays, floats; one rule where images of a source differ."""

import io
import pickle
import sys

import numpy as np
import pytest
from image_files import photo, save
from PIL import Image

from accel_restore.data.cache import open_stores
from accel_restore.data.decode import Cell, ImageSource, read_header, read_image
from accel_restore.data.image_formats import ImageError
from accel_restore.data.pixels import KINDS, from_unit, to_unit

RANDOM = np.random.default_rng(0)


def values(shape: tuple, dtype="float32") -> np.ndarray:
    """Values of every size: floats from -0.3 to 2.2."""
    if np.dtype(dtype).kind == "f":
        return (RANDOM.random(shape) * 2.5 - 0.3).astype(dtype)
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def npy(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def sources(path, data: bytes) -> tuple[ImageSource, Cell]:
    """The same file on the disk and in a data set."""
    path.write_bytes(data)
    return path, Cell("row 1", "1", lambda: data)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("byteorder", "<>")
def test_numpy_files_of_every_kind_and_layout(kind, order, byteorder, tmp_path):
    for channels in (1, 2, 3, 4, 31):
        pixels = values((20, 30, channels), kind)
        stored = np.asarray(pixels, kind.newbyteorder(byteorder), order=order)
        for array in (stored, stored[..., 0]) if channels == 1 else (stored,):
            for source in sources(tmp_path / "a.npy", npy(array)):
                header = read_header(source)
                assert (header.height, header.width, header.dtype, header.format) == (20, 30, kind, "NPY")
                result = read_image(source, channels)
                assert result.dtype == kind and result.flags.writeable
                np.testing.assert_array_equal(result, pixels)


def test_the_header_of_a_numpy_file_is_read_without_its_pixels(tmp_path):
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (9000, 9000, 3))  # a sparse file of 972 MB
    assert read_header(path).width == 9000
    with pytest.raises(ImageError, match="more than 1,000 pixels"):
        read_image(path, 3, max_pixels=1000)


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([[Bomb()]]), allow_pickle=True), "object values"),
        (npy(np.zeros((4, 4))), "float64 .*to float32"),
        (npy(np.zeros((4, 4), np.int32)), "int32 values; convert it to uint8, uint16 or float32"),
        (npy(np.zeros((4, 4), bool)), "bool values"), (npy(np.zeros(4, np.uint8)), r"shape \(4,\)"),
        (npy(np.zeros((2, 4, 4, 3), "u1")), r"shape \(2, 4, 4, 3\)"),
        (npy(np.zeros((0, 4), "u1")), r"shape \(0, 4\)"),
        (npy(photo())[:-1], "damaged"), (npy(photo())[:40], "damaged"),
        (b"\x93NUMPY\x09\0" + npy(photo())[8:], "version 9"),
        (npy(np.array([[1, np.nan]], np.float32)), "NaN or inf"),
        (npy(np.array([[1, -np.inf]], np.float16)), "NaN or inf"),
        (pickle.dumps(photo()), "not a readable image"),
    ],
)  # fmt: skip
def test_other_arrays_are_refused_with_a_remedy(data, reason, tmp_path):
    for source in sources(tmp_path / "a.npy", data):
        with pytest.raises(ImageError, match=reason):
            read_image(source, 1)


def test_other_numbers_of_channels_are_refused_with_both_numbers(tmp_path):
    for shape, wanted in (((20, 30, 4), 3), ((20, 30, 2), 1), ((20, 30), 4), ((20, 30, 3), 31)):
        have = shape[2] if len(shape) == 3 else 1
        for source in sources(tmp_path / "a.npy", npy(values(shape))):
            with pytest.raises(ImageError, match=f"has {have} channels?, but {wanted} (is|are) needed .data.channels"):
                read_image(source, wanted)
    with pytest.raises(ImageError, match=r"are its axes \(C, H, W\)"):
        read_image(Cell("row", "1", lambda: values((31, 20, 30))), 31)
    with pytest.raises(ImageError, match="has 3 channels, but 4 are needed"):  # alpha is no channel
        read_image(save(tmp_path / "a.png", np.dstack([photo(), np.full((20, 30), 255, np.uint8)])), 4)


def test_gray_and_colour_floats_become_each_other():
    colour, gray = values((20, 30, 3)), values((20, 30))
    np.testing.assert_array_equal(read_image(Cell("a", "a", lambda: gray), 3), np.dstack([gray] * 3))
    luma = read_image(Cell("a", "a", lambda: colour), 1)[..., 0]
    np.testing.assert_allclose(luma, colour.astype(np.float64) @ [0.299, 0.587, 0.114], atol=1e-6)


def exr(channels: dict[str, np.ndarray], **header) -> bytes:
    openexr, stream = pytest.importorskip("OpenEXR"), io.BytesIO()
    openexr.File(header, dict(channels)).write(stream)  # it replaces the arrays
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_openexr_files_are_read_in_the_order_of_colours(dtype, tmp_path):
    pixels = values((20, 30, 5), dtype)
    red, green, blue, other, more = (np.ascontiguousarray(pixels[..., channel]) for channel in range(5))
    cases = {
        "gray": {"Y": red}, "RGB": {"B": blue, "R": red, "G": green},
        "5 channels": {"Z": more, "G": green, "N": other, "B": blue, "R": red},
    }  # fmt: skip
    for mode, channels in cases.items():
        for source in sources(tmp_path / "a.exr", exr(channels)):
            header = read_header(source)
            assert (header.height, header.width, header.dtype, header.mode) == (20, 30, dtype, mode)
            np.testing.assert_array_equal(read_image(source, len(channels)), pixels[..., : len(channels)])


def test_alpha_of_openexr_is_dropped_if_it_is_opaque(tmp_path):
    planes = dict(zip("RGBA", np.moveaxis(values((20, 30, 4)), -1, 0).copy(), strict=True))
    for source in sources(tmp_path / "a.exr", exr(planes)):
        with pytest.raises(ImageError, match="transparent"):
            read_image(source, 3)
    planes["A"][:] = 1
    for source in sources(tmp_path / "a.exr", exr(planes)):
        assert read_header(source).mode == "RGB with alpha"
        np.testing.assert_array_equal(read_image(source, 3), np.dstack([planes[name] for name in "RGB"]))


def test_other_and_cut_openexr_files_are_refused(tmp_path):
    whole = exr({"RGB": values((64, 64, 3))})
    for length in (9, 100, 330, 400, len(whole) // 2, len(whole) - 1):
        for source in sources(tmp_path / "a.exr", whole[:length]):
            with pytest.raises(ImageError, match="damaged"):
                read_image(source, 3)
    with pytest.raises(ImageError, match="channel id holds integers"):
        read_header(Cell("a", "a", lambda: exr({"id": values((8, 8), "uint8").astype(np.uint32)})))
    with pytest.raises(ImageError, match="NaN or inf"):
        read_image(Cell("a", "a", lambda: exr({"Y": np.full((8, 8), np.nan, "f")})), 1)
    openexr, stream = sys.modules["OpenEXR"], io.BytesIO()
    openexr.File([openexr.Part({}, {"Y": values((8, 8))}, name) for name in "ab"]).write(stream)
    with pytest.raises(ImageError, match="several parts"):
        read_header(Cell("a", "a", stream.getvalue))


@pytest.mark.parametrize(("name", "extra", "suffix"), [("OpenEXR", "exr", ".exr"), ("rawpy", "raw", ".nef")])
def test_a_missing_library_is_named_with_its_extra(name, extra, suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"v/1\x01" + bytes(99) if suffix == ".exr" else b"MM\0*" + bytes(99))
    with pytest.raises(ImageError, match=rf"pip install 'accel_restore\[{extra}\]'"):
        read_header(path)


def stored(tmp_path, *arrays: np.ndarray, channels: int = 1):
    files = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    for file, array in zip(files, arrays, strict=True):
        np.save(file, array)
    return open_stores([files], channels, tmp_path / "cache")[0]


def test_kinds_of_a_source_become_the_one_that_holds_all(tmp_path):
    halves, floats = values((9, 9), "float16"), values((20, 300))
    opened = stored(tmp_path, halves, floats)
    assert opened.store.dtype == np.float32 and opened.values == (floats.min(), floats.max())
    np.testing.assert_array_equal(opened.store[0][..., 0], halves)
    np.testing.assert_array_equal(opened.store[1][..., 0], floats)
    crop = np.empty((10, 40, 1), np.float32)
    opened.store.crop(crop, 1, 5, 240)
    np.testing.assert_array_equal(crop[..., 0], floats[5:15, 240:280])
    again = open_stores([[tmp_path / "0.npy", tmp_path / "1.npy"]], 1, tmp_path / "cache")[0]
    assert again.store.dtype == np.float32 and again.values == opened.values
    only = open_stores([[tmp_path / "0.npy"]], 1, tmp_path / "cache")[0].store
    assert only.dtype == np.float16 and only.digests[0] == opened.store.digests[0]


def test_integers_among_floats_are_one_problem(tmp_path):
    opened = stored(tmp_path, values((9, 9)), values((9, 9), "uint8"), values((9, 9)), values((9, 9), "uint16"))
    (problem,) = opened.problems
    assert opened.store is None and f"{tmp_path / '0.npy'}: has float32" in problem and "1.npy has uint8" in problem


def test_float_pixels_are_mapped_linearly_and_never_clamped():
    pixels = values((20, 30, 3))
    unit = to_unit(pixels, (-0.3, 2.2))
    np.testing.assert_allclose(unit, (pixels.astype(float) + 0.3) / 2.5, atol=1e-6)
    np.testing.assert_allclose(from_unit(unit, np.dtype("float32"), (-0.3, 2.2)), pixels, atol=1e-6)
    assert np.array_equal(to_unit(pixels), pixels) and np.array_equal(from_unit(pixels, pixels.dtype), pixels)
    assert to_unit(pixels, (0.0, 0.5)).max() > 4
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_unit(levels, (-0.3, 2.2)), levels.astype(np.float32) / 255)  # integers have no range
    assert np.array_equal(from_unit(np.array([-1, 0.5, 2], np.float32), levels.dtype), [0, 128, 255])


def test_images_of_pillow_are_no_floats():
    with Image.fromarray(values((8, 8))) as image:
        stream = io.BytesIO()
        image.save(stream, "tiff")
    np.testing.assert_array_equal(read_image(Cell("a", "a", stream.getvalue), 1)[..., 0], np.asarray(image))
