"""Training with either codec of the cache is bit-identical; a damaged store ends a run with a remedy."""

from pathlib import Path

import forked
import numpy as np
import pytest
from image_files import save_deep_png
from PIL import Image
from runs import epochs_of, last_weights, make_photos, small_config

from accel_restore.data.cache_folder import list_stores


def sources(kind: str, base: Path) -> tuple[dict, dict, dict]:
    """Return training and validation source, and further keys of `data`, for pixels of a kind."""
    folders = make_photos(base / "train", 5, least=24, most=200), make_photos(base / "val", 2, seed=1)
    if kind in ("8 bits", "gray"):
        return *({"gt": str(folder)} for folder in folders), {"channels": 1 if kind == "gray" else 3}
    for number, path in enumerate(sorted(path for folder in folders for path in folder.iterdir())):
        pixels = np.asarray(Image.open(path))
        if kind == "16 bits" and number % 2:
            save_deep_png(path, pixels.astype(np.uint16) * 250 + 7)
        elif kind != "16 bits":
            wide = np.concatenate([pixels, pixels[..., :2]], axis=2)
            np.save(path.with_suffix(".npy"), wide if kind == "5 channels" else wide[..., :3].astype(np.float32) / 200)
            path.unlink()
    return *({"gt": str(folder)} for folder in folders), {"channels": 5 if kind == "5 channels" else 3}


@pytest.mark.parametrize("kind", ["8 bits", "gray", "16 bits", "5 channels", "floats"])
def test_training_is_bit_identical_with_either_codec(kind, tmp_path):
    train, val, more = sources(kind, tmp_path)
    runs = {}
    for codec in ("raw", "compact"):
        config = small_config(
            Path(), Path(), tmp_path / "out",
            run={"name": codec},
            data={"train": train, "val": val, "cache": {"codec": codec}, "batch_size": 2, **more},
        )  # fmt: skip
        assert forked.run(config) == [0], forked.printed(config)
        runs[codec] = last_weights(config), [(line["train_loss"], line["val_psnr"]) for line in epochs_of(config)]
    (weights, scores), (others, other_scores) = runs.values()
    assert scores == other_scores and all((weights[name] == others[name]).all() for name in weights)
    stores = [store.description["codec"] for store in list_stores(tmp_path / "out" / "cache")]
    assert sorted(stores) == ["compact"] * 2 + ["raw"] * 2


def test_a_run_continues_bit_identically_with_the_other_codec(tmp_path):
    train, val, _ = sources("8 bits", tmp_path)
    weights = []
    for name, parts in (("whole", ["train.epochs=2"]), ("continued", ["train.epochs=1", "train.epochs=2"])):
        config = small_config(
            Path(), Path(), tmp_path / "out",
            run={"name": name, "resume": "auto"},
            data={"train": train, "val": val, "batch_size": 2},
            scheduler={"name": "constant"},
        )  # fmt: skip
        for part, codec in zip(parts, ("raw", "compact"), strict=False):
            assert forked.run(config, part, f"data.cache.codec={codec}") == [0], forked.printed(config)
        weights.append(last_weights(config))
    assert len(list_stores(tmp_path / "out" / "cache")) == 4
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_damaged_compact_store_ends_the_run_with_a_remedy(tmp_path):
    train, val, _ = sources("8 bits", tmp_path)
    data = {"train": train, "val": val, "batch_size": 2, "cache": {"codec": "compact"}}
    config = small_config(Path(), Path(), tmp_path / "out", data=data)
    assert forked.run(config) == [0], forked.printed(config)
    for path in (tmp_path / "out" / "cache").glob("*.arrow"):
        content = bytearray(path.read_bytes())
        content[2000::50] = bytes(len(content[2000::50]))  # behind the schema
        path.write_bytes(content)
    process = forked.launch(config, "--overwrite")
    said = process.stdout + (process.stderr or "")
    assert process.returncode == 2 and "accel-restore cache delete" in said and "Traceback" not in said, said
