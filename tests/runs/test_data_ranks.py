"""Data on several ranks: 16-bit super-resolution pairs, and unusable data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from forked import launch
from image_files import make_unusable, save_deep_png
from PIL import Image
from runs import last_weights, make_photos, samples_per_step, small_config, succeed

from accel_restore.data.cache_folder import list_stores


def enlarged_pairs(base: Path) -> dict[str, str]:
    """Inputs of at least 16 x 16, gt twice as large; one gt has 16 bits."""
    small = make_photos(base / "small", 7, least=16)
    (base / "large").mkdir()
    for number, path in enumerate(sorted(small.iterdir())):
        image = Image.open(path)
        pixels = np.asarray(image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS))
        if number == 3:
            save_deep_png(base / "large" / path.name, pixels.astype(np.uint16) * 257 - 100 * (pixels > 0))
        else:
            Image.fromarray(pixels).save(base / "large" / path.name)
    return {"input": str(small), "gt": str(base / "large")}


def test_super_resolution_pairs_give_the_same_run_on_two_ranks(tmp_path):
    source, runs = enlarged_pairs(tmp_path), {}
    for ranks in (1, 2):
        config = small_config(
            Path(), Path(), tmp_path / "out",
            run={"name": f"ranks{ranks}"},
            data={"train": source, "val": None, "scale": 2, "batch_size": 2, "crops_per_image": 3,
                  "num_threads": ranks},
            train={"global_batch_size": 4},
        )  # fmt: skip
        succeed(launch(config, "--audit", ranks=ranks, mode="float64"))
        runs[ranks] = samples_per_step(config), last_weights(config)
    assert runs[1][0] == runs[2][0] and len(runs[1][0]) == 10
    for name, tensor in runs[1][1].items():
        torch.testing.assert_close(tensor, runs[2][1][name], rtol=0, atol=1e-9)
    # Two train stores; the held-out images are in the same stores.
    assert sorted(store.description["bits"] for store in list_stores(tmp_path / "out" / "cache")) == [8, 16]


@pytest.mark.parametrize("machines", [1, 2])
def test_one_rank_of_each_machine_searches_for_the_images(machines, tmp_path):
    photos = make_photos(tmp_path / "photos", 5)
    config = small_config(photos, photos, tmp_path / "out", data={"cache": {"trust_folders": True}})
    stdout = succeed(launch(config, ranks=2, mode=f"searches:{machines}")).stdout
    found = [(rank, key) for rank in (0, 1) for key in ("train", "val") if f"rank {rank} searches data.{key}" in stdout]
    assert found == [(rank, key) for rank in range(machines) for key in ("train", "val")]


@pytest.mark.parametrize("problem", ["damaged", "other images"])
def test_unusable_data_stop_two_ranks_with_one_message(problem, tmp_path):
    photos = make_photos(tmp_path / "photos", 5)
    config = small_config(photos, photos, tmp_path / "out")
    if problem == "damaged":
        make_unusable("truncated", photos / "photo002.png")
        process = launch(config, ranks=2)
        assert "photo002.png: is damaged" in process.stderr
        assert process.stdout.count("decoding 5 images, once") == 1
    else:
        process = launch(config, ranks=2, mode="blind:1")
        assert "rank 1 sees other images than rank 0" in process.stderr
    assert process.returncode != 0 and process.stderr.count("accel-restore: ") == 1
    assert not (tmp_path / "out" / "small").exists()
