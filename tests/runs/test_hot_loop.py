"""A step waits for the device once, after `optimizer.step`, to check the gradient; a log line adds one wait."""

import json

import pytest
from forked import launch
from runs import make_photos, small_config, succeed


@pytest.mark.parametrize(("ranks", "every", "due"), [(1, 4, {12, 16}), (2, 4, {12, 16}), (1, 2, {10, 12, 14, 16})])
def test_a_step_waits_for_the_device_once(tmp_path, ranks, every, due):
    photos = make_photos(tmp_path / "train", 16), make_photos(tmp_path / "val", 1)
    config = small_config(
        *photos,
        tmp_path,
        data={"batch_size": 2 // ranks, "augment": []},  # on a CPU, crops are augmented with NumPy
        train={"epochs": 2, "max_grad_norm": 1.0, "ema_decay": 0.9, "ema_warmup": True},
        tracking={"wandb": "disabled", "log_every_steps": every},
    )
    file = tmp_path / "waits.json"
    succeed(launch(config, ranks=ranks, mode=f"waits={file}"))
    written = json.loads(file.read_text())
    assert len(written["before_step"]) >= 16 and not any(written["before_step"].values())
    counts = {int(step): count for step, count in written["all"].items()}
    counts.pop(17, None)  # after the last step, the mean of the epoch is read
    usual = 1 if ranks == 1 else 2  # several ranks also exchange stop requests, on the host
    assert all(counts[step] <= usual for step in set(range(9, 17)) - due)
    assert all(counts[step] == usual + 1 for step in due)
    assert counts[11] == usual
