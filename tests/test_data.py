"""From paths in the configuration to decoded images: found, matched, checked, and decoded once."""

import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from accel_restore.data import store as store_module
from accel_restore.data.images import Unusable, image_size, read_image
from accel_restore.data.pairs import find_pairs
from accel_restore.data.sources import DataSets, open_data
from accel_restore.data.store import open_store
from accel_restore.errors import UserError
from accel_restore.parsing import config_from


def photo(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo() if pixels is None else pixels).save(path, **options)
    return path


def save_all(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        save(folder / name, photo(seed=number))
    return folder


def names(gt, input=None) -> list[str]:
    pairs, problems = find_pairs(gt, input, "data.train")
    return problems or [pair.name for pair in pairs]


def test_folders_pair_by_stem_in_order_of_names(tmp_path):
    gt, noisy = save_all(tmp_path / "gt", "b.png", "a.JPG"), save_all(tmp_path / "noisy", "a.png", "b.jpeg")
    for other in ("notes.txt", ".b.png"):
        (gt / other).write_text("no image")
    found = [(p.name, p.gt.name, p.input.name) for p in find_pairs(str(gt), str(noisy), "data.train")[0]]
    assert found == [("a", "a.JPG", "a.png"), ("b", "b.png", "b.jpeg")] and names(str(gt), str(noisy)) == ["a", "b"]


def test_patterns_pair_by_what_stands_for_the_braces(tmp_path):
    base = save_all(tmp_path / "a[1]*", "x_real.png", "x_mean.png", "y_real.png", "y_mean.png", "z.png")
    assert names(f"{base}/{{}}_mean.png", f"{base}/{{}}_real.png") == ["x", "y"]
    save_all(tmp_path / "shots", "1/gt.png", "2/gt.png", "2/deep/gt.png")
    assert names(f"{tmp_path}/shots/{{}}/gt.png") == ["1", "2"]
    with pytest.raises(UserError, match=r"data\.train\.gt.*exactly once"):
        find_pairs("{}/{}.png", None, "data.train")


def test_lists_and_files_of_an_installed_package(tmp_path):
    save_all(tmp_path, "b.png", "a.png")
    assert names([str(tmp_path / "b.png"), str(tmp_path / "a.png")]) == ["a", "b"]
    assert names(["package:skimage/data/coffee.png"]) == ["coffee"]
    with pytest.raises(UserError, match="'nosuchpackage' is not installed"):
        names(["package:nosuchpackage/x.png"])


def test_all_problems_of_a_source_are_reported_together(tmp_path):
    gt = save_all(tmp_path / "gt", "a.png", "a.jpg", "b.png", "only_gt.png")
    noisy = save_all(tmp_path / "noisy", "a.png", "b.png", "only_input.png")
    text = "\n".join(find_pairs(str(gt), str(noisy), "data.train")[1])
    assert text.count("\n") == 2 and "has the same name 'a'" in text and "a.jpg" in text
    assert f"{gt / 'only_gt.png'}: has no partner" in text and f"{noisy / 'only_input.png'}: has no partner" in text


def test_sources_without_images_are_explained(tmp_path):
    save(tmp_path / "nested" / "one" / "a.png")
    (tmp_path / "empty").mkdir()
    for source, message in {
        "missing": "does not exist", "empty": "no images", "nested": "1 folders", "nested/one/a.png": "is a file",
        "{}.tiff": "no file matches",
    }.items():  # fmt: skip
        pairs, (problem,) = find_pairs(str(tmp_path / source), None, "data.train")
        assert not pairs and problem.startswith("data.train.gt: ") and message in problem
    _, (problem,) = find_pairs([str(tmp_path / "no.png")], None, "data.train")
    assert "no such file" in problem and "no.png" in problem


def test_pixels_are_those_of_the_file_gray_and_colour(tmp_path):
    colour, gray = photo(), photo()[..., 0]
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.png", colour), 3), colour)
    np.testing.assert_array_equal(read_image(save(tmp_path / "g.png", gray), 1), gray[..., None])
    np.testing.assert_array_equal(read_image(tmp_path / "g.png", 3), np.repeat(gray[..., None], 3, 2))
    assert np.abs(read_image(tmp_path / "c.png", 1)[..., 0] - colour @ [0.299, 0.587, 0.114]).max() <= 1


TURNED = {  # EXIF orientation: what stands upright
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, expected = save(tmp_path / "a.png", exif=exif), TURNED[orientation](photo())
    np.testing.assert_array_equal(read_image(path, 3), expected)
    assert image_size(path) == expected.shape[:2]


def save_16_bit_colour(path: Path) -> None:
    """A PNG of 16 bits per channel, which Pillow reads as RGB, dropping the lower 8 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header, rows = bytes([0, 0, 0, 5, 0, 0, 0, 4, 16, 2, 0, 0, 0]), zlib.compress(bytes(31 * 4))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def make_unusable(kind: str, path: Path) -> None:
    if kind == "16-bit gray":
        save(path, photo()[..., 0].astype(np.uint16) * 257)
    elif kind == "16-bit colour":
        save_16_bit_colour(path)
    elif kind in ("RGBA", "LA", "P", "1", "CMYK"):
        Image.fromarray(photo()).convert(kind).save(path, format="tiff" if kind == "CMYK" else "png")
    elif kind == "truncated":
        path.write_bytes(save(path).read_bytes()[:-500])
    else:
        path.write_bytes(
            {"empty": b"", "text": b"this is no image\n" * 9, "header": save(path).read_bytes()[:30]}[kind]
        )


REASONS = {
    "16-bit gray": "16", "16-bit colour": "16", "RGBA": "RGBA", "LA": "LA", "P": "format P", "1": "format 1",
    "CMYK": "CMYK", "truncated": "damaged", "empty": "empty", "text": "is no image",
    "header": "is no image|cannot be read",
}  # fmt: skip


@pytest.mark.parametrize("kind", REASONS)
def test_an_unusable_image_is_refused_by_name_and_reason(kind, tmp_path):
    make_unusable(kind, path := tmp_path / "bad.png")
    cache = tmp_path / "cache"
    with pytest.raises(Unusable, match=REASONS[kind]):
        read_image(path, 3)
    store, sizes, (problem,) = open_store([save(tmp_path / "good.png"), path], 3, cache, lambda _: None)
    assert store is None and sizes[0] == (20, 30)
    assert problem.startswith(f"{path}: ") and re.search(REASONS[kind], problem)
    assert not [file for file in cache.iterdir() if file.suffix != ".lock"]


def test_a_store_gives_read_only_views_and_is_built_once(tmp_path, monkeypatch):
    pixels, said = [photo(20, 30, 1), photo(7, 5, 2), photo(64, 48, 3)], []  # said: a line for each building
    files, cache = [save(tmp_path / f"{len(image)}.png", image) for image in pixels], tmp_path / "cache"
    store, sizes, problems = open_store(files, 3, cache, said.append)
    assert sizes == [(20, 30), (7, 5), (64, 48)] and not problems and len(store) == 3
    for number, image in enumerate(pixels):
        np.testing.assert_array_equal(store[number], image)
        with pytest.raises(ValueError, match="read-only"):
            store[number][0, 0, 0] = 1
    monkeypatch.setattr(store_module, "read_image", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(open_store(files, 3, cache, said.append)[0][2], pixels[2])
    assert len(said) == 1
    monkeypatch.undo()
    save(files[1], photo(9, 9, 4))  # a changed image gives another store; so do other channels
    changed, sizes, _ = open_store(files, 3, cache, said.append)
    assert sizes[1] == (9, 9) and changed[1].shape == (9, 9, 3) and len(said) == 2
    assert open_store(files, 1, cache, said.append)[0][2].shape == (64, 48, 1)


OPENER = """
import contextlib, sys, time
from pathlib import Path
import datasets
from accel_restore.data import store
cache, lock, me, other = Path(sys.argv[1]), *sys.argv[2:]
if lock == "unlocked":
    store.FileLock = lambda _: contextlib.nullcontext()
read = store.read_image
store.read_image = lambda *given: time.sleep(1) or read(*given)
cache.with_name(me).touch()
while not cache.with_name(other).exists():
    time.sleep(0.01)
assert store.open_store(sorted(cache.parent.glob("*.png")), 3, cache, lambda _: print("built"))[0][0].size
"""


def test_two_processes_that_open_at_once_build_once(tmp_path):
    built = {}
    for lock in ("locked", "unlocked"):
        save(tmp_path / lock / "a.png")
        command = [sys.executable, "-c", OPENER, str(tmp_path / lock / "cache"), lock]
        both = [subprocess.Popen([*command, *who], stdout=-1, text=True) for who in (("1", "2"), ("2", "1"))]
        built[lock] = sum(process.communicate(timeout=60)[0].count("built") for process in both)
        if lock == "locked":  # without it, one may remove what the other is writing
            assert [process.returncode for process in both] == [0, 0]
    assert built == {"locked": 1, "unlocked": 2}  # the second is the control


def open_sources(tmp_path: Path, seed: int = 0, **data) -> DataSets:
    tree = {"data": {"patch_size": 16, "cache_dir": str(tmp_path / "cache"), **data}}
    return open_data(config_from(tree).data, seed, 11, torch.device("cpu"), lambda _: None)


def test_all_problems_of_the_data_are_reported_at_once(tmp_path):
    gt = save_all(tmp_path / "gt", "a.png", "b.png", "c.png", "d.png", "alone.png")
    noisy = save_all(tmp_path / "noisy", "a.png", "b.png", "d.png")
    save(gt / "a.png", photo(20, 31))
    make_unusable("truncated", noisy / "b.png")
    for folder in (gt, noisy):
        save(folder / "d.png", photo(15, 40))
    with pytest.raises(UserError) as caught:
        open_sources(tmp_path, train={"gt": str(gt), "input": str(noisy)}, val={"gt": str(tmp_path / "none")})
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("6 problems") and len(lines) == 7
    for words in (
        ("c.png", "no partner"), ("alone.png", "no partner"), ("noisy/a.png", "30x20", "31x20", "must be equal"),
        ("noisy/b.png", "damaged"), ("gt/d.png", "40x15", "16 pixels of data.patch_size"), ("data.val.gt", "none"),
    ):  # fmt: skip
        assert any(all(word in line for word in words) for line in lines), words


def test_the_held_out_images_do_not_depend_on_the_seed(tmp_path):
    gt = str(save_all(tmp_path / "gt", *(f"{number}.png" for number in range(20))))
    one, two = (open_sources(tmp_path, seed, train={"gt": gt}, val_fraction=0.25) for seed in (0, 1))
    assert one.identity == two.identity and one.val.names == one.identity["val"]
    assert len(one.val) == 5 and len(one.train) == 15
    assert sorted(one.identity["train"] + one.val.names) == sorted(str(number) for number in range(20))


@pytest.mark.parametrize(("count", "fraction", "message"), [(1, 0.5, "one image cannot"), (2, 0.9, "val_fraction")])
def test_too_few_images_to_hold_some_out(count, fraction, message, tmp_path):
    gt = save_all(tmp_path / "gt", *(f"{number}.png" for number in range(count)))
    with pytest.raises(UserError, match=message):
        open_sources(tmp_path, train={"gt": str(gt)}, val_fraction=fraction)


def test_images_smaller_than_a_crop_or_the_scores_are_named(tmp_path):
    train = save_all(tmp_path / "gt", "a.png")
    small = save(tmp_path / "val" / "small.png", photo(10, 30))
    with pytest.raises(
        UserError, match=r"a\.png: is 30x20, less than the 21 (.|\n)*small\.png: is 30x10, less than the 11 "
    ):
        open_sources(tmp_path, train={"gt": str(train)}, val={"gt": [str(small)]}, patch_size=21)
    assert len(open_sources(tmp_path, train={"gt": str(train)}, val={"gt": str(train)}, patch_size=20).train) == 1


def test_a_file_paired_with_itself_is_a_problem(tmp_path):
    for name in ("a_real", "a_mean"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    _, problems = find_pairs(str(tmp_path), str(tmp_path), "data.train")
    assert len(problems) == 1 and "the same file for 2 of 2 pairs" in problems[0]
    _, problems = find_pairs(str(tmp_path / "{}_mean.png"), str(tmp_path / "{}_real.png"), "data.train")
    assert not problems
