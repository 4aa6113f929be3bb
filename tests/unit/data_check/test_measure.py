"""`accel-restore check` finds faults planted among real photographs, and finds none without them."""

import io

import numpy as np
import pytest
import scipy
from photographs import photograph
from PIL import Image

from accel_restore.data_check import near_duplicates as near_duplicates_module
from accel_restore.data_check.contact_sheet import SheetRow, contact_sheet
from accel_restore.data_check.findings import find_in_set, find_leaks, outliers
from accel_restore.data_check.measure import examine_pair
from accel_restore.data_check.near_duplicates import luma, near_duplicates, shrink, thumbnail

SIDE = 144
MARGIN = 16  # around each crop, so that shifted crops show the same scene


def _photos() -> list[np.ndarray]:
    """12 crops of photographs, SIDE + 2 MARGIN pixels wide, without overlap."""
    sources = [photograph("astronaut"), photograph("coffee"), photograph("chelsea"), photograph("rocket")]
    places = [[(0, 150), (170, 10), (330, 300)], [(30, 100), (200, 300), (20, 400)], [(10, 20), (110, 230)]]
    places += [[(0, 230), (240, 40), (230, 440)]]
    width = SIDE + 2 * MARGIN
    cuts = [
        photo[top : top + width, left : left + width]
        for photo, corners in zip(sources, places, strict=True)
        for top, left in corners
    ]
    cuts.append(photograph("camera")[60 : 60 + width, 150 : 150 + width, None] * np.array([1.0, 0.9, 0.8]))  # tinted
    return [np.ascontiguousarray(cut, np.float32) / 255 for cut in cuts]


PHOTOS = _photos()
NAMES = [f"{number:02d}.png" for number in range(len(PHOTOS))]
GTS, INPUTS = [f"gt/{name}" for name in NAMES], [f"input/{name}" for name in NAMES]


def _rounded(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.float32) / 255


def _noise(image: np.ndarray, sigma: float = 25) -> np.ndarray:
    random = np.random.default_rng(int(1e6 * image.mean()))
    return _rounded(image + random.normal(0, sigma / 255, image.shape))


def _blur(image: np.ndarray) -> np.ndarray:
    return _rounded(scipy.ndimage.gaussian_filter(image, (1.6, 1.6, 0)))


def _jpeg(image: np.ndarray, quality: int = 10) -> np.ndarray:
    memory = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(memory, "JPEG", quality=quality)
    return np.asarray(Image.open(memory), np.float32) / 255


def _dark(image: np.ndarray) -> np.ndarray:
    return _noise(0.2 * image**1.5, 2)


def _resized(image: np.ndarray, height: int, width: int, how=Image.Resampling.BICUBIC) -> np.ndarray:
    pixels = Image.fromarray((image * 255).round().astype(np.uint8)).resize((width, height), how)
    return np.asarray(pixels, np.float32) / 255


DAMAGES = {
    "noise": _noise,
    "strong noise": lambda image: _noise(image, 50),
    "blur": _blur,
    "jpeg": _jpeg,
    "dark": _dark,
}

EXCHANGED = {
    "blur": _blur,
    "strong blur": lambda image: _rounded(scipy.ndimage.gaussian_filter(image, (3, 3, 0))),
    "motion blur": lambda image: _rounded(scipy.ndimage.uniform_filter1d(image, 9, axis=1)),
    "blur and noise": lambda image: _noise(_blur(image), 15),
    "weak noise": lambda image: _noise(image, 8),
    "noise": _noise,
    "strong noise": lambda image: _noise(image, 50),
    "jpeg 10": _jpeg,
    "jpeg 60": lambda image: _jpeg(image, 60),
    "halved and enlarged": lambda image: _resized(_resized(image, 88, 88), 176, 176),
}
ENHANCED = {  # gts made of the inputs by other means than blur, noise and compression
    "brighter": lambda image: _rounded(0.1 + 0.8 * np.sqrt(image)),
    "contrast": lambda image: _rounded(1.3 * image - 0.1),
    "warmer": lambda image: _rounded(image * np.array([1.2, 1.0, 0.8], np.float32)),
    "sharper": lambda image: _rounded(2 * image - _blur(image)),
    "median": lambda image: scipy.ndimage.median_filter(image, (3, 3, 1)),
}
STORED = {
    "as it is": _rounded,
    "as JPEG": lambda image: _jpeg(image, 50),
    "with noise": lambda image: _noise(image, 10),
}


def _cut(image: np.ndarray, down: int = 0, right: int = 0) -> np.ndarray:
    """The centre of a photo, its content shifted down and right."""
    top, left = MARGIN - down, MARGIN - right
    return np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])


def _pairs(damage) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(_cut(damage(photo)), _cut(photo)) for photo in PHOTOS]


