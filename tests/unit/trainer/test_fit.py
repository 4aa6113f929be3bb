"""Training from Python leaves the caller's process unchanged."""

import io
import sys
import warnings

import pytest

from accel_restore import fit
from accel_restore.errors import UserError
from accel_restore.tracking.console import Console
from accel_restore.trainer import run as session


def test_stdout_and_warning_filters_are_restored(monkeypatch):
    seen = []

    def train(*_: object, **__: object) -> None:
        Console(True)
        warnings.simplefilter("ignore")
        seen.append((sys.stdout.errors, list(warnings.filters)))
        raise UserError("the data cannot be used")

    monkeypatch.setattr(session, "run_training", train)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict"))
    before = list(warnings.filters)
    with pytest.raises(UserError):
        fit({"data": {"train": {"gt": "photos"}}})
    [(errors, filters)] = seen
    assert filters != before, "the control: training changes them"
    assert errors == sys.stdout.errors == "strict" and warnings.filters == before
