"""The callback that ends a run whose monitored value no longer improves."""

from typing import Any

from accel_restore.state import Callback, EpochRecord, TrainState
from accel_restore.utils.words import counted


class EarlyStopping(Callback):
    """Stops the run after `patience` validations in a row without a better monitored value; NaN is not better."""

    def __init__(self, patience: int, monitor: str = "loss"):
        """`monitor` is `validation.monitor`, for the message."""
        self.patience, self.monitor = patience, monitor
        self.num_worse = 0  # validations in a row without a better value

    def on_epoch(self, state: TrainState, record: EpochRecord) -> None:
        if record.scores is None:
            return
        self.num_worse = 0 if record.is_best else self.num_worse + 1
        if self.num_worse >= self.patience:
            best = f"best in epoch {state.best['epoch'] + 1}" if state.best is not None else "it was always NaN or inf"
            state.stop(
                f"early stopping: val_{self.monitor} has not improved for {counted(self.num_worse, 'validation')} "
                f"({best})"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"num_worse": self.num_worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_worse = state["num_worse"]