def _findings(pairs: list, scale: int = 1) -> list:
    return find_in_set([examine_pair(*pair, scale) for pair in pairs], GTS[: len(pairs)], INPUTS[: len(pairs)])


def _thumbnail(image: np.ndarray) -> bytes:
    return thumbnail(shrink(luma(image)))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_set_without_faults_has_no_findings(damage):
    assert _findings(_pairs(damage)) == []


@pytest.mark.parametrize("damage", [_noise, _blur, _jpeg, _dark])
@pytest.mark.parametrize("shift", [(0, 1), (2, -1), (-8, 0), (16, -16)])
def test_a_shift_is_measured(damage, shift):
    photo = PHOTOS[0]
    facts = examine_pair(_cut(damage(photo), *shift), _cut(photo))
    assert facts.shift == shift
    assert facts.gain > 0.5
    assert np.allclose(facts.offset, shift, atol=0.2)


def test_a_shifted_pair_is_reported_with_its_gain():
    pairs = _pairs(_noise)
    pairs[3] = (_cut(_noise(PHOTOS[3]), 3, 0), pairs[3][1])
    (finding,) = _findings(pairs)
    assert (finding.kind, finding.files) == ("shifted", (INPUTS[3], GTS[3]))
    assert "input/03.png: shifted by (3, 0) pixels (down, right) against gt/03.png; alignment would" in finding.text


