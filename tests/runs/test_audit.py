"""`--audit` on real runs: the table of a correct run, and deliberate violations that must fail."""

import json

import forked
import pytest
from runs import audit_events, run_folder, small_config, succeed

PHOTOS = 20, 3  # training, validation


def test_audit_table_of_two_ranks_with_accumulation_is_correct(photos, tmp_path):
    config = small_config(
        *photos, tmp_path, data={"batch_size": 2}, train={"epochs": 2, "gradient_accumulation_steps": 2}
    )
    process = succeed(forked.launch(config, "--audit", ranks=2))
    audit = json.loads((run_folder(config) / "audit.json").read_text())
    assert audit["ok"] and audit["ranks"] == 2 and audit["epochs"] == 2
    counts = {
        row["operation"]: (row["calls"], row["calls_per_epoch"], row["weights_changed"], row["lr_changed"])
        for row in audit["table"]
    }
    # Each epoch has steps of 8, 8 and 4 samples. The last takes one micro-batch, so 3 steps need 5 backwards.
    assert counts == {
        "zero_grad": (6, 3, 0, 0),
        "accelerator.backward": (10, 5, 0, 0),
        "optimizer.step": (6, 3, 6, 0),
        "scheduler.step": (2, 1, 0, 2),
        "validate": (2, 1, 0, 0),
    }
    for name in counts:
        assert name in process.stdout
    for events in audit_events(config):
        order = [event["op"] for event in events if event["epoch"] == 0]
        steps = [op for n in (2, 2, 1) for op in ("zero_grad", *["backward"] * n, "optimizer_step")]
        assert order == [*steps, "validate", "scheduler_step"]


@pytest.mark.parametrize(
    ("mode", "ranks", "said"),
    [
        ("weights_outside_step", 1, "weights changed before zero_grad, outside optimizer.step"),
        ("scheduler_per_batch", 1, "scheduler.step ran more than once in this epoch"),
        ("perturbed_rank", 2, "ranks 0 and 1 hold different weights"),
    ],
)
def test_a_violation_makes_the_audit_fail(photos, tmp_path, mode, ranks, said):
    config = small_config(*photos, tmp_path, data={"batch_size": 4}, train={"epochs": 1})
    process = forked.launch(config, "--audit", ranks=ranks, mode=mode)
    assert process.returncode == 1
    assert said in process.stderr
    audit = json.loads((run_folder(config) / "audit.json").read_text())
    assert not audit["ok"] and any(said in violation for violation in audit["violations"])
    assert json.loads((run_folder(config) / "status.json").read_text())["state"] == "failed"
