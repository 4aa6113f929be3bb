"""Copies and overlapping crops across the split are found; other pictures are not."""

import numpy as np
import pytest
import scipy
from measured_photos import GTS, PHOTOS, SIDE, cut, jpeg, noisy, resized, rounded
from photographs import photograph

from accel_restore.data_check import near_duplicates as near_duplicates_module
from accel_restore.data_check.findings import find_leaks
from accel_restore.data_check.measure import examine_pair
from accel_restore.data_check.near_duplicates import luma, near_duplicates, shrink, thumbnail

STORED = {"as it is": rounded, "as JPEG": lambda image: jpeg(image, 50), "with noise": lambda image: noisy(image, 10)}


def _thumbnail(image: np.ndarray) -> bytes:
    return thumbnail(shrink(luma(image)))


@pytest.mark.parametrize("shift", [(1, 0), (8, 5), (0, 40), (-30, 50)])
@pytest.mark.parametrize("store", STORED.values(), ids=STORED)
def test_overlapping_crops_of_one_photograph_are_leaks(store, shift):
    photos = [np.float32(photograph(name)) / 255 for name in ("astronaut", "coffee", "chelsea", "hubble_deep_field")]
    one = [examine_pair(None, photo[60 : 60 + SIDE, 100 : 100 + SIDE]) for photo in photos]
    top, left = 60 + shift[0], 100 + shift[1]
    other = [examine_pair(None, store(photo[top : top + SIDE, left : left + SIDE])) for photo in photos]
    found = find_leaks(one, GTS[:4], other, list("abcd"))
    assert [finding.files for finding in found] == list(zip("abcd", GTS[:4], strict=True))
    assert find_leaks(one[:2], GTS[:2], other[2:], ["c", "d"]) == []


COPIES = {
    "mirrored": lambda image: image[:, ::-1],
    "turned": np.rot90,
    "jpeg": lambda image: jpeg(image, 60),
    "smaller": lambda image: resized(image, SIDE // 2, SIDE // 2),
    "brighter": lambda image: np.clip(1.1 * image, 0, 1),
    "noisy": noisy,
    "cut": lambda image: image[4:-5, 6:-3],
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_of_validation_images_in_training_are_found(copy):
    clean = [examine_pair(None, cut(photo)) for photo in PHOTOS]
    copies = [examine_pair(None, np.ascontiguousarray(copy(cut(photo)))) for photo in PHOTOS[:4]]
    found = find_leaks(clean, GTS, copies, ["a", "b", "c", "d"])
    expected = [("leak", files) for files in zip("abcd", GTS[:4], strict=True)]
    assert [(finding.kind, finding.files) for finding in found] == expected
    assert all("nearly the same picture" in finding.text for finding in found)


def test_exact_leaks_are_reported_as_such_and_other_pictures_are_not():
    clean = [examine_pair(None, cut(photo)) for photo in PHOTOS]
    (finding,) = find_leaks(clean[:6], GTS[:6], [clean[2], *clean[6:]], [GTS[2], *GTS[6:]])
    assert "the same pixels" in finding.text
    assert find_leaks(clean[:6], GTS[:6], clean[6:], GTS[6:]) == []


def test_crops_of_one_scene_are_no_duplicates():
    scenes = [photograph("brick"), photograph("grass"), photograph("gravel"), photograph("coins")]
    tiles = [
        _thumbnail(np.float32(scene[top : top + 100, left : left + 100, None]) / 255)
        for scene in scenes
        for top in range(0, 300, 100)
        for left in range(0, 300, 100)
    ]
    assert near_duplicates(tiles) == []


def test_plain_pictures_and_grids_are_no_duplicates():
    rows, columns = np.mgrid[:96, :96]
    sky = (0.3 + rows / 300).astype(np.float32)
    grid = ((rows % 12 < 2) | (columns % 12 < 2)).astype(np.float32)
    edge = (rows > 40).astype(np.float32)
    flat = np.full((96, 96), 0.5, np.float32)
    thumbnails = [thumbnail(shrink(image)) for image in (sky, grid, edge, flat)]
    assert thumbnails[3] == b""
    assert near_duplicates(thumbnails, thumbnails) == []


def test_duplicates_are_found_among_thousands_of_pictures():
    random = np.random.default_rng(0)
    many = [random.integers(0, 256, 1024, np.uint8).tobytes() for _ in range(3000)]
    turned = np.rot90(np.frombuffer(many[2500], np.uint8).reshape(32, 32)).tobytes()
    assert [match[:2] for match in near_duplicates(many, [many[7], b"", turned])] == [(7, 0), (2500, 2)]


def test_large_sets_are_compared_by_hashes_in_linear_time(monkeypatch):
    random = np.random.default_rng(0)
    cells = scipy.ndimage.gaussian_filter(random.normal(size=(1600, 32, 32)), (0, 2, 2)) + 0.5
    many = [thumbnail(image.astype(np.float32)) for image in cells]
    copies = [thumbnail(np.rot90(image + 0.02 * random.normal(size=image.shape)).astype(np.float32)) for image in cells]
    exact = {match[:2] for match in near_duplicates(many, copies[:100])}
    assert exact == {(place, place) for place in range(100)}
    monkeypatch.setattr(near_duplicates_module, "_EXACT", 0)
    assert {match[:2] for match in near_duplicates(many, copies[:100])} == exact

    compared = []
    multiply = np.einsum

    def counted(what, one, other):
        compared.append(len(one))
        return multiply(what, one, other)

    counts = []
    for count in (400, 800, 1600):
        compared.clear()
        with monkeypatch.context() as patch:
            patch.setattr(np, "einsum", counted)
            near_duplicates(many[:count])
        counts.append(sum(compared))
    assert counts[1] < 2.5 * counts[0] and counts[2] < 2.5 * counts[1]
