"""Training from Python: `accel_restore.fit` in this process."""

import json

from runs import make_photos, small_config

from accel_restore import fit


def test_runs_in_one_process_may_use_different_precisions(tmp_path):
    photos, val = make_photos(tmp_path / "photos", 4), make_photos(tmp_path / "val", 2, seed=1)
    for precision in ("no", "bf16"):
        config = small_config(photos, val, tmp_path, run={"name": precision}, train={"epochs": 1})
        plan = json.loads((fit(config, f"train.mixed_precision={precision}", cpu=True) / "plan.json").read_text())
        assert dict(plan["plan"])["precision"] == precision
