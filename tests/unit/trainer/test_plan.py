"""The rows of the plan that show how long a run is."""

import pytest

from accel_restore.data.batch_plan import BatchPlan, BatchSchedule
from accel_restore.trainer.plan import _length_rows

SMALL, LARGE = BatchPlan(61, 4, 2, 2, 0, 8), BatchPlan(61, 8, 1, 1, 0, 8)  # a global batch of 16, of 8


@pytest.mark.parametrize(
    ("schedule", "epochs", "rows"),
    [
        (BatchSchedule((LARGE,)), 3, {"samples per epoch": "61", "steps": "8 per epoch × 3 epochs = 24"}),
        (BatchSchedule((SMALL, LARGE), (1,)), 3, {"steps": "4 per epoch × 1 epoch + 8 per epoch × 2 epochs = 20"}),
        (
            BatchSchedule((LARGE,), (), 250, 1000),
            4,
            {
                "samples per epoch": "2000",
                "steps": "250 per epoch × 4 epochs = 1000",
                "passes": "131.15 over 61 samples, 32.79 per epoch",
            },
        ),
        (
            BatchSchedule((SMALL, LARGE), (1,), 100, 230),
            3,
            {
                "samples per epoch": "800",
                "steps": "100 per epoch × 2 epochs + 30 in the last = 230",
                "passes": "43.28 over 61 samples, 13.11 per epoch",
            },
        ),
        (
            BatchSchedule((LARGE,), (), 5000, 20),
            1,
            {"samples per epoch": "160", "steps": "20 per epoch × 1 epoch = 20"},
        ),
    ],
    ids=["passes", "stages", "steps", "stages of steps", "less than an epoch"],
)
def test_samples_steps_and_passes_add_up(schedule, epochs, rows):
    shown = dict(_length_rows(schedule, epochs))
    assert {key: shown[key] for key in rows} == rows
    assert ("passes" in shown) == (schedule.steps_per_epoch is not None)
