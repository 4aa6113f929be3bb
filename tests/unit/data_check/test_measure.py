"""`accel-restore check` finds faults planted among real photographs, and finds none without them."""

import numpy as np
import pytest
import scipy
from measured_photos import GTS, INPUTS, PHOTOS, SIDE, blurred, cut, jpeg, noisy, resized, rounded

from accel_restore.data_check.contact_sheet import SheetRow, contact_sheet
from accel_restore.data_check.findings import find_in_set, outliers
from accel_restore.data_check.measure import examine_pair


def _dark(image: np.ndarray) -> np.ndarray:
    return noisy(0.2 * image**1.5, 2)


DAMAGES = {"noise": noisy, "strong noise": lambda image: noisy(image, 50), "blur": blurred, "jpeg": jpeg, "dark": _dark}

EXCHANGED = {
    "blur": blurred,
    "strong blur": lambda image: rounded(scipy.ndimage.gaussian_filter(image, (3, 3, 0))),
    "motion blur": lambda image: rounded(scipy.ndimage.uniform_filter1d(image, 9, axis=1)),
    "blur and noise": lambda image: noisy(blurred(image), 15),
    "weak noise": lambda image: noisy(image, 8),
    "noise": noisy,
    "strong noise": lambda image: noisy(image, 50),
    "jpeg 10": jpeg,
    "jpeg 60": lambda image: jpeg(image, 60),
    "halved and enlarged": lambda image: resized(resized(image, 88, 88), 176, 176),
}
ENHANCED = {  # gts made of the inputs by other means than blur, noise and compression
    "brighter": lambda image: rounded(0.1 + 0.8 * np.sqrt(image)),
    "contrast": lambda image: rounded(1.3 * image - 0.1),
    "warmer": lambda image: rounded(image * np.array([1.2, 1.0, 0.8], np.float32)),
    "sharper": lambda image: rounded(2 * image - blurred(image)),
    "median": lambda image: scipy.ndimage.median_filter(image, (3, 3, 1)),
}


def _pairs(damage) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(cut(damage(photo)), cut(photo)) for photo in PHOTOS]


def _findings(pairs: list, scale: int = 1) -> list:
    return find_in_set([examine_pair(*pair, scale) for pair in pairs], GTS[: len(pairs)], INPUTS[: len(pairs)])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_set_without_faults_has_no_findings(damage):
    assert _findings(_pairs(damage)) == []


@pytest.mark.parametrize("damage", [noisy, blurred, jpeg, _dark])
@pytest.mark.parametrize("shift", [(0, 1), (2, -1), (-8, 0), (16, -16)])
def test_a_shift_is_measured(damage, shift):
    photo = PHOTOS[0]
    facts = examine_pair(cut(damage(photo), *shift), cut(photo))
    assert facts.shift == shift
    assert facts.gain > 0.5
    assert np.allclose(facts.offset, shift, atol=0.2)


def test_a_shifted_pair_is_reported_with_its_gain():
    pairs = _pairs(noisy)
    pairs[3] = (cut(noisy(PHOTOS[3]), 3, 0), pairs[3][1])
    (finding,) = _findings(pairs)
    assert (finding.kind, finding.files) == ("shifted", (INPUTS[3], GTS[3]))
    assert "input/03.png: shifted by (3, 0) pixels (down, right) against gt/03.png; alignment would" in finding.text


