"""Float pixels and many channels in the rows of data sets, and in training sets of unlike kinds."""

import datasets
import numpy as np
import pytest
from image_files import photo, save
from pixel_kinds import cubes, floats

from accel_restore.config.data import Data
from accel_restore.config.sets import Source
from accel_restore.data.build import degradations_of
from accel_restore.data.decode import read_header, read_image
from accel_restore.data.hf_datasets import find_rows
from accel_restore.data.scan import find_data


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["float16", "float32", "uint16"])
@pytest.mark.parametrize("channels", [1, 3, 31])
def test_rows_of_arrays_and_lists_give_their_pixels(kind, channels):
    pixels = (np.random.default_rng(0).random((2, 6, 5, channels)) * 2.5 - 0.3).astype("float32")
    pixels = (pixels if kind != "uint16" else (pixels + 0.3) * 20000).astype(kind)
    lists = datasets.List(datasets.List(datasets.List(datasets.Value(kind))))
    for feature in (datasets.Array3D((6, 5, channels), kind), lists):
        features = datasets.Features({"clean": feature})
        rows = datasets.Dataset.from_dict({"clean": [image.tolist() for image in pixels]}, features=features)
        pairs, problems = find_rows(Source(dataset=rows, gt="clean"), "data.train")
        assert not problems
        for pair, image in zip(pairs, pixels, strict=True):
            assert read_header(pair.gt).dtype == kind
            np.testing.assert_array_equal(read_image(pair.gt, channels), image)


def test_doubles_in_rows_are_refused_with_what_is_needed():
    rows = datasets.Dataset.from_dict({"clean": [[[0.5]]]})
    _, [problem] = find_rows(Source(dataset=rows, gt="clean"), "data.train")
    assert "pixels of uint8, uint16, float16 or float32" in problem


def test_a_source_of_integers_next_to_one_of_floats_keeps_both_kinds(tmp_path):
    _, gt = floats(tmp_path / "floats", 3)
    for number in range(3):
        save(tmp_path / "integers" / f"{number}.png", photo(32, 32, number))
    train = {"floats": {"gt": str(gt)}, "integers": {"gt": str(tmp_path / "integers")}}
    more = {"patch_size": 16, "range": (-0.3, 2.2), "cache_dir": str(tmp_path / "cache")}
    config = Data.model_validate({"train": train, "val": {"gt": str(gt)}, **more})
    found = find_data(config, 16)
    assert found.problems == [] and degradations_of(config)
    kinds = {name: str(one.stored.gt.dtype) for name, one in found.train.items()}
    assert kinds == {"floats": "float32", "integers": "uint8"}
    assert found.train["floats"].images.gt.values == pytest.approx((-0.3, 2.2), abs=1e-6)


def test_half_the_bytes_of_float16(tmp_path):
    sizes = []
    for kind in ("float16", "float32"):
        folder = cubes(tmp_path / kind, 3, dtype=kind)
        config = Data.model_validate(
            {"train": {"gt": str(folder)}, "channels": 31, "patch_size": 16, "cache_dir": str(tmp_path / "cache")}
        )
        sizes.append(find_data(config, 16).train[""].stored.gt.nbytes)
    assert 2 * sizes[0] == sizes[1]
