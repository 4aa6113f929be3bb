"""Every kind of data source gives the same run."""

import subprocess
import sys
from pathlib import Path

import datasets
import forked
import numpy as np
import pytest
import safetensors.torch
from PIL import Image
from runs import clean_environment, last_weights, launch, make_photos, run_folder, small_config, succeed


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, dict]:
    """Return the same pairs as folders, as a Parquet file, and as a `save_to_disk` folder with its rows in another
    order."""
    base = tmp_path_factory.mktemp("kinds")
    gt, noisy = make_photos(base / "gt", 7), base / "noisy"
    noisy.mkdir()
    random = np.random.default_rng(1)
    for path in gt.iterdir():
        pixels = np.asarray(Image.open(path)) + random.normal(0, 20, (1,))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(noisy / path.name)
    names = [f"photo{number:03d}.png" for number in (3, 0, 6, 1, 5, 2, 4)]

    def cells(folder: Path) -> list[dict]:
        return [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]

    features = datasets.Features({"clean": datasets.Image(), "noisy": datasets.Image()})
    rows = datasets.Dataset.from_dict({"clean": cells(gt), "noisy": cells(noisy)}, features=features)
    rows.to_parquet(base / "rows.parquet")
    rows.save_to_disk(base / "saved")
    columns = {"input": "noisy", "gt": "clean"}
    return {
        "folders": {"input": str(noisy), "gt": str(gt)},
        "parquet": {"dataset": str(base / "rows.parquet"), **columns},
        "saved": {"dataset": str(base / "saved"), **columns},
    }


FIT = """
import sys, yaml, datasets
import accel_restore
config = yaml.safe_load(open(sys.argv[1]))
config["data"]["train"]["dataset"] = datasets.load_from_disk(config["data"]["train"]["dataset"])
folder = accel_restore.fit(config, "run.name=object", cpu=True)
print(folder, accel_restore.load(folder / "best.safetensors").channels)
"""


def test_folders_parquet_saved_rows_and_an_object_give_the_same_run(kinds, tmp_path):
    def config_of(name: str, source: dict, seed: int = 7) -> dict:
        run, data = {"name": name, "seed": seed}, {"train": source, "val": None}
        return small_config(Path(), Path(), tmp_path / "runs", run=run, data=data)

    weights = {}
    for kind, source in kinds.items():
        config = config_of(kind, source)
        if kind == "parquet":  # it is converted in a folder that `datasets` chooses at import
            succeed(launch(config, env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}))
        else:
            succeed(forked.launch(config))
        weights[kind] = last_weights(config)
    file = tmp_path / "runs" / "saved.yaml"
    process = subprocess.run(
        [sys.executable, "-c", FIT, str(file)], capture_output=True, text=True, env=clean_environment()
    )
    assert succeed(process).stdout.endswith(f"{tmp_path}/runs/object 3\n")
    weights["object"] = last_weights({"run": {"name": "object", "dir": str(tmp_path / "runs")}})
    for kind, others in weights.items():
        assert all(tensor.equal(others[name]) for name, tensor in weights["folders"].items()), kind
    other = config_of("seed", kinds["folders"], 8)
    succeed(forked.launch(other))  # control
    assert not all(tensor.equal(last_weights(other)[name]) for name, tensor in weights["folders"].items())
    assert "<Dataset of 7 rows" in (tmp_path / "runs" / "object" / "config.yaml").read_text()
    best = safetensors.torch.load_file(run_folder(config) / "best.safetensors")
    assert best.keys() == weights["saved"].keys()