def test_flat_and_periodic_images_are_not_shifted():
    stripes = np.tile(0.5 + 0.4 * np.sin(np.arange(144) * np.pi / 4), (144, 1)).astype(np.float32)[..., None]
    for image in (np.full((144, 144, 3), 0.5, np.float32), np.repeat(stripes, 3, axis=2)):
        for sigma in (5, 50):
            assert examine_pair(noisy(image, sigma), image).shift == (0, 0)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_shift_of_the_whole_set_is_one_finding(scale):
    small = [(resized(cut, SIDE // scale, SIDE // scale), cut) for _, cut in _pairs(noisy)]
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
    (finding,) = _findings([pair[::-1] for pair in _pairs(noisy)])
    assert (finding.kind, finding.files) == ("swapped", ())


@pytest.mark.parametrize("damage", EXCHANGED.values(), ids=EXCHANGED)
def test_an_exchanged_set_is_one_finding_and_the_right_order_is_none(damage):
    pairs = [(damage(rounded(photo)), rounded(photo)) for photo in PHOTOS]
    assert [finding.kind for finding in _findings(pairs)] == []
    (finding,) = _findings([pair[::-1] for pair in pairs])
    assert (finding.kind, finding.files) == ("swapped", ())
    assert "--picture" in finding.text


@pytest.mark.parametrize("enhance", ENHANCED.values(), ids=ENHANCED)
def test_enhanced_gts_are_not_taken_for_exchanged(enhance):
    pairs = [(rounded(photo), enhance(rounded(photo))) for photo in PHOTOS]
    assert [finding for finding in _findings(pairs) if finding.kind == "swapped"] == []


def test_gray_gts_among_colour_are_named():
    pairs = _pairs(noisy)
    for place in (2, 6):
        gt = np.repeat(pairs[place][1].mean(2, keepdims=True), 3, axis=2)
        pairs[place] = (noisy(gt), gt)
    (finding,) = _findings(pairs)
    assert (finding.kind, finding.files) == ("gray", (GTS[2], GTS[6]))
    assert f"2 of {len(PHOTOS)} gts are gray" in finding.text
    clean = find_in_set([examine_pair(None, gt) for _, gt in pairs], GTS)
    assert [(finding.kind, finding.files) for finding in clean] == [("gray", (GTS[2], GTS[6]))]


def test_wrong_partners_and_mirrored_inputs_are_reported():
    pairs = _pairs(noisy)
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
    pairs = _pairs(lambda photo: noisy(photo, 10))
    pairs[4] = (noisy(pairs[4][1], 60), pairs[4][1])
    assert [(finding.kind, finding.files) for finding in _findings(pairs)] == [("outlier", (INPUTS[4], GTS[4]))]


def test_constant_equal_and_duplicate_pairs_are_reported():
    pairs = _pairs(noisy)
    pairs[0] = (np.zeros_like(pairs[0][1]), pairs[0][1])
    pairs[1] = (pairs[1][1], pairs[1][1])
    pairs[3] = pairs[2]
    pairs[5] = (pairs[4][0], jpeg(pairs[4][1], 90))
    found = [(finding.kind, finding.files) for finding in _findings(pairs)]
    assert found == [
        ("constant", (INPUTS[0],)),
        ("equal", (INPUTS[1], GTS[1])),
        ("duplicate", (GTS[2], GTS[3])),
        ("duplicate", (INPUTS[4], INPUTS[5])),
        ("duplicate", (GTS[4], GTS[5])),
    ]


def test_several_inputs_of_one_gt_are_no_finding():
    pairs = _pairs(noisy)
    assert _findings([*pairs[:11], (noisy(pairs[0][1] * 0.999), pairs[0][1])]) == []


def test_one_pair_is_measured():
    gt = cut(PHOTOS[0])
    facts = examine_pair(gt + np.float32(0.01), gt)
    assert facts.psnr == pytest.approx(40, abs=0.01)
    assert facts.input_mean == pytest.approx(facts.gt_mean + 0.01, abs=1e-4)
    assert examine_pair(gt, gt).psnr == np.inf
    assert examine_pair(None, gt).gt_hash == facts.gt_hash != facts.input_hash
    assert np.isnan(examine_pair(None, gt).psnr)
    assert examine_pair(resized(gt, 72, 72), gt, 2).psnr > 25
    examine_pair(gt[:16, :16, :1], gt[:16, :16, 1:2])  # the smallest that is compared


def test_the_contact_sheet_shows_findings_first_and_has_a_maximum_size():
    name = "a/long/folder/" + 90 * "x"
    rows = [SheetRow(name, cut(photo), cut(photo), 31.5) for photo in PHOTOS]
    small = SheetRow("gray.png", PHOTOS[0][:20, :30, :1], PHOTOS[0][:40, :60, :1], 30.0, ("shifted",))
    sheet = contact_sheet([*rows, *rows, *rows, small])
    assert sheet.size == contact_sheet([*rows, *rows]).size
    caption = np.asarray(sheet.crop((0, 0, 480, 18)), int)
    assert (caption[..., 0] - caption[..., 1]).max() > 100  # red
    assert contact_sheet([SheetRow("clean.png", None, PHOTOS[0])]).width < 300
