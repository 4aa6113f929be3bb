"""Float pixels that do not suit `data.range` are found, and those that suit it are not."""

import numpy as np
import pytest
import tifffile
from image_files import photo, save
from pixel_kinds import cubes, floats

from accel_restore.config.data import Data
from accel_restore.data.decode import Cell, read_header
from accel_restore.data.scan import find_data
from accel_restore.data_check.colour_spaces import ColourSpace, read_colour_space
from accel_restore.data_check.float_ranges import find_in_range, find_unused_range, measure_floats
from accel_restore.data_check.survey import find_in_headers, find_in_values, survey


def findings(values: np.ndarray, range: tuple[float, float], is_input: bool = False) -> list[str]:
    low, high = range
    unit = ((values - low) / (high - low)).astype(np.float32)
    measured = [measure_floats(image, range) for image in unit]
    return [finding.text for finding in find_in_range("train.gt", ["a", "b"], measured, range, is_input)]


def spread(low: float, high: float) -> np.ndarray:
    return np.linspace([low, low], [high, high], 800).T.reshape(2, 20, 20, 2)


@pytest.mark.parametrize("is_input", [False, True])
def test_values_far_outside_are_found_with_the_farthest_file(is_input):
    values = spread(0, 1)
    values[1] *= 255
    [text] = findings(values, (0, 1), is_input)
    assert text.startswith("train.gt: float pixels are from 0 to 255, far outside of data.range [0, 1] (49.")
    assert "the farthest in b; set data.range=[0,255]" in text


def test_many_values_outside_of_the_range_are_found_in_gt_alone():
    [text] = findings(spread(-0.3, 1.3), (0, 1))
    assert "from -0.3 to 1.3, 37.5% outside of data.range [0, 1]; set data.range=[-0.3,1.3]" in text
    assert findings(spread(-0.3, 1.3), (0, 1), is_input=True) == []  # as noise makes them
    few = spread(0, 1)
    few[0, 0, 0] = 1.5
    assert findings(few, (0, 1)) == []  # highlights


def test_a_range_that_nothing_fills_is_found():
    [text] = findings(spread(0, 1), (0, 255))
    assert "fill 0.4% of data.range [0, 255], so PSNR is too high; set data.range=[0,1]" in text
    assert findings(spread(0, 70), (0, 255)) == []


def test_values_that_suit_the_range_and_integers_are_no_finding():
    assert findings(spread(-0.3, 2.2), (-0.3, 2.2)) == []
    assert find_in_range("train.gt", ["a"], [None], (0, 255)) == []


def test_a_range_without_floats_is_found():
    [finding] = find_unused_range(False, (0, 255))
    assert "data.range: is [0, 255], but no examined file has float pixels" in finding.text
    assert find_unused_range(True, (0, 255)) == find_unused_range(False, (0, 1)) == []


def surveyed(tmp_path, train: dict, **data):
    config = Data.model_validate({"train": train, "cache_dir": str(tmp_path / "cache"), "patch_size": 16, **data})
    found = find_data(config, 16)
    assert found.problems == []
    sets = {name: survey(one, config, None, lambda items, *_: items, name) for name, one in found.sets.items()}
    assert sum(len(part.pairs) for part in sets.values()) == 8  # none is left out
    return sets


def test_a_set_of_floats_is_surveyed_with_its_values(tmp_path):
    input, gt = floats(tmp_path, 8)
    parts = surveyed(tmp_path, {"input": str(input), "gt": str(gt)}, range=(-0.3, 2.2))
    for one, other in parts["train"].values:
        assert one.lowest < other.lowest == pytest.approx(-0.3, abs=1e-6) and other.outside == pytest.approx(
            0, abs=0.01
        )
    assert find_in_values(parts, (-0.3, 2.2)) == []
    texts = [finding.text for finding in find_in_values(parts, (0, 255))]
    assert [text.split(":")[0] for text in texts] == ["train.input", "train.gt", "val.input", "val.gt"]


def test_integers_against_floats_are_named_with_their_scales(tmp_path):
    _, gt = floats(tmp_path, 8)
    (tmp_path / "integers").mkdir()
    for file in gt.iterdir():
        save(tmp_path / "integers" / f"{file.stem}.png", photo(32, 32))
    parts = surveyed(tmp_path, {"input": str(tmp_path / "integers"), "gt": str(gt)}, range=(-0.3, 2.2))
    kinds = [finding for finding in find_in_headers(parts["train"]) if finding.kind == "depth"]
    assert "is 8-bit, its gt" in kinds[0].text and "floats are scaled from data.range to [0, 1]" in kinds[0].text


def test_numpy_files_of_many_channels_are_surveyed(tmp_path):
    folder = cubes(tmp_path / "cubes", 8)
    parts = surveyed(tmp_path, {"gt": str(folder)}, channels=31)
    assert find_in_headers(parts["train"]) == find_in_values(parts, (0, 1)) == []


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("shape", [(8, 8, 31), (8, 8, 3), (8, 8)])
def test_the_profile_of_a_tiff_that_pillow_does_not_know_is_read(bigtiff, shape, tmp_path, caplog):
    colours = "rgb" if shape[-1] == 3 else "minisblack"
    more = {"photometric": colours, "bigtiff": bigtiff} | ({"planarconfig": "contig"} if len(shape) == 3 else {})
    for name, profile in (("a", None), ("b", b"no profile" * 20)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros(shape, np.float16), iccprofile=profile, **more)
        found = read_colour_space(tmp_path / f"{name}.tif")
        assert found == (ColourSpace() if profile is None else ColourSpace("that cannot be read", profile))
    assert caplog.messages == [] and read_header(tmp_path / "a.tif").dtype == np.float16
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    assert read_colour_space(tmp_path / "a.npy") == read_colour_space(Cell("a", "a", lambda: photo())) == ColourSpace()