def test_flat_and_periodic_images_are_not_shifted():
    stripes = np.tile(0.5 + 0.4 * np.sin(np.arange(144) * np.pi / 4), (144, 1)).astype(np.float32)[..., None]
    for image in (np.full((144, 144, 3), 0.5, np.float32), np.repeat(stripes, 3, axis=2)):
        for sigma in (5, 50):
            assert examine_pair(_noise(image, sigma), image).shift == (0, 0)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_shift_of_the_whole_set_is_one_finding(scale):
    small = [(_resized(cut, SIDE // scale, SIDE // scale), cut) for _, cut in _pairs(_noise)]
    assert _findings(small, scale) == []
    (finding,) = _findings([(cut[::scale, ::scale].copy(), cut) for _, cut in small], scale)  # the corner of each cell
    assert (finding.kind, finding.files) == ("shifted", ())
    assert f"about ({(scale - 1) / 2}, {(scale - 1) / 2})" in finding.text


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_swapped_pair_is_reported(damage):
    pairs = _pairs(damage)
    pairs[5] = pairs[5][::-1]
    assert [(finding.kind, finding.files) for finding in _findings(pairs)] == [("swapped", (INPUTS[5], GTS[5]))]


def test_a_swapped_set_is_one_finding():
    (finding,) = _findings([pair[::-1] for pair in _pairs(_noise)])
    assert (finding.kind, finding.files) == ("swapped", ())


@pytest.mark.parametrize("damage", EXCHANGED.values(), ids=EXCHANGED)
def test_an_exchanged_set_is_one_finding_and_the_right_order_is_none(damage):
    pairs = [(damage(_rounded(photo)), _rounded(photo)) for photo in PHOTOS]
    assert [finding.kind for finding in _findings(pairs)] == []
    (finding,) = _findings([pair[::-1] for pair in pairs])
    assert (finding.kind, finding.files) == ("swapped", ())
    assert "--picture" in finding.text


@pytest.mark.parametrize("enhance", ENHANCED.values(), ids=ENHANCED)
def test_enhanced_gts_are_not_taken_for_exchanged(enhance):
    pairs = [(_rounded(photo), enhance(_rounded(photo))) for photo in PHOTOS]
    assert [finding for finding in _findings(pairs) if finding.kind == "swapped"] == []


def test_gray_gts_among_colour_are_named():
    pairs = _pairs(_noise)
    for place in (2, 6):
        gt = np.repeat(pairs[place][1].mean(2, keepdims=True), 3, axis=2)
        pairs[place] = (_noise(gt), gt)
    (finding,) = _findings(pairs)
    assert (finding.kind, finding.files) == ("gray", (GTS[2], GTS[6]))
    assert f"2 of {len(PHOTOS)} gts are gray" in finding.text
    clean = find_in_set([examine_pair(None, gt) for _, gt in pairs], GTS)
    assert [(finding.kind, finding.files) for finding in clean] == [("gray", (GTS[2], GTS[6]))]


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


def test_wrong_partners_and_mirrored_inputs_are_reported():
    pairs = _pairs(_noise)
    pairs[2] = (pairs[1][0], pairs[2][1])
    pairs[7] = (pairs[7][0][:, ::-1].copy(), pairs[7][1])
    found = {finding.files: finding.text for finding in _findings(pairs) if finding.kind == "unrelated"}
    assert set(found) == {(INPUTS[2], GTS[2]), (INPUTS[7], GTS[7])}
    assert "another picture" in found[INPUTS[2], GTS[2]]
    assert "mirrored" in found[INPUTS[7], GTS[7]]


def test_outliers_are_far_from_the_median_and_infinite_values_are_ignored():
    values = [30, 31, 29.5, 30.2, 30.4, 29.8, 30.1, 30.3, 31.2]
    assert outliers(values) == []
    assert outliers([*values, 12, np.inf, 48]) == [9, 11]
    assert outliers([30, 31, 29, 30, 30, 30, 5]) == []  # too few
    assert outliers(list(range(14, 35))) == []  # a set of many noise levels


def test_an_outlier_is_reported():
    pairs = _pairs(lambda photo: _noise(photo, 10))
    pairs[4] = (_noise(pairs[4][1], 60), pairs[4][1])
    assert [(finding.kind, finding.files) for finding in _findings(pairs)] == [("outlier", (INPUTS[4], GTS[4]))]


def test_constant_equal_and_duplicate_pairs_are_reported():
    pairs = _pairs(_noise)
    pairs[0] = (np.zeros_like(pairs[0][1]), pairs[0][1])
    pairs[1] = (pairs[1][1], pairs[1][1])
    pairs[3] = pairs[2]
    pairs[5] = (pairs[4][0], _jpeg(pairs[4][1], 90))
    found = [(finding.kind, finding.files) for finding in _findings(pairs)]
    assert found == [
        ("constant", (INPUTS[0],)),
        ("equal", (INPUTS[1], GTS[1])),
        ("duplicate", (GTS[2], GTS[3])),
        ("duplicate", (INPUTS[4], INPUTS[5])),
        ("duplicate", (GTS[4], GTS[5])),
    ]


def test_several_inputs_of_one_gt_are_no_finding():
    pairs = _pairs(_noise)
    assert _findings([*pairs[:11], (_noise(pairs[0][1] * 0.999), pairs[0][1])]) == []


COPIES = {
    "mirrored": lambda image: image[:, ::-1],
    "turned": np.rot90,
    "jpeg": lambda image: _jpeg(image, 60),
    "smaller": lambda image: _resized(image, SIDE // 2, SIDE // 2),
    "brighter": lambda image: np.clip(1.1 * image, 0, 1),
    "noisy": _noise,
    "cut": lambda image: image[4:-5, 6:-3],
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_of_validation_images_in_training_are_found(copy):
    clean = [examine_pair(None, _cut(photo)) for photo in PHOTOS]
    copies = [examine_pair(None, np.ascontiguousarray(copy(_cut(photo)))) for photo in PHOTOS[:4]]
    found = find_leaks(clean, GTS, copies, ["a", "b", "c", "d"])
    expected = [("leak", files) for files in zip("abcd", GTS[:4], strict=True)]
    assert [(finding.kind, finding.files) for finding in found] == expected
    assert all("nearly the same picture" in finding.text for finding in found)


def test_exact_leaks_are_reported_as_such_and_other_pictures_are_not():
    clean = [examine_pair(None, _cut(photo)) for photo in PHOTOS]
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


def test_one_pair_is_measured():
    gt = _cut(PHOTOS[0])
    facts = examine_pair(gt + np.float32(0.01), gt)
    assert facts.psnr == pytest.approx(40, abs=0.01)
    assert facts.input_mean == pytest.approx(facts.gt_mean + 0.01, abs=1e-4)
    assert examine_pair(gt, gt).psnr == np.inf
    assert examine_pair(None, gt).gt_hash == facts.gt_hash != facts.input_hash
    assert np.isnan(examine_pair(None, gt).psnr)
    assert examine_pair(_resized(gt, 72, 72), gt, 2).psnr > 25
    examine_pair(gt[:16, :16, :1], gt[:16, :16, 1:2])  # the smallest that is compared


def test_the_contact_sheet_shows_findings_first_and_has_a_maximum_size():
    name = "a/long/folder/" + 90 * "x"
    rows = [SheetRow(name, _cut(photo), _cut(photo), 31.5) for photo in PHOTOS]
    small = SheetRow("gray.png", PHOTOS[0][:20, :30, :1], PHOTOS[0][:40, :60, :1], 30.0, ("shifted",))
    sheet = contact_sheet([*rows, *rows, *rows, small])
    assert sheet.size == contact_sheet([*rows, *rows]).size
    caption = np.asarray(sheet.crop((0, 0, 480, 18)), int)
    assert (caption[..., 0] - caption[..., 1]).max() > 100  # red
    assert contact_sheet([SheetRow("clean.png", None, PHOTOS[0])]).width < 300
