"""Which epochs have a validation picture."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from accel_restore.callbacks import pictures
from accel_restore.callbacks.pictures import ValidationPictures


@pytest.fixture
def drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "gather_object", lambda items: items)
    tiles = [(name, np.zeros((8, 8, 3), np.uint8)) for name in ("input", "output", "gt")]
    log = SimpleNamespace(folder=tmp_path, tolerating_full_disks=nullcontext)
    main = SimpleNamespace(is_main_process=True)
    return ValidationPictures(log, SimpleNamespace(tiles=lambda: {0: tiles}), main, epochs=100)


def _run(drawing, epochs, best):
    for epoch in epochs:
        drawing.on_epoch(SimpleNamespace(epochs=100), SimpleNamespace(epoch=epoch, scores=1.0, is_best=epoch in best))
    drawing.on_exit(None, None)


def _best(folder):
    return [path.name for path in folder.glob("samples/best-*")]


def test_the_best_epoch_has_a_picture_that_replaces_the_former_one(drawing, tmp_path):
    _run(drawing, range(8), best={0, 3, 7})
    assert _best(tmp_path) == ["best-epoch-0007.png"]
    assert (tmp_path / "samples" / "epoch-0005.png").exists(), "every fifth epoch of 100 has one too"
    _run(drawing, range(8, 10), best={9})
    assert _best(tmp_path) == ["best-epoch-0009.png"]


def test_a_best_epoch_with_a_regular_picture_needs_no_other(drawing, tmp_path):
    _run(drawing, range(8), best={3, 5})
    assert _best(tmp_path) == []


def test_a_best_epoch_is_drawn_before_the_run_ends_once_some_time_has_passed(drawing, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_BEST_SECONDS", 0.0)
    drawing.on_epoch(SimpleNamespace(epochs=100), SimpleNamespace(epoch=0, scores=1.0, is_best=True))
    drawing.on_epoch(SimpleNamespace(epochs=100), SimpleNamespace(epoch=1, scores=1.0, is_best=True))
    assert _best(tmp_path) == ["best-epoch-0001.png"]
